//! A detector ready to be shown images, whatever runs it.

use std::path::Path;

use eval::{Detection, NmsConfig, RawMap};
use graph::{Graph, Head};
use train::net::Infer;

use crate::args::load_model;
use crate::exit::Error;

/// Images of one size in, boxes in pixels of that size out.
pub struct Detector {
    pub names: Vec<String>,
    /// Side of the square images it is shown, pixels.
    pub imgsz: usize,
    infer: Infer,
    head: Head,
}

impl Detector {
    /// Reads a detector and readies it for images of `imgsz` pixels, or of the size it was trained at.
    pub fn open(model: &Path, weights: Option<&Path>, imgsz: Option<usize>) -> miette::Result<Self> {
        let graph = load_model(model, weights)?;
        let imgsz = image_size(&graph, imgsz)?;
        Self::of(&graph, imgsz)
    }

    /// Readies a graph.
    pub fn of(graph: &Graph, imgsz: usize) -> miette::Result<Self> {
        let (head, _) = graph.head()?;
        let infer = Infer::new(graph, [imgsz, imgsz])?;
        Ok(Self { names: graph.meta.names.clone(), imgsz, infer, head: head.clone() })
    }

    /// Detects in `n` images, (N, S, S, 3) as RGB bytes.
    pub fn detect(&mut self, images: &[u8], n: usize, config: &NmsConfig) -> miette::Result<Vec<Vec<Detection>>> {
        let maps = self.infer.run(images, n)?;
        let raw: Vec<RawMap> = maps.iter().map(|m| RawMap { n: m.n, h: m.h, w: m.w, c: m.c, data: &m.data }).collect();
        Ok(eval::detect(&self.head, &raw, config))
    }
}

/// The side of the square images to run `graph` on: what was asked for, else what it was trained at.
///
/// # Errors
/// The largest stride of the head does not divide it.
pub fn image_size(graph: &Graph, asked: Option<usize>) -> miette::Result<usize> {
    let own = graph.meta.imgsz[0].max(graph.meta.imgsz[1]);
    let size = asked.unwrap_or(own);
    let (head, _) = graph.head()?;
    let stride = head.strides().into_iter().max().unwrap_or(1);
    if size % stride == 0 && size > 0 {
        return Ok(size);
    }
    let below = (size / stride * stride).max(stride);
    Err(Error::usage(
        format!("`--imgsz {size}` is no multiple of {stride}, this detector's largest stride"),
        format!("try {below} or {}", below + stride),
    ))
}
