//! Arguments of the commands that make a detector smaller: `prune`, `compress`, `demo`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use prune::{Amount, Multiple};

use super::value::{
    batch, bytes, epochs, latency, multiple, positive, rate, share, share_to_keep, share_to_remove, whole,
};
use super::{DataForm, ModelArgs, Optimizer};

/// How small it has to become. Where several are given, all must be met.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct BudgetArgs {
    /// Share of the prunable channels to remove
    #[arg(long, value_name = "SHARE", value_parser = share_to_remove)]
    pub rate: Option<f64>,
    /// Share of the parameters to keep
    #[arg(long, value_name = "SHARE", value_parser = share_to_keep)]
    pub params: Option<f64>,
    /// Share of the multiply-accumulates to keep
    #[arg(long, value_name = "SHARE", value_parser = share_to_keep)]
    pub macs: Option<f64>,
    /// Size of the native file: a share to keep, or bytes such as 2MB (f32 weights and statistics, header included)
    #[arg(long, value_name = "SHARE|SIZE", allow_hyphen_values = true, value_parser = bytes)]
    pub bytes: Option<Amount>,
    /// Time of one image in the embedded ONNX runtime, measured on this machine: a share to keep, or such as 12ms
    #[arg(long, value_name = "SHARE|TIME", allow_hyphen_values = true, value_parser = latency)]
    pub latency: Option<Amount>,
    /// Instead of a size: the largest cut that costs no more than this of mAP50-95 on `val` before healing, such as 0.02
    #[arg(long, value_name = "DROP", value_parser = share, conflicts_with_all = ["rate", "params", "macs", "bytes", "latency"])]
    pub max_drop: Option<f64>,
}

impl BudgetArgs {
    /// The budget as the planner takes it.
    pub fn budget(self) -> prune::Budget {
        let Self { rate, params, macs, bytes, latency, max_drop: _ } = self;
        prune::Budget { params, macs, rate, bytes, latency }
    }

    /// True where nothing was asked for.
    pub fn is_empty(self) -> bool {
        self.budget() == prune::Budget::default() && self.max_drop.is_none()
    }
}

/// What every layer keeps whatever the scores say.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct LimitArgs {
    /// Channels a layer keeps at least [default: 1; 8 where channels are ranked by importance]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub min_channels: Option<usize>,
    /// What a pruned layer keeps is a multiple of this; `auto`: of 16, but of 8 below 32 and of 4 below 8, which vectors hold, or with
    /// --latency of what is measured to be faster here [default: auto]
    #[arg(long, value_name = "N|auto", value_parser = multiple)]
    pub multiple: Option<Multiple>,
}

impl LimitArgs {
    /// `limits` with what was given on the command line.
    pub fn over(self, limits: prune::Limits) -> prune::Limits {
        prune::Limits {
            min_channels: self.min_channels.unwrap_or(limits.min_channels),
            multiple: self.multiple.unwrap_or(limits.multiple),
            ..limits
        }
    }

    /// Whether measured times decide on the multiple: `auto` where nothing was given.
    pub fn auto(self, auto: bool) -> bool {
        self.multiple.map_or(auto, |multiple| multiple == Multiple::Vectors)
    }
}

/// Who stands in for a removed channel in the second stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimilarityMode {
    /// The one kept channel most like it.
    Pairwise,
    /// All kept channels, by least squares.
    Span,
}

impl From<SimilarityMode> for prune::Mode {
    fn from(mode: SimilarityMode) -> Self {
        match mode {
            SimilarityMode::Pairwise => Self::Pairwise,
            SimilarityMode::Span => Self::Span,
        }
    }
}

