//! Detector files: [`load`] turns any of them into a checked [`Graph`], [`save`] writes the native one.

pub mod darknet;
mod focus;
mod native;
pub mod onnx;
mod pickle;
mod torch;
pub mod ultralytics;

use std::path::{Path, PathBuf};

use crate::error::visible;
use crate::{Error, Graph, Result};

pub use native::{UNFINISHED, from_bytes, save, to_bytes, write_whole};

/// What [`load`] needs beside the model file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Darknet only: the `.weights` file that belongs to the `.cfg`.
    pub weights: Option<PathBuf>,
    /// Darknet only: no weights are read, the detector starts untrained from this seed (see [`darknet::untrained`]).
    pub untrained: Option<u64>,
    /// End-to-end heads keep the branches that help their training, where the file has them (see [`Graph::for_inference`]).
    pub one_to_many: bool,
}

/// Reads a detector, whatever its format, decided by the file's extension. The graph has passed [`Graph::validate`] and ends in
/// a head; control characters in its names are escaped, so that they can be shown.
///
/// # Errors
/// The file cannot be read, is damaged, holds an operator no graph has, or is of an unknown format; the error names
/// the file and the place in it.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Graph> {
    read(path, options).map_err(|e| e.within(path))
}

fn read(path: &Path, options: &LoadOptions) -> Result<Graph> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    if options.weights.is_some() && extension != "cfg" {
        return Err(Error::format(path, "a separate weights file was given, this format holds its own weights")
            .hint("give `--weights` only with a Darknet `.cfg`"));
    }
    if options.untrained.is_some() && (extension != "cfg" || options.weights.is_some()) {
        return Err(Error::format(path, "an untrained detector was asked for, this one has weights")
            .hint("only a Darknet `.cfg` without `--weights` can start untrained"));
    }
    let mut graph = match (extension.as_str(), options.untrained) {
        ("pt" | "pth", _) => ultralytics::load(path)?,
        ("cfg", Some(seed)) => darknet::load_untrained(path, seed)?,
        ("cfg" | "weights", _) => darknet::load(path, options.weights.as_deref())?,
        ("safetensors", _) => native::load(path)?,
        ("onnx", _) => onnx::load(path)?,
        _ => {
            return Err(Error::format(path, "no detector format has this extension").hint(
                "known are .pt (YOLOv5 to YOLO26), .onnx, .cfg with .weights (Darknet) and .safetensors (Prunella)",
            ));
        }
    };
    let names = graph.nodes.iter_mut().map(|n| &mut n.name).chain(&mut graph.meta.names);
    names.for_each(|name| *name = visible(name));
    graph.validate()?;
    graph.head()?;
    if !options.one_to_many && graph.branches().is_some() {
        graph = graph.for_inference().into_owned();
    }
    Ok(graph)
}
