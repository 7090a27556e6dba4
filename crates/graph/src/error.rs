//! The error of everything that reads, checks or rewrites a graph: what is wrong, where, and what to do.

use std::path::Path;

/// A `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The message names the file, line, layer or node; `help` says what to do about it.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io { action: &'static str, path: String, source: std::io::Error },
    /// A file is not what its format demands.
    #[error("`{path}`{}: {what}", place.as_ref().map(|p| format!(", {p}")).unwrap_or_default())]
    Format {
        path: String,
        /// Line, byte offset, layer or tensor within the file.
        place: Option<String>,
        what: String,
        #[help]
        help: Option<String>,
    },
    /// A node does not fit its inputs or its weights.
    #[error("in node `{node}`: {what}")]
    Node {
        node: String,
        what: String,
        #[help]
        help: Option<String>,
    },
}

impl Error {
    /// A [`Error::Node`] without a hint.
    pub fn node(node: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Node { node: node.into(), what: what.into(), help: None }
    }

    /// A [`Error::Format`] without place or hint; add them with [`Error::at`] and [`Error::hint`].
    pub fn format(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().display().to_string(), place: None, what: what.into(), help: None }
    }

    /// An [`Error::Io`]: `action` is a verb such as "read" or "write".
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().display().to_string(), source }
    }

    /// Names the place inside the file (formats only).
    pub fn at(mut self, where_: impl Into<String>) -> Self {
        if let Self::Format { place, .. } = &mut self {
            *place = Some(where_.into());
        }
        self
    }

    /// Names the file whose graph is wrong, and escapes what it would do to a terminal.
    pub(crate) fn within(self, path: &Path) -> Self {
        match self {
            Self::Io { .. } => self,
            Self::Format { path, place, what, help } => {
                Self::Format { path, place: place.as_deref().map(visible), what: visible(&what), help }
            }
            Self::Node { node, what, help } => {
                let place = Some(visible(&format!("node `{node}`")));
                Self::Format { path: path.display().to_string(), place, what: visible(&what), help }
            }
        }
    }

    /// Says what the reader can do about it.
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Format { help, .. } | Self::Node { help, .. } = &mut self {
            *help = Some(text.into());
        }
        self
    }
}

/// `text` with its control characters escaped.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}
