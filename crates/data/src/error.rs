//! The error of reading datasets and images: what is wrong, where, and what to do.

use std::path::Path;

/// A `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The message names the file and line; the help says what to do about it.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io { action: &'static str, path: String, source: std::io::Error },
    /// A label or description file is not what its format demands.
    #[error("`{path}`{}: {what}", line.map(|l| format!(":{l}")).unwrap_or_default())]
    Format {
        path: String,
        line: Option<usize>,
        what: String,
        #[help]
        help: Option<String>,
    },
    /// An image does not decode.
    // Some decoders end what they say with a line end.
    #[error("cannot decode image `{path}`: {}", source.to_string().trim_end())]
    #[diagnostic(help(
        "the file is damaged or of an unsupported kind (JPEG, PNG, BMP and WebP are read); `prunella data check` lists all"
    ))]
    Image { path: String, source: image::ImageError },
    /// The dataset as a whole cannot be used.
    #[error("dataset `{path}`: {what}")]
    Dataset {
        path: String,
        what: String,
        #[help]
        help: Option<String>,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().display().to_string(), source }
    }

    pub(crate) fn format(path: impl AsRef<Path>, line: Option<usize>, what: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().display().to_string(), line, what: what.into(), help: None }
    }

    pub(crate) fn image(path: impl AsRef<Path>, source: image::ImageError) -> Self {
        Self::Image { path: path.as_ref().display().to_string(), source }
    }

    pub(crate) fn dataset(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Dataset { path: path.as_ref().display().to_string(), what: what.into(), help: None }
    }

    /// Says what the reader can do about it.
    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Format { help, .. } | Self::Dataset { help, .. } = &mut self {
            *help = Some(text.into());
        }
        self
    }
}
