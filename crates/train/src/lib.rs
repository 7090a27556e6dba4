//! Training: the executor, losses, optimisers, sparse training, healing.

mod gradients;

pub use gradients::Gradients;
