//! SimOTA: which anchor points learn which object, by cost and in a number the overlaps ask for (Ge et al., "YOLOX", 2021,
//! after "OTA", CVPR 2021).
//!
//! Two readings are in use. This is the paper's and that of YOLOX's releases before 0.3: a point is a candidate inside any
//! box or within 2.5 strides of any centre, and costs extra outside of either for the object at hand. Release 0.3 takes the
//! points within 1.5 strides of a centre alone, to save memory. The published weights were trained with the former, so
//! going on with it teaches them nothing new about where objects are found.

use super::assign::Object;
use super::bce::sigmoid;
use super::iou::{Corners, iou};

/// How far around an object's centre points are looked for, in strides along each axis.
const REACH: f32 = 2.5;
/// Overlaps that an object's number of points is the sum of.
const TOP: usize = 10;
/// Weight of the overlap in the cost.
const OVERLAP_COST: f64 = 3.0;
/// Cost of a point that is not both inside the box and near its centre.
const OUTSIDE_COST: f64 = 1e5;
/// Keeps the logarithm of no overlap finite.
const EPS: f64 = 1e-8;

/// An anchor point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// x, y in pixels.
    pub centre: [f32; 2],
    /// Pixels a cell of its level.
    pub stride: f32,
}

/// What the network says at a point.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// The predicted box, pixels.
    pub bbox: Corners,
    /// Logit of there being an object.
    pub objectness: f32,
    /// Logits of the classes.
    pub classes: &'a [f32],
}

/// A point that learns an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matched {
    pub point: usize,
    pub object: usize,
    /// IoU of the box predicted there with the object's.
    pub overlap: f64,
}

/// A point that may learn something.
struct Candidate<'a> {
    point: usize,
    said: Said<'a>,
    /// Cross-entropy of all classes against none of them.
    none: f64,
}

/// An object seen from a candidate.
#[derive(Clone, Copy)]
struct Pair {
    object: usize,
    overlap: f64,
    cost: f64,
}

/// Assigns the `points` of one image to its `objects`, in order of the points. `said` is asked for candidates only.
///
/// Memory is that of the candidates, however many objects there are.
pub fn assign<'a>(points: &[Point], objects: &[Object], said: impl Fn(usize) -> Said<'a>) -> Vec<Matched> {
    let near_any = |p: &Point| objects.iter().any(|o| inside(p, &o.corners) || central(p, &o.corners));
    let candidates: Vec<Candidate> = (0..points.len())
        .filter(|&point| near_any(&points[point]))
        .map(|point| {
            let said = said(point);
            let none = (0..said.classes.len()).map(|k| -log(1.0 - score(&said, k))).sum();
            Candidate { point, said, none }
        })
        .collect();

    // By candidate: how many objects chose it, the last that did, and the one it costs least, chosen by it or not.
    let mut chosen: Vec<(usize, Option<Pair>)> = vec![(0, None); candidates.len()];
    let mut cheapest: Vec<Option<Pair>> = vec![None; candidates.len()];
    for (object, Object { class, corners }) in objects.iter().enumerate() {
        let truth = corners.map(f64::from);
        let pairs: Vec<Pair> = candidates
            .iter()
            .map(|c| {
                let overlap = iou(c.said.bbox, truth).value;
                let probability = score(&c.said, *class);
                let entropy = c.none + log(1.0 - probability) - log(probability);
                let point = &points[c.point];
                let outside = !(inside(point, corners) && central(point, corners));
                let penalty = if outside { OUTSIDE_COST } else { 0.0 };
                Pair { object, overlap, cost: entropy - OVERLAP_COST * (overlap + EPS).ln() + penalty }
            })
            .collect();
        for (best, pair) in cheapest.iter_mut().zip(&pairs) {
            if best.is_none_or(|b| pair.cost < b.cost) {
                *best = Some(*pair);
            }
        }
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by(|&a, &b| pairs[a].cost.total_cmp(&pairs[b].cost));
        for &i in order.iter().take(wanted(&pairs)) {
            chosen[i] = (chosen[i].0 + 1, Some(pairs[i]));
        }
    }
    let owner = |(i, &(count, last)): (usize, &(usize, Option<Pair>))| {
        let pair = if count > 1 { cheapest[i] } else { last }?;
        Some(Matched { point: candidates[i].point, object: pair.object, overlap: pair.overlap })
    };
    chosen.iter().enumerate().filter_map(owner).collect()
}

/// How many points an object takes: the whole part of its largest overlaps' sum, at least one.
fn wanted(pairs: &[Pair]) -> usize {
    let mut overlaps: Vec<f64> = pairs.iter().map(|p| p.overlap).collect();
    overlaps.sort_by(|a, b| b.total_cmp(a));
    (overlaps.iter().take(TOP).sum::<f64>() as usize).max(1)
}

