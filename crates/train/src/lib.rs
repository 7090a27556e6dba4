//! Training, and all else that runs a detector to change its weights: healing, reconstruction, eight bits.
//!
//! [`train`] is the loop; [`net`] runs a graph forward and backward, [`loss`] says how wrong its maps are, [`optim`] moves
//! the weights, [`sparse`] presses BatchNorm scales to zero, [`calibrate`] measures what stage 2 needs, [`reconstruct`] refits what a cut
//! leaves, [`unfold`] gives back folded BatchNorm, [`quantize`] makes bytes of weights and maps.

pub mod calibrate;
mod checkpoint;
pub mod ema;
mod error;
pub mod evaluate;
mod gradients;
mod head;
pub mod loss;
mod maps;
pub mod metrics_csv;
pub mod net;
pub mod optim;
mod orthogonal;
pub mod quantize;
pub mod reconstruct;
mod room;
mod samples;
pub mod schedule;
pub mod sparse;
mod trainer;
pub mod unfold;
pub mod watch;

pub use error::{Error, Result};
pub use gradients::Gradients;
pub use head::fit_classes;
pub use trainer::{Task, Teacher, TrainConfig, Trained, fitness, train, val_nms};
