//! From matched detections of one class to precision, recall and average precision.

use serde::Serialize;

use super::matching::{AREAS, Hit, MAX_DETECTIONS, Matched, THRESHOLDS};

/// Confidences at which precision and recall are compared across classes: 0, 0.001, ..., 0.999.
pub(super) const GRID: usize = 1000;
/// Limits on the detections per image and class at which recall is reported.
pub(super) const LIMITS: [usize; 3] = [1, 10, MAX_DETECTIONS];

/// Everything that is summed over classes.
pub(super) struct ClassCurves {
    pub instances: [usize; AREAS],
    pub images: usize,
    pub detections: usize,
    /// Mean precision over the 101 recall points, by area range and IoU; without meaning where there are no instances.
    pub ap: [[f64; THRESHOLDS]; AREAS],
    /// Recall of all detections by area range and IoU.
    pub recall: [[f64; THRESHOLDS]; AREAS],
    /// Recall over all areas with at most [`LIMITS`] detections an image, by IoU.
    pub limited_recall: [[f64; THRESHOLDS]; LIMITS.len()],
    /// All areas, IoU 0.5, by falling confidence.
    pub points: Vec<CurvePoint>,
    pub best_f1: Option<BestF1>,
    /// (right, wrong) at IoU 0.5 among the detections of at least each confidence of the grid.
    pub grid: Vec<(usize, usize)>,
}

/// An operating point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BestF1 {
    pub confidence: f64,
    pub f1: f64,
    pub precision: f64,
    pub recall: f64,
}

/// One step of a precision-recall curve: what detections of at least this confidence give.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    pub confidence: f64,
    pub precision: f64,
    pub recall: f64,
}

/// Walks the detections of one class by falling score.
pub(super) fn evaluate_class(matched: Matched) -> ClassCurves {
    let Matched { mut hits, instances, images } = matched;
    let detections = hits.len();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut ap = [[0.0; THRESHOLDS]; AREAS];
    let mut recall = [[0.0; THRESHOLDS]; AREAS];
    for area in (0..AREAS).filter(|&area| instances[area] > 0) {
        for t in 0..THRESHOLDS {
            (ap[area][t], recall[area][t]) = average_precision(&hits, area, t, instances[area]);
        }
    }
    let limited_recall = LIMITS.map(|limit| {
        std::array::from_fn(|t| {
            let right = hits.iter().filter(|hit| hit.rank < limit && hit.right(0, t)).count();
            right as f64 / instances[0].max(1) as f64
        })
    });
    let points = curve(&hits, instances[0]);
    let best_f1 = best_f1(&points);
    ClassCurves { instances, images, detections, ap, recall, limited_recall, best_f1, grid: grid(&hits), points }
}

impl Hit {
    fn right(&self, area: usize, t: usize) -> bool {
        self.matched[area] & !self.ignored[area] & 1 << t != 0
    }

    fn wrong(&self, area: usize, t: usize) -> bool {
        (self.matched[area] | self.ignored[area]) & 1 << t == 0
    }
}

/// Mean of the interpolated precision at recall 0, 0.01, ..., 1, and the recall of all detections.
///
/// Precision is highest, and recall grows, only where a detection is right: only those places are stored.
fn average_precision(hits: &[Hit], area: usize, t: usize, instances: usize) -> (f64, f64) {
    let mut precision = Vec::new();
    let mut wrong = 0.0;
    for hit in hits {
        if hit.right(area, t) {
            let right = precision.len() as f64 + 1.0;
            precision.push(right / (wrong + right + f64::EPSILON));
        } else if hit.wrong(area, t) {
            wrong += 1.0;
        }
    }
    for i in (1..precision.len()).rev() {
        precision[i - 1] = precision[i - 1].max(precision[i]);
    }
    let recall = |i: usize| (i + 1) as f64 / instances as f64;
    let mut at = 0;
    let mut sum = 0.0;
    for point in 0..=100 {
        // `numpy.linspace(0, 1, 101)`, rounding included.
        let wanted = if point == 100 { 1.0 } else { f64::from(point) * 0.01 };
        while at < precision.len() && recall(at) < wanted {
            at += 1;
        }
        sum += precision.get(at).copied().unwrap_or(0.0);
    }
    (sum / 101.0, precision.len() as f64 / instances as f64)
}

/// Precision and recall at IoU 0.5 after every detection that counts.
fn curve(hits: &[Hit], instances: usize) -> Vec<CurvePoint> {
    let (mut right, mut wrong) = (0, 0);
    let mut points = Vec::new();
    for hit in hits {
        right += usize::from(hit.right(0, 0));
        wrong += usize::from(hit.wrong(0, 0));
        if instances > 0 && (hit.right(0, 0) || hit.wrong(0, 0)) {
            points.push(CurvePoint {
                confidence: hit.score,
                precision: right as f64 / (right + wrong) as f64,
                recall: right as f64 / instances as f64,
            });
        }
    }
    points
}

/// The confidence of largest F1; among detections of one score only the last is a threshold one can set.
fn best_f1(points: &[CurvePoint]) -> Option<BestF1> {
    let settable = points
        .iter()
        .enumerate()
        .filter(|(i, point)| points.get(i + 1).is_none_or(|next| next.confidence < point.confidence));
    let mut best: Option<BestF1> = None;
    for (_, &CurvePoint { confidence, precision, recall }) in settable {
        let f1 = 2.0 * precision * recall / (precision + recall).max(f64::MIN_POSITIVE);
        if best.is_none_or(|best| f1 > best.f1) {
            best = Some(BestF1 { confidence, f1, precision, recall });
        }
    }
    best
}

fn grid(hits: &[Hit]) -> Vec<(usize, usize)> {
    let (mut right, mut wrong) = (0, 0);
    let mut hits = hits.iter().peekable();
    let mut grid = vec![(0, 0); GRID];
    for (i, cell) in grid.iter_mut().enumerate().rev() {
        while let Some(hit) = hits.next_if(|hit| hit.score >= i as f64 / GRID as f64) {
            right += usize::from(hit.right(0, 0));
            wrong += usize::from(hit.wrong(0, 0));
        }
        *cell = (right, wrong);
    }
    grid
}
