//! CPU kernels of the training hot path, NHWC, plain slices in and out, a slow reference beside each.

mod act;
mod conv;
mod isa;
mod map;
pub mod reference;
mod simple;

pub use conv::{
    ConvShape, Epilogue, Packed, conv_backward_bias, conv_backward_input, conv_backward_weight, conv_forward,
};
pub use isa::Isa;
pub use map::{Layout, View, ViewMut};
pub use simple::*;
