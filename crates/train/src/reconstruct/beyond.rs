//! Least squares beyond the activation: the change that brings `act(u)` closest to what it was, not `u`.
//!
//! Half of what a convolution puts out ends in the flat part of its activation, where errors are not heard; fitting them all
//! alike (`prune::refit`) spends weights on them. (Zhang, Zou, He and Sun 2015, "Accelerating very deep convolutional networks",
//! fit nonlinear responses too, by splitting variables.) From the linear solution on, Gauss and Newton's steps go down: each is
//! a least-squares problem of its own for every output, weighted by the squared slopes, and all are solved together by
//! conjugate gradients, preconditioned with the factor of the unweighted problem.

use std::ops::Range;

use graph::Act;
use kernels::{Layout, View, ViewMut};
use prune::{Cholesky, LEAST_GAIN, Normal, Refit, ridged};
use rayon::prelude::*;

use super::{CHUNK, add, in_rows, products, said_by, slopes, sum_of};
use crate::room::{Room, Values};
use crate::samples::{Samples, squares};

/// Steps of Gauss and Newton on the way to a change that held-out images judge, and of conjugate gradients in each.
const STEPS: usize = 3;
const GRADIENTS: usize = 4;

/// The ridge to begin with where the linear problem found nothing to change.
const RIDGE: f64 = 1e-2;

/// How far to go along a step, tried in turn: slopes hold nearby only.
const LENGTHS: [f32; 5] = [0.0, 1.0, 0.5, 0.25, 0.1];

/// Samples with what the linear problem makes of them.
pub(super) struct Part<'a> {
    pub(super) heard: Beyond<'a>,
    pub(super) normal: &'a Normal,
}

/// The best change, over `all` samples: none, the linear one, or one that goes further down from there, as it does best on the
/// samples of `check` where it is made by those of `fit`. (Each output on its own would choose by luck: held-out places that count
/// are few.) `linear` is in units of the weights, `scale` (O) what one unit of output is of u.
pub(super) fn refit(fit: &Part, check: &Beyond, all: &Part, linear: Option<Refit>, scale: &[f32]) -> Option<Refit> {
    let features = fit.heard.samples.features;
    let scaled = |mut rows: Vec<f64>, by: &dyn Fn(f64) -> f64| {
        rows.chunks_mut(features).zip(scale).for_each(|(row, &scale)| {
            let by = by(f64::from(scale));
            row.iter_mut().for_each(|v| *v *= by);
        });
        rows
    };
    let nothing = vec![0.0; fit.normal.cross.len()];
    let total = |change: &[f64]| check.errors(change).iter().sum::<f64>();
    let before = total(&nothing);
    if before <= 0.0 {
        return None;
    }
    let ridge = linear.as_ref().map_or(RIDGE, |linear| linear.ridge);
    // Where the linear problem found nothing to change the descent starts from nothing.
    let start = linear.map_or_else(|| nothing.clone(), |linear| scaled(linear.change, &|scale| scale));
    let straight = total(&start);
    let descended = fit.heard.descend(start, fit.normal, ridge, STEPS);
    let bent = total(&descended);
    let left = straight.min(bent) / before;
    if left.is_nan() || left >= 1.0 - LEAST_GAIN {
        return None;
    }
    let change = match bent < straight {
        // All samples are not far from most of them: one step takes up what the others add.
        true => all.heard.descend(descended, all.normal, ridge, 1),
        false => scaled(all.normal.solve(ridge)?, &|scale| scale),
    };
    // An output that BatchNorm silences is heard by nobody.
    let change = scaled(change, &|scale| if scale == 0.0 { 0.0 } else { 1.0 / scale });
    Some(Refit { change, left, ridge })
}

