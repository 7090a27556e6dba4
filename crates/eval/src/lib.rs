//! From head outputs to numbers: decoding, non-maximum suppression, COCO and VOC average precision.
