//! mAP of a detector on a split: images through the detector, boxes against the labels.

use std::time::{Duration, Instant};

use data::{Dataset, Item, Loader, LoaderConfig, Mode};
use eval::NmsConfig;
use eval::coco::{self, Annotation, Category, GroundTruth, Image, MapResult, ScoredBox};

use crate::detector::Detector;
use crate::exit::Error;
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
    let config =
        LoaderConfig { size: detector.imgsz as u32, batch, mode: Mode::Val, cache_bytes: 0, ..Default::default() };
    let loader = Loader::new(items, config)?;
    let bar = ui::bar("Evaluating", items.len(), "images");
    let mut found = vec![];
    let mut detecting = Duration::ZERO;
    for batch in loader.epoch(0) {
        let batch = batch?;
        let start = Instant::now();
        let detections = detector.detect(&batch.images, batch.n, nms)?;
        detecting += start.elapsed();
        for ((item, placed), boxes) in batch.items.iter().zip(&batch.letterboxes).zip(detections) {
            found.extend(boxes.iter().map(|d| {
                let [x1, y1, x2, y2] = placed.to_image(d.bbox).map(f64::from);
                ScoredBox {
                    image_id: items[*item].id as i64,
                    category_id: dataset.category_ids[classes[d.class]] as i64,
                    bbox: [x1, y1, x2 - x1, y2 - y1],
                    score: f64::from(d.score),
                }
            }));
        }
        bar.inc(batch.n as u64);
    }
    bar.finish_and_clear();
    Ok(Score { map: coco::evaluate(&truth(dataset, items), &found)?, images: items.len(), detecting })
}

/// The labels of `items` as COCO puts them. VOC's difficult objects are crowds: found or not, they do not count.
fn truth(dataset: &Dataset, items: &[Item]) -> GroundTruth {
    let ids = dataset.category_ids.iter().map(|&id| id as i64);
    let categories = ids.zip(&dataset.names).map(|(id, name)| Category { id, name: name.clone() });
    let images = items.iter().map(|item| Image {
        id: item.id as i64,
        file_name: item.image.display().to_string(),
        width: item.size.0 as usize,
        height: item.size.1 as usize,
    });
    let boxes = items.iter().flat_map(|item| item.boxes.iter().map(move |b| (item.id as i64, b)));
    let annotations = boxes.map(|(image_id, b)| {
        let [x1, y1, x2, y2] = b.xyxy.map(f64::from);
        Annotation {
            image_id,
            category_id: dataset.category_ids[b.class] as i64,
            bbox: [x1, y1, x2 - x1, y2 - y1],
            area: b.area,
            crowd: !b.counts(),
        }
    });
    GroundTruth { images: images.collect(), annotations: annotations.collect(), categories: categories.collect() }
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