/// Arguments of `prune`.
#[derive(Debug, Args)]
pub struct Prune {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub budget: BudgetArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Share of the removal the similarity stage does; above 0 it needs --data [default: 1 with --data, else 0]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub similarity_share: Option<f64>,
    /// Who stands in for a removed channel in the similarity stage
    #[arg(long, default_value = "span", value_enum, requires = "data")]
    pub similarity: SimilarityMode,
    /// Images to cut by, 64 to 256 of the detector's kind: any folder of them, or a dataset; no labels are looked at
    #[arg(long, short, value_name = "PATH")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub form: DataForm,
    /// Height and width in pixels of those images [default: the detector's own]. Several, such as 320,256,192: shares are of the
    /// detector at the first of them, and what is written is cut for the one at which it is most accurate on `val`, or needs least to
    /// keep within `--max-drop`
    #[arg(long, value_name = "PIXELS", value_delimiter = ',', value_parser = positive)]
    pub imgsz: Vec<usize>,
    /// Seed of all randomness
    #[arg(long, default_value = "0", value_name = "N", value_parser = whole)]
    pub seed: u64,
    /// Print what would be removed, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
    /// Native file to write
    #[arg(long, short, value_name = "FILE.safetensors", required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
}

/// Arguments of `compress`. What is not given here comes from the recipe, and what is not there has a default.
#[derive(Debug, Args)]
pub struct Compress {
    /// Detector: .pt (YOLOv5 to YOLO26), .cfg (Darknet), .onnx or .safetensors (Prunella)
    #[arg(long, short, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Weights of a Darknet .cfg [default: the .weights beside it]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Dataset: data.yaml, COCO JSON, or a folder that holds one of them or Pascal VOC annotations; or any folder of images, without
    /// labels: what the detector finds there stands in for them
    #[arg(long, short, value_name = "PATH")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub form: DataForm,
    #[command(flatten)]
    pub budget: BudgetArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Share of the removal the similarity stage does [default: 1]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub similarity_share: Option<f64>,
    /// Who stands in for a removed channel in the similarity stage [default: span]
    #[arg(long, value_enum)]
    pub similarity: Option<SimilarityMode>,
    /// Height and width in pixels [default: the detector's own]. Several, such as 320,256,192: the first is the dense detector's, which
    /// shares of a budget are of; the slim one has the one that promises most after cutting at each, or needs least to keep within
    /// `--max-drop`
    #[arg(long, value_name = "PIXELS", value_delimiter = ',', value_parser = positive)]
    pub imgsz: Vec<usize>,
    /// Epochs of dense fine-tuning (where the detector does not know the dataset's classes) and of healing; 0 trains
    /// nothing [default: 25]
    #[arg(long, short, value_name = "N", value_parser = epochs)]
    pub epochs: Option<usize>,
    /// Cut a part and heal it, so many times, with as many epochs in all [default: 1, which does as well]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub rounds: Option<usize>,
    /// Epochs of sparse training before the first cut [default: 0, none]
    #[arg(long, value_name = "N", value_parser = epochs)]
    pub sparse_epochs: Option<usize>,
    /// Images a batch, at most: where that leaves few steps, batches are smaller [default: 16]
    #[arg(long, short, value_name = "N", value_parser = batch)]
    pub batch: Option<usize>,
    /// How weights follow gradients; sparse training keeps to sgd [default: muon]
    #[arg(long, value_enum)]
    pub optimizer: Option<Optimizer>,
    /// Learning rate at the start [default: 0.01 with sgd, 0.001 with the others]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub lr0: Option<f64>,
    /// Learning rate at the end, as a share of --lr0 [default: 0.01]
    #[arg(long, value_name = "SHARE", value_parser = rate)]
    pub lrf: Option<f64>,
    /// Write the slim detector in eight bits too (slim-int8.onnx), and measure it
    #[arg(long)]
    pub int8: bool,
    /// Seed of all randomness [default: 0]
    #[arg(long, value_name = "N", value_parser = whole)]
    pub seed: Option<u64>,
    /// TOML file with everything above and more; a run writes its own as recipe.toml
    #[arg(long, value_name = "FILE.toml")]
    pub recipe: Option<PathBuf>,
    /// Plan both cuts on the detector as it is and print what would be removed; train nothing, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Folder of the run [default: a new one, runs/compress, runs/compress2, ...]
    #[arg(long, short, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Go on with the run in --out where it was stopped
    #[arg(long, requires = "out")]
    pub resume: bool,
    /// Print summary.json when done
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Folder of the run
    #[arg(long, short, default_value = "runs/demo", value_name = "FOLDER")]
    pub out: PathBuf,
    /// Seed of all randomness
    #[arg(long, default_value = "0", value_name = "N", value_parser = whole)]
    pub seed: u64,
}
