//! YOLOv8's loss for distribution heads (YOLOv8, YOLO11): CIoU, class cross-entropy and distribution focal loss. Where the
//! head tells the distances themselves (YOLO26), their mean absolute error as a share of the image takes the last one's place.
//!
//! Points are assigned by [`Assigner`]; every term is weighted by the assigned score and divided by the sum of all scores.
//! The distribution focal loss is that of Li et al., "Generalized Focal Loss", NeurIPS 2020.

use data::Target;
use graph::{DflHead, Error, Result};
use rayon::prelude::*;

use super::assign::{Assigned, Assigner, Object};
use super::bce::{bce, sigmoid};
use super::iou::{Corners, ciou};
use super::{LossOutput, RawMap, by_image, check_targets, dims, objects};

/// The names of the three parts where boxes are distributions.
pub(super) const PARTS: [&str; 3] = ["box", "cls", "dfl"];

/// And where they are distances.
const DISTANCE_PARTS: [&str; 3] = ["box", "cls", "l1"];

/// Gains and the assigner's constants; the defaults are YOLOv8's.
#[derive(Clone, Debug, PartialEq)]
pub struct V8Loss {
    pub box_gain: f32,
    pub cls_gain: f32,
    /// Of the distributions or, where there are none, of the distances.
    pub dfl_gain: f32,
    /// The head tells distances, not distributions over them.
    pub distances: bool,
    /// Points every object chooses.
    pub topk: usize,
    /// How many of its points learn an object in the end; `None`: all it chose and got.
    pub keep: Option<usize>,
    /// Whether objects smaller than a cell of the second level look for points in as much room as that, as YOLO26's do.
    pub enlarge: bool,
    /// Exponent of the class score in the alignment.
    pub alpha: f32,
    /// Exponent of the overlap in the alignment.
    pub beta: f32,
}

impl Default for V8Loss {
    fn default() -> Self {
        Self {
            box_gain: 7.5,
            cls_gain: 0.5,
            dfl_gain: 1.5,
            distances: false,
            topk: 10,
            keep: None,
            enlarge: false,
            alpha: 0.5,
            beta: 6.0,
        }
    }
}

impl V8Loss {
    /// The loss for `head`'s boxes.
    pub fn of(head: &DflHead) -> Self {
        Self { distances: head.reg_max == 1, ..Self::default() }
    }

    /// Names of the parts.
    pub(super) fn parts(&self) -> [&'static str; 3] {
        if self.distances { DISTANCE_PARTS } else { PARTS }
    }

    /// Value and gradient for the raw maps of `head`: box and class map of every level.
    ///
    /// # Errors
    /// A target's image or class does not exist, or the loss is for boxes told in another way.
    ///
    /// # Panics
    /// If `maps` are not the maps the head reads.
    pub fn evaluate(&self, head: &DflHead, maps: &[RawMap], targets: &[Target]) -> Result<LossOutput> {
        let grid = Grid::new(head, maps);
        check_targets(targets, grid.images, head.classes)?;
        if self.distances != (head.reg_max == 1) {
            return Err(Error::node("head", format!("boxes with {} bins a side need another loss", head.reg_max)));
        }
        let objects = objects(targets, grid.images, grid.size);
        let assigned: Vec<Vec<Assigned>> =
            objects.par_iter().enumerate().map(|(image, objects)| self.assign(&grid, image, objects)).collect();
        let total: f64 = assigned.iter().flatten().map(|a| f64::from(a.score)).sum();

        let mut grads: Vec<Vec<f32>> = maps.iter().map(|m| vec![0.0; m.data.len()]).collect();
        let norm = total.max(1.0);
        let sums: Vec<[f64; 3]> = by_image(&mut grads, maps)
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
        let names = self.parts();
        Ok(LossOutput::new([0, 1, 2].map(|k| (names[k], part(k))), grid.images as f64, grads))
    }

