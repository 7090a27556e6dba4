//! What tests of several rooms share: where the test material is, and reading the goldens in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use graph::reference::Map;
use graph::{Graph, Shape, Tensor};

/// The folder of test material: `PRUNELLA_SHARED`, or `../shared` beside the checkout.
///
/// Returns `None`, after printing why, where there is none; panics instead under CI, which must not skip.
pub fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let dir = std::env::var_os("PRUNELLA_SHARED").map_or(beside, PathBuf::from);
    if dir.join("README.md").is_file() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "test material is missing at {}: set PRUNELLA_SHARED", dir.display());
    println!("skipped: no test material at {} (set PRUNELLA_SHARED)", dir.display());
    None
}

/// Reads a safetensors file of f32 and u8 tensors; u8 becomes its value as f32 (0..255). Panics on anything else.
pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let convert = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let data = match view.dtype() {
            safetensors::Dtype::U8 => view.data().iter().map(|&b| f32::from(b)).collect(),
            safetensors::Dtype::F32 => {
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            other => panic!("{}: `{name}` is {other:?}", path.display()),
        };
        (name, Tensor::new(view.shape().to_vec(), data))
    };
    file.tensors().into_iter().map(convert).collect()
}

/// A batch recorded in `golden/`.
pub struct Batch {
    /// (N, S, S, 3) bytes.
    pub images: Vec<u8>,
    pub n: usize,
    /// Height and width S in pixels.
    pub size: usize,
    /// Image, class, and centre, width and height as shares of the image.
    pub labels: Vec<[f32; 6]>,
    /// As the reference returns them.
    pub predictions: Vec<f32>,
}

/// How the bytes of recorded images lie in their file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// Plane after plane, as the file's header says.
    Planar,
    /// Pixel after pixel, although the header says (N, 3, S, S): the array was a transposed view when it was saved.
    Interleaved,
}

impl Batch {
    /// Reads `batch.safetensors` in `dir`. Panics where that is no recorded batch.
    pub fn open(dir: &Path, pixels: Pixels) -> Self {
        let file = dir.join("batch.safetensors");
        let mut stored = tensors(&file);
        let mut take = |name| stored.remove(name).unwrap_or_else(|| panic!("{}: no `{name}`", file.display()));
        let (bytes, labels, predictions) = (take("images_u8"), take("labels"), take("predictions"));
        let [n, c, size, _] = bytes.shape[..] else { panic!("{}: images of {:?}", file.display(), bytes.shape) };
        let plane = size * size;
        let mut images = vec![0; bytes.len()];
        for (at, &v) in bytes.data.iter().enumerate() {
            let (image, channel, pixel) = (at / (c * plane), at / plane % c, at % plane);
            let to = if pixels == Pixels::Planar { (image * plane + pixel) * c + channel } else { at };
            images[to] = v as u8;
        }
        let (labels, _) = labels.data.as_chunks::<6>();
        Self { images, n, size, labels: labels.to_vec(), predictions: predictions.data }
    }
}

/// The small detectors in `families/`, one of each kind the module-tree loader knows; see `families/make.py`.
pub const FAMILIES: [&str; 12] = [
    "yolov6",
    "yolov9",
    "yolov9e",
    "yolov10",
    "yolo12",
    "yolo26",
    "yolov8-seg",
    "yolov8-pose",
    "yolov8-obb",
    "yolo11-seg",
    "yolo11-pose",
    "yolo11-obb",
];

/// The YOLOv3s of the YOLOv5 repository in `families/`; see `families/make_yolov3.py`.
pub const YOLOV3S: [&str; 3] = ["yolov3", "yolov3-spp", "yolov3-tiny"];

/// A small detector of random weights, and what the software it comes from predicts for an image.
pub struct Small {
    pub graph: Graph,
    /// Bytes (N, 3, H, W).
    pub images: Tensor,
    /// As the software returns it, a batch of 1.
    pub outputs: Vec<Tensor>,
}

/// A folder with `{name}.pt` and `{name}.safetensors` of the one of [`FAMILIES`] or [`YOLOV3S`] called `name`.
pub fn unpacked(name: &str) -> tempfile::TempDir {
    let zipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("families").join(format!("{name}.zip"));
    let file = std::fs::File::open(&zipped).unwrap_or_else(|e| panic!("{}: {e}", zipped.display()));
    let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("no temporary folder: {e}"));
    zip::ZipArchive::new(file)
        .and_then(|mut archive| archive.extract(folder.path()))
        .unwrap_or_else(|e| panic!("{}: {e}", zipped.display()));
    folder
}

/// The one of [`FAMILIES`] or [`YOLOV3S`] called `name`. Panics where it does not load.
pub fn small(name: &str) -> Small {
    let folder = unpacked(name);
    let graph = graph::format::load(&folder.path().join(format!("{name}.pt")), &Default::default());
    let graph = graph.unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut stored = tensors(&folder.path().join(format!("{name}.safetensors")));
    let images = stored.remove("images_u8").unwrap_or_else(|| panic!("{name}: no image"));
    let outputs = (0..).map_while(|i| stored.remove(&format!("output{i}"))).collect();
    Small { graph, images, outputs }
}

impl Small {
    /// The image in 0..1, (3, H, W).
    pub fn image(&self) -> Map {
        let [_, c, h, w] = self.images.shape[..] else { panic!("no batch of images") };
        let data = self.images.outer(0).iter().map(|&v| f64::from(v) / 255.0).collect();
        Map { shape: Shape { c, h, w }, data }
    }
}

/// Largest absolute difference of two slices of one length; no number where one of theirs is none.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, larger)
}

/// The larger of two values, and nothing that can be compared once one of them is NaN: `f64::max` passes those over.
pub fn larger<T: PartialOrd>(most: T, value: T) -> T {
    if value > most || value.partial_cmp(&value).is_none() { value } else { most }
}
