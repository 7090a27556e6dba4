//! Arguments of `compare`.

use std::path::PathBuf;

use clap::Args;

use super::value::{batch, positive, share_to_keep, whole};
use super::{DataArgs, ModelArgs};
use crate::pipeline::{METHODS, Method};

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct Compare {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Shares of the multiply-accumulates to keep, one after the other
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.25", value_name = "SHARES", value_parser = share_to_keep)]
    pub macs: Vec<f64>,
    /// Methods to compare, by name [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = method)]
    pub methods: Vec<String>,
    /// Seeds; every method runs once with each
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "N", value_parser = whole)]
    pub seeds: Vec<u64>,
    /// Height and width in pixels [default: the detector's own]; with several every method is run on each, shares being of the
    /// dense detector at the first
    #[arg(long, value_delimiter = ',', value_name = "PIXELS", value_parser = positive)]
    pub imgsz: Vec<usize>,
    /// Epochs of dense fine-tuning (where the detector does not know the dataset's classes) and of healing
    #[arg(long, short, default_value = "25", value_name = "N", value_parser = positive)]
    pub epochs: usize,
    /// Images a batch, at most: where that leaves few steps, batches are smaller
    #[arg(long, short, default_value = "16", value_name = "N", value_parser = batch)]
    pub batch: usize,
    /// Runs at a time, each with its share of the threads: small detectors train faster side by side
    #[arg(long, default_value = "1", value_name = "N", value_parser = positive)]
    pub jobs: usize,
    /// Folder of the comparison; one that was stopped is gone on with
    #[arg(long, short, default_value = "runs/compare", value_name = "FOLDER")]
    pub out: PathBuf,
    /// Print compare.json when done
    #[arg(long)]
    pub json: bool,
}

fn method(name: &str) -> Result<String, String> {
    match Method::named(name) {
        Some(method) => Ok(method.name.into()),
        None => {
            let names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
            Err(format!("not one of {}", names.join(", ")))
        }
    }
}
