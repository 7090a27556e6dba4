//! Reading an ONNX detector back as a [`Graph`]: the way from the image to the raw maps becomes nodes, the decoding
//! behind them is recognised as one of the known heads.

mod activation;
mod array;
mod attention;
mod attributes;
mod body;
mod cut;
mod eval;
mod expected;
mod finish;
mod guess;
mod head;
mod layers;
mod names;
mod problem;
mod resize;
mod shuffle;
mod slices;
mod source;
mod tail;
mod window;

use std::path::Path;

use super::metadata;
use crate::{Error, Graph, Result, Shape};
use body::Body;
use problem::Problem;
use source::Source;

/// Side of the images where the file leaves it open and does not say what it was exported for.
const USUAL_SIZE: usize = 640;

/// Most bytes of a file: what protocol buffers allow.
const LARGEST_FILE: u64 = 1 << 31;

/// Reads the detector in `path`.
pub(in crate::format) fn load(path: &Path) -> Result<Graph> {
    let size = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    if size > LARGEST_FILE {
        return Err(Error::format(path, format!("is {size} bytes long, longer than an ONNX file can be")));
    }
    from_bytes(path, &std::fs::read(path).map_err(|e| Error::io("read", path, e))?)
}

/// Reads the detector in `bytes`; `path` is for messages.
fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Graph> {
    let model = metadata::decode(path, bytes)?;
    let metadata = metadata::of(path, &model)?;
    if let Some(task) = metadata.task.as_deref().filter(|task| *task != "detect") {
        return Err(Error::format(path, format!("is for the task `{task}`; of ONNX files only detectors become a graph"))
            .hint("give the .pt or .safetensors it was exported from; `predict` and `val` run a file with masks or keypoints as it is"));
    }
    let source = Source::open(path, &model)?;
    let [_, channels, height, width] = source.shape;
    let stated = metadata.imgsz.unwrap_or([USUAL_SIZE; 2]);
    let input = Shape { c: channels.unwrap_or(3), h: height.unwrap_or(stated[0]), w: width.unwrap_or(stated[1]) };
    if input.c != 3 {
        return Err(Error::format(path, format!("takes images of {} channels", input.c))
            .at(format!("input `{}`", source.input))
            .hint("only detectors of RGB images can be read"));
    }
    let mut body = Body::read(&source, input, bytes.len())?;
    let found = head::recognise(&mut body)?;
    let own = model.producer_name == metadata::PRODUCER || metadata::is_own(&model);
    finish::detector(body, found, &metadata, own)
}
