//! The task-aligned assigner: which anchor points learn which object, and how strongly (Feng et al., "TOOD", ICCV 2021).

use super::iou::{Corners, ciou};

/// Keeps a division finite, and a point on the edge of a box outside of it; the value of the YOLO trainers.
const EPS: f32 = 1e-9;

/// Constants of the alignment `score^alpha * iou^beta`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assigner {
    /// Points an object chooses.
    pub topk: usize,
    /// How many of those that are its own, once contested points are given away, learn it in the end; `None`: all.
    pub keep: Option<usize>,
    /// A box narrower than this many pixels is looked for points within this width about its centre, and so with its height:
    /// else it may hold none.
    pub min_side: f32,
    pub alpha: f32,
    pub beta: f32,
}

/// An object of one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    pub class: usize,
    /// x1, y1, x2, y2 in pixels.
    pub corners: [f32; 4],
}

/// A point that learns an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assigned {
    pub point: usize,
    pub object: usize,
    /// Target of the object's class at this point and weight of its box there, in 0..=1.
    pub score: f32,
}

/// An object seen from a point inside it.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    point: usize,
    object: usize,
    overlap: f32,
    metric: f32,
}

impl Assigner {
    /// Assigns the `points` (x, y in pixels) of one image to its `objects`, in order of the points. `predicted` gives the
    /// box now predicted at a point, in pixels, and `score` its probability of a class; both are asked only for points
    /// inside an object.
    pub fn assign(
        &self,
        points: &[[f32; 2]],
        objects: &[Object],
        mut predicted: impl FnMut(usize) -> Corners,
        score: impl Fn(usize, usize) -> f32,
    ) -> Vec<Assigned> {
        // By point: how many objects chose it and the last that did; and the object it overlaps best, chosen or not.
        let mut chosen: Vec<(usize, Pair)> = vec![Default::default(); points.len()];
        let mut best: Vec<Pair> = vec![Default::default(); points.len()];
        let mut boxes: Vec<Option<Corners>> = vec![None; points.len()];
        for (object, &Object { class, corners }) in objects.iter().enumerate() {
            let mut pairs = Vec::new();
            let room = self.room(corners);
            for (point, &[x, y]) in points.iter().enumerate() {
                let inside = (x - room[0]).min(y - room[1]).min((room[2] - x).min(room[3] - y)) > EPS;
                if !inside {
                    continue;
                }
                let pred = *boxes[point].get_or_insert_with(|| predicted(point));
                let overlap = ciou(pred, corners.map(f64::from)).value.max(0.0) as f32;
                let metric = score(point, class).powf(self.alpha) * overlap.powf(self.beta);
                let pair = Pair { point, object, overlap, metric };
                if overlap > best[point].overlap {
                    best[point] = pair;
                }
                // A point without overlap would learn with weight 0.
                if metric > 0.0 {
                    pairs.push(pair);
                }
            }
            pairs.sort_by(|a, b| b.metric.total_cmp(&a.metric));
            for pair in pairs.into_iter().take(self.topk) {
                chosen[pair.point] = (chosen[pair.point].0 + 1, pair);
            }
        }

        let mut pairs: Vec<Pair> = chosen
            .iter()
            .zip(&best)
            .filter_map(|(&(count, pair), &best)| match count {
                0 => None,
                1 => Some(pair),
                _ => Some(best),
            })
            .collect();
        if let Some(keep) = self.keep {
            pairs.sort_by(|a, b| b.metric.total_cmp(&a.metric));
            let mut kept = vec![0; objects.len()];
            pairs.retain(|pair| {
                kept[pair.object] += 1;
                kept[pair.object] <= keep
            });
            pairs.sort_by_key(|pair| pair.point);
        }
        // An object's best aligned point gets its best overlap as target, the others in proportion.
        let mut peaks = vec![(0.0f32, 0.0f32); objects.len()];
        for pair in &pairs {
            let (metric, overlap) = &mut peaks[pair.object];
            *metric = metric.max(pair.metric);
            *overlap = overlap.max(pair.overlap);
        }
        let assigned = |pair: &Pair| {
            let (metric, overlap) = peaks[pair.object];
            Assigned { point: pair.point, object: pair.object, score: pair.metric * overlap / (metric + EPS) }
        };
        pairs.iter().map(assigned).collect()
    }

