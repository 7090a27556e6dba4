//! The error of loading, running and checking an exported model: what is wrong, where, and what to do.

/// A `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The message names the file; `help` says what to do about it.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    #[diagnostic(help("give the path of an exported .onnx file"))]
    Read { path: String, source: std::io::Error },
    /// The bytes are no ONNX model, or its properties cannot be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Metadata(#[from] graph::Error),
    /// The runtime does not take the model.
    #[error("`{path}` cannot be run: {what}")]
    #[diagnostic(help("the file is damaged, or has an operator the embedded runtime lacks; repeat the export"))]
    Load { path: String, what: String },
    /// The model runs, but not from images to rows of boxes.
    #[error("`{path}` is no detector: {what}")]
    #[diagnostic(help(
        "give a model with one image input (N, C, H, W) and one output of three axes, as `export` writes it"
    ))]
    NotADetector { path: String, what: String },
    /// The model does not take this input.
    #[error("cannot run on images of shape {shape:?}: {what}")]
    #[diagnostic(help("give images of the size and batch the model was exported for"))]
    Input { shape: [usize; 4], what: String },
    /// The model's output is not what was expected of it.
    #[error("the output differs: {what}")]
    #[diagnostic(help("the file does not belong to these weights, or the runtime computes an operator differently"))]
    Differs { what: String },
}
