//! Non-maximum suppression as YOLOv5 evaluates: class by class, greedy, without a limit on time.

use rayon::prelude::*;

use crate::Predictions;

/// How boxes are selected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NmsConfig {
    /// A score must exceed this.
    pub conf: f32,
    /// A box goes if it overlaps a better one of its class by more than this; from 1 on none does.
    pub iou: f32,
    /// Boxes kept per image.
    pub max_det: usize,
    /// Whether a box counts for every class that passes `conf` (evaluation) or for its best class only (display).
    pub multi_label: bool,
}

impl Default for NmsConfig {
    /// What YOLOv5 validates with.
    fn default() -> Self {
        Self { conf: 0.001, iou: 0.6, max_det: 300, multi_label: true }
    }
}

impl NmsConfig {
    /// The same for detectors that tell every object once: only scores decide.
    pub fn without_suppression(self) -> Self {
        Self { iou: 1.0, ..self }
    }
}

/// One detected object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// x1, y1, x2, y2 in pixels.
    pub bbox: [f32; 4],
    /// Objectness times class probability.
    pub score: f32,
    pub class: usize,
}

/// Selects the boxes of every image, best first. A score is objectness times class probability where there is an
/// objectness, which must itself exceed the threshold. The 30,000 best candidates enter suppression; equal scores keep the order of rows, then classes. A score
/// that is not a number never passes.
pub fn nms(predictions: &Predictions, config: &NmsConfig) -> Vec<Vec<Detection>> {
    let select = |image| {
        let mut candidates = Vec::new();
        for row in predictions.rows(image) {
            let (bbox, scores) = row[..row.len() - predictions.extra()].split_at(4);
            let (objectness, classes) = match scores.split_first() {
                Some((&objectness, classes)) if predictions.has_objectness() => (objectness, classes),
                _ => (1.0, scores),
            };
            if predictions.has_objectness() && objectness <= config.conf {
                continue;
            }
            let scored = classes.iter().map(|&p| objectness * p).enumerate();
            Candidate::push_passing(scored, config, || [bbox[0], bbox[1], bbox[2], bbox[3]], &mut candidates);
        }
        suppress(candidates, config)
    };
    (0..predictions.images()).into_par_iter().map(select).collect()
}

/// A box that passes the confidence threshold.
pub(crate) type Candidate = Detection;

impl Candidate {
    /// Appends one anchor's candidates from its (class, score) pairs in order of class; `bbox` gives centre and size and
    /// is asked only if a score passes.
    pub(crate) fn push_passing(
        scored: impl Iterator<Item = (usize, f32)>,
        config: &NmsConfig,
        bbox: impl FnOnce() -> [f32; 4],
        out: &mut Vec<Self>,
    ) {
        let start = out.len();
        for (class, score) in scored.filter(|&(_, score)| score > config.conf) {
            if !config.multi_label && out.len() > start {
                if score > out[start].score {
                    out[start] = Self { bbox: [0.0; 4], score, class };
                }
            } else {
                out.push(Self { bbox: [0.0; 4], score, class });
            }
        }
        if out.len() > start {
            let corners = corners(bbox());
            out[start..].iter_mut().for_each(|candidate| candidate.bbox = corners);
        }
    }
}

/// Candidates that enter suppression, as in YOLOv5.
const MAX_CANDIDATES: usize = 30_000;

/// Greedy suppression within classes. Going through all classes together by falling score lets it stop at `max_det`.
pub(crate) fn suppress(mut candidates: Vec<Candidate>, config: &NmsConfig) -> Vec<Detection> {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    if config.iou >= 1.0 {
        candidates.truncate(config.max_det);
        return candidates;
    }
    candidates.truncate(MAX_CANDIDATES);
    let classes = candidates.iter().map(|c| c.class + 1).max().unwrap_or(0);
    let mut kept_by_class: Vec<Vec<[f32; 4]>> = vec![Vec::new(); classes];
    let mut kept = Vec::new();
    for candidate in candidates {
        if kept.len() == config.max_det {
            break;
        }
        let rivals = &mut kept_by_class[candidate.class];
        if !rivals.iter().any(|&rival| iou(rival, candidate.bbox) > config.iou) {
            rivals.push(candidate.bbox);
            kept.push(candidate);
        }
    }
    kept
}

