//! What is wrong with a node, before it is known where the node stands.

use std::path::Path;

use super::source::Source;
use crate::Error;
use crate::format::onnx::proto::NodeProto;

/// A message and a hint.
#[derive(Debug)]
pub struct Problem {
    what: String,
    help: Option<String>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), help: None }
    }

    /// Says what the reader can do about it.
    pub fn hint(self, text: impl Into<String>) -> Self {
        Self { help: Some(text.into()), ..self }
    }

    /// The error of `node` in the file `path`.
    pub fn at(self, path: &Path, node: &NodeProto) -> Error {
        self.in_place(path, format!("node `{}` ({})", title(node), node.op_type))
    }

    /// The error of the decoding behind the output of `source`.
    pub fn of(self, source: &Source) -> Error {
        self.in_place(source.path, format!("output `{}`", source.output))
    }

    fn in_place(self, path: &Path, place: String) -> Error {
        let error = Error::format(path, self.what).at(place);
        match self.help {
            Some(help) => error.hint(help),
            None => error,
        }
    }
}

impl From<String> for Problem {
    fn from(what: String) -> Self {
        Self::new(what)
    }
}

impl From<&str> for Problem {
    fn from(what: &str) -> Self {
        Self::new(what)
    }
}

/// What a node is called in messages: its name, or what it writes where it has none.
pub fn title(node: &NodeProto) -> &str {
    match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => output,
        (name, _) => name,
    }
}
