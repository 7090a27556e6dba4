//! The arguments of every command, in the words YOLO users know. Parsing checks each value alone; what has to fit
//! together is checked by the command.

mod analyze;
mod bench;
mod compare;
mod compress;
mod dataset;
mod new;
mod score;
mod train;
mod value;

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use graph::Graph;
use graph::format::{LoadOptions, load};

pub use analyze::Analyze;
pub use bench::{Bench, BenchInfer, BenchTrain};
pub use compare::Compare;
pub use compress::{Compress, Demo, Prune};
pub use dataset::{DataArgs, DataForm};
pub use new::New;
pub use score::{Export, ExportFormat, Predict, Val};
pub use train::{Optimizer, Train};
use value::Device;

/// Prunes, compresses, trains and evaluates YOLO detectors.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// The command line, or the end of the program with what is wrong with it.
pub fn parse() -> Cli {
    let parsed = Cli::from_arg_matches(&taking_negatives(Cli::command()).get_matches());
    parsed.unwrap_or_else(|error| error.format(&mut Cli::command()).exit())
}

/// `command`, whose values may begin with a minus: which numbers are right is what the values' own parsers say best.
fn taking_negatives(command: clap::Command) -> clap::Command {
    let numbers = |arg: clap::Arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
    command.mut_args(numbers).mut_subcommands(taking_negatives)
}

/// Options every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Say nothing on stderr but errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Threads to compute with [default: one a core]
    #[arg(long, global = true, value_name = "N", value_parser = value::threads)]
    pub threads: Option<usize>,
    /// What computes: `cpu`, or one of its instruction sets, such as `cpu:avx2`, for the figures of a CPU that has no more
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a detector layer by layer: shapes, parameters, MACs, which channels belong together
    Info(Info),
    /// Start an untrained detector of a published family, for classes of your own
    New(New),
    /// Measure mAP on a dataset, or score a file of detections
    Val(Val),
    /// Draw the boxes a detector finds on images
    Predict(Predict),
    /// Fine-tune a detector on a dataset, densely or driving BatchNorm scales to zero
    Train(Train),
    /// Remove channels from a detector once, without training
    Prune(Prune),
    /// The whole method: train, sparsify, prune by importance and similarity, heal, export, report
    Compress(Compress),
    /// Measure how much accuracy each group of coupled channels is worth
    Analyze(Analyze),
    /// Compare pruning methods under one budget, recipe and list of seeds
    Compare(Compare),
    /// Write a detector for another runtime, verified by running it
    Export(Export),
    /// Measure how fast a detector runs or trains here
    #[command(subcommand)]
    Bench(Bench),
    /// Look at datasets
    #[command(subcommand)]
    Data(Data),
    /// Make a small dataset, train a small detector on it, compress it, report
    Demo(Demo),
}

/// Which detector.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Detector: .pt (YOLOv5 to YOLO26), .cfg (Darknet), .onnx (of these, and YOLOX) or .safetensors (Prunella)
    #[arg(long, short, value_name = "FILE")]
    pub model: PathBuf,
    /// Weights of a Darknet .cfg [default: the .weights beside it]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
}

impl ModelArgs {
    /// Reads the detector.
    pub fn load(&self) -> graph::Result<Graph> {
        load_model(&self.model, self.weights.as_deref())
    }

    /// The same with what only training looks at.
    pub fn load_to_train(&self) -> graph::Result<Graph> {
        load_to_train(&self.model, self.weights.as_deref())
    }
}

/// Reads a detector; `weights` belongs to a Darknet `.cfg`.
pub fn load_model(model: &Path, weights: Option<&Path>) -> graph::Result<Graph> {
    load(model, &LoadOptions { weights: weights.map(Path::to_path_buf), ..LoadOptions::default() })
}

/// The same with what only training looks at: the one-to-many branches of an end-to-end head.
pub fn load_to_train(model: &Path, weights: Option<&Path>) -> graph::Result<Graph> {
    load(model, &LoadOptions { weights: weights.map(Path::to_path_buf), one_to_many: true, ..LoadOptions::default() })
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct Info {
    /// Detector: .pt, .onnx, .cfg or .safetensors
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Weights of a Darknet .cfg [default: the .weights beside it]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Height and width in pixels that shapes and MACs are given for [default: the detector's own]
    #[arg(long, value_name = "PIXELS", value_parser = value::positive)]
    pub imgsz: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `data` and its commands.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Report what is wrong with a dataset; exit code 3 if anything is
    Check(DataCheck),
}

/// Arguments of `data check`.
#[derive(Debug, Args)]
pub struct DataCheck {
    /// Dataset: data.yaml, COCO JSON, or a folder that holds one of them or Pascal VOC annotations; or any folder of images
    #[arg(value_name = "DATA")]
    pub data: PathBuf,
    #[command(flatten)]
    pub form: DataForm,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_well_formed() {
        taking_negatives(Cli::command()).debug_assert();
    }

    #[test]
    fn a_negative_number_is_told_what_would_have_been_right() {
        let told = |text: &str| {
            let parsed = taking_negatives(Cli::command()).try_get_matches_from(format!("prunella {text}").split(' '));
            parsed.map_or_else(|error| error.to_string(), |_| String::new())
        };
        assert!(told("prune -m a.pt --macs -0.5 --dry-run").contains("not a share above 0"));
        assert!(told("train -m a.pt -d b --imgsz -1").contains("not a whole number of at least 1"));
        assert_eq!(told("train -m a.pt -d b --imgsz 64"), "");
    }
}
