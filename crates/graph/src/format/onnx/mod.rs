//! ONNX: [`export`] writes a detector with its decoding as one network, `import` reads one back, [`read_metadata`] reads
//! what such a file says of itself.

mod export;
mod head;
mod import;
mod metadata;
mod proto;
mod quant;
mod wire;
mod writer;

pub use export::{ExportOptions, export, export_maps, export_quantized};
pub(in crate::format) use import::load;
pub use metadata::{Metadata, read_metadata};

/// Name of the exported network's input: (N, 3, H, W), RGB in 0..1.
pub const INPUT: &str = "images";
/// The first opset whose `Softmax` works along one axis and whose `ReduceSum` takes its axes as an input.
const OPSET: i64 = 13;
/// Name of its output, see [`export`].
pub const OUTPUT: &str = "output0";
/// Name of the output with the prototypes of masks, see [`export`].
pub const PROTOTYPES: &str = "output1";

#[cfg(test)]
mod tests;