    fn assign(&self, grid: &Grid, image: usize, objects: &[Object]) -> Vec<Assigned> {
        if objects.is_empty() {
            return Vec::new();
        }
        let min_side = if self.enlarge { grid.second_stride } else { 0.0 };
        let Self { topk, keep, alpha, beta, .. } = *self;
        let assigner = Assigner { topk, keep, min_side, alpha, beta };
        let predicted = |point: usize| {
            let cell = &grid.cells[point];
            let raw = grid.raw(image, 2 * cell.level, cell.index);
            let reach = if self.distances { distances(raw) } else { sides(raw).map(|s| s.mean) };
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
            let truth: Corners = [0, 1, 2, 3].map(|k| f64::from(object.corners[k] / cell.stride - cell.centre[k % 2]));
            let grad = &mut grad[2 * cell.level][cell.index * raw.len()..][..raw.len()];
            if self.distances {
                let reach = distances(raw);
                let fit = ciou([-reach[0], -reach[1], reach[2], reach[3]], truth);
                box_sum += (1.0 - fit.value) * weight;
                for (k, g) in grad.iter_mut().enumerate() {
                    let sign = if k < 2 { -1.0 } else { 1.0 };
                    let share = f64::from(cell.stride / grid.size[k % 2]);
                    let miss = reach[k] - sign * truth[k];
                    dfl_sum += weight / 4.0 * miss.abs() * share;
                    let l1 = f64::from(self.dfl_gain) / 4.0 * miss.signum() * share;
                    *g += (scale * weight * (f64::from(self.box_gain) * -sign * fit.grad[k] + l1)) as f32;
                }
                continue;
            }
            let sides = sides(raw);
            let pred = [-sides[0].mean, -sides[1].mean, sides[2].mean, sides[3].mean];
            let fit = ciou(pred, truth);
            box_sum += (1.0 - fit.value) * weight;

            let bins = raw.len() / 4;
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

/// Left, top, right, bottom in cells, where the map holds them as they are.
fn distances(raw: &[f32]) -> [f64; 4] {
    [0, 1, 2, 3].map(|k| f64::from(raw[k]))
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
    /// Pixels a cell of the second level, or of the only one.
    second_stride: f32,
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
        let second = head.strides.get(1).or(head.strides.first()).map_or(0.0, |&s| s as f32);
        Self { maps, cells, images: maps.first().map_or(0, |m| m.n), size, second_stride: second }
    }

    /// All values of an image in one map.
    fn image(&self, image: usize, map: usize) -> &'a [f32] {
        super::image(&self.maps[map], image)
    }

    /// The channels of one cell.
    fn raw(&self, image: usize, map: usize, index: usize) -> &'a [f32] {
        super::cell(&self.maps[map], image, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Along any direction the loss changes as its gradient says, points and scores held fast. CIoU, part of whose slope its
    /// authors leave out, has tests of its own.
    #[test]
    fn gradients_are_slopes() {
        for bins in [1, 4] {
            let head = DflHead::new(2, bins, vec![8]);
            let loss = V8Loss { box_gain: 0.0, ..V8Loss::of(&head) };
            let noise = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 1000.0;
            let data =
                [2 * 12 * 4 * bins, 2 * 12 * 2].map(|len| (0..len).map(|i| 0.3 + 2.0 * noise(i)).collect::<Vec<_>>());
            let object = Object { class: 1, corners: [4.0, 3.0, 23.0, 20.0] };
            let assigned = [(1, 0.7), (6, 0.2)].map(|(point, score)| Assigned { point, object: 0, score });
            let at = |data: &[Vec<f32>; 2]| {
                let map = |k: usize, c| RawMap { n: 2, h: 3, w: 4, c, data: &data[k] };
                let maps = [map(0, 4 * bins), map(1, 2)];
                let mut grads = data.clone().map(|d| vec![0.0; d.len() / 2]);
                let [boxes, classes] = &mut grads;
                let mut views = [boxes.as_mut_slice(), classes.as_mut_slice()];
                let sums = loss.image(&Grid::new(&head, &maps), 1, &[object], &assigned, 1.0, &mut views);
                let gains = [loss.box_gain, loss.cls_gain, loss.dfl_gain];
                (sums.iter().zip(gains).map(|(s, g)| s * f64::from(g)).sum::<f64>(), grads)
            };
            let direction = |i: usize| noise(i + 17) - 0.5;
            let moved = |by: f32| {
                let mut data = data.clone();
                data.iter_mut().flatten().enumerate().for_each(|(i, v)| *v += by * direction(i));
                at(&data).0
            };
            let (_, grads) = at(&data);
            // Of each map the gradient is the second image's.
            let halves = [0, data[0].len()].into_iter().zip(&data).map(|(start, d)| start + d.len() / 2);
            let along: f64 = halves
                .zip(&grads)
                .flat_map(|(start, g)| g.iter().enumerate().map(move |(i, &g)| f64::from(g * direction(start + i))))
                .sum();
            let slope = (moved(5e-3) - moved(-5e-3)) / 1e-2;
            assert!((slope - along).abs() < 5e-4 * slope.abs(), "{bins} bins: slope {slope}, gradient {along}");
        }
    }
}
