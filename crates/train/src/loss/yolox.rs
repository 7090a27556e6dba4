//! YOLOX's loss for decoupled anchor-free heads: squared IoU, objectness and classes (Ge et al., "YOLOX", 2021).
//!
//! Points are assigned by [`simota`]; every term is divided by the number of points that learn an object. The published
//! trainer adds an L1 term to the raw box for its last 15 of 300 epochs, once mosaic is off; it is left out here.

use data::Target;
use graph::{Result, YoloxHead};
use rayon::prelude::*;

use super::assign::Object;
use super::bce::bce;
use super::iou::{Corners, by_centre, corners, iou};
use super::simota::{self, Matched, Point, Said};
use super::{LossOutput, RawMap, by_image, check_targets, dims, objects};

/// The names of the three parts.
pub(super) const PARTS: [&str; 3] = ["box", "obj", "cls"];

/// Images a step of YOLOX's trainer is the mean of. Trainers of YOLOv5 and YOLOv8 step on a sum over as many with the same
/// learning rate; a sum of these terms would drive the head out of range in an epoch.
pub const NOMINAL: f64 = 64.0;

/// What the parts are multiplied with for a batch of so many images: the gradients added up before a step make a mean.
pub(super) fn factor(batch: usize) -> f64 {
    batch as f64 / NOMINAL
}

/// The gains; the defaults are YOLOX's.
#[derive(Clone, Debug, PartialEq)]
pub struct YoloxLoss {
    pub box_gain: f32,
    pub obj_gain: f32,
    pub cls_gain: f32,
}

impl Default for YoloxLoss {
    fn default() -> Self {
        Self { box_gain: 5.0, obj_gain: 1.0, cls_gain: 1.0 }
    }
}

impl YoloxLoss {
    /// Value and gradient for the raw maps of `head`: box, objectness and class map of every level.
    ///
    /// # Errors
    /// A target's image or class does not exist.
    ///
    /// # Panics
    /// If `maps` are not the maps the head reads.
    pub fn evaluate(&self, head: &YoloxHead, maps: &[RawMap], targets: &[Target]) -> Result<LossOutput> {
        let (sums, learning, grads) = self.sums(&Grid::new(head, maps), head, targets)?;
        let gains = [self.box_gain, self.obj_gain, self.cls_gain];
        let part = |k: usize| f64::from(gains[k]) * sums[k] / learning;
        Ok(LossOutput::new([0, 1, 2].map(|k| (PARTS[k], part(k))), factor(maps.first().map_or(0, |m| m.n)), grads))
    }

    /// The three sums before gains, the number of points they are divided by, and the gradient of the total.
    fn sums(&self, grid: &Grid, head: &YoloxHead, targets: &[Target]) -> Result<([f64; 3], f64, Vec<Vec<f32>>)> {
        check_targets(targets, grid.images, head.classes)?;
        let objects = objects(targets, grid.images, grid.size);
        let matched: Vec<Vec<Matched>> = objects
            .par_iter()
            .enumerate()
            .map(|(image, objects)| simota::assign(&grid.points, objects, |point| grid.said(image, point)))
            .collect();
        let learning = matched.iter().map(Vec::len).sum::<usize>().max(1) as f64;

        let mut grads: Vec<Vec<f32>> = grid.maps.iter().map(|m| vec![0.0; m.data.len()]).collect();
        let scale = factor(grid.images) / learning;
        let sums: Vec<[f64; 3]> = by_image(&mut grads, grid.maps)
            .into_par_iter()
            .zip(&objects)
            .zip(&matched)
            .enumerate()
            .map(|(image, ((mut grad, objects), matched))| self.image(grid, image, objects, matched, scale, &mut grad))
            .collect();
        Ok(([0, 1, 2].map(|k| sums.iter().map(|s| s[k]).sum()), learning, grads))
    }

