//! The way down: Gauss and Newton's steps in a layer's filters, its readers following by least squares.

use prune::{Cholesky, ridged};
use rayon::prelude::*;

use super::super::{add, dot, in_rows, products};
use super::aim::about_the_mean;
use super::maker::{Made, Maker, Stiffness};
use super::times;
use crate::room::Room;
use crate::samples::Samples;

/// Steps of Gauss and Newton at most, and of conjugate gradients in each.
const STEPS: usize = 5;
const GRADIENTS: usize = 6;

/// How far to go along a step: the first that goes down.
const LENGTHS: [f32; 4] = [1.0, 0.5, 0.25, 0.1];

/// Ridge on what the filters change, as a share of each feature's own mean square.
const RIDGE: f64 = 1e-3;

/// The same for what readers make of the channels.
const READERS_RIDGE: f64 = 1e-4;

/// Share of what readers hear that single precision cannot tell from nothing.
const NOTHING: f64 = 1e-6;

/// Share of the held-out loss a recast has to take away to be made.
const LEAST_GAIN: f64 = 1e-2;

/// What readers make of a layer's channels by least squares.
pub(super) struct Fit {
    /// C + 1.
    width: usize,
    /// K.
    directions: usize,
    /// (S, C + 1): the channels, and 1.
    said: Room,
    factor: Cholesky,
    /// (K, C + 1).
    pub(super) weights: Vec<f64>,
    /// (S, K): what they lack.
    lacking: Room,
    loss: f64,
}

impl Fit {
    /// Of `said` (S, C) for `target` (S, K); `None` where that is not to be solved.
    pub(super) fn new(said: &[f32], channels: usize, target: &[f32]) -> Option<Self> {
        let width = channels + 1;
        let said = with_one(said, channels);
        let samples = Samples::new(width, &said, target);
        let factor = ridged(&samples.gram(), READERS_RIDGE)?;
        let mut weights = samples.sums(target);
        weights.par_chunks_mut(width).for_each(|row| factor.solve(row));
        let mut lacking = samples.times(&weights);
        in_rows(&mut lacking, samples.outputs, target, |_, made, target| *made = target - *made);
        let loss = lacking.iter().map(|v| f64::from(*v).powi(2)).sum();
        Some(Self { width, directions: samples.outputs, factor, weights, lacking, loss, said })
    }

    /// (S, K) less what readers can make of the channels.
    fn beyond(&self, mut values: Room) -> Room {
        let mut weights = Samples::new(self.width, &self.said, &values).sums(&values);
        weights.par_chunks_mut(self.width).for_each(|row| self.factor.solve(row));
        let made = times(&self.said, self.width, &weights);
        in_rows(&mut values, self.directions, &made, |_, value, made| *value -= made);
        values
    }

    /// What they lack on other samples.
    fn loss_on(&self, said: &[f32], target: &[f32]) -> f64 {
        let made = times(&with_one(said, self.width - 1), self.width, &self.weights);
        made.iter().zip(target).map(|(made, target)| f64::from(target - made).powi(2)).sum()
    }

    /// (K, C): the weights without what is added.
    fn slopes(&self) -> Vec<f64> {
        self.weights.chunks(self.width).flat_map(|row| row[..self.width - 1].iter().copied()).collect()
    }
}

/// (S, C + 1).
fn with_one(said: &[f32], channels: usize) -> Room {
    let mut rows = Room::any(said.len() / channels * (channels + 1));
    let pairs = rows.par_chunks_mut(channels + 1).zip(said.par_chunks(channels));
    pairs.for_each(|(row, said)| {
        row[..channels].copy_from_slice(said);
        row[channels] = 1.0;
    });
    rows
}

/// (C, R) of (R, C).
fn transposed(rows: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| rows.chunks(columns).map(move |row| row[c])).collect()
}

