//! A detector ready to be shown images, whatever runs it.

mod exported;

use std::path::Path;

use data::Fit;
use eval::{Detection, NmsConfig};
use graph::Graph;

use crate::args::load_model;
use crate::exit::{Error, Exit};
use crate::{files, ui};

/// Images of one size in, boxes in pixels of that size out.
pub struct Detector {
    pub names: Vec<String>,
    /// Side of the square images it is shown, pixels.
    pub imgsz: usize,
    /// How images come onto that square. An ONNX file that does not say is taken to be letterboxed.
    pub fit: Fit,
    engine: Engine,
}

/// What does the computing.
enum Engine {
    /// Our own executor.
    Own(Box<train::evaluate::Detector>),
    /// The embedded ONNX runtime.
    Onnx(Box<exported::Exported>),
}

impl Detector {
    /// Reads a detector and readies it for images of `imgsz` pixels, or of the size it was trained at.
    pub fn open(model: &Path, weights: Option<&Path>, imgsz: Option<usize>) -> miette::Result<Self> {
        if weights.is_none() && files::ends_in(model, "onnx") {
            match exported::Exported::open(model, imgsz) {
                Ok(exported) => {
                    let (names, imgsz) = (exported.names().to_vec(), exported.imgsz());
                    let fit = exported.fit();
                    return Ok(Self { names, imgsz, fit, engine: Engine::Onnx(Box::new(exported)) });
                }
                // What comes out undecoded, such as YOLOX's own export, may be known all the same.
                Err(refused) if Exit::of(&refused) != Exit::Usage && load_model(model, None).is_ok() => {}
                Err(refused) => return Err(refused),
            }
        }
        let graph = load_model(model, weights)?;
        if let Some(extra) = graph.head()?.0.extra() {
            ui::note(format_args!("This detector tells {} too; here its boxes alone count", extra.name()));
        }
        let imgsz = image_size(&graph, imgsz)?;
        Self::of(graph, imgsz)
    }

    /// Readies `graph` for images of `imgsz` pixels on our own executor.
    pub fn of(graph: Graph, imgsz: usize) -> miette::Result<Self> {
        let engine = Engine::Own(Box::new(train::evaluate::Detector::new(&graph, imgsz)?));
        let fit = train::evaluate::fit(graph.meta.family);
        Ok(Self { names: graph.meta.names, imgsz, fit, engine })
    }

    /// Detects in `n` images, (N, S, S, 3) as RGB bytes.
    pub fn detect(&mut self, images: &[u8], n: usize, config: &NmsConfig) -> miette::Result<Vec<Vec<Detection>>> {
        match &mut self.engine {
            Engine::Own(detector) => {
                let finite = detector.is_finite();
                let found = detector.detect(images, n, config)?;
                if finite && !detector.is_finite() {
                    ui::warn(
                        "what the detector computes overflows; its boxes mean nothing, its weights are damaged or diverged",
                    );
                }
                Ok(found)
            }
            Engine::Onnx(exported) => exported.detect(images, n, config),
        }
    }
}

/// The side of the square images to run `graph` on: what was asked for, else what it was trained at.
///
/// # Errors
/// The largest stride of the head does not divide it, or it is too large.
pub fn image_size(graph: &Graph, asked: Option<usize>) -> miette::Result<usize> {
    let own = graph.meta.imgsz[0].max(graph.meta.imgsz[1]);
    let size = asked.unwrap_or(own);
    if asked.is_none() && graph.meta.imgsz != [own; 2] {
        let [h, w] = graph.meta.imgsz;
        ui::warn(format_args!("this detector is made for images of {h}×{w}; here they are squares of {own}"));
    }
    if size > graph::MAX_IMGSZ {
        return Err(Error::usage(
            format!("`--imgsz {size}` is more than the {} pixels a side that are handled", graph::MAX_IMGSZ),
            "detectors are made for 320 to 1280",
        ));
    }
    let (head, _) = graph.head()?;
    whole_cells(size, head.strides().into_iter().max().unwrap_or(1))
}

/// The same for every size `asked` for; the detector's own where none is.
///
/// # Errors
/// As [`image_size`].
pub fn image_sizes(graph: &Graph, asked: &[usize]) -> miette::Result<Vec<usize>> {
    match asked {
        [] => Ok(vec![image_size(graph, None)?]),
        asked => asked.iter().map(|&size| image_size(graph, Some(size))).collect(),
    }
}

/// `--imgsz`, where it is a multiple of a detector's largest stride.
///
/// # Errors
/// It is none.
pub fn whole_cells(size: usize, stride: usize) -> miette::Result<usize> {
    if size > 0 && size.is_multiple_of(stride) {
        return Ok(size);
    }
    let below = (size / stride * stride).max(stride);
    Err(Error::usage(
        format!("`--imgsz {size}` is no multiple of {stride}, this detector's largest stride"),
        format!("try {below} or {}", below + stride),
    ))
}
