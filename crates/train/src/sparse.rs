//! Sparse training of batch-norm scales.