/// Whether a point lies in a box.
fn inside(point: &Point, &[x1, y1, x2, y2]: &[f32; 4]) -> bool {
    let [x, y] = point.centre;
    (x - x1).min(y - y1).min((x2 - x).min(y2 - y)) > 0.0
}

/// Whether a point lies near a box's centre.
fn central(point: &Point, &[x1, y1, x2, y2]: &[f32; 4]) -> bool {
    let ([x, y], reach) = (point.centre, REACH * point.stride);
    (x - (x1 + x2) / 2.0).abs() < reach && (y - (y1 + y2) / 2.0).abs() < reach
}

/// Geometric mean of the probabilities of an object and of a class.
fn score(said: &Said, class: usize) -> f64 {
    (f64::from(sigmoid(said.classes[class])) * f64::from(sigmoid(said.objectness))).sqrt()
}

/// The logarithm, bounded below as PyTorch's cross-entropy bounds it.
fn log(p: f64) -> f64 {
    p.ln().max(-100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of points with 8 pixels a cell.
    fn row(len: usize) -> Vec<Point> {
        (0..len).map(|i| Point { centre: [8.0 * i as f32 + 4.0, 4.0], stride: 8.0 }).collect()
    }

    fn object(x1: f32, x2: f32) -> Object {
        Object { class: 0, corners: [x1, 0.0, x2, 8.0] }
    }

    fn says(bbox: Corners, classes: &[f32]) -> Said<'_> {
        Said { bbox, objectness: 0.0, classes }
    }

    fn owners(matched: &[Matched]) -> Vec<(usize, usize)> {
        matched.iter().map(|m| (m.point, m.object)).collect()
    }

    #[test]
    fn an_object_takes_as_many_points_as_its_overlaps_sum_to() {
        // Points 0 to 7 are candidates, six of them say the box itself: six points.
        let said = |p: usize| says(if p < 6 { [0.0, 0.0, 64.0, 8.0] } else { [90.0, 0.0, 99.0, 8.0] }, &[0.0]);
        let matched = assign(&row(12), &[object(0.0, 64.0)], said);
        assert_eq!(matched.len(), 6);
        assert!(matched.iter().all(|m| m.object == 0));
        // Near the centre (points 2 to 5) and then those the network agrees on, although they cost extra.
        assert_eq!(owners(&matched).iter().map(|m| m.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn an_object_nobody_sees_takes_one_point_near_its_centre() {
        let matched = assign(&row(12), &[object(30.0, 36.0)], |_| says([90.0, 0.0, 95.0, 8.0], &[0.0]));
        assert_eq!(matched.len(), 1);
        assert_eq!(matched[0].overlap, 0.0);
        // The box holds no point, so all within reach cost the same and the first stays.
        assert_eq!(matched[0].point, 2);
    }

    #[test]
    fn what_nobody_sees_is_learned_in_the_box_and_near_its_centre() {
        let matched = assign(&row(12), &[object(0.0, 48.0)], |_| says([90.0, 0.0, 95.0, 8.0], &[0.0]));
        // The first point is in the box, yet not within 20 pixels of 24.
        assert_eq!(owners(&matched), [(1, 0)]);
    }

    #[test]
    fn a_contested_point_goes_to_the_cheaper_object() {
        // Both objects want the one point that has an overlap with either.
        let said = |p: usize| says(if p == 3 { [24.0, 0.0, 36.0, 8.0] } else { [90.0, 0.0, 91.0, 8.0] }, &[0.0]);
        let objects = [object(20.0, 44.0), object(24.0, 37.0)];
        assert_eq!(owners(&assign(&row(6), &objects, said)), [(3, 1)]);
        let swapped = [objects[1], objects[0]];
        assert_eq!(owners(&assign(&row(6), &swapped, said)), [(3, 0)]);
    }

    #[test]
    fn a_likelier_class_is_cheaper() {
        let logits: Vec<[f32; 2]> = (0..6).map(|p| if p == 4 { [3.0, -3.0] } else { [-3.0, 3.0] }).collect();
        let said = |p: usize| says([24.0, 0.0, 26.0, 8.0], &logits[p]);
        assert_eq!(owners(&assign(&row(6), &[object(8.0, 48.0)], said)), [(4, 0)]);
    }

    #[test]
    fn no_objects_and_no_points_match_nothing() {
        assert!(assign(&row(4), &[], |_| unreachable!("no candidates")).is_empty());
        assert!(assign(&[], &[object(0.0, 8.0)], |_| unreachable!("no candidates")).is_empty());
    }

    #[test]
    fn saturated_logits_cost_a_finite_amount() {
        let said = |p: usize| Said { objectness: 200.0, ..says([0.0, 0.0, 8.0, 8.0], [&[-200.0], &[200.0]][p % 2]) };
        assert_eq!(owners(&assign(&row(2), &[object(0.0, 16.0)], said)), [(1, 0)]);
    }
}
