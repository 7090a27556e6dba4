//! Arguments of `new`.

use std::path::PathBuf;

use clap::Args;

use super::DataForm;
use super::value::{positive, whole};

/// Arguments of `new`.
#[derive(Debug, Args)]
pub struct New {
    /// Which detector, such as yolov8n; an unknown name is answered with the list of all
    #[arg(value_name = "NAME")]
    pub name: String,
    /// How many classes it is to tell apart [default: as many as --names or --data name]
    #[arg(long, value_name = "N", value_parser = positive, required_unless_present_any = ["names", "data"])]
    pub classes: Option<usize>,
    /// Their names [default: those of --data, else class 0, class 1, ...]
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', conflicts_with = "data")]
    pub names: Option<Vec<String>>,
    /// Dataset that names them: data.yaml, COCO JSON, or a folder that holds one of them or Pascal VOC annotations
    #[arg(long, short, value_name = "PATH")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub form: DataForm,
    /// Height and width in pixels it is to be trained at [default: what its authors train it at]
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub imgsz: Option<usize>,
    /// Seed of the weights
    #[arg(long, default_value = "0", value_name = "N", value_parser = whole)]
    pub seed: u64,
    /// File to write, .safetensors
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
}