/// Centre and size to corners.
fn corners([cx, cy, w, h]: [f32; 4]) -> [f32; 4] {
    [cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0]
}

/// Intersection over union of two boxes in corners. Two boxes without area give NaN, which exceeds no threshold.
fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let area = |r: [f32; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let inter = w * h;
    inter / (area(a) + area(b) - inter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, candidates_from_rows};

    const CONFIG: NmsConfig = NmsConfig { conf: 0.1, iou: 0.5, max_det: 300, multi_label: true };

    /// Runs one image of rows (cx, cy, w, h, objectness, two classes); gives (class, score, x1).
    fn run(rows: &[[f32; 7]], config: &NmsConfig) -> Vec<(usize, f32, f32)> {
        let predictions = candidates_from_rows(&rows.concat(), [1, rows.len(), 7], Layout::Rows, 2).unwrap();
        let detections = nms(&predictions, config).remove(0);
        detections.iter().map(|d| (d.class, d.score, d.bbox[0])).collect()
    }

    #[test]
    fn suppresses_within_classes_only() {
        let rows = [
            [10.0, 10.0, 10.0, 10.0, 1.0, 0.8, 0.0],
            [11.0, 10.0, 10.0, 10.0, 1.0, 0.9, 0.0], // overlaps the first by 9/11
            [11.0, 10.0, 10.0, 10.0, 0.5, 0.0, 0.5], // another class; score 0.25
            [30.0, 10.0, 10.0, 10.0, 1.0, 0.2, 0.0],
        ];
        assert_eq!(run(&rows, &CONFIG), [(0, 0.9, 6.0), (1, 0.25, 6.0), (0, 0.2, 25.0)]);
        assert_eq!(run(&rows, &NmsConfig { max_det: 1, ..CONFIG }), [(0, 0.9, 6.0)]);
    }

    #[test]
    fn overlap_at_the_threshold_stays() {
        // 10x10 boxes 5 apart overlap by exactly 1/3.
        let rows = [0.0, 5.0].map(|x| [x, 0.0, 10.0, 10.0, 1.0, 0.5, 0.0]);
        assert_eq!(run(&rows, &NmsConfig { iou: 1.0 / 3.0, ..CONFIG }).len(), 2);
        assert_eq!(run(&rows, &NmsConfig { iou: 0.333, ..CONFIG }).len(), 1);
    }

    #[test]
    fn one_box_counts_for_each_class_or_its_best() {
        let rows = [[10.0, 10.0, 4.0, 4.0, 1.0, 0.4, 0.6], [90.0, 10.0, 4.0, 4.0, 1.0, 0.5, 0.5]];
        let best = run(&rows, &NmsConfig { multi_label: false, ..CONFIG });
        assert_eq!(best, [(1, 0.6, 8.0), (0, 0.5, 88.0)]);
        let all = run(&rows, &CONFIG);
        assert_eq!(all, [(1, 0.6, 8.0), (0, 0.5, 88.0), (1, 0.5, 88.0), (0, 0.4, 8.0)]);
    }

    #[test]
    fn survives_nan_and_boxes_without_area() {
        let point = [5.0, 5.0, 0.0, 0.0, 1.0, 0.5, 0.0];
        let nan = [5.0, 5.0, 1.0, 1.0, f32::NAN, 0.5, 0.9];
        assert_eq!(run(&[nan, point, point], &CONFIG).len(), 2);
        assert!(run(&[], &CONFIG).is_empty());
    }
}
