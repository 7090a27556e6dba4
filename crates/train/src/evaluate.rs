//! Scoring a detector on labelled images: what training does after every epoch and `val` does once.

use data::{Batch, Dataset, Fit, Item, Loader};
use eval::coco::{self, Annotation, Category, GroundTruth, Image, MapResult, ScoredBox};
use eval::{Detection, NmsConfig};
use graph::{Extra, Family, Graph, Head};

use crate::Result;
use crate::loss::RawMap;
use crate::net::{HeadMap, Infer};
use crate::watch::Watch;

/// A graph ready to be shown images.
pub struct Detector {
    infer: Infer,
    head: Head,
    finite: bool,
}

impl Detector {
    /// Readies `graph` for square images of `imgsz` pixels.
    ///
    /// # Errors
    /// The graph has no head, does not fit that size, or tells boxes that are turned.
    pub fn new(graph: &Graph, imgsz: usize) -> Result<Self> {
        let (head, _) = graph.head()?;
        if head.extra() == Some(Extra::Angle) {
            let what = "its boxes are turned: Prunella neither selects nor scores such boxes";
            return Err(graph::Error::node("head", what)
                .hint("`prune` and `export` work; run the export with Ultralytics to detect and to measure mAP")
                .into());
        }
        Ok(Self { infer: Infer::new(graph, [imgsz, imgsz])?, head: head.clone(), finite: true })
    }

    /// Detects in `n` images, (N, S, S, 3) as RGB bytes; boxes are in pixels of the canvas.
    ///
    /// # Errors
    /// Never for a size [`Detector::new`] accepted.
    pub fn detect(&mut self, images: &[u8], n: usize, nms: &NmsConfig) -> Result<Vec<Vec<Detection>>> {
        let maps = self.infer.run(images, n)?;
        self.finite &= maps.iter().all(|m| m.data.iter().all(|v| v.is_finite()));
        Ok(eval::detect(&self.head, &raw(&maps), nms))
    }

    /// Whether all maps so far were made of finite numbers; where they overflow, boxes mean nothing.
    pub fn is_finite(&self) -> bool {
        self.finite
    }
}

/// How images are fitted to the canvas where a family comes from: Darknet stretches them, YOLOX puts them into the corner,
/// everyone else letterboxes.
pub fn fit(family: Family) -> Fit {
    match family {
        Family::Darknet => Fit::Stretch,
        Family::Yolox => Fit::Corner,
        _ => Fit::Letterbox,
    }
}

/// The maps as losses and decoding read them.
pub fn raw(maps: &[HeadMap]) -> Vec<RawMap<'_>> {
    maps.iter().map(|m| RawMap { n: m.n, h: m.h, w: m.w, c: m.c, data: &m.data }).collect()
}

/// COCO mAP of `detect` over all images of `loader`, a validation loader over `items` of `dataset`.
///
/// `classes[c]` is the dataset's class for the detector's class c.
///
/// # Errors
/// An image cannot be read, or `detect` fails.
pub fn evaluate<E>(
    dataset: &Dataset,
    items: &[Item],
    loader: &Loader,
    classes: &[usize],
    watch: &mut dyn Watch,
    mut detect: impl FnMut(&Batch) -> std::result::Result<Vec<Vec<Detection>>, E>,
) -> std::result::Result<MapResult, E>
where
    E: From<data::Error> + From<eval::Error>,
{
    let mut found = vec![];
    let mut done = 0;
    for batch in loader.epoch(0) {
        let batch = batch?;
        let detections = detect(&batch)?;
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
        done += batch.n;
        watch.images("Evaluating", done, items.len());
    }
    Ok(coco::evaluate(&truth(dataset, items), &found)?)
}

/// The labels of `items` as COCO puts them. VOC's difficult objects are crowds: found or not, they do not count.
fn truth(dataset: &Dataset, items: &[Item]) -> GroundTruth {
    let ids = dataset.category_ids.iter().map(|&id| id as i64);
    let categories = ids.zip(&dataset.names).map(|(id, name)| Category { id, name: name.clone() });
    let images = items.iter().map(|item| Image { id: item.id as i64 });
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
