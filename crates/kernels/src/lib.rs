//! CPU kernels of the training hot path, NHWC, plain slices in and out, a slow reference beside each.

mod map;
pub mod reference;
mod simple;

pub use map::{Layout, View, ViewMut};
pub use simple::*;
