//! YOLOv5's loss for anchor heads: CIoU on matched anchors, objectness everywhere, classes on matched anchors.
//!
//! The rule is that of YOLOv5 7.0's `ComputeLoss`, written from its description and held to its numbers. A target is
//! matched with every anchor of every level whose shape is within a factor [`V5Loss::anchor_t`], in its own cell and, as
//! a YOLOv5 box can reach half a cell past its own, in the nearest cell along either axis. Objectness learns the CIoU the
//! prediction has just reached. Levels decoded by Darknet's rule are trained the same way, in their own cell only. Where
//! the factor is less than the published one, a target that would be left without an anchor keeps the nearest.

use data::Target;
use graph::{AnchorHead, AnchorLevel, BoxDecode, Error, Result};
use rayon::prelude::*;

use super::bce::{bce, sigmoid};
use super::iou::{by_centre, ciou, corners};
use super::{LossOutput, RawMap, check_targets, dims};

/// The names of the three parts.
pub(super) const PARTS: [&str; 3] = ["box", "obj", "cls"];

/// Channels of an anchor before its classes: x, y, w, h, objectness.
pub(super) const BOX: usize = 5;

/// The published [`V5Loss::anchor_t`]. It is how many times its anchor's sides a YOLOv5 box can have, so no anchor that is further off is
/// ever matched for being the nearest.
const REACH: f32 = 4.0;

/// Gains and thresholds; the defaults are YOLOv5's `hyp.scratch-low` before scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct V5Loss {
    pub box_gain: f32,
    pub obj_gain: f32,
    pub cls_gain: f32,
    /// Ratio between a side of a target and the same side of an anchor, below which the two are matched.
    pub anchor_t: f32,
}

impl Default for V5Loss {
    fn default() -> Self {
        Self { box_gain: 0.05, obj_gain: 1.0, cls_gain: 0.5, anchor_t: REACH }
    }
}

impl V5Loss {
    /// The gains as YOLOv5's trainer adapts them: they are tuned for 80 classes, 640 pixels and 3 levels.
    pub fn scaled(self, classes: usize, imgsz: usize, levels: usize) -> Self {
        let per_level = 3.0 / levels as f32;
        Self {
            box_gain: self.box_gain * per_level,
            cls_gain: self.cls_gain * classes as f32 / 80.0 * per_level,
            obj_gain: self.obj_gain * (imgsz as f32 / 640.0).powi(2) * per_level,
            ..self
        }
    }

    /// Value and gradient for the raw maps of `head`, one a level.
    ///
    /// # Errors
    /// A target's image or class does not exist, or a level is decoded by [`BoxDecode::DarknetNew`], whose maps are no
    /// logits.
    ///
    /// # Panics
    /// If `maps` are not the maps the head reads.
    pub fn evaluate(&self, head: &AnchorHead, maps: &[RawMap], targets: &[Target]) -> Result<LossOutput> {
        assert_eq!(maps.len(), head.levels.len(), "one map a level");
        let batch = maps.first().map_or(0, |m| m.n);
        check(head)?;
        check_targets(targets, batch, head.classes)?;
        let targets = self.limits(head, maps, targets);
        let (mut sums, mut grads) = ([0.0f64; 3], Vec::with_capacity(maps.len()));
        for (i, (level, map)) in head.levels.iter().zip(maps).enumerate() {
            let (parts, grad) = self.level(level, head.classes, map, &targets, balance(head, i));
            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
            grads.push(grad);
        }
        Ok(LossOutput::new([0, 1, 2].map(|k| (PARTS[k], sums[k])), batch as f64, grads))
    }

