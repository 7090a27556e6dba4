//! The embedded ONNX runtime: running exported models, checking them against our own forward, timing them.

mod error;
mod session;
mod stopwatch;

pub use error::{Error, Result};
pub use session::{Output, Session};
pub use stopwatch::{Stopwatch, Timed, median};
