//! What a detector's own answers mind: random gradients of the raw maps that need no labels.
//!
//! A detector that shall go on saying what it says loses, by a small error `e` of its raw maps, `e' H e / 2`, where H is the
//! curvature of the distance between its answers before and after, at nought. Gradients with the covariance H, carried back to any
//! map within, have there the covariance `J' H J`: the Gauss-Newton matrix of that map, whose diagonal is the mean of their squares.
//! (Martens 2020, "New insights and perspectives on the natural gradient method": the Fisher information by the model's own
//! answers. By labels, as in Theis et al. 2018, it is the training loss that is squared: nothing where the detector is right and
//! sure, and most where a label is wrong.)

use graph::{AnchorHead, BoxDecode, DflHead, Head, YoloxHead};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::bce::sigmoid;
use super::v8::sides;
use super::{RawMap, v5};

/// What a box that is off by its own size costs, in units of a probability's: overlap falls with the error itself, not with its
/// square, so that small errors count for much. Chosen for YOLOv5n where eighty classes have to be told apart, on COCO; with three
/// classes, on BCCD, anything from 10 to 70 does (docs/results).
const BOX: f64 = 10.0;

/// The same where boxes are distances to their sides and classes have no objectness before them: chosen for YOLOv8n on BCCD, where
/// 10 keeps two points less.
const BOX_OF_SIDES: f64 = 50.0;

/// Sides of a box at least, in cells: cells without an object tell boxes of any size, and what is smaller than this is not seen.
const LEAST: f64 = 0.25;

/// Whether the answers of `head` can be probed: those that tell more than boxes and classes have parts whose worth is unknown, and
/// maps that are past their sigmoid are no logits.
pub fn is_probed(head: &Head) -> bool {
    match head {
        Head::Anchor(h) => v5::check(h).is_ok(),
        Head::Dfl(h) => h.extra.is_none(),
        Head::Yolox(_) => true,
    }
}

/// Gradients by all values of `maps`, the raw maps `head` reads, of random sign: of one answer of a detector at a time, as an error
/// of it costs. Answers are, of every cell or anchor, the probability of an object and of each class (as independent
/// yes and no), and the four values of the box in units of its size. What is said of an object counts as far as there is
/// one. Maps that help training alone count for nothing.
///
/// # Panics
/// If `maps` are not the maps the head reads, or [`is_probed`] denies the head.
pub fn probe(head: &Head, maps: &[RawMap], rng: &mut ChaCha8Rng) -> Vec<Vec<f32>> {
    assert_eq!(maps.len(), head.inputs(), "one map an input of the head");
    let mut grads: Vec<Vec<f32>> = maps.iter().map(|map| vec![0.0; map.data.len()]).collect();
    let mut draw = Draw { rng };
    match head {
        Head::Anchor(head) => anchors(head, maps, &mut grads, &mut draw),
        Head::Dfl(head) => distances(head, maps, &mut grads, &mut draw),
        Head::Yolox(head) => free(head, maps, &mut grads, &mut draw),
    }
    grads
}

/// Draws what one answer's gradient is.
struct Draw<'a> {
    rng: &'a mut ChaCha8Rng,
}

impl Draw<'_> {
    /// The root of `curvature` with a random sign.
    fn root(&mut self, curvature: f64) -> f64 {
        if self.rng.random::<bool>() { curvature.sqrt() } else { -curvature.sqrt() }
    }

    /// By the logit of a probability that counts `weight`.
    fn logit(&mut self, raw: f32, weight: f32) -> f32 {
        let p = sigmoid(raw);
        self.root(f64::from(weight * p * (1.0 - p))) as f32
    }
}

fn anchors(head: &AnchorHead, maps: &[RawMap], grads: &mut [Vec<f32>], draw: &mut Draw) {
    let columns = v5::BOX + head.classes;
    for ((level, map), grad) in head.levels.iter().zip(maps).zip(grads) {
        assert!(!matches!(level.decode, BoxDecode::DarknetNew { .. }), "maps that are no logits");
        let each = map.data.chunks_exact(columns).zip(grad.chunks_exact_mut(columns)).enumerate();
        for (slot, (raw, grad)) in each {
            let (value, slope) = v5::decode(level, slot % level.anchors.len(), raw);
            let certainty = sigmoid(raw[4]);
            for k in 0..4 {
                // The centre in sides, the sides by their logarithms.
                let share = slope[k] / value[2 + k % 2].max(LEAST);
                grad[k] = (draw.root(BOX * f64::from(certainty)) * share) as f32;
            }
            grad[4] = draw.logit(raw[4], 1.0);
            for k in v5::BOX..columns {
                grad[k] = draw.logit(raw[k], certainty);
            }
        }
    }
}

