//! The method itself: which channels can go, what each costs, and how what is left makes up for them.
//!
//! ```text
//! Coupling::of(graph)                  which channels live or die together
//!   -> importance::plan(...)           stage 1: the classes whose scale is negligible, replaced by a constant
//!   -> surgery::apply(graph, &plan)
//!   -> similarity::plan(...)           stage 2: the classes that others can stand in for
//!   -> surgery::apply(graph, &plan)
//! ```
//!
//! Everything here is a pure function over a [`graph::Graph`]: no I/O, no training. Both stages answer with a [`Plan`],
//! which says what is removed, what that is expected to cost and how the readers of a removed channel are compensated;
//! [`surgery`] carries it out. Formulas and their sources are in METHOD.md, sections 0, 2 and 3.

pub mod budget;
mod constant;
mod coupling;
mod error;
pub mod importance;
pub mod latency;
mod linalg;
mod merging;
mod plan;
mod refit;
mod sensitivity;
pub mod similarity;
mod sparsity;
mod statistics;
pub mod surgery;

pub use budget::{Amount, Budget, Limits, Multiple, Size, Target};
pub use coupling::{Class, ClassId, Coupling, Pin, Set, Site, dense_readers};
pub use error::{Error, Result};
pub use importance::{Aggregate, Criterion, Fill, Importance};
pub use latency::Latency;
pub use linalg::{Cholesky, mirror};
pub use plan::{Compensation, Layer, Plan, Removal, Row, Shortcut, Stop};
pub use refit::{LEAST_GAIN, Normal, Refit, refit, ridged};
pub use sensitivity::Sensitivity;
pub use similarity::{Mode, Similarity};
pub use sparsity::prunable_gammas;
pub use statistics::{ChannelStats, Statistics, observed};