    /// Sums of one image before gains and division; writes the gradient times `scale` to `grad`.
    fn image(
        &self,
        grid: &Grid,
        image: usize,
        objects: &[Object],
        matched: &[Matched],
        scale: f64,
        grad: &mut [&mut [f32]],
    ) -> [f64; 3] {
        let (mut box_sum, mut obj_sum, mut cls_sum) = (0.0, 0.0, 0.0);
        let [box_scale, obj_scale, cls_scale] =
            [self.box_gain, self.obj_gain, self.cls_gain].map(|gain| f64::from(gain) * scale);
        for level in (1..grid.maps.len()).step_by(3) {
            for (&x, g) in grid.image(image, level).iter().zip(grad[level].iter_mut()) {
                let (value, d) = bce(x, 0.0);
                obj_sum += f64::from(value);
                *g = obj_scale as f32 * d;
            }
        }
        for m in matched {
            let Cell { level, index, .. } = grid.cells[m.point];
            let object = &objects[m.object];

            // Cross-entropy is linear in its target: what all points got above was the target 0.
            obj_sum -= f64::from(grid.raw(image, level + 1, index)[0]);
            grad[level + 1][index] -= obj_scale as f32;

            let classes = grid.raw(image, level + 2, index);
            let slopes = &mut grad[level + 2][index * classes.len()..][..classes.len()];
            for (k, (&x, g)) in classes.iter().zip(slopes).enumerate() {
                let (value, d) = bce(x, if k == object.class { m.overlap as f32 } else { 0.0 });
                cls_sum += f64::from(value);
                *g = cls_scale as f32 * d;
            }

            let raw = grid.raw(image, level, index);
            let fit = iou(grid.predicted(image, m.point), object.corners.map(f64::from));
            box_sum += 1.0 - fit.value * fit.value;
            let stride = f64::from(grid.points[m.point].stride);
            let slope = [1.0, 1.0, f64::from(raw[2]).exp(), f64::from(raw[3]).exp()].map(|s| s * stride);
            let by_box = by_centre(fit.grad);
            for (k, g) in grad[level][index * 4..][..4].iter_mut().enumerate() {
                *g = (-2.0 * box_scale * fit.value * by_box[k] * slope[k]) as f32;
            }
        }
        [box_sum, obj_sum, cls_sum]
    }
}

/// The anchor points of all levels in one list, and the maps they read.
struct Grid<'a> {
    maps: &'a [RawMap<'a>],
    points: Vec<Point>,
    cells: Vec<Cell>,
    images: usize,
    /// Width and height of the image in pixels.
    size: [f32; 2],
}

/// Where the values of a point are.
#[derive(Clone, Copy)]
struct Cell {
    /// First of the level's three maps.
    level: usize,
    /// Row-major position in them.
    index: usize,
    /// Column and row.
    corner: [f64; 2],
}