    /// How far off an anchor may be to be matched with each target: within [`Self::anchor_t`], or as far as the nearest of
    /// all levels.
    fn limits<'a>(&self, head: &AnchorHead, maps: &[RawMap], targets: &'a [Target]) -> Vec<Limited<'a>> {
        let nearest = |target: &Target| {
            let levels = head.levels.iter().zip(maps);
            let all =
                levels.flat_map(|(level, m)| level.anchors.iter().map(|a| mismatch(level, a, [m.h, m.w], target)));
            all.fold(REACH, f32::min)
        };
        // One step up, as a target is matched with what is below its limit.
        let limit = |target| self.anchor_t.max(nearest(target).next_up().min(REACH));
        targets.iter().map(|target| Limited { target, limit: limit(target) }).collect()
    }

    /// Box, objectness and class loss of one level with gains, and the gradient of their sum times the batch size.
    fn level(
        &self,
        level: &AnchorLevel,
        classes: usize,
        map: &RawMap,
        targets: &[Limited],
        balance: f32,
    ) -> ([f64; 3], Vec<f32>) {
        let anchors = level.anchors.len();
        let columns = BOX + classes;
        let [n, h, w] = dims(map, anchors * columns);
        let matches = assign(level, [h, w], targets);
        let mut grad = vec![0.0f32; map.data.len()];
        let mut objectness = vec![0.0f32; n * h * w * anchors];
        let (mut box_sum, mut cls_sum) = (0.0, 0.0);

        let count = matches.len() as f32;
        let box_scale = self.box_gain * n as f32 / count;
        let cls_scale = self.cls_gain * n as f32 / (count * classes as f32);
        for m in &matches {
            let slot = ((m.image * h + m.y) * w + m.x) * anchors + m.anchor;
            let raw = &map.data[slot * columns..(slot + 1) * columns];
            let grad = &mut grad[slot * columns..(slot + 1) * columns];
            let (pred, slope) = decode(level, m.anchor, raw);
            let fit = ciou(corners(pred), corners(m.truth.map(f64::from)));
            let by_box = by_centre(fit.grad);
            box_sum += 1.0 - fit.value;
            for k in 0..4 {
                grad[k] -= box_scale * (by_box[k] * slope[k]) as f32;
            }
            // Where two targets share an anchor the later match stays, as in PyTorch's indexed assignment.
            objectness[slot] = fit.value.max(0.0) as f32;
            if classes > 1 {
                for (k, (&x, g)) in raw[BOX..].iter().zip(&mut grad[BOX..]).enumerate() {
                    let (value, d) = bce(x, f32::from(k == m.class));
                    cls_sum += f64::from(value);
                    *g += cls_scale * d;
                }
            }
        }

        let obj_scale = self.obj_gain * balance / (h * w * anchors) as f32;
        let obj_sum = objectness_loss(map, columns, &objectness, obj_scale, &mut grad) / n as f64;
        let per_match = |gain: f32, sum: f64, each: usize| match matches.len() {
            0 => 0.0,
            matches => f64::from(gain) * sum / (matches * each) as f64,
        };
        let parts = [
            per_match(self.box_gain, box_sum, 1),
            f64::from(obj_scale) * obj_sum,
            per_match(self.cls_gain, cls_sum, classes),
        ];
        (parts, grad)
    }
}

/// Refuses a head whose maps are no logits.
pub(super) fn check(head: &AnchorHead) -> Result<()> {
    if head.levels.iter().any(|level| matches!(level.decode, BoxDecode::DarknetNew { .. })) {
        return Err(Error::node("head", "maps that are already past their sigmoid (`new_coords`) cannot be trained"));
    }
    Ok(())
}

/// How much a level's objectness counts: the finer its cells, the more of them see no object. Darknet's heads begin with the coarsest.
pub(super) fn balance(head: &AnchorHead, level: usize) -> f32 {
    let finer = head.levels.iter().filter(|other| other.stride < head.levels[level].stride).count();
    if head.levels.len() == 3 { [4.0, 1.0, 0.4][finer] } else { [4.0, 1.0, 0.25, 0.06, 0.02][finer.min(4)] }
}

/// Sum of the objectness cross-entropy over all anchors of all images; adds `scale` times its slope to `grad`.
fn objectness_loss(map: &RawMap, columns: usize, target: &[f32], scale: f32, grad: &mut [f32]) -> f64 {
    let image = map.h * map.w * map.c;
    let sums: Vec<f64> = grad
        .par_chunks_mut(image)
        .zip(map.data.par_chunks(image))
        .zip(target.par_chunks(image / columns))
        .map(|((grad, raw), target)| {
            let anchors = grad.chunks_exact_mut(columns).zip(raw.chunks_exact(columns)).zip(target);
            let each = anchors.map(|((grad, raw), &target)| {
                let (value, d) = bce(raw[4], target);
                grad[4] += scale * d;
                f64::from(value)
            });
            each.sum()
        })
        .collect();
    sums.iter().sum()
}

