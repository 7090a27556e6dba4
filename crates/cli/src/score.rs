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
use crate::{splits, ui};

/// What an evaluation came to.
pub struct Score {
    pub map: MapResult,
    pub images: usize,
    /// In the detector, suppression included; reading images is not.
    pub detecting: Duration,
}

/// Runs `detector` over the images of a split and compares; `classes` is its [`class_map`].
pub fn score(
    detector: &mut Detector,
    classes: &[usize],
    dataset: &Dataset,
    split: &str,
    batch: usize,
    nms: &NmsConfig,
) -> miette::Result<Score> {
    let items = splits::labelled(dataset, split)?;
    let config = LoaderConfig {
        size: detector.imgsz as u32,
        batch,
        mode: Mode::Val(detector.fit),
        cache_bytes: 0,
        ..Default::default()
    };
    let loader = Loader::new(items, config)?;
    let mut detecting = Duration::ZERO;
    let map = evaluate(dataset, items, &loader, classes, &mut Counter::default(), |batch| {
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
    /// The dataset has no such split, or no box in it.
    pub fn new(dataset: &'a Dataset, split: &str, imgsz: usize, family: Family) -> miette::Result<Self> {
        let items = splits::labelled(dataset, split)?;
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

/// Gives the classes of `model` the dataset's names, where there are as many and those it has are others altogether: they are the same by
/// their place then.
///
/// # Errors
/// It has other classes, or the same in another order.
pub fn by_place(model: &mut Graph, dataset: &Dataset) -> miette::Result<()> {
    let (own, names) = (&model.meta.names, &dataset.names);
    if own == names {
        return Ok(());
    }
    if class_map(own, dataset)?.iter().enumerate().any(|(place, &class)| place != class) {
        return Err(other_classes(own, dataset));
    }
    model.meta.names.clone_from(names);
    Ok(())
}

/// The detector's classes are not those of the dataset.
fn other_classes(detector: &[String], dataset: &Dataset) -> miette::Report {
    let (knows, has, path) = (listed(detector), listed(&dataset.names), dataset.path.display());
    let what = format!("the detector knows {knows}, `{path}` has {has}");
    Error::failed(what, "train it on this dataset first: `prunella train --model MODEL --data DATA`")
}

/// How many classes, and the first of them.
fn listed(names: &[String]) -> String {
    let more = if names.len() > 3 { ", …" } else { "" };
    let plural = if names.len() == 1 { "" } else { "es" };
    format!("{} class{plural} ({}{more})", names.len(), names[..names.len().min(3)].join(", "))
}

/// The dataset's class of each of the detector's: by name where the names are the same, else by place, with a warning.
///
/// # Errors
/// There are more or fewer of them.
pub fn class_map(detector: &[String], dataset: &Dataset) -> miette::Result<Vec<usize>> {
    let names = &dataset.names;
    let by_name: Vec<usize> = detector.iter().filter_map(|n| names.iter().position(|d| d == n)).collect();
    if detector.len() != names.len() {
        return Err(other_classes(detector, dataset));
    }
    if by_name.len() == detector.len() {
        return Ok(by_name);
    }
    ui::warn("the detector's class names differ from the dataset's; classes are compared by their place");
    Ok((0..detector.len()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split(' ').map(Into::into).collect()
    }

    fn dataset(text: &str) -> Dataset {
        let (path, format) = ("pets.yaml".into(), data::Format::Ultralytics);
        Dataset { path, format, names: names(text), category_ids: vec![], splits: Default::default() }
    }

    #[test]
    fn classes_meet_by_name_whatever_their_order() {
        assert_eq!(class_map(&names("a b c"), &dataset("c a b")).unwrap(), [1, 2, 0]);
        assert_eq!(class_map(&names("class0 class1"), &dataset("cat dog")).unwrap(), [0, 1]);
    }

    #[test]
    fn other_classes_are_told_with_the_first_of_them_and_the_file() {
        let told = class_map(&names("a b c d"), &dataset("cat")).unwrap_err().to_string();
        assert_eq!(told, "the detector knows 4 classes (a, b, c, …), `pets.yaml` has 1 class (cat)");
    }
}