fn distances(head: &DflHead, maps: &[RawMap], grads: &mut [Vec<f32>], draw: &mut Draw) {
    let pairs = maps.chunks_exact(2).zip(grads.chunks_exact_mut(2));
    for (maps, grads) in pairs.take(head.strides.len()) {
        let (boxes, classes) = (maps[0].data.chunks_exact(4 * head.reg_max), maps[1].data.chunks_exact(head.classes));
        let (to_boxes, to_classes) = grads.split_at_mut(1);
        let to_boxes = to_boxes[0].chunks_exact_mut(4 * head.reg_max);
        let to_classes = to_classes[0].chunks_exact_mut(head.classes);
        for (((raw, classes), to_box), to_class) in boxes.zip(classes).zip(to_boxes).zip(to_classes) {
            let certainty = sigmoid(classes.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            classes.iter().zip(to_class).for_each(|(&raw, grad)| *grad = draw.logit(raw, 1.0));
            let mut distance = |size: f64| draw.root(BOX_OF_SIDES * f64::from(certainty)) / size;
            if head.reg_max == 1 {
                for k in 0..4 {
                    to_box[k] = distance(f64::from(raw[k] + raw[(k + 2) % 4]).max(LEAST)) as f32;
                }
                continue;
            }
            let sides = sides(raw);
            for (k, grad) in to_box.chunks_exact_mut(head.reg_max).enumerate() {
                let side = &sides[k];
                let by_mean = distance((side.mean + sides[(k + 2) % 4].mean).max(LEAST));
                for (bin, grad) in grad.iter_mut().enumerate() {
                    *grad = (by_mean * side.probability(bin) * (bin as f64 - side.mean)) as f32;
                }
            }
        }
    }
}

fn free(head: &YoloxHead, maps: &[RawMap], grads: &mut [Vec<f32>], draw: &mut Draw) {
    for (maps, grads) in maps.chunks_exact(3).zip(grads.chunks_exact_mut(3)) {
        for (i, &objectness) in maps[1].data.iter().enumerate() {
            let certainty = sigmoid(objectness);
            let raw = &maps[0].data[4 * i..4 * i + 4];
            for k in 0..4 {
                let size = if k < 2 { f64::from(raw[2 + k]).exp().max(LEAST) } else { 1.0 };
                grads[0][4 * i + k] = (draw.root(BOX * f64::from(certainty)) / size) as f32;
            }
            grads[1][i] = draw.logit(objectness, 1.0);
            let classes = i * head.classes..(i + 1) * head.classes;
            let of_class = maps[2].data[classes.clone()].iter().zip(&mut grads[2][classes]);
            of_class.for_each(|(&raw, grad)| *grad = draw.logit(raw, certainty));
        }
    }
}

#[cfg(test)]
mod tests {
    use graph::AnchorLevel;
    use rand::SeedableRng;

    use super::*;

    /// Heads of two classes, each with the channels of its maps. All maps are of 2 x 3 cells.
    fn heads() -> Vec<(Head, Vec<usize>)> {
        let anchors = |decode| {
            let level = AnchorLevel { stride: 8, anchors: vec![[10.0, 20.0], [30.0, 40.0]], decode };
            Head::Anchor(AnchorHead { classes: 2, levels: vec![level] })
        };
        let dfl = |reg_max| Head::Dfl(DflHead::new(2, reg_max, vec![8]));
        vec![
            (anchors(BoxDecode::V5), vec![14]),
            (anchors(BoxDecode::Darknet { scale_xy: 1.05 }), vec![14]),
            (dfl(16), vec![64, 2]),
            (dfl(1), vec![4, 2]),
            (Head::Yolox(YoloxHead { classes: 2, strides: vec![8] }), vec![4, 1, 2]),
        ]
    }

    fn maps<'a>(data: &'a [Vec<f32>], channels: &[usize]) -> Vec<RawMap<'a>> {
        data.iter().zip(channels).map(|(data, &c)| RawMap { n: 1, h: 2, w: 3, c, data }).collect()
    }

    fn random(head: &Head, channels: &[usize], rng: &mut ChaCha8Rng) -> Vec<Vec<f32>> {
        // Boxes of a quarter of a cell at least; distances themselves are above nought wherever there is an object.
        let lowest = if matches!(head, Head::Dfl(h) if h.reg_max == 1) { 0.5 } else { -0.9 };
        channels.iter().map(|c| (0..6 * c).map(|_| rng.random_range(lowest..1.5)).collect()).collect()
    }

    /// How far apart two detectors' answers are, once the second is so near that only squares count: rows of centre x and y,
    /// width and height, perhaps objectness, and class probabilities.
    fn distance(head: &Head, before: &[f32], after: &[f32]) -> f64 {
        let objectness = usize::from(!matches!(head, Head::Dfl(_)));
        let mut sum = 0.0;
        for (a, b) in before.chunks(6 + objectness).zip(after.chunks(6 + objectness)) {
            let at = |row: &[f32], k: usize| f64::from(row[k]);
            let certainty = if objectness == 1 { at(a, 4) } else { at(a, 4).max(at(a, 5)) };
            for axis in 0..2 {
                let [centre, size] = [axis, axis + 2].map(|k| (at(b, k) - at(a, k)) / at(a, axis + 2));
                let off = match head {
                    Head::Dfl(_) => BOX_OF_SIDES * ((centre - size / 2.0).powi(2) + (centre + size / 2.0).powi(2)),
                    _ => BOX * (centre.powi(2) + size.powi(2)),
                };
                sum += certainty * off;
            }
            for k in 4..6 + objectness {
                let p = at(a, k);
                let weight = if objectness == 1 && k > 4 { certainty } else { 1.0 };
                sum += weight * (at(b, k) - p).powi(2) / (p * (1.0 - p));
            }
        }
        sum
    }

    #[test]
    fn squares_are_what_moved_answers_cost() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (head, channels) in heads() {
            let data = random(&head, &channels, &mut rng);
            let grads = probe(&head, &maps(&data, &channels), &mut rng);
            let said = |data: &[Vec<f32>]| eval::decode(&head, &maps(data, &channels)).image(0).to_vec();
            let before = said(&data);
            const STEP: f32 = 1e-2;
            for (map, grad) in grads.iter().enumerate() {
                for (i, &g) in grad.iter().enumerate() {
                    let moved = |by: f32| {
                        let mut data = data.clone();
                        data[map][i] += by;
                        distance(&head, &before, &said(&data))
                    };
                    let cost = (moved(STEP) + moved(-STEP)) / 2.0 / f64::from(STEP).powi(2);
                    let square = f64::from(g).powi(2);
                    assert!(
                        (square - cost).abs() < 0.03 * cost + 2e-3,
                        "{head:?} {map} {i}: {square}, {cost} by decoding"
                    );
                }
            }
        }
    }

    #[test]
    fn answers_are_asked_one_by_one() {
        let (head, channels) = heads().swap_remove(0);
        let data = random(&head, &channels, &mut ChaCha8Rng::seed_from_u64(2));
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut sums = [0i32; 13];
        for _ in 0..400 {
            let grad = probe(&head, &maps(&data, &channels), &mut rng).swap_remove(0);
            sums.iter_mut().enumerate().for_each(|(i, sum)| *sum += if grad[i] * grad[i + 1] > 0.0 { 1 } else { -1 });
        }
        assert!(sums.iter().all(|sum| sum.abs() < 80), "{sums:?}: four deviations are 80");
    }

    #[test]
    fn what_helps_training_alone_counts_for_nothing() {
        let head = Head::Dfl(DflHead { one_to_many: true, end_to_end: true, ..DflHead::new(2, 1, vec![8]) });
        let channels = [4, 2, 4, 2];
        let data = random(&head, &channels, &mut ChaCha8Rng::seed_from_u64(4));
        let grads = probe(&head, &maps(&data, &channels), &mut ChaCha8Rng::seed_from_u64(5));
        assert!(grads[..2].iter().flatten().all(|&g| g != 0.0) && grads[2..].iter().flatten().all(|&g| g == 0.0));
    }
}
