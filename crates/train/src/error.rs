//! What can go wrong while training.

/// A `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of the rooms training calls, and its own.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    #[diagnostic(transparent)]
    Graph(#[from] graph::Error),
    #[error(transparent)]
    #[diagnostic(transparent)]
    Data(#[from] data::Error),
    #[error(transparent)]
    #[diagnostic(transparent)]
    Eval(#[from] eval::Error),
    #[error(transparent)]
    #[diagnostic(transparent)]
    Prune(#[from] prune::Error),
    #[error(transparent)]
    #[diagnostic(transparent)]
    Sparse(#[from] crate::sparse::SparseError),
    /// The loss is no longer a number.
    #[error("the loss became {value} in epoch {epoch}, batch {batch}")]
    #[diagnostic(help("lower `--lr0`; the last checkpoint is that of the epoch before"))]
    Diverged { value: f32, epoch: usize, batch: usize },
    /// A setting makes no sense.
    #[error("`{name}` is {value}, which is not {range}")]
    #[diagnostic(help("correct it in the recipe, or leave it out for its default"))]
    Setting { name: &'static str, value: f64, range: &'static str },
    /// Model and dataset do not go together.
    #[error("{what}")]
    Mismatch {
        what: String,
        #[help]
        help: String,
    },
}