    /// Where an object looks for points: its box, with sides of at least `min_side`.
    fn room(&self, [x1, y1, x2, y2]: [f32; 4]) -> [f32; 4] {
        let side = |low: f32, high: f32| match high - low < self.min_side {
            true => [0.5, -0.5].map(|half| (low + high) / 2.0 - half * self.min_side),
            false => [low, high],
        };
        let ([x1, x2], [y1, y2]) = (side(x1, x2), side(y1, y2));
        [x1, y1, x2, y2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points at the centres of a 4 x 1 grid of 10-pixel cells.
    const POINTS: [[f32; 2]; 4] = [[5.0, 5.0], [15.0, 5.0], [25.0, 5.0], [35.0, 5.0]];

    fn object(x1: f32, x2: f32) -> Object {
        Object { class: 0, corners: [x1, 0.0, x2, 10.0] }
    }

    fn assigner(topk: usize) -> Assigner {
        Assigner { topk, keep: None, min_side: 0.0, alpha: 0.5, beta: 6.0 }
    }

    #[test]
    fn points_stay_in_order_whichever_is_aligned_best() {
        let objects = [object(0.0, 10.0), object(20.0, 40.0)];
        let boxes = |p: usize| if p == 0 { [0.0, 0.0, 8.0, 10.0] } else { [20.0, 0.0, 40.0, 10.0] };
        let one = Assigner { keep: Some(1), ..assigner(2) };
        let got = one.assign(&POINTS, &objects, boxes, |p, _| [0.1, 0.0, 0.5, 0.9][p]);
        assert_eq!(got.iter().map(|a| (a.point, a.object)).collect::<Vec<_>>(), [(0, 0), (3, 1)]);
    }

    #[test]
    fn an_object_takes_its_best_aligned_points_inside() {
        let boxes = |p: usize| if p == 1 { [0.0, 0.0, 30.0, 10.0] } else { [0.0, 0.0, 24.0, 10.0] };
        let got = assigner(2).assign(&POINTS, &[object(0.0, 30.0)], boxes, |p, _| [0.1, 0.9, 0.5, 0.9][p]);
        assert_eq!(got.iter().map(|a| a.point).collect::<Vec<_>>(), [1, 2]);
        assert!((got[0].score - 1.0).abs() < 1e-5, "the best point learns its own overlap: {got:?}");
        assert!(got[1].score < 0.3);
    }

    #[test]
    fn a_contested_point_goes_to_the_larger_overlap() {
        let boxes = |_: usize| [0.0, 0.0, 22.0, 10.0];
        let objects = [object(0.0, 40.0), object(0.0, 20.0)];
        let got = assigner(10).assign(&POINTS, &objects, boxes, |_, _| 0.5);
        let owner: Vec<_> = got.iter().map(|a| (a.point, a.object)).collect();
        assert_eq!(owner, [(0, 1), (1, 1), (2, 0), (3, 0)]);
    }

    #[test]
    fn one_point_an_object_is_the_best_of_what_is_left_to_it() {
        let boxes = |_: usize| [0.0, 0.0, 22.0, 10.0];
        let objects = [object(0.0, 40.0), object(0.0, 20.0)];
        // Both want point 1 most; it goes to the second, and the first is left with its best of 2 and 3.
        let scores = |p: usize, _| [0.3, 0.9, 0.4, 0.6][p];
        let got = Assigner { keep: Some(1), ..assigner(10) }.assign(&POINTS, &objects, boxes, scores);
        let owner: Vec<_> = got.iter().map(|a| (a.point, a.object)).collect();
        assert_eq!(owner, [(1, 1), (3, 0)]);
        // Its only point is its best one: it learns the overlap, 220 of 400 pixels, less what CIoU takes off.
        assert!(got[0].score > 0.85 && (0.3..0.55).contains(&got[1].score), "{got:?}");
    }

    #[test]
    fn a_small_object_finds_points_around_it() {
        let small = Object { class: 0, corners: [8.0, 2.0, 12.0, 8.0] };
        let boxes = |p: usize| [10.0 * p as f64, 0.0, 10.0 * p as f64 + 10.0, 10.0];
        let find = |min_side| {
            let got = Assigner { min_side, ..assigner(10) }.assign(&POINTS, &[small], boxes, |_, _| 0.9);
            got.iter().map(|a| a.point).collect::<Vec<_>>()
        };
        assert!(find(0.0).is_empty());
        assert_eq!(find(16.0), [0, 1]);
    }

    #[test]
    fn a_prediction_elsewhere_is_not_chosen() {
        let got = assigner(10).assign(&POINTS, &[object(0.0, 30.0)], |_| [80.0, 80.0, 90.0, 90.0], |_, _| 0.9);
        assert!(got.is_empty(), "{got:?}");
    }
}
