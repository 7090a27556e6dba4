//! Arguments of the commands that run a detector: `val`, `predict`, `export`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::value::{batch, positive, share};
use super::{DataArgs, DataForm, ModelArgs};
use crate::files;

/// Arguments of `val`.
#[derive(Debug, Args)]
pub struct Val {
    /// Detector: .pt (YOLOv5 to YOLO26), .cfg (Darknet), .onnx or .safetensors (Prunella)
    #[arg(long, short, value_name = "FILE", required_unless_present = "detections", conflicts_with = "detections")]
    pub model: Option<PathBuf>,
    /// Weights of a Darknet .cfg [default: the .weights beside it]
    #[arg(long, value_name = "FILE", requires = "model")]
    pub weights: Option<PathBuf>,
    /// Score this COCO results file instead of running a detector; --data is then the COCO JSON with the truth
    #[arg(long, value_name = "RESULTS.json", conflicts_with_all = ["data_format", "images", "split", "imgsz", "conf", "iou", "batch"])]
    pub detections: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    /// Part of the dataset
    #[arg(long, default_value = "val", value_name = "NAME")]
    pub split: String,
    /// Height and width in pixels images are letterboxed to [default: the detector's own]
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub imgsz: Option<usize>,
    /// Least confidence of a box that counts
    #[arg(long, default_value = "0.001", value_name = "P", value_parser = share)]
    pub conf: f64,
    /// Overlap above which of two boxes of a class the less confident goes
    #[arg(long, default_value = "0.6", value_name = "IOU", value_parser = share)]
    pub iou: f64,
    /// Images at a time
    #[arg(long, short, default_value = "8", value_name = "N", value_parser = batch)]
    pub batch: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct Predict {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Images, or folders of images
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<PathBuf>,
    /// Height and width in pixels images are letterboxed to [default: the detector's own]
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub imgsz: Option<usize>,
    /// Least confidence of a box that is drawn
    #[arg(long, default_value = "0.25", value_name = "P", value_parser = share)]
    pub conf: f64,
    /// Overlap above which of two boxes of a class the less confident goes
    #[arg(long, default_value = "0.45", value_name = "IOU", value_parser = share)]
    pub iou: f64,
    /// Folder the images go to [default: a new one, runs/predict, runs/predict2, ...]
    #[arg(long, short, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Write a YOLO label file beside each image too: class, box, confidence
    #[arg(long)]
    pub save_txt: bool,
    /// Print the detections as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Format of the file [default: what --out ends in, else onnx]
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,
    /// Height and width in pixels the file is made for [default: the detector's own]
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub imgsz: Option<usize>,
    /// Leave the batch size open (ONNX)
    #[arg(long)]
    pub dynamic: bool,
    /// Round weights and maps to 8 bits (ONNX), with scales found on the training images of --data; mAP is measured before
    /// and after on its validation images
    #[arg(long, requires = "data")]
    pub int8: bool,
    /// Dataset for --int8: data.yaml, COCO JSON, or a folder that holds one of them or Pascal VOC annotations
    #[arg(long, short, value_name = "PATH", requires = "int8")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub form: DataForm,
    /// Images that show --int8 what the maps hold
    #[arg(long, default_value_t = crate::int8::CALIBRATION_IMAGES, value_name = "N", value_parser = positive, requires = "int8")]
    pub calibration_images: usize,
    /// File to write [default: the model's name with the format's extension, with --int8 NAME-int8.onnx]
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print JSON (with --int8)
    #[arg(long, requires = "int8")]
    pub json: bool,
}

/// What `export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Boxes decoded, BatchNorm folded, the layout of Ultralytics' own exports.
    Onnx,
    /// Prunella's own file.
    Safetensors,
    /// .cfg, .weights and .names, for detectors of Darknet's families.
    Darknet,
    /// The checkpoint of the detector's own Python package, for YOLOv5 and the families from YOLOv6 to YOLO26 (not YOLOv9e).
    Pt,
}

impl ExportFormat {
    /// What the names of its files end in.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
            Self::Safetensors => "safetensors",
            Self::Darknet => "cfg",
            Self::Pt => "pt",
        }
    }

    /// The one that the name of `file` ends in, if it is one of these.
    pub fn of(file: &Path) -> Option<Self> {
        Self::value_variants().iter().copied().find(|format| files::ends_in(file, format.extension()))
    }
}