/// A convolution's samples as its activation sees them. Everything is in units of the activation's input u: a change (O, F) here is
/// the weights' change times the scale of the BatchNorm between.
pub(super) struct Beyond<'a> {
    samples: Samples<'a>,
    act: Act,
    /// (S, O): u before any change.
    now: Values<'a>,
    /// (S, O): what the activation should give.
    aim: Values<'a>,
}

impl<'a> Beyond<'a> {
    /// `wanted` (S, O) is the u to come back to; the activation of it should give `more` (S, O) than that, where that is known;
    /// `scale` (O) is what one unit of the convolution's output is of u.
    pub(super) fn new(samples: Samples<'a>, act: Act, wanted: Room, more: Option<&[f32]>, scale: &[f32]) -> Self {
        let mut aim = said_by(act, &wanted);
        if let Some(more) = more {
            in_rows(&mut aim, samples.outputs, more, |_, aim, more| *aim += more);
        }
        let mut now = wanted;
        in_rows(&mut now, samples.outputs, samples.missing, |o, u, missing| *u -= scale[o] * missing);
        Self { samples, act, now: Values::Own(now), aim: Values::Own(aim) }
    }

    /// That of some samples, as [`Samples::part`].
    pub(super) fn part(&self, range: Range<usize>) -> Beyond<'_> {
        let outputs = self.samples.outputs;
        let values = range.start * outputs..range.end * outputs;
        let [now, aim] = [&self.now, &self.aim].map(|all| Values::Part(&all[values.clone()]));
        Beyond { samples: self.samples.part(range), act: self.act, now, aim }
    }

    /// (O): sums over samples of the squared errors that `change` leaves.
    fn errors(&self, change: &[f64]) -> Vec<f64> {
        self.squares_along(&self.now, &self.samples.times(change), &[1.0]).remove(0)
    }

    /// `change` taken further down in `steps`. `normal` is the unweighted problem of these samples; `ridge` as in `prune::refit`.
    fn descend(&self, mut change: Vec<f64>, normal: &Normal, ridge: f64, steps: usize) -> Vec<f64> {
        let Some(factor) = ridged(&normal.gram, ridge) else { return change };
        let problem = Problem { gram: &normal.gram, factor, ridge };
        let mut u = self.samples.times(&change);
        in_rows(&mut u, self.samples.outputs, &self.now, |_, u, now| *u += now);
        for _ in 0..steps {
            let Step { change: step, moved } = self.step(&u, &change, &problem);
            let tried = self.squares_along(&u, &moved, &LENGTHS);
            let best = |o: usize| {
                let known = (0..LENGTHS.len()).filter(|&l| !tried[l][o].is_nan());
                known.min_by(|&a, &b| tried[a][o].total_cmp(&tried[b][o])).map_or(0.0, |l| LENGTHS[l])
            };
            let length: Vec<f32> = (0..self.samples.outputs).map(best).collect();
            in_rows(&mut u, self.samples.outputs, &moved, |o, u, moved| *u += length[o] * moved);
            let rows = change.chunks_mut(self.samples.features).zip(step.chunks(self.samples.features));
            rows.zip(&length).for_each(|((row, step), &length)| add(row, f64::from(length), step));
        }
        change
    }

    /// (L, O): sums over samples of the squared errors at `u + length * moved`, for each of `lengths`.
    fn squares_along(&self, u: &[f32], moved: &[f32], lengths: &[f32]) -> Vec<Vec<f64>> {
        let outputs = self.samples.outputs;
        let size = CHUNK * outputs;
        let of = |((u, moved), aim): ((&[f32], &[f32]), &[f32])| -> Vec<Vec<f64>> {
            let mut there = vec![0.0; u.len()];
            let mut said = vec![0.0; u.len()];
            let along = lengths.iter().map(|length| {
                there.iter_mut().zip(u.iter().zip(moved)).for_each(|(there, (u, moved))| *there = u + length * moved);
                // Value by value: any layout that holds them all will do.
                let layout = Layout::dense(1, 1, 1, there.len());
                kernels::act_forward(self.act, View::new(&there, layout), ViewMut::new(&mut said, layout));
                let mut sums = vec![0.0; outputs];
                for (said, aim) in said.chunks(outputs).zip(aim.chunks(outputs)) {
                    let errors = said.iter().zip(aim).map(|(said, aim)| f64::from(aim - said));
                    sums.iter_mut().zip(errors).for_each(|(sum, error)| *sum += error * error);
                }
                sums
            });
            along.collect()
        };
        // Chunk after chunk, whatever thread each came from.
        let parts: Vec<_> =
            u.par_chunks(size).zip(moved.par_chunks(size)).zip(self.aim.par_chunks(size)).map(of).collect();
        let sum = |l: usize, o: usize| parts.iter().map(|part| part[l][o]).sum();
        (0..lengths.len()).map(|l| (0..outputs).map(|o| sum(l, o)).collect()).collect()
    }

    /// (S, O): what the activation of `u` lacks.
    fn errors_at(&self, u: &[f32]) -> Room {
        let mut error = said_by(self.act, u);
        in_rows(&mut error, self.samples.outputs, &self.aim, |_, error, aim| *error = aim - *error);
        error
    }

    /// The step that would undo what is wrong at `u` if the slopes there held everywhere, with the ridge on the change as a whole,
    /// of which `change` (O, F) has been made.
    fn step(&self, u: &[f32], change: &[f64], problem: &Problem) -> Step {
        let (features, outputs) = (self.samples.features, self.samples.outputs);
        let slopes = slopes(self.act, u);
        // A flat output has nothing to gain; the least weight keeps its division finite.
        let weight: Vec<f64> = mean_squares(&slopes, outputs).into_iter().map(|w| w.max(f64::MIN_POSITIVE)).collect();
        let ridged = |o: usize, i: usize| problem.ridge * weight[o] * problem.gram[i * features + i];
        let precondition = |x: &[f64]| {
            let mut y = x.to_vec();
            y.par_chunks_mut(features).zip(&weight).for_each(|(row, weight)| {
                problem.factor.solve(row);
                row.iter_mut().for_each(|v| *v /= weight);
            });
            y
        };

        let mut wrong = self.errors_at(u);
        in_rows(&mut wrong, outputs, &slopes, |_, error, slope| *error *= slope);
        let mut residual = self.samples.sums(&wrong);
        for (o, (row, change)) in residual.chunks_mut(features).zip(change.chunks(features)).enumerate() {
            row.iter_mut().zip(change).enumerate().for_each(|(i, (r, c))| *r -= ridged(o, i) * c);
        }
        let mut step = Step { change: vec![0.0; change.len()], moved: Room::zeros(u.len()) };
        // (S, O): what the direction moves of u, and that as the slopes weigh it.
        let [mut moves, mut weighed] = [0, 1].map(|_| Room::any(u.len()));
        let mut ahead = precondition(&residual);
        let mut direction = ahead.clone();
        let mut size = products(&residual, &ahead, features);
        for _ in 0..GRADIENTS {
            self.samples.times_into(&direction, &mut moves);
            let values = moves.par_chunks(CHUNK).zip(slopes.par_chunks(CHUNK));
            weighed.par_chunks_mut(CHUNK).zip(values).for_each(|(to, (moves, slopes))| {
                to.iter_mut().zip(moves.iter().zip(slopes)).for_each(|(to, (v, slope))| *to = v * slope * slope);
            });
            let mut image = self.samples.sums(&weighed);
            let rows = image.par_chunks_mut(features).zip(direction.par_chunks(features)).enumerate();
            rows.for_each(|(o, (y, x))| y.iter_mut().zip(x).enumerate().for_each(|(i, (y, x))| *y += ridged(o, i) * x));
            let curved = products(&direction, &image, features);
            let by: Vec<f64> = size
                .iter()
                .zip(&curved)
                .map(|(&size, &curved)| if curved > 0.0 { size / curved } else { 0.0 })
                .collect();
            in_rows(&mut step.moved, outputs, &moves, |o, moved, moves| *moved += by[o] as f32 * moves);
            for (o, &by) in by.iter().enumerate() {
                let row = o * features..(o + 1) * features;
                add(&mut step.change[row.clone()], by, &direction[row.clone()]);
                add(&mut residual[row.clone()], -by, &image[row]);
            }
            ahead = precondition(&residual);
            let next = products(&residual, &ahead, features);
            for o in 0..weight.len() {
                let row = o * features..(o + 1) * features;
                let by = if size[o] > 0.0 { next[o] / size[o] } else { 0.0 };
                direction[row.clone()].iter_mut().zip(&ahead[row]).for_each(|(d, a)| *d = a + by * *d);
            }
            size = next;
        }
        step
    }
}

