//! CPU kernels of the training hot path, NHWC, plain slices in and out, a slow reference beside each.

mod act;
mod attention;
mod conv;
mod isa;
mod map;
mod norm;
mod pointwise;
mod pool;
pub mod reference;
mod shuffle;
mod vectors;

pub use attention::{attention_backward, attention_forward};
pub use conv::{
    ConvShape, Epilogue, Packed, conv_backward_bias, conv_backward_input, conv_backward_weight, conv_forward, directly,
};
pub use isa::Isa;
pub use map::{Layout, View, ViewMut};
pub use norm::{BatchStats, BnAct, batch_stats, bn_act_backward, bn_act_forward};
pub use pointwise::{act_backward, act_forward, add, copy, upsample_backward, upsample_forward};
pub use pool::{Pool, max_pool_backward, max_pool_forward};
pub use shuffle::{shuffle_backward, shuffle_forward};
