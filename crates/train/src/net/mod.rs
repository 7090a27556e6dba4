//! The executor: runs a [`graph::Graph`] forward and backward on the CPU kernels.
//!
//! [`plan`] turns a graph into steps and decides where every feature map lies, so that concat and slice cost nothing;
//! [`TrainNet`] keeps what the backward pass needs, [`Infer`] folds BatchNorm and forgets maps early. Whatever trains on another device
//! replaces these two; calibration, reconstruction and Muon call kernels themselves.

mod buffer;
mod clock;
mod forget;
mod infer;
mod plan;
mod train;

pub(crate) use buffer::{Buffer, Pool};
pub use clock::{Spent, Work};
pub use infer::Infer;
pub(crate) use infer::{load_images, run_plain, tapped};
pub use kernels::Isa;
pub(crate) use plan::{Kind, conv_shape};
pub use train::{BnUpdate, TrainNet, bytes_an_image};

/// One raw map that enters the head: (N, H, W, C), dense.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadMap {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub data: Vec<f32>,
}