/// A step of Gauss and Newton.
struct Step {
    /// (O, F): of the weights.
    change: Vec<f64>,
    /// (S, O): what that moves of u.
    moved: Room,
}

/// (O): the mean square of each column of `values` (S, O).
fn mean_squares(values: &[f32], outputs: usize) -> Vec<f64> {
    let sums = sum_of(values.par_chunks(CHUNK * outputs), |chunk| squares(chunk, outputs));
    let count = (values.len() / outputs) as f64;
    sums.into_iter().map(|sum| sum / count).collect()
}

/// The unweighted problem.
struct Problem<'a> {
    /// (F, F): products of features.
    gram: &'a [f64],
    /// The factor of that with the ridge on its diagonal.
    factor: Cholesky,
    ridge: f64,
}

#[cfg(test)]
mod tests {
    use graph::{Conv, Tensor};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::samples;

    const COUNT: usize = 2048 + 64;

    /// A 1x1 convolution of `inputs` channels to two, random samples of it, and u that they should come back to: half of the
    /// time far below zero, where only the fact counts, and else what a linear map of the samples gives, and a little noise.
    fn samples(seed: u64, inputs: usize) -> (Samples<'static>, Vec<f32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let layout = |c| Layout::dense(1, COUNT / 64, 64, c);
        let x: Vec<f32> = (0..COUNT * inputs).map(|_| rng.random_range(-1.0..1.0)).collect();
        let wanted: Vec<f32> = x
            .chunks(inputs)
            .flat_map(|x| {
                let sum: f32 = x.iter().enumerate().map(|(i, x)| x * (1.0 + i as f32)).sum();
                let noise = rng.random_range(-0.1..0.1);
                let below = if sum < 0.0 { -6.0 * rng.random::<f32>() } else { 0.0 };
                [sum + noise + below, 2.0 - sum + noise]
            })
            .collect();
        let weight = Tensor::new([2, inputs, 1, 1], vec![0.0; 2 * inputs]);
        let conv = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 1 };
        let positions: Vec<usize> = (0..COUNT).collect();
        let read = samples::read(&conv, View::new(&x, layout(inputs)), [COUNT / 64, 64], &positions);
        // As long as the tests take.
        (Samples::new(inputs + 1, read.to_vec().leak(), wanted.clone().leak()), wanted)
    }

    #[test]
    fn flat_outputs_cost_the_linear_fit_dear() {
        for act in [Act::Silu, Act::Relu, Act::Mish, Act::Leaky] {
            let ((fit, wanted), (check, other)) = (samples(1, 5), samples(2, 5));
            let normal = fit.normal();
            let linear = prune::refit(&normal, &check.normal(), &[1.0; 2]).expect("a fit");
            let check = Beyond::new(check, act, Room::of(&other), None, &[1.0; 2]);
            let fit = Part { heard: Beyond::new(fit, act, Room::of(&wanted), None, &[1.0; 2]), normal: &normal };
            let before: f64 = check.errors(&linear.change).iter().sum();
            // What is judged is where the descent by the fitted samples ends; the step after it is by all.
            let judged = fit.heard.descend(linear.change.clone(), &normal, linear.ridge, STEPS);
            let judged: f64 = check.errors(&judged).iter().sum();
            let found = refit(&fit, &check, &fit, Some(linear), &[1.0; 2]).expect("a better fit");
            let after: f64 = check.errors(&found.change).iter().sum();
            let nothing: f64 = check.errors(&[0.0; 12]).iter().sum();
            assert!(after < 0.7 * before, "{act:?}: {before} before, {after} after");
            assert!((found.left - judged / nothing).abs() < 1e-9, "{act:?}");
            assert!(after < 1.01 * judged, "{act:?}: {after} at last, {judged} judged");
        }
    }

    #[test]
    fn one_weight_and_a_bias_end_where_a_search_ends() {
        let (fit, wanted) = samples(3, 1);
        let normal = fit.normal();
        let fit = Beyond::new(fit, Act::Silu, Room::of(&wanted), None, &[1.0; 2]);
        let found = fit.errors(&fit.descend(vec![0.0; 4], &normal, 1e-6, STEPS));
        for (o, found) in found.into_iter().enumerate() {
            let mut at = [0.0f64; 2];
            let error = |at: [f64; 2]| fit.errors(&[at[0], at[1], at[0], at[1]])[o];
            let mut stride = 1.0;
            while stride > 1e-3 {
                let around = [
                    [1.0, 0.0],
                    [-1.0, 0.0],
                    [0.0, 1.0],
                    [0.0, -1.0],
                    [1.0, 1.0],
                    [-1.0, -1.0],
                    [1.0, -1.0],
                    [-1.0, 1.0],
                ];
                let next = around.map(|d| [at[0] + stride * d[0], at[1] + stride * d[1]]);
                match next.into_iter().find(|&next| error(next) < error(at)) {
                    Some(next) => at = next,
                    None => stride /= 2.0,
                }
            }
            assert!(found < 1.02 * error(at), "output {o}: {found} here, {} by search", error(at));
        }
    }

    #[test]
    fn errors_along_a_step_are_those_of_each_sample() {
        let (fit, wanted) = samples(5, 3);
        let heard = Beyond::new(fit, Act::Silu, Room::of(&wanted), None, &[1.0; 2]);
        let silu = |u: f32| f64::from(u) / (1.0 + (-f64::from(u)).exp());
        // More samples than a chunk has, and a number of them that no chunk divides.
        let count = fit.missing.len() / 2;
        assert!(count > CHUNK && !count.is_multiple_of(CHUNK));
        let moved: Vec<f32> = (0..wanted.len()).map(|i| (i % 7) as f32 - 3.0).collect();
        let found = heard.squares_along(&heard.now, &moved, &[0.0, 0.5]);
        for (length, found) in [0.0, 0.5].into_iter().zip(found) {
            for (o, found) in found.into_iter().enumerate() {
                let error = |s: usize| {
                    let at = 2 * s + o;
                    silu(heard.now[at] + length * moved[at]) - silu(wanted[at])
                };
                let expected: f64 = (0..count).map(|s| error(s).powi(2)).sum();
                assert!((found - expected).abs() < 1e-4 * expected, "{length}, output {o}: {found} is {expected}");
            }
        }
    }

    #[test]
    fn silenced_outputs_stay_as_they_are() {
        let (fit, wanted) = samples(4, 3);
        let normal = fit.normal();
        let scale = [0.0, 1.0];
        let part = Part { heard: Beyond::new(fit, Act::Silu, Room::of(&wanted), None, &scale), normal: &normal };
        let change = refit(&part, &part.heard, &part, None, &scale).expect("the other output has much to gain").change;
        assert!(
            change[..4].iter().all(|&v| v == 0.0) && change[4..].iter().all(|v| v.is_finite() && *v != 0.0),
            "{change:?}"
        );
    }
}
