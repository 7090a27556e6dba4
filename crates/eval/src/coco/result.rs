//! What an evaluation says: the twelve numbers, and for every class where they come from.

use serde::Serialize;

use super::curve::{BestF1, ClassCurves, CurvePoint, GRID};

/// Names of [`MapResult::stats`] in order: average precision over IoU 0.5 to 0.95, at 0.5, at 0.75, of small, medium and
/// large objects; average recall with 1, 10 and 100 detections, of small, medium and large objects.
pub const STAT_NAMES: [&str; 12] =
    ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"];

/// The result of one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MapResult {
    /// `stats[0]`.
    pub map50_95: f64,
    /// `stats[1]`.
    pub map50: f64,
    /// The twelve numbers of COCO, named by [`STAT_NAMES`]; -1 where there are no objects to find, as in pycocotools.
    pub stats: [f64; 12],
    /// The confidence, to three decimals, at which the mean F1 of the classes at IoU 0.5 is largest.
    pub best_confidence: f64,
    /// That mean F1.
    pub best_f1: f64,
    /// In order of category ids.
    pub per_class: Vec<ClassResult>,
    pub dropped: Dropped,
}

/// One class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassResult {
    pub name: String,
    /// Images with an object of this class, crowds apart.
    pub images: usize,
    /// Objects of this class, crowds apart.
    pub instances: usize,
    /// Detections that entered: at most 100 an image.
    pub detections: usize,
    /// At IoU 0.5 and [`MapResult::best_confidence`]; none without instances, as all that follow.
    pub precision: Option<f64>,
    pub recall: Option<f64>,
    pub ap50: Option<f64>,
    pub ap50_95: Option<f64>,
    /// Where this class alone has its best F1 at IoU 0.5.
    pub best_f1: Option<BestF1>,
    /// Precision and recall at IoU 0.5 by falling confidence, not interpolated. Left out of JSON: it is long.
    #[serde(skip)]
    pub curve: Vec<CurvePoint>,
}

/// Entries that did not take part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Detections whose score or box is not finite.
    pub not_finite: usize,
    /// Detections of a category the annotations do not list.
    pub unknown_category: usize,
    /// Annotations of an image or category that is not listed.
    pub annotations: usize,
}

impl MapResult {
    pub(super) fn new(names: Vec<String>, classes: Vec<ClassCurves>, dropped: Dropped) -> Self {
        let ap = |area: usize| mean(classes.iter().filter(|c| c.instances[area] > 0).flat_map(|c| c.ap[area]));
        let ap_at = |t: usize| mean(classes.iter().filter(|c| c.instances[0] > 0).map(|c| c.ap[0][t]));
        let ar = |area: usize| mean(classes.iter().filter(|c| c.instances[area] > 0).flat_map(|c| c.recall[area]));
        let ar_limited =
            |limit: usize| mean(classes.iter().filter(|c| c.instances[0] > 0).flat_map(|c| c.limited_recall[limit]));
        let stats = [
            ap(0),
            ap_at(0),
            ap_at(5),
            ap(1),
            ap(2),
            ap(3),
            ar_limited(0),
            ar_limited(1),
            ar_limited(2),
            ar(1),
            ar(2),
            ar(3),
        ];
        let (best, best_f1) = best_of_grid(&classes);
        let per_class = names.into_iter().zip(classes).map(|(name, class)| ClassResult::new(name, class, best));
        Self {
            map50_95: stats[0],
            map50: stats[1],
            stats,
            best_confidence: best as f64 / GRID as f64,
            best_f1,
            per_class: per_class.collect(),
            dropped,
        }
    }
}

impl ClassResult {
    fn new(name: String, class: ClassCurves, best: usize) -> Self {
        let instances = class.instances[0];
        let (right, wrong) = class.grid[best];
        let some = |value: f64| (instances > 0).then_some(value);
        Self {
            name,
            images: class.images,
            instances,
            detections: class.detections,
            precision: some(right as f64 / (right + wrong).max(1) as f64),
            recall: some(right as f64 / instances.max(1) as f64),
            ap50: some(class.ap[0][0]),
            ap50_95: some(class.ap[0].iter().sum::<f64>() / class.ap[0].len() as f64),
            best_f1: class.best_f1,
            curve: class.points,
        }
    }
}

/// The place in the grid of largest mean F1, the lowest among equals, and that mean.
fn best_of_grid(classes: &[ClassCurves]) -> (usize, f64) {
    let present: Vec<_> = classes.iter().filter(|class| class.instances[0] > 0).collect();
    let mut best = (0, 0.0);
    for i in 0..GRID {
        let f1 = present.iter().map(|class| {
            let (right, wrong) = class.grid[i];
            2.0 * right as f64 / (right + wrong + class.instances[0]) as f64
        });
        let mean = f1.sum::<f64>() / present.len().max(1) as f64;
        if mean > best.1 {
            best = (i, mean);
        }
    }
    best
}

/// The mean, or -1 of nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0usize, 0.0), |(count, sum), value| (count + 1, sum + value));
    if count == 0 { -1.0 } else { sum / count as f64 }
}
