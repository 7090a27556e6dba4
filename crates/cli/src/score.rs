//! mAP of a detector on a split: images through the detector, boxes against the labels.

use std::time::{Duration, Instant};

use data::{Dataset, Item, Loader, LoaderConfig, Mode};
use eval::NmsConfig;
use eval::coco::MapResult;
use graph::{Family, Graph};
use train::evaluate::{self, evaluate};
use train::val_nms;
use train::watch::Watch;

use crate::detector::Detector;
use crate::exit::Error;
use crate::training::Counter;
use crate::ui;

/// What an evaluation came to.
pub struct Score {
    pub map: MapResult,
    pub images: usize,
    /// In the detector, suppression included; reading images is not.
    pub detecting: Duration,
}

/// Runs `detector` over the images of a split and compares.
pub fn score(
    detector: &mut Detector,
    dataset: &Dataset,
    split: &str,
    batch: usize,
    nms: &NmsConfig,
) -> miette::Result<Score> {
    let items = &dataset.split(split)?.items;
    if items.is_empty() {
        let what = format!("split `{split}` of `{}` has no images", dataset.path.display());
        return Err(Error::failed(what, "run `prunella data check` on it to see what is there"));
    }
    let classes = class_map(&detector.names, &dataset.names)?;
    let config = LoaderConfig {
        size: detector.imgsz as u32,
        batch,
        mode: Mode::Val(detector.fit),
        cache_bytes: 0,
        ..Default::default()
    };
    let loader = Loader::new(items, config)?;
    let mut detecting = Duration::ZERO;
    let map = evaluate(dataset, items, &loader, &classes, &mut Counter::default(), |batch| {
        let start = Instant::now();
        let detections = detector.detect(&batch.images, batch.n, nms);
        detecting += start.elapsed();
        detections
    })?;
    Ok(Score { map, images: items.len(), detecting })
}

/// One split whose images are decoded once, to judge many graphs with the dataset's own classes on.
pub struct Judge<'a> {
    dataset: &'a Dataset,
    items: &'a [Item],
    loader: Loader,
    imgsz: usize,
}

impl<'a> Judge<'a> {
    /// A judge of detectors of `family` on images of `imgsz` pixels.
    ///
    /// # Errors
    /// The dataset has no such split.
    pub fn new(dataset: &'a Dataset, split: &str, imgsz: usize, family: Family) -> miette::Result<Self> {
        let items = &dataset.split(split)?.items[..];
        let mode = Mode::Val(evaluate::fit(family));
        let config = LoaderConfig { size: imgsz as u32, mode, ..LoaderConfig::default() };
        Ok(Self { dataset, items, loader: Loader::new(items, config)?, imgsz })
    }

    /// mAP of `graph`.
    pub fn score(&self, graph: &Graph, watch: &mut dyn Watch) -> miette::Result<MapResult> {
        let classes: Vec<usize> = (0..self.dataset.names.len()).collect();
        let mut detector = evaluate::Detector::new(graph, self.imgsz)?;
        Ok(evaluate(self.dataset, self.items, &self.loader, &classes, watch, |batch| {
            detector.detect(&batch.images, batch.n, &val_nms())
        })?)
    }
}

/// An error unless `model` knows just the dataset's classes.
pub fn same_classes(model: &Graph, dataset: &Dataset) -> miette::Result<()> {
    if model.meta.names == dataset.names {
        return Ok(());
    }
    let what = format!("the detector knows {}, the dataset other classes", model.meta.names.join(", "));
    Err(Error::failed(what, "train it on this dataset first: `prunella train --model MODEL --data DATA`"))
}

/// The dataset's class of each of the detector's: by name where the names are the same, else by place.
fn class_map(detector: &[String], dataset: &[String]) -> miette::Result<Vec<usize>> {
    let by_name: Vec<usize> = detector.iter().filter_map(|n| dataset.iter().position(|d| d == n)).collect();
    if detector.len() == dataset.len() && by_name.len() == detector.len() {
        return Ok(by_name);
    }
    if detector.len() == dataset.len() {
        ui::warn("the detector's class names differ from the dataset's; classes are compared by their place");
        return Ok((0..detector.len()).collect());
    }
    let (know, has) = (detector.len(), dataset.len());
    let what = format!("the detector knows {know} classes, the dataset has {has}");
    Err(Error::failed(what, "train it on this dataset first: `prunella train --model MODEL --data DATA`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split(' ').map(Into::into).collect()
    }

    #[test]
    fn classes_meet_by_name_whatever_their_order() {
        assert_eq!(class_map(&names("a b c"), &names("c a b")).unwrap(), [1, 2, 0]);
        assert_eq!(class_map(&names("class0 class1"), &names("cat dog")).unwrap(), [0, 1]);
        assert!(class_map(&names("a b c"), &names("a b")).is_err());
    }
}
