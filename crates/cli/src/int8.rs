//! Exporting a detector in eight bits: scales from training images, mAP before and after on validation images.

use std::path::Path;

use data::{Dataset, Fit, Item, Loader, LoaderConfig, Mode};
use graph::format::onnx::{ExportOptions, export, export_quantized};
use graph::format::write_whole;
use graph::quant::Quantized;
use graph::{Extra, Graph};
use runtime::Session;
use serde::{Deserialize, Serialize};
use train::calibrate::Images;
use train::val_nms;

use crate::detector::Detector;
use crate::exit::Error;
use crate::score::{class_map, score};
use crate::splits;
use crate::ui::{self, Column, Table};

/// Training images that scales are found on, unless told otherwise.
pub const CALIBRATION_IMAGES: usize = 128;
/// Images at a time.
const BATCH: usize = 8;

/// A detector to be written in eight bits, and what it is shown.
pub struct Int8<'a> {
    pub graph: &'a Graph,
    pub dataset: &'a Dataset,
    /// How many training images at most.
    pub images: usize,
    pub options: ExportOptions,
}

/// One file: its size, and how well it detects.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub bytes: u64,
    /// On the validation images; absent where there are none.
    pub map50_95: Option<f64>,
    pub map50: Option<f64>,
}

/// What an export in eight bits came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Images the scales were found on.
    pub calibration_images: usize,
    /// Images mAP was measured on.
    pub validation_images: usize,
    pub f32: Measured,
    pub int8: Measured,
}

impl Int8<'_> {
    /// Writes the file and measures it.
    ///
    /// # Errors
    /// The dataset has no images, or the file cannot be written or run.
    pub fn write(&self, path: &Path) -> miette::Result<Outcome> {
        let imgsz = self.options.imgsz[0];
        let plain = export(self.graph, &self.options)?.len() as u64;
        let (head, _) = self.graph.head()?;
        let judges = match self.dataset.split("val") {
            _ if head.extra() == Some(Extra::Angle) => {
                ui::warn("turned boxes are not scored here; mAP is not measured");
                0
            }
            // Scales need no labels, mAP does.
            Ok(_) if self.dataset.names.len() != head.classes() => {
                ui::warn("the dataset has other classes than the detector; mAP is not measured");
                0
            }
            Ok(_) => match splits::labelled(self.dataset, "val") {
                Ok(items) => items.len(),
                Err(lacking) => {
                    ui::warn(format_args!("{lacking}; mAP is not measured"));
                    0
                }
            },
            Err(_) => 0,
        };
        // Once for both files: how classes are compared is told on the way.
        let classes = (judges > 0).then(|| class_map(&self.graph.meta.names, self.dataset)).transpose()?;
        let before = match &classes {
            None => None,
            Some(classes) => Some(self.score(&mut Detector::of(self.graph.clone(), imgsz)?, classes)?),
        };
        let items = self.items()?;
        let quantized = self.quantize(&items)?;
        let bytes = export_quantized(&quantized, &self.options)?;
        self.runs(path, bytes.clone())?;
        write_whole(path, &bytes)?;
        let after = match &classes {
            None => None,
            Some(classes) => Some(self.score(&mut Detector::open(path, None, None)?, classes)?),
        };
        let measured =
            |bytes, map: Option<[f64; 2]>| Measured { bytes, map50_95: map.map(|m| m[0]), map50: map.map(|m| m[1]) };
        Ok(Outcome {
            calibration_images: items.len(),
            validation_images: judges,
            f32: measured(plain, before),
            int8: measured(bytes.len() as u64, after),
        })
    }

    /// Training images, spread evenly; validation images where the dataset has no others.
    fn items(&self) -> miette::Result<Vec<Item>> {
        if !self.dataset.splits.contains_key("train") {
            ui::warn("the dataset has no training images; the scales are found on its validation images");
        }
        Ok(splits::spread(splits::to_calibrate_on(self.dataset)?, self.images))
    }

    fn quantize(&self, items: &[Item]) -> miette::Result<Quantized> {
        let config = LoaderConfig {
            size: self.options.imgsz[0] as u32,
            batch: BATCH,
            mode: Mode::Val(self.fit()),
            ..LoaderConfig::default()
        };
        let loader = Loader::new(items, config)?;
        let bar = ui::bar("Calibrating", items.len(), "images");
        let batches = || {
            // Images are shown more than once; how often, the detector decides.
            bar.reset();
            loader.epoch(0).map(|batch| {
                let batch = batch?;
                bar.inc(batch.n as u64);
                Ok::<_, train::Error>(Images { data: batch.images, n: batch.n })
            })
        };
        let quantized = train::quantize::quantize(self.graph, self.options.imgsz, batches)?;
        bar.finish_and_clear();
        Ok(quantized)
    }

    fn fit(&self) -> Fit {
        train::evaluate::fit(self.graph.meta.family)
    }

    /// The file runs, and what comes out is finite.
    fn runs(&self, path: &Path, bytes: Vec<u8>) -> miette::Result<()> {
        let session = Session::from_bytes(path, bytes, rayon::current_num_threads())?;
        let [h, w] = self.options.imgsz;
        let shape = [self.options.batch, 3, h, w];
        let output = session.run(&vec![0.5; shape.iter().product()], shape)?;
        if output.data.iter().all(|v| v.is_finite()) {
            return Ok(());
        }
        let what = "the detector's outputs are no longer finite in eight bits";
        Err(Error::failed(what, "export it in f32, without `--int8`"))
    }

    /// mAP50-95 and mAP50 on the validation images, by the rules of `val`.
    fn score(&self, detector: &mut Detector, classes: &[usize]) -> miette::Result<[f64; 2]> {
        let map = score(detector, classes, self.dataset, "val", BATCH, &val_nms())?.map;
        Ok([map.map50_95, map.map50])
    }
}

impl Outcome {
    /// The two files, by name.
    pub fn files(&self) -> [(&'static str, &Measured); 2] {
        [("f32", &self.f32), ("int8", &self.int8)]
    }

    /// Both files side by side.
    pub fn table(&self) -> String {
        let mut table = Table::new([
            Column::text("weights and maps"),
            Column::number("size"),
            Column::number("mAP50"),
            Column::number("mAP50-95"),
        ]);
        for (name, file) in self.files() {
            let row = [name.into(), ui::bytes(file.bytes), ui::fixed(file.map50, 4), ui::fixed(file.map50_95, 4)];
            table.row(row);
        }
        format!("{table}\n")
    }
}
