//! ONNX: [`export`] writes a detector with its decoding as one network, [`read_metadata`] reads what such a file says of
//! itself.

mod export;
mod head;
mod metadata;
mod proto;
mod writer;

pub use export::{ExportOptions, export};
pub use metadata::{Metadata, read_metadata};

/// Name of the exported network's input: (N, 3, H, W), RGB in 0..1.
pub const INPUT: &str = "images";
/// Name of its output, see [`export`].
pub const OUTPUT: &str = "output0";

#[cfg(test)]
mod tests;
