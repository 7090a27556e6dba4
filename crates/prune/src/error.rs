//! What can go wrong while planning or pruning, always with the node or option it concerns.

/// A `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a plan could not be made or carried out.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// The graph is not well formed, or pruning would make it so.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Graph(#[from] graph::Error),
    /// An option has a value that makes no sense.
    #[error("`{option}` {what}")]
    #[diagnostic(help("{help}"))]
    Setting { option: &'static str, what: String, help: &'static str },
    /// A plan was made for another graph.
    #[error("the plan does not fit this graph: {what}")]
    #[diagnostic(help("a plan belongs to the graph it was made from; make it again"))]
    Plan { what: String },
    /// The activation statistics do not cover the graph.
    #[error("statistics of `{node}`: {what}")]
    #[diagnostic(help("gather statistics on the very graph that is to be pruned, for every node of `observed`"))]
    Statistics { node: String, what: String },
    /// What was measured on the detector is infinite or no number: `what` says what it is of `node`.
    #[error("{what} `{node}` holds values that are not finite")]
    #[diagnostic(help(
        "the detector's weights are damaged or its training diverged: begin with an earlier checkpoint"
    ))]
    NotFinite { what: &'static str, node: String },
}

impl Error {
    pub(crate) fn plan(what: impl Into<String>) -> Self {
        Self::Plan { what: what.into() }
    }
}
