//! Prunella's own file: one safetensors file with the weights as tensors and the graph as JSON in its metadata.

use std::path::Path;

use crate::{Error, Graph, Result};

/// Reads a native file.
pub(super) fn load(path: &Path) -> Result<Graph> {
    Err(Error::format(path, "this reader is not written yet"))
}

/// Writes `graph` to `path`.
pub fn save(_graph: &Graph, path: &Path) -> Result<()> {
    Err(Error::format(path, "this writer is not written yet"))
}

/// Writes `bytes` to `path` whole or not at all.
pub fn write_whole(path: &Path, _bytes: &[u8]) -> Result<()> {
    Err(Error::format(path, "this writer is not written yet"))
}
