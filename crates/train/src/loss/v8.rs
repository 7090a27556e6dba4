//! YOLOv8's loss for distribution heads (YOLOv8, YOLO11): CIoU, class cross-entropy and distribution focal loss.
//!
//! Points are assigned by [`Assigner`]; every term is weighted by the assigned score and divided by the sum of all scores.
//! The distribution focal loss is that of Li et al., "Generalized Focal Loss", NeurIPS 2020.

use data::Target;
use graph::{DflHead, Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::assign::{Assigned, Assigner, Object};
use super::bce::{bce, sigmoid};
use super::iou::{Corners, ciou};
use super::{LossOutput, RawMap, check_targets, dims};

/// The names of the three parts.
pub(super) const PARTS: [&str; 3] = ["box", "cls", "dfl"];

/// Gains and the assigner's constants; the defaults are YOLOv8's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct V8Loss {
    pub box_gain: f32,
    pub cls_gain: f32,
    pub dfl_gain: f32,
    /// Points every object chooses.
    pub topk: usize,
    /// Exponent of the class score in the alignment.
    pub alpha: f32,
    /// Exponent of the overlap in the alignment.
    pub beta: f32,
}

impl Default for V8Loss {
    fn default() -> Self {
        Self { box_gain: 7.5, cls_gain: 0.5, dfl_gain: 1.5, topk: 10, alpha: 0.5, beta: 6.0 }
    }
}

impl V8Loss {
    /// Value and gradient for the raw maps of `head`: box and class map of every level.
    ///
    /// # Errors
    /// A target's image or class does not exist, or the head's distributions have a single bin.
    ///
    /// # Panics
    /// If `maps` are not the maps the head reads.
    pub fn evaluate(&self, head: &DflHead, maps: &[RawMap], targets: &[Target]) -> Result<LossOutput> {
        let grid = Grid::new(head, maps);
        check_targets(targets, grid.images, head.classes)?;
        if head.reg_max < 2 {
            return Err(Error::node("head", format!("boxes with {} bins a side have no distribution", head.reg_max)));
        }
        let mut objects = vec![Vec::new(); grid.images];
        for t in targets {
            objects[t.image].push(grid.object(t));
        }
        let assigned: Vec<Vec<Assigned>> =
            objects.par_iter().enumerate().map(|(image, objects)| self.assign(&grid, image, objects)).collect();
        let total: f64 = assigned.iter().flatten().map(|a| f64::from(a.score)).sum();

        let mut grads: Vec<Vec<f32>> = maps.iter().map(|m| vec![0.0; m.data.len()]).collect();
        let mut by_image: Vec<Vec<&mut [f32]>> = (0..grid.images).map(|_| Vec::with_capacity(maps.len())).collect();
        for (grad, map) in grads.iter_mut().zip(maps) {
            let images = grad.chunks_exact_mut(map.h * map.w * map.c);
            by_image.iter_mut().zip(images).for_each(|(list, grad)| list.push(grad));
        }
        let norm = total.max(1.0);
        let sums: Vec<[f64; 3]> = by_image
            .into_par_iter()
            .zip(&objects)
            .zip(&assigned)
            .enumerate()
            .map(|(image, ((mut grad, objects), assigned))| {
                self.image(&grid, image, objects, assigned, grid.images as f64 / norm, &mut grad)
            })
            .collect();
        let gains = [self.box_gain, self.cls_gain, self.dfl_gain];
        let part = |k: usize| f64::from(gains[k]) * sums.iter().map(|s| s[k]).sum::<f64>() / norm;
        Ok(LossOutput::new([0, 1, 2].map(|k| (PARTS[k], part(k))), grid.images as f64, grads))
    }

    fn assign(&self, grid: &Grid, image: usize, objects: &[Object]) -> Vec<Assigned> {
        if objects.is_empty() {
            return Vec::new();
        }
        let assigner = Assigner { topk: self.topk, alpha: self.alpha, beta: self.beta };
        let predicted = |point: usize| {
            let cell = &grid.cells[point];
            let reach = sides(grid.raw(image, 2 * cell.level, cell.index)).map(|s| s.mean);
            let [x, y] = cell.centre.map(f64::from);
            [x - reach[0], y - reach[1], x + reach[2], y + reach[3]].map(|v| v * f64::from(cell.stride))
        };
        let score = |point: usize, class: usize| {
            let cell = &grid.cells[point];
            sigmoid(grid.raw(image, 2 * cell.level + 1, cell.index)[class])
        };
        let points: Vec<[f32; 2]> = grid.cells.iter().map(|c| c.centre.map(|v| v * c.stride)).collect();
        assigner.assign(&points, objects, predicted, score)
    }

