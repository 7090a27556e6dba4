//! The report of a run: one HTML file that needs nothing else, neither network nor scripts.
//!
//! [`render`] is a pure function of [`ReportData`]; whoever ran the stages fills that in.

pub mod analysis;
pub mod compare;
mod html;
mod markup;
mod plots;
mod targets;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::int8;

pub use html::render;
use train::sparse::GammaHistogram;

/// The state of the detector after one stage: a row of the stage table, and of summary.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRow {
    /// `dense`, `sparse`, `masked`, `folded`, `replaced`, `trimmed`, `reconstructed`, `restarted`, `recalibrated`, `healed`; `averaged`
    /// where an average of that and the detector before it is better than both, and `kept` where the last of those did harm and the
    /// detector before it is the outcome. With `-1` and so on in rounds before the last.
    pub stage: String,
    /// Height and width of its images in pixels.
    #[serde(default)]
    pub imgsz: usize,
    pub params: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Size of the native file.
    pub bytes: u64,
    pub map50: f64,
    pub map50_95: f64,
    /// The same on the `test` split, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Accuracy>,
    /// Milliseconds of one image in the embedded ONNX runtime, decoding included; all stages take turns once all are made.
    #[serde(default)]
    pub ms_per_image: Option<f64>,
}

/// Mean average precision on one split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    pub map50: f64,
    pub map50_95: f64,
}

/// Whether the stages are not all for images of one size.
pub fn resized(stages: &[StageRow]) -> bool {
    stages.iter().any(|s| s.imgsz != stages[0].imgsz)
}

/// summary.json: what a run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The file the run started from.
    pub model: String,
    pub data: String,
    /// The data have no labels: mAP is agreement with the detector the run started from.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub agreement: bool,
    /// The split the stages were measured on.
    pub split: String,
    /// Height and width in pixels of the slim detector's images.
    pub imgsz: usize,
    pub seed: u64,
    pub stages: Vec<StageRow>,
    /// What was asked for in bytes or milliseconds, and what came of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetRow>,
    /// The cuts that were tried for `--max-drop`, judged before healing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trials: Option<Trials>,
    /// The sizes of images that were tried, judged before healing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<SizeTrial>,
    /// The slim detector in eight bits beside itself, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8: Option<int8::Outcome>,
}

/// One target: asked for, predicted by the plan, measured on the slim detector; and what the dense one measures beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetRow {
    /// `file` or `latency`.
    pub what: String,
    /// `bytes` or `ms`.
    pub unit: String,
    pub asked: f64,
    pub predicted: f64,
    pub measured: f64,
    pub dense: f64,
    /// What the plan took the dense one for.
    pub reference: f64,
}

impl TargetRow {
    /// What the dense detector is now over what the plan took it for: a machine may be faster or slower than it was.
    pub fn pace(&self) -> f64 {
        self.dense / self.reference
    }

    /// Share by which what was measured is above what was predicted, the pace not counted.
    pub fn off(&self) -> f64 {
        self.measured / (self.predicted * self.pace()) - 1.0
    }
}

/// One cut that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Height and width of the images in pixels.
    #[serde(default)]
    pub imgsz: usize,
    /// Share of the multiply-accumulates kept.
    pub macs: f64,
    /// mAP50-95 on `val` after the cut, before healing; none where the cut cannot be made.
    pub map50_95: Option<f64>,
}

/// All cuts that were tried for `--max-drop`, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trials {
    /// mAP50-95 on `val` before the cut.
    pub dense: f64,
    pub trials: Vec<Trial>,
}

/// What the cut on images of one size came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SizeTrial {
    /// Height and width in pixels.
    pub imgsz: usize,
    /// What is left; nothing where the budget cannot be met with images of this size.
    pub left: Option<Left>,
}

/// What a cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Left {
    pub params: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// mAP50-95 on `val` of the dense detector on images of that size ...
    pub dense: f64,
    /// ... and after the cut, before healing.
    pub map50_95: f64,
}

/// Predicted milliseconds of one kind of operator in the dense and the slim detector.
#[derive(Clone, Debug, PartialEq)]
pub struct KindTime {
    pub kind: String,
    pub before: f64,
    pub after: f64,
}

/// Output channels of one convolution before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerChannels {
    pub name: String,
    pub before: usize,
    pub after: usize,
}

/// Precision over recall at IoU 0.5 for one class, or for all together.
#[derive(Clone, Debug, PartialEq)]
pub struct PrPanel {
    pub title: String,
    pub curves: Vec<PrCurve>,
}

/// One stage's curve.
#[derive(Clone, Debug, PartialEq)]
pub struct PrCurve {
    pub stage: String,
    /// (recall, precision), recall rising.
    pub points: Vec<[f64; 2]>,
}

/// A picture as it goes into the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// `image/png` or `image/jpeg`.
    pub mime: &'static str,
    pub bytes: Vec<u8>,
}

/// One test image with the boxes of both detectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub caption: String,
    pub dense: Picture,
    pub slim: Picture,
}

/// Everything the report shows. Empty parts are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportData {
    pub summary: Summary,
    pub channels: Vec<LayerChannels>,
    /// One an epoch of sparse training.
    pub gammas: Vec<GammaHistogram>,
    pub curves: Vec<PrPanel>,
    pub images: Vec<Pair>,
    /// Where times were planned by: the dearest kinds of operators.
    pub times: Vec<KindTime>,
    /// Remarks of the planners.
    pub notes: Vec<String>,
    /// recipe.toml, as it was run.
    pub recipe: String,
    /// Version, threads, kernels, system: (what, value).
    pub environment: Vec<(String, String)>,
}

/// Precision at 101 recalls, each the best at that recall or beyond, averaged over classes: COCO's interpolation.
///
/// `classes` holds each class's (recall, precision) steps by rising recall; none gives no points.
pub fn mean_curve(classes: &[Vec<[f64; 2]>]) -> Vec<[f64; 2]> {
    if classes.is_empty() {
        return vec![];
    }
    let at =
        |steps: &[[f64; 2]], recall: f64| steps.iter().filter(|s| s[0] >= recall).map(|s| s[1]).fold(0.0, f64::max);
    let mean = |recall: f64| classes.iter().map(|steps| at(steps, recall)).sum::<f64>() / classes.len() as f64;
    (0..=100).map(|i| f64::from(i) / 100.0).map(|recall| [recall, mean(recall)]).collect()
}
