//! From head outputs to numbers: decoding, non-maximum suppression, COCO and VOC average precision.
//!
//! ```text
//! raw maps -> decode -> Predictions -> nms -> [Detection] -> coco | voc -> average precision
//!        \________ detect: the same in one pass _______/
//! ```
//!
//! Nothing here reads or writes files, and no result depends on time or on the number of threads.

pub mod coco;
mod decode;
mod error;
mod nms;
mod predictions;
pub mod voc;

pub use decode::{RawMap, decode, detect};
pub use error::{Error, Result};
pub use nms::{Detection, NmsConfig, nms};
pub use predictions::{Layout, Predictions, candidates_from_rows};
