//! The state of a training run between two epochs, in one file written whole: a killed run resumes to the same result.

use std::path::Path;

use graph::format::{from_bytes, to_bytes};
use graph::{Error, Graph, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::optim::Optimizer;
use crate::sparse::{GammaHistogram, SparseState};

/// Everything that the next epoch depends on, as it is read back.
#[derive(Debug)]
pub struct Checkpoint {
    /// The weights being trained.
    pub model: Graph,
    /// Their moving average, which is what is evaluated.
    pub ema: Graph,
    /// The optimiser's state, as [`Optimizer::load_state`] takes it.
    pub optimizer: Vec<(String, Vec<f32>)>,
    pub progress: Progress,
}

/// A [`Checkpoint`] to be written, of what stays where it is.
pub struct Snapshot<'a> {
    pub model: &'a Graph,
    pub ema: &'a Graph,
    pub optimizer: &'a Optimizer,
    pub progress: &'a Progress,
}

/// The part of a [`Checkpoint`] that is not tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Epochs finished.
    pub epochs: usize,
    /// Updates of the moving average.
    pub updates: u64,
    /// Best fitness so far.
    pub best: f64,
    /// After how many epochs the run went back to its start each time, for having lost what it started with.
    #[serde(default)]
    pub retreats: Vec<usize>,
    /// State of the sparsity controller.
    pub sparse: Option<SparseState>,
    /// One histogram an epoch of sparse training.
    pub gammas: Vec<GammaHistogram>,
}

impl Progress {
    /// Epochs before the last retreat.
    pub fn since(&self) -> usize {
        self.retreats.last().copied().unwrap_or(0)
    }
}

impl Snapshot<'_> {
    /// Writes the checkpoint to `path`, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut bytes: Vec<(String, Dtype, Vec<u8>)> = vec![
            ("model".into(), Dtype::U8, to_bytes(self.model, path)?),
            ("ema".into(), Dtype::U8, to_bytes(self.ema, path)?),
        ];
        for (name, values) in self.optimizer.state() {
            let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.push((format!("optimizer/{name}"), Dtype::F32, raw));
        }
        let views = bytes.iter().map(|(name, kind, raw)| {
            let len = if *kind == Dtype::U8 { raw.len() } else { raw.len() / 4 };
            TensorView::new(*kind, vec![len], raw).map(|view| (name.clone(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(|e| Error::format(path, e.to_string()))?;
        let progress = serde_json::to_string(self.progress).map_err(|e| Error::format(path, e.to_string()))?;
        let metadata = [("progress".to_string(), progress)].into();
        let file = safetensors::serialize(views, Some(metadata)).map_err(|e| Error::format(path, e.to_string()))?;
        graph::format::write_whole(path, &file)
    }
}

impl Checkpoint {
    /// Reads a checkpoint back.
    ///
    /// # Errors
    /// The file cannot be read or is no checkpoint.
    pub fn load(path: &Path) -> Result<Self> {
        let bad = |what: String| {
            Error::format(path, what).hint("give the weights/last.safetensors beside it as `--model` of a new run")
        };
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let progress = header.metadata().as_ref().and_then(|m| m.get("progress"));
        let progress = progress.ok_or_else(|| bad("this is not a training checkpoint".into()))?;
        let graph = |name: &str| {
            let view = file.tensor(name).map_err(|e| bad(e.to_string()))?;
            from_bytes(path, view.data())
        };
        let mut optimizer: Vec<(String, Vec<f32>)> = file
            .iter()
            .filter_map(|(name, view)| {
                let floats = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                Some((name.strip_prefix("optimizer/")?.to_string(), floats.collect()))
            })
            .collect();
        optimizer.sort_by(|a, b| a.0.cmp(&b.0));
        let progress = serde_json::from_str(progress).map_err(|e| bad(e.to_string()))?;
        Ok(Self { model: graph("model")?, ema: graph("ema")?, optimizer, progress })
    }
}
