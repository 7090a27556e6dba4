//! Images without labels: the detector's own answers stand in for those.
//!
//! A detector that is to be made smaller has been trained before. What it finds is what the small one is to find: healing learns
//! where those boxes end as it would learn labels (see [`train::Teacher`]), and mAP then says how far the two agree.

use std::collections::BTreeSet;
use std::path::Path;

use data::{Dataset, Format, Item, LabelBox, Loader, LoaderConfig, Mode, OpenOptions, Split};
use eval::NmsConfig;
use graph::Graph;
use train::evaluate::{Detector, fit};
use train::val_nms;

use crate::exit::Error;
use crate::ui;

/// Least confidence of a box that stands in for a label: what `predict` draws.
const CONFIDENCE: f32 = 0.25;

/// One image in this many is judged by and not learnt from.
const HELD_OUT: usize = 5;

/// Whether `path`, said to be of `format` or of none, is a folder of images and nothing else that is known.
pub fn is_bare(path: &Path, format: Option<Format>) -> bool {
    path.is_dir() && format.is_none() && data::recognise(path).is_none()
}

/// The dataset at `path`, or the images of a bare folder as one without labels, of the classes `names`.
pub fn open(path: &Path, options: &OpenOptions, names: &[String]) -> data::Result<Dataset> {
    match is_bare(path, options.format) {
        true => data::unlabelled(path, names, options.lenient),
        false => data::open(path, options),
    }
}

/// `images`, the split "train" of a dataset without labels, labelled by what `detector` finds in them at `imgsz` pixels; one of them
/// in five as the split "val". The detector's own mAP is then 1.
///
/// # Errors
/// There is one image only, the detector finds nothing, or an image cannot be read.
pub fn label(images: &Dataset, detector: &Graph, imgsz: usize) -> miette::Result<Dataset> {
    let folder = images.path.display();
    let mut items = images.split("train")?.items.clone();
    if items.len() < 2 {
        let what = format!("`{folder}` holds one image, which cannot be learnt from and judged by");
        return Err(Error::failed(what, "give more of them; `prunella prune` makes do with one"));
    }
    answer(&mut items, detector, imgsz)?;
    let period = HELD_OUT.min(items.len());
    let (val, train): (Vec<_>, Vec<_>) = items.into_iter().enumerate().partition(|(i, _)| i % period == period - 1);
    let splits = [("train", train), ("val", val)].map(|(name, items)| {
        let items: Vec<Item> = items.into_iter().map(|(_, item)| item).collect();
        (name.to_owned(), Split { items, problems: vec![] })
    });
    let boxes = splits.each_ref().map(|(_, split)| split.items.iter().map(|item| item.boxes.len()).sum::<usize>());
    if boxes.contains(&0) {
        let what = format!("the detector finds next to nothing in the images of `{folder}`, and they have no labels");
        return Err(Error::failed(what, "give images of the kind it was trained on, more of them, or their labels"));
    }
    ui::note(format_args!(
        "No labels in `{folder}`: the {} boxes that the detector finds there stand in for them, and mAP is agreement with it, on one \
         image in {period}",
        boxes[0] + boxes[1]
    ));
    let found: BTreeSet<usize> =
        splits.iter().flat_map(|(_, split)| &split.items).flat_map(|item| &item.boxes).map(|b| b.class).collect();
    let (classes, missing) = (images.names.len(), images.names.len() - found.len());
    if missing > 0 {
        ui::warn(format_args!(
            "{missing} of {classes} classes are not among what it finds: healing may forget them; images that show them teach it to keep them"
        ));
    }
    Ok(Dataset { splits: splits.into(), ..images.clone() })
}

/// Gives `items` the boxes that `detector` finds.
fn answer(items: &mut [Item], detector: &Graph, imgsz: usize) -> miette::Result<()> {
    let mode = Mode::Val(fit(detector.meta.family));
    let config = LoaderConfig { size: imgsz as u32, mode, cache_bytes: 0, ..LoaderConfig::default() };
    let loader = Loader::new(items, config)?;
    // Suppressed as they will be when the small one is judged.
    let nms = NmsConfig { conf: CONFIDENCE, ..val_nms() };
    let mut detector = Detector::new(&detector.for_inference(), imgsz)?;
    let bar = ui::bar("Labelling", items.len(), "images");
    for batch in loader.epoch(0) {
        let batch = batch?;
        let found = detector.detect(&batch.images, batch.n, &nms)?;
        for ((&item, placed), found) in batch.items.iter().zip(&batch.letterboxes).zip(found) {
            let boxes = found.iter().map(|d| {
                let xyxy = placed.to_image(d.bbox);
                let [x1, y1, x2, y2] = xyxy.map(f64::from);
                LabelBox { class: d.class, xyxy, area: (x2 - x1) * (y2 - y1), crowd: false, difficult: false }
            });
            items[item].boxes = boxes.filter(|b| b.area > 0.0).collect();
        }
        bar.inc(batch.n as u64);
    }
    bar.finish_and_clear();
    Ok(())
}
