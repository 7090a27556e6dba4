//! Exit codes, and the errors the command line itself makes.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// The command did its work, which was to look for problems, and found some.
    Problems = 3,
}

impl Exit {
    /// The exit code an error asks for.
    pub fn of(report: &miette::Report) -> Self {
        match report.downcast_ref::<Error>() {
            Some(Error::Usage { .. }) => Self::Usage,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What only the command line can find wrong.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Error {
    /// Arguments that parse one by one but make no sense together.
    #[error("{what}")]
    Usage {
        what: String,
        #[help]
        help: Option<String>,
    },
    /// A command cannot go on.
    #[error("{what}")]
    Failed {
        what: String,
        #[help]
        help: Option<String>,
    },
}

impl Error {
    /// [`Error::Usage`] with a hint.
    pub fn usage(what: impl Into<String>, help: impl Into<String>) -> miette::Report {
        Self::Usage { what: what.into(), help: Some(help.into()) }.into()
    }

    /// [`Error::Failed`] with a hint.
    pub fn failed(what: impl Into<String>, help: impl Into<String>) -> miette::Report {
        Self::Failed { what: what.into(), help: Some(help.into()) }.into()
    }

    /// A file system call on `path` failed; `action` is a verb such as "write".
    pub fn io(action: &str, path: &Path, source: &io::Error) -> miette::Report {
        let help = io_hint(source.kind()).map(Into::into);
        Self::Failed { what: format!("cannot {action} `{}`: {source}", path.display()), help }.into()
    }
}

/// What to do about a file that cannot be read or written.
pub fn io_hint(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotFound => Some("check the path; is it spelt right, does its folder exist?"),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some("check who may read and write there, or choose another place")
        }
        ErrorKind::StorageFull => Some("free some space, or choose another disk"),
        _ => None,
    }
}
