//! The error of reading annotations, detections and model outputs: what is wrong, where, and what to do.

/// A `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The message names the file and the entry; `help` says what to do about it.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A JSON document is not what COCO defines.
    #[error("`{path}`: {what}")]
    Json {
        path: String,
        /// The list, the entry's index in it, and the line and column.
        what: String,
        #[help]
        help: String,
    },
    /// A detection names an image the ground truth does not have.
    #[error("detection {entry} names image {image_id}, which the annotations do not have")]
    #[diagnostic(help("evaluate detections against the annotations of the split they were made on"))]
    UnknownImage { entry: usize, image_id: i64 },
    /// The output of a foreign model does not have the shape its layout demands.
    #[error("a model output of shape {shape:?} with {values} values is not {expected}")]
    #[diagnostic(help("check the number of classes and whether the model was exported for YOLOv5 or YOLOv8 outputs"))]
    Shape { shape: [usize; 3], values: usize, expected: String },
}