/// The box an anchor predicts, (x, y, w, h) in cells from the corner of its own cell, and the slope of each by its raw
/// value.
pub(super) fn decode(level: &AnchorLevel, anchor: usize, raw: &[f32]) -> ([f64; 4], [f64; 4]) {
    let prior = level.anchors[anchor].map(|side| f64::from(side / level.stride as f32));
    let (mut value, mut slope) = ([0.0; 4], [0.0; 4]);
    for k in 0..4 {
        let s = f64::from(sigmoid(raw[k]));
        let ds = s * (1.0 - s);
        (value[k], slope[k]) = match (level.decode, k < 2) {
            (BoxDecode::V5, true) => (2.0 * s - 0.5, 2.0 * ds),
            (BoxDecode::V5, false) => (4.0 * s * s * prior[k - 2], 8.0 * s * ds * prior[k - 2]),
            (BoxDecode::Darknet { scale_xy } | BoxDecode::DarknetNew { scale_xy }, true) => {
                let scale = f64::from(scale_xy);
                (s * scale - (scale - 1.0) / 2.0, ds * scale)
            }
            (BoxDecode::Darknet { .. } | BoxDecode::DarknetNew { .. }, false) => {
                let side = f64::from(raw[k]).exp() * prior[k - 2];
                (side, side)
            }
        };
    }
    (value, slope)
}

/// A target and the [`mismatch`] below which an anchor learns it.
struct Limited<'a> {
    target: &'a Target,
    limit: f32,
}

/// Centre, width and height of a target, in cells of a grid of (H, W).
fn in_cells([h, w]: [usize; 2], target: &Target) -> [f32; 4] {
    let [x, y, bw, bh] = target.bbox;
    [x * w as f32, y * h as f32, bw * w as f32, bh * h as f32]
}

/// The larger of the ratios between the sides of a target and of an anchor, either way round: 1 where the two are alike.
fn mismatch(level: &AnchorLevel, anchor: &[f32; 2], grid: [usize; 2], target: &Target) -> f32 {
    let cells = in_cells(grid, target);
    let ratio = |k: usize| cells[k + 2] / (anchor[k] / level.stride as f32);
    (0..2).map(|k| ratio(k).max(1.0 / ratio(k))).fold(0.0, f32::max)
}

/// A target at an anchor that shall predict it.
#[derive(Clone, Debug, PartialEq)]
struct Match {
    image: usize,
    anchor: usize,
    y: usize,
    x: usize,
    class: usize,
    /// Centre from the corner of cell (x, y), width, height; in cells.
    truth: [f32; 4],
}

