//! The same images with the boxes of both detectors, for the report.

use std::io::Cursor;

use data::draw::{Annotation, annotate};
use data::{Letterbox, picture};
use eval::NmsConfig;
use graph::Graph;
use image::imageops::FilterType;
use image::{ImageFormat, RgbImage};
use train::evaluate::{Detector, fit};

use super::Pipeline;
use crate::exit::Error;
use crate::report::{Pair, Picture};
use crate::splits;

/// How many images are shown.
const SHOWN: usize = 4;

/// Least confidence of a box that is drawn.
const CONFIDENCE: f32 = 0.25;

/// Longest side of a picture in the report, pixels.
const SIDE: u32 = 480;

/// Images of the test split, or of the validation split where there is none, evenly spread.
pub(super) fn pairs(run: &Pipeline, dense: &Graph, slim: &Graph) -> miette::Result<Vec<Pair>> {
    let split = run.dataset.split("test").or_else(|_| run.dataset.split("val"))?;
    let fit = fit(dense.meta.family);
    let graphs = [dense, slim];
    let mut detectors = [Detector::new(dense, dense.meta.imgsz[0])?, Detector::new(slim, slim.meta.imgsz[0])?];
    let mut pairs = vec![];
    for item in splits::spread(&split.items, SHOWN) {
        let image = picture::decode(&item.image)?;
        let mut by = |which: usize| {
            let canvas = data::letterbox(&image, graphs[which].meta.imgsz[0] as u32, fit);
            shown(&image, &canvas, &mut detectors[which], &run.dataset.names)
        };
        let (dense, slim) = (by(0)?, by(1)?);
        let caption = item.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        pairs.push(Pair { caption, dense, slim });
    }
    Ok(pairs)
}

fn shown(
    image: &RgbImage,
    (canvas, placed): &(Vec<u8>, Letterbox),
    detector: &mut Detector,
    names: &[String],
) -> miette::Result<Picture> {
    let nms = NmsConfig { conf: CONFIDENCE, iou: 0.45, multi_label: false, ..NmsConfig::default() };
    let found = detector.detect(canvas, 1, &nms)?;
    let shrink = (SIDE as f32 / image.width().max(image.height()) as f32).min(1.0);
    let size = |side: u32| ((side as f32 * shrink).round() as u32).max(1);
    let mut small = image::imageops::resize(image, size(image.width()), size(image.height()), FilterType::Triangle);
    let boxes: Vec<Annotation> = found[0]
        .iter()
        .map(|d| Annotation {
            xyxy: placed.to_image(d.bbox).map(|v| v * shrink),
            class: d.class,
            text: format!("{} {:.2}", names[d.class], d.score),
        })
        .collect();
    annotate(&mut small, &boxes);
    let mut bytes = Cursor::new(vec![]);
    let write = small.write_to(&mut bytes, ImageFormat::Jpeg);
    write.map_err(|e| Error::failed(format!("cannot compress a picture for the report: {e}"), "report it"))?;
    Ok(Picture { mime: "image/jpeg", bytes: bytes.into_inner() })
}
