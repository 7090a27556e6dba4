//! Arguments of `train`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::value::{batch, positive, rate, share_within, whole};
use super::{DataArgs, ModelArgs};

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct Train {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Height and width in pixels to train at [default: the detector's own]
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub imgsz: Option<usize>,
    /// Times every image is seen [default: 100]
    #[arg(long, short, value_name = "N", value_parser = positive)]
    pub epochs: Option<usize>,
    /// Images a batch; the optimiser steps about every 64 images [default: 16]
    #[arg(long, short, value_name = "N", value_parser = batch)]
    pub batch: Option<usize>,
    /// How weights follow gradients [default: muon; sgd with --sparse]
    #[arg(long, value_enum)]
    pub optimizer: Option<Optimizer>,
    /// Learning rate at the start [default: 0.01 with sgd, 0.001 with the others]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub lr0: Option<f64>,
    /// Learning rate at the end, as a share of --lr0 [default: 0.01]
    #[arg(long, value_name = "SHARE", value_parser = rate)]
    pub lrf: Option<f64>,
    /// Sparse training: drive this share of the prunable BatchNorm scales to zero
    #[arg(long, value_name = "SHARE", value_parser = share_within)]
    pub sparse: Option<f64>,
    /// Seed of all randomness [default: 0]
    #[arg(long, value_name = "N", value_parser = whole)]
    pub seed: Option<u64>,
    /// Folder of the run [default: a new one, runs/train, runs/train2, ...]
    #[arg(long, short, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Go on with the run in --out where it was stopped
    #[arg(long, requires = "out")]
    pub resume: bool,
}

/// How weights follow gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Optimizer {
    /// Orthogonalised momentum for convolutions, Adam for all else.
    Muon,
    /// Stochastic gradient descent with Nesterov momentum.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}
