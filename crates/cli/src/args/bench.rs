//! Arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::value::{batch, positive, runs};
use super::{DataForm, ModelArgs, Optimizer};

/// `bench` and its commands.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Milliseconds an image, in our own executor and in the embedded ONNX runtime
    Infer(BenchInfer),
    /// Milliseconds a training step: forward, loss, backward, optimiser
    Train(BenchTrain),
}

/// Arguments of `bench infer`.
#[derive(Debug, Args)]
pub struct BenchInfer {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Height and width in pixels [default: the detector's own]
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub imgsz: Option<usize>,
    /// Images at a time
    #[arg(long, short, default_value = "1", value_name = "N", value_parser = batch)]
    pub batch: usize,
    /// Timed runs
    #[arg(long, default_value = "20", value_name = "N", value_parser = runs)]
    pub runs: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench train`.
#[derive(Debug, Args)]
pub struct BenchTrain {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Height and width in pixels
    #[arg(long, default_value = "320", value_name = "PIXELS", value_parser = positive)]
    pub imgsz: usize,
    /// Images a step
    #[arg(long, short, default_value = "8", value_name = "N", value_parser = batch)]
    pub batch: usize,
    /// How weights follow gradients
    #[arg(long, default_value = "muon", value_enum)]
    pub optimizer: Optimizer,
    /// Timed steps on made-up images
    #[arg(long, default_value = "10", value_name = "N", value_parser = runs, conflicts_with = "data")]
    pub steps: usize,
    /// Time one epoch of this dataset's training images instead, loader included
    #[arg(long, short, value_name = "PATH")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub form: DataForm,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
