//! Arguments of `bench`.

use clap::{Args, Subcommand};

use super::ModelArgs;
use super::value::positive;

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
    #[arg(long, short, default_value = "1", value_name = "N", value_parser = positive)]
    pub batch: usize,
    /// Timed runs
    #[arg(long, default_value = "20", value_name = "N", value_parser = positive)]
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
    #[arg(long, short, default_value = "8", value_name = "N", value_parser = positive)]
    pub batch: usize,
    /// Timed steps
    #[arg(long, default_value = "10", value_name = "N", value_parser = positive)]
    pub steps: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
