//! Training: the executor, losses, optimisers, sparse training, healing.

pub mod ema;
mod gradients;
mod head;
pub mod loss;
pub mod metrics_csv;
pub mod net;
pub mod optim;
pub mod schedule;
pub mod sparse;

pub use gradients::Gradients;
pub use head::fit_classes;