/// All matches of a level with a grid of (H, W) cells: own cells first, then left, upper, right, lower neighbours; within
/// each by anchor, then by target.
fn assign(level: &AnchorLevel, [h, w]: [usize; 2], targets: &[Limited]) -> Vec<Match> {
    let grid = [w as f32, h as f32];
    let mut fitting = Vec::new();
    for (anchor, prior) in level.anchors.iter().enumerate() {
        for Limited { target, limit } in targets {
            if mismatch(level, prior, [h, w], target) < *limit {
                fitting.push((anchor, target, in_cells([h, w], target)));
            }
        }
    }
    let moves: &[[f32; 2]] = match level.decode {
        BoxDecode::V5 => &[[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]],
        BoxDecode::Darknet { .. } | BoxDecode::DarknetNew { .. } => &[[0.0, 0.0]],
    };
    let mut matches = Vec::new();
    for offset in moves {
        for &(anchor, target, cells) in &fitting {
            // The neighbour is taken where the centre lies in the half of its cell next to it and it is on the grid.
            let near = |k: usize| match offset[k] {
                o if o > 0.0 => cells[k].fract() < 0.5 && cells[k] > 1.0,
                o if o < 0.0 => (grid[k] - cells[k]).fract() < 0.5 && grid[k] - cells[k] > 1.0,
                _ => true,
            };
            if near(0) && near(1) {
                let cell = |k: usize, len: usize| ((cells[k] - offset[k]) as usize).min(len - 1);
                let (x, y) = (cell(0, w), cell(1, h));
                let truth = [cells[0] - x as f32, cells[1] - y as f32, cells[2], cells[3]];
                matches.push(Match { image: target.image, anchor, y, x, class: target.class, truth });
            }
        }
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level() -> AnchorLevel {
        AnchorLevel { stride: 8, anchors: vec![[16.0, 16.0], [64.0, 64.0]], decode: BoxDecode::V5 }
    }

    fn target(bbox: [f32; 4]) -> Target {
        Target { image: 0, class: 1, bbox }
    }

    /// The matches of one level that is all the head, by the published rule.
    fn matches(level: &AnchorLevel, bbox: [f32; 4]) -> Vec<Match> {
        assign(level, [10, 10], &[Limited { target: &target(bbox), limit: REACH }])
    }

    fn cells(matches: &[Match]) -> Vec<(usize, usize, usize)> {
        matches.iter().map(|m| (m.anchor, m.x, m.y)).collect()
    }

    #[test]
    fn a_target_takes_the_two_nearest_neighbours() {
        // On a 10 x 10 grid: centre (4.25, 6.75), 2 cells wide and high; the second anchor has 8 cells: ratio 4, too much.
        let matches = matches(&level(), [0.425, 0.675, 0.2, 0.2]);
        assert_eq!(cells(&matches), [(0, 4, 6), (0, 3, 6), (0, 4, 7)]);
        let want = [1.25, 0.75, 2.0, 2.0];
        assert!(matches[1].truth.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{:?}", matches[1].truth);
    }

    #[test]
    fn no_neighbour_lies_outside_the_grid() {
        let matches = matches(&level(), [0.03, 0.97, 0.2, 0.2]);
        assert_eq!(cells(&matches), [(0, 0, 9)]);
    }

    #[test]
    fn a_target_on_the_far_edge_stays_in_the_last_cell() {
        let matches = matches(&level(), [1.0, 0.55, 0.2, 0.2]);
        assert!(matches.iter().all(|m| m.x < 10), "{matches:?}");
    }

    #[test]
    fn the_last_cell_has_no_neighbour_beyond_it() {
        let found = matches(&level(), [0.9, 0.55, 0.2, 0.2]);
        assert_eq!(cells(&found), [(0, 9, 5), (0, 8, 5)], "{found:?}");
    }

    #[test]
    fn both_anchors_within_the_ratio_are_taken() {
        let matches = matches(&level(), [0.55, 0.55, 0.4, 0.4]);
        assert_eq!(matches.iter().map(|m| m.anchor).take(2).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn darknet_levels_know_no_neighbours() {
        let level = AnchorLevel { decode: BoxDecode::Darknet { scale_xy: 1.0 }, ..level() };
        assert_eq!(cells(&matches(&level, [0.425, 0.675, 0.2, 0.2])), [(0, 4, 6)]);
    }

    /// Two levels with anchors of 16, 64 and 128 pixels, on images of 160.
    #[test]
    fn a_target_without_a_near_anchor_keeps_the_nearest_of_all_levels() {
        let coarse = AnchorLevel { stride: 16, anchors: vec![[128.0, 128.0]], ..level() };
        let head = AnchorHead { classes: 2, levels: vec![level(), coarse] };
        let maps = [RawMap { n: 1, h: 20, w: 20, c: 14, data: &[] }, RawMap { n: 1, h: 10, w: 10, c: 7, data: &[] }];
        let anchors = |anchor_t: f32, side: f32| {
            let targets = [target([0.55, 0.55, side / 160.0, side / 160.0])];
            let loss = V5Loss { anchor_t, ..V5Loss::default() };
            let limited = loss.limits(&head, &maps, &targets);
            let of = |(level, map): (&AnchorLevel, &RawMap)| {
                let mut found: Vec<_> = assign(level, [map.h, map.w], &limited).iter().map(|m| m.anchor).collect();
                found.sort_unstable();
                found.dedup();
                found.into_iter().map(|a| level.anchors[a][0]).collect::<Vec<_>>()
            };
            head.levels.iter().zip(&maps).flat_map(of).collect::<Vec<_>>()
        };
        // The published rule.
        assert_eq!(anchors(4.0, 40.0), [16.0, 64.0, 128.0]);
        assert_eq!(anchors(2.0, 40.0), [64.0]);
        // None is within a factor of 1.2; 64 is nearest, and what is within 2.5 beside it is not taken.
        assert_eq!(anchors(1.2, 40.0), [64.0]);
        assert_eq!(anchors(1.2, 28.0), [16.0]);
        assert_eq!(anchors(1.2, 90.0), [64.0]);
        assert_eq!(anchors(1.2, 92.0), [128.0]);
        // Beyond what a box can reach no anchor is asked, whatever the factor.
        assert_eq!(anchors(1.2, 3.0), [0.0; 0]);
        assert_eq!(anchors(4.0, 3.0), [0.0; 0]);
    }

    #[test]
    fn the_finest_level_counts_most_in_whatever_order_they_come() {
        let head = |strides: &[usize]| AnchorHead {
            classes: 1,
            levels: strides.iter().map(|&stride| AnchorLevel { stride, ..level() }).collect(),
        };
        let all = |head: AnchorHead| (0..head.levels.len()).map(|i| balance(&head, i)).collect::<Vec<_>>();
        assert_eq!(all(head(&[8, 16, 32])), [4.0, 1.0, 0.4]);
        assert_eq!(all(head(&[32, 16])), [1.0, 4.0]);
    }

    #[test]
    fn decoding_slopes_are_slopes() {
        for rule in [BoxDecode::V5, BoxDecode::Darknet { scale_xy: 1.05 }] {
            let level = AnchorLevel { decode: rule, ..level() };
            let raw = [0.3f32, -0.8, 0.5, -0.2];
            let (_, slope) = decode(&level, 1, &raw);
            for k in 0..4 {
                let at = |d: f32| {
                    let mut r = raw;
                    r[k] += d;
                    (decode(&level, 1, &r).0[k], f64::from(r[k]))
                };
                let ((hi, a), (lo, b)) = (at(0.01), at(-0.01));
                let want = (hi - lo) / (a - b);
                assert!((slope[k] - want).abs() < 1e-3 * want.abs().max(1.0), "{rule:?} {k}: {} for {want}", slope[k]);
            }
        }
    }

    #[test]
    fn gains_scale_as_in_the_published_trainer() {
        let s = V5Loss::default().scaled(3, 320, 3);
        assert_eq!((s.box_gain, s.obj_gain), (0.05, 0.25));
        assert!((s.cls_gain - 0.5 * 3.0 / 80.0).abs() < 1e-7);
        // Two levels share what three do.
        let two = V5Loss::default().scaled(3, 320, 2);
        let gains = |s: &V5Loss| [s.box_gain, s.obj_gain, s.cls_gain];
        assert!(gains(&s).iter().zip(gains(&two)).all(|(three, two)| (1.5 * three - two).abs() < 1e-7));
    }

    #[test]
    fn one_class_says_everything_by_its_objectness() {
        let head = AnchorHead { classes: 1, levels: vec![level()] };
        let data = vec![0.3; 10 * 10 * 12];
        let map = RawMap { n: 1, h: 10, w: 10, c: 12, data: &data };
        let one = Target { class: 0, ..target([0.5, 0.5, 0.2, 0.2]) };
        let out = V5Loss::default().evaluate(&head, &[map], &[one]).unwrap();
        assert!(out.value.parts[0].1 > 0.0 && out.value.parts[2].1 == 0.0, "{:?}", out.value);
        assert!(out.grads[0].iter().skip(5).step_by(6).all(|&g| g == 0.0));
    }

    #[test]
    fn a_class_the_head_lacks_is_an_error() {
        let head = AnchorHead { classes: 1, levels: vec![level()] };
        let data = vec![0.0; 10 * 10 * 12];
        let map = RawMap { n: 1, h: 10, w: 10, c: 12, data: &data };
        let err = V5Loss::default().evaluate(&head, &[map], &[target([0.5, 0.5, 0.2, 0.2])]).unwrap_err();
        assert!(err.to_string().contains("class 1"), "{err}");
        let beyond = Target { image: 1, class: 0, ..target([0.5, 0.5, 0.2, 0.2]) };
        let err = V5Loss::default().evaluate(&head, &[map], &[beyond]).unwrap_err();
        assert!(err.to_string().contains("image 1"), "{err}");
    }
}