/// The change that leaves readers least on the held-out side, on the way down on the other, and the share of their loss there that it
/// leaves; `None` where that is hardly less.
pub(super) fn descend(fit: &Maker, target: &[f32], check: &Maker, check_target: &[f32]) -> Option<(Vec<f64>, f64)> {
    let gram = Samples::new(fit.features, fit.read, &[]).gram();
    let factor = ridged(&gram, RIDGE)?;
    let problem = Problem { maker: fit, gram: &gram, factor };

    let mut change = vec![0.0; fit.len()];
    let mut made = fit.at(&[]);
    let mut now = Fit::new(&made.said, fit.channels, target)?;
    let before = now.loss_on(&check.at(&[]).said, check_target);
    let there: f64 = about_the_mean(check_target, now.directions).iter().sum();
    if before.is_nan() || before <= NOTHING * there {
        return None;
    }
    let mut best = (before, change.clone());
    for _ in 0..STEPS {
        let step = problem.step(&made, &now, &change);
        let along = |length: f32| -> Vec<f64> {
            change.iter().zip(&step).map(|(change, step)| change + f64::from(length) * step).collect()
        };
        let next = LENGTHS.iter().find_map(|&length| {
            let change = along(length);
            let made = fit.at(&change);
            let next = Fit::new(&made.said, fit.channels, target)?;
            (next.loss < now.loss).then_some((change, made, next))
        });
        let Some(next) = next else { break };
        (change, made, now) = next;
        let loss = now.loss_on(&check.at(&change).said, check_target);
        if loss >= best.0 {
            break;
        }
        best = (loss, change.clone());
    }
    let left = best.0 / before;
    (left < 1.0 - LEAST_GAIN).then_some((best.1, left))
}

/// The linear problems on the way down.
struct Problem<'a> {
    maker: &'a Maker<'a>,
    /// (F, F): products of what the filters read.
    gram: &'a [f64],
    factor: Cholesky,
}

impl Problem<'_> {
    /// The step that would leave readers least if slopes held everywhere, with the ridge on the change as a whole, of which `change` has
    /// been made.
    fn step(&self, made: &Made, now: &Fit, change: &[f64]) -> Vec<f64> {
        let maker = self.maker;
        let readers = now.slopes();
        let back = transposed(&readers, maker.channels);
        let minded = products(&back, &back, now.directions);
        let stiffness = maker.stiffness(made, &minded);
        let ridge = self.ridge(&stiffness);
        let pull = |lacking: &[f32]| maker.pull(made, &times(lacking, now.directions, &back));
        let ridged = |values: &[f64]| -> Vec<f64> { values.iter().zip(&ridge).map(|(v, r)| v * r).collect() };
        let precondition = |values: &[f64]| {
            let mut values = values.to_vec();
            let (filters, taps) = values.split_at_mut(maker.filters());
            filters.par_chunks_mut(maker.features).zip(&stiffness.filters).for_each(|(row, weight)| {
                self.factor.solve(row);
                row.iter_mut().for_each(|v| *v /= weight);
            });
            taps.iter_mut().zip(&stiffness.taps).for_each(|(v, weight)| *v /= weight);
            values
        };

        let mut residual = pull(&now.lacking);
        residual.iter_mut().zip(ridged(change)).for_each(|(r, ridged)| *r -= ridged);
        let mut step = vec![0.0; change.len()];
        let mut ahead = precondition(&residual);
        let mut direction = ahead.clone();
        let mut size = dot(&residual, &ahead);
        for _ in 0..GRADIENTS {
            let moved = times(&maker.push(made, &direction), maker.channels, &readers);
            let mut image = pull(&now.beyond(moved));
            image.iter_mut().zip(ridged(&direction)).for_each(|(i, ridged)| *i += ridged);
            let curved = dot(&direction, &image);
            if curved.is_nan() || curved <= 0.0 {
                break;
            }
            let by = size / curved;
            add(&mut step, by, &direction);
            add(&mut residual, -by, &image);
            ahead = precondition(&residual);
            let next = dot(&residual, &ahead);
            direction.iter_mut().zip(&ahead).for_each(|(d, a)| *d = a + next / size * *d);
            size = next;
        }
        step
    }

    /// What each value of a change costs.
    fn ridge(&self, stiffness: &Stiffness) -> Vec<f64> {
        let features = self.maker.features;
        let of_filters = stiffness.filters.iter().flat_map(|f| (0..features).map(move |i| (f, i)));
        let of_filters = of_filters.map(|(f, i)| RIDGE * f * self.gram[i * features + i]);
        of_filters.chain(stiffness.taps.iter().map(|t| RIDGE * t)).collect()
    }
}
