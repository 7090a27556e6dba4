//! Arguments of `analyze`.

use std::path::PathBuf;

use clap::Args;

use super::value::{positive, share_within, whole};
use super::{DataArgs, ModelArgs};

/// Arguments of `analyze`.
#[derive(Debug, Args)]
pub struct Analyze {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Share of its channels taken from each group in turn
    #[arg(long, default_value = "0.5", value_name = "SHARE", value_parser = share_within)]
    pub rate: f64,
    /// Part of the dataset accuracy is measured on
    #[arg(long, default_value = "val", value_name = "NAME")]
    pub split: String,
    /// Height and width in pixels [default: the detector's own]
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub imgsz: Option<usize>,
    /// Seed of all randomness
    #[arg(long, default_value = "0", value_name = "N", value_parser = whole)]
    pub seed: u64,
    /// Folder of the report [default: a new one, runs/analyze, runs/analyze2, ...]
    #[arg(long, short, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