impl<'a> Grid<'a> {
    fn new(head: &YoloxHead, maps: &'a [RawMap<'a>]) -> Self {
        assert_eq!(maps.len(), 3 * head.strides.len(), "three maps a level");
        let (mut points, mut cells) = (Vec::new(), Vec::new());
        for (i, (&stride, level)) in head.strides.iter().zip(maps.chunks_exact(3)).enumerate() {
            let [_, h, w] = dims(&level[0], 4);
            for (map, channels) in [(&level[1], 1), (&level[2], head.classes)] {
                assert_eq!(dims(map, channels), [maps[0].n, h, w], "the three maps of a level");
            }
            for index in 0..h * w {
                let (stride, corner) = (stride as f32, [index % w, index / w]);
                points.push(Point { centre: corner.map(|c| (c as f32 + 0.5) * stride), stride });
                cells.push(Cell { level: 3 * i, index, corner: corner.map(|c| c as f64) });
            }
        }
        let size = maps.first().map_or([0.0; 2], |m| [m.w, m.h].map(|len| (len * head.strides[0]) as f32));
        Self { maps, points, cells, images: maps.first().map_or(0, |m| m.n), size }
    }

    /// All values of an image in one map.
    fn image(&self, image: usize, map: usize) -> &'a [f32] {
        super::image(&self.maps[map], image)
    }

    /// The channels of one cell.
    fn raw(&self, image: usize, map: usize, index: usize) -> &'a [f32] {
        super::cell(&self.maps[map], image, index)
    }

    /// The box now predicted at a point, pixels.
    fn predicted(&self, image: usize, point: usize) -> Corners {
        let Cell { level, index, corner } = self.cells[point];
        let raw = self.raw(image, level, index);
        let [x, y, w, h] = [0, 1, 2, 3].map(|k| f64::from(raw[k]));
        let stride = f64::from(self.points[point].stride);
        corners([x + corner[0], y + corner[1], w.exp(), h.exp()].map(|v| v * stride))
    }

    fn said(&self, image: usize, point: usize) -> Said<'a> {
        let Cell { level, index, .. } = self.cells[point];
        Said {
            bbox: self.predicted(image, point),
            objectness: self.raw(image, level + 1, index)[0],
            classes: self.raw(image, level + 2, index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 2] = [8, 4];

    fn head() -> YoloxHead {
        YoloxHead { classes: 3, strides: vec![8, 16] }
    }

    /// Two images of 64 pixels; values of about one, boxes of about two cells.
    fn data() -> Vec<Vec<f32>> {
        let value = |i: usize, map: usize| ((i * 7919 + map * 104_729) % 997) as f32 / 498.5 - 1.0;
        let map = |m: usize| {
            let side = SIZES[m / 3];
            (0..2 * side * side * [4, 1, 3][m % 3]).map(|i| value(i, m) + [0.5, 0.0, 0.0][m % 3]).collect()
        };
        (0..6).map(map).collect()
    }

    fn maps(data: &[Vec<f32>]) -> Vec<RawMap<'_>> {
        data.iter()
            .enumerate()
            .map(|(m, data)| RawMap { n: 2, h: SIZES[m / 3], w: SIZES[m / 3], c: [4, 1, 3][m % 3], data })
            .collect()
    }

    fn targets() -> Vec<Target> {
        let target = |image, class, bbox| Target { image, class, bbox };
        vec![
            target(0, 0, [0.3, 0.3, 0.4, 0.3]),
            target(0, 2, [0.7, 0.6, 0.2, 0.5]),
            target(1, 1, [0.5, 0.5, 0.8, 0.9]),
            target(1, 1, [0.1, 0.9, 0.1, 0.1]),
        ]
    }

    /// Value of each kind of map's own term; the targets of classes are held, as the published loss holds them.
    fn sums(data: &[Vec<f32>]) -> ([f64; 3], f64, Vec<Vec<f32>>) {
        let maps = maps(data);
        YoloxLoss::default().sums(&Grid::new(&head(), &maps), &head(), &targets()).unwrap()
    }

    #[test]
    fn gradients_are_slopes() {
        let data = data();
        let (at, learning, grads) = sums(&data);
        assert!(learning >= 6.0 && at.iter().all(|&v| v > 1.0), "{at:?} over {learning}");
        for kind in 0..3 {
            let gain = [5.0, 1.0, 1.0][kind];
            let mut moving = 0;
            for map in (kind..6).step_by(3) {
                for i in 0..data[map].len() {
                    // Boxes are computed in f64, cross-entropy in f32: its differences need a longer step.
                    let step = [2f32.powi(-12), 2f32.powi(-6), 2f32.powi(-6)][kind];
                    let moved = |by: f32| {
                        let mut data = data.clone();
                        data[map][i] += by;
                        (sums(&data), f64::from(data[map][i]))
                    };
                    let (((up, n, _), a), ((down, m, _), b)) = (moved(step), moved(-step));
                    assert_eq!((n, m), (learning, learning), "the assignment changed");
                    let slope = gain * (up[kind] - down[kind]) / (a - b) / learning;
                    let grad = f64::from(grads[map][i]) / factor(2);
                    moving += usize::from(slope != 0.0);
                    assert!(
                        (slope - grad).abs() < 2e-4 * slope.abs().max(0.05),
                        "{kind} {map} {i}: {grad} for {slope}"
                    );
                }
            }
            assert!(moving >= 8, "{moving} values of kind {kind} matter");
        }
    }

    #[test]
    fn a_class_the_head_lacks_is_an_error() {
        let data = data();
        let bad = [Target { image: 0, class: 3, bbox: [0.5, 0.5, 0.2, 0.2] }];
        let err = YoloxLoss::default().evaluate(&head(), &maps(&data), &bad).unwrap_err();
        assert!(err.to_string().contains("class 3"), "{err}");
    }
}
