//! Which dataset, and how to read it where its path alone does not say.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use data::{Format, OpenOptions};

/// A dataset that has to be given.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Dataset: data.yaml, COCO JSON, or a folder that holds one of them or Pascal VOC annotations
    #[arg(long, short, value_name = "PATH")]
    pub data: PathBuf,
    #[command(flatten)]
    pub form: DataForm,
}

impl DataArgs {
    /// Reads the dataset.
    pub fn open(&self) -> data::Result<data::Dataset> {
        data::open(&self.data, &self.form.options())
    }
}

/// How to read a dataset that is not laid out as usual.
#[derive(Clone, Debug, Default, Args)]
pub struct DataForm {
    /// Form of the labels [default: what the path looks like]
    #[arg(long, value_enum, value_name = "FORM")]
    pub data_format: Option<DataFormat>,
    /// Folder of the images of a COCO or VOC dataset [default: its usual place]
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<PathBuf>,
}

impl DataForm {
    /// As the reader takes it.
    pub fn options(&self) -> OpenOptions {
        OpenOptions { format: self.data_format.map(Into::into), images: self.images.clone(), ..OpenOptions::default() }
    }
}

/// The three usual forms of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DataFormat {
    /// A data.yaml and a text file an image.
    Ultralytics,
    /// An instances JSON.
    Coco,
    /// An XML file an image.
    Voc,
}

impl From<DataFormat> for Format {
    fn from(form: DataFormat) -> Self {
        match form {
            DataFormat::Ultralytics => Self::Ultralytics,
            DataFormat::Coco => Self::Coco,
            DataFormat::Voc => Self::Voc,
        }
    }
}