    /// Sums of one image before gains and division by the scores' sum; adds the gradient times `scale` to `grad`.
    fn image(
        &self,
        grid: &Grid,
        image: usize,
        objects: &[Object],
        assigned: &[Assigned],
        scale: f64,
        grad: &mut [&mut [f32]],
    ) -> [f64; 3] {
        let (mut box_sum, mut cls_sum, mut dfl_sum) = (0.0, 0.0, 0.0);
        let cls_scale = (f64::from(self.cls_gain) * scale) as f32;
        for level in (1..grid.maps.len()).step_by(2) {
            for (&x, g) in grid.image(image, level).iter().zip(grad[level].iter_mut()) {
                let (value, d) = bce(x, 0.0);
                cls_sum += f64::from(value);
                *g = cls_scale * d;
            }
        }
        for a in assigned {
            let cell = &grid.cells[a.point];
            let object = &objects[a.object];
            let weight = f64::from(a.score);

            // Cross-entropy is linear in its target: what all points got above was the target 0.
            let classes = grid.raw(image, 2 * cell.level + 1, cell.index);
            cls_sum -= f64::from(classes[object.class]) * weight;
            grad[2 * cell.level + 1][cell.index * classes.len() + object.class] -= cls_scale * a.score;

            // The box in cells, seen from the point: left, top, right, bottom are then its corners but for the sign.
            let raw = grid.raw(image, 2 * cell.level, cell.index);
            let sides = sides(raw);
            let truth: Corners = [0, 1, 2, 3].map(|k| f64::from(object.corners[k] / cell.stride - cell.centre[k % 2]));
            let pred = [-sides[0].mean, -sides[1].mean, sides[2].mean, sides[3].mean];
            let fit = ciou(pred, truth);
            box_sum += (1.0 - fit.value) * weight;

            let bins = raw.len() / 4;
            let grad = &mut grad[2 * cell.level][cell.index * raw.len()..][..raw.len()];
            for (k, (side, grad)) in sides.iter().zip(grad.chunks_exact_mut(bins)).enumerate() {
                let sign = if k < 2 { -1.0 } else { 1.0 };
                let want = (sign * truth[k]).clamp(0.0, bins as f64 - 1.0 - 0.01);
                let (low, high_share) = (want as usize, want.fract());
                dfl_sum += weight / 4.0 * ((1.0 - high_share) * side.cost(low) + high_share * side.cost(low + 1));
                let by_mean = f64::from(self.box_gain) * -sign * fit.grad[k];
                let dfl = f64::from(self.dfl_gain) / 4.0;
                for (bin, g) in grad.iter_mut().enumerate() {
                    let p = side.probability(bin);
                    let aim = match bin {
                        b if b == low => 1.0 - high_share,
                        b if b == low + 1 => high_share,
                        _ => 0.0,
                    };
                    let slope = by_mean * p * (bin as f64 - side.mean) + dfl * (p - aim);
                    *g += (scale * weight * slope) as f32;
                }
            }
        }
        [box_sum, cls_sum, dfl_sum]
    }
}

/// The distribution of one side of a box over distances in cells.
pub(super) struct Side<'a> {
    raw: &'a [f32],
    /// Logarithm of the sum of `e^raw`.
    log_sum: f64,
    /// The expected distance.
    pub mean: f64,
}

impl Side<'_> {
    pub fn probability(&self, bin: usize) -> f64 {
        (-self.cost(bin)).exp()
    }

    /// Negative logarithm of the probability.
    pub fn cost(&self, bin: usize) -> f64 {
        self.log_sum - f64::from(self.raw[bin])
    }
}

/// The four distributions (left, top, right, bottom) in the box channels of a cell.
pub(super) fn sides(raw: &[f32]) -> [Side<'_>; 4] {
    let bins = raw.len() / 4;
    [0, 1, 2, 3].map(|k| {
        let raw = &raw[k * bins..(k + 1) * bins];
        let top = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut weighted) = (0.0, 0.0);
        for (bin, &x) in raw.iter().enumerate() {
            let e = f64::from((x - top).exp());
            sum += e;
            weighted += e * bin as f64;
        }
        Side { raw, log_sum: f64::from(top) + sum.ln(), mean: weighted / sum }
    })
}

/// The anchor points of all levels in one list, and the maps they read.
struct Grid<'a> {
    maps: &'a [RawMap<'a>],
    cells: Vec<Cell>,
    images: usize,
    /// Width and height of the image in pixels.
    size: [f32; 2],
}

struct Cell {
    level: usize,
    /// Row-major position in the level's maps.
    index: usize,
    /// x, y in cells.
    centre: [f32; 2],
    stride: f32,
}

impl<'a> Grid<'a> {
    fn new(head: &DflHead, maps: &'a [RawMap<'a>]) -> Self {
        assert_eq!(maps.len(), 2 * head.strides.len(), "two maps a level");
        let mut cells = Vec::new();
        for (level, (&stride, pair)) in head.strides.iter().zip(maps.chunks_exact(2)).enumerate() {
            let [_, h, w] = dims(&pair[0], 4 * head.reg_max);
            assert_eq!(dims(&pair[1], head.classes), [maps[0].n, h, w], "box and class map of a level");
            cells.extend((0..h * w).map(|index| Cell {
                level,
                index,
                centre: [(index % w) as f32 + 0.5, (index / w) as f32 + 0.5],
                stride: stride as f32,
            }));
        }
        let size = maps.first().map_or([0.0; 2], |m| [m.w, m.h].map(|len| (len * head.strides[0]) as f32));
        Self { maps, cells, images: maps.first().map_or(0, |m| m.n), size }
    }

    /// All values of an image in one map.
    fn image(&self, image: usize, map: usize) -> &'a [f32] {
        super::image(&self.maps[map], image)
    }

    /// The channels of one cell.
    fn raw(&self, image: usize, map: usize, index: usize) -> &'a [f32] {
        super::cell(&self.maps[map], image, index)
    }

    fn object(&self, target: &Target) -> Object {
        let [x, y, w, h] = target.bbox;
        let [x, y, w, h] = [x * self.size[0], y * self.size[1], w * self.size[0], h * self.size[1]];
        Object { class: target.class, corners: [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0] }
    }
}
