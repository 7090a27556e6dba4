//! What a detector is: one [`Graph`] of nodes with shapes, weights and cost, whatever file it came from.
//!
//! ```text
//! format::load(path) -> Graph -> (train | prune | eval) -> format::save / export
//! ```
//!
//! A graph is a list of [`Node`]s in topological order. Every node has one output, a feature map of shape
//! (N, C, H, W); the [`Head`] node at the end receives the raw maps a detector is decoded from. Weights live inside
//! the ops that own them, in PyTorch's layout.

pub mod build;
pub mod cost;
mod error;
pub mod format;
mod graph;
mod inference;
mod op;
pub mod quant;
pub mod reference;
mod residual;
mod tensor;
mod union_find;

pub use error::{Error, Result};
pub use graph::{Family, Graph, MAX_IMGSZ, Meta, Node, NodeId, Shape};
pub use op::{
    Act, AnchorHead, AnchorLevel, Attention, BatchNorm, BoxDecode, Conv, DflHead, Extra, Head, MaxPool, Op, YoloxHead,
};
pub use residual::Branch;
pub use tensor::Tensor;
pub use union_find::UnionFind;
