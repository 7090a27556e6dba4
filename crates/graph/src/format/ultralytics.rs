//! YOLOv5, YOLOv8 and YOLO11 checkpoints: the module tree a `.pt` file records, turned into a graph.

use std::path::Path;

use crate::{Error, Graph, Result};

/// Reads a checkpoint.
pub(super) fn load(path: &Path) -> Result<Graph> {
    Err(Error::format(path, "this reader is not written yet"))
}
