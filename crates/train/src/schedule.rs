//! Learning rates, momentum and accumulation as pure functions of the iteration: YOLOv5's warm-up and decay, but for what short trainings
//! need.
//!
//! Healing is often short. Warm-up takes no more than its share of it, and the rate falls with every batch, not with every epoch: at the
//! end of five epochs it would still be a fifth of what it was.

use serde::{Deserialize, Serialize};

use crate::optim::GroupRates;

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    Linear,
    Cosine,
}

/// The recipe; the defaults are YOLOv5's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScheduleConfig {
    /// Learning rate after warm-up.
    pub lr0: f32,
    /// Learning rate at the end, as a factor of `lr0`.
    pub lrf: f32,
    pub decay: Decay,
    /// Momentum after warm-up, and AdamW's first beta: see [`crate::optim::OptimKind`].
    pub momentum: f32,
    /// Warm-up lasts this many epochs ...
    pub warmup_epochs: f32,
    /// ... but at least this many iterations, where it is asked for at all, and a fifth of the training at most.
    pub warmup_min_iterations: usize,
    /// Momentum that warm-up starts with.
    pub warmup_momentum: f32,
    /// Learning rate of the biases that warm-up starts with; all others start from 0.
    pub warmup_bias_lr: f32,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            lr0: 0.01,
            lrf: 0.01,
            decay: Decay::Linear,
            momentum: 0.937,
            warmup_epochs: 3.0,
            warmup_min_iterations: 100,
            warmup_momentum: 0.8,
            warmup_bias_lr: 0.1,
        }
    }
}

/// One iteration in this many may be warm-up.
const WARMUP_SHARE: usize = 5;

/// A recipe applied to a run of known length.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    config: ScheduleConfig,
    /// Batches an epoch and of all epochs.
    batches: usize,
    iterations: usize,
    warmup: usize,
    /// Images a batch, and those that gradients are added up over.
    batch: usize,
    nominal_batch: usize,
}

/// What holds for one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub rates: GroupRates,
    pub momentum: f32,
    /// The optimiser steps once this many batches have been added up.
    pub accumulate: usize,
}

impl Schedule {
    /// `config` for `epochs` epochs of `batches` batches of `batch` images, gradients added up over about `nominal_batch`
    /// images.
    pub fn new(config: &ScheduleConfig, epochs: usize, batches: usize, batch: usize, nominal_batch: usize) -> Self {
        let asked = (config.warmup_epochs * batches as f32).round_ties_even() as usize;
        let iterations = epochs * batches;
        let warmup = if config.warmup_epochs > 0.0 { asked.max(config.warmup_min_iterations) } else { 0 };
        let warmup = warmup.min(iterations / WARMUP_SHARE);
        Self { config: config.clone(), batches, iterations, warmup, batch, nominal_batch }
    }

    /// Pace of batch `iteration` (from 0, over all epochs).
    pub fn at(&self, iteration: usize) -> Pace {
        let config = &self.config;
        let lr = config.lr0 * self.decay(iteration);
        if iteration > self.warmup || self.warmup == 0 {
            let rates = GroupRates { weight: lr, norm: lr, bias: lr };
            return Pace { rates, momentum: config.momentum, accumulate: whole(self.accumulate()) };
        }
        let mix = |from: f32, to: f32| from + (to - from) * (iteration as f32 / self.warmup as f32);
        Pace {
            rates: GroupRates { weight: mix(0.0, lr), norm: mix(0.0, lr), bias: mix(config.warmup_bias_lr, lr) },
            momentum: mix(config.warmup_momentum, config.momentum),
            accumulate: whole(mix(1.0, self.accumulate())),
        }
    }

    /// Sum of BatchNorm's learning rate over all steps of the optimiser, where it steps once at least
    /// [`Pace::accumulate`] batches have come since its last step, and at the end of every epoch: how far a constant gradient of 1 would move a weight.
    pub fn travel(&self) -> f32 {
        let (mut sum, mut waiting) = (0.0f64, 0);
        for iteration in 0..self.iterations {
            let pace = self.at(iteration);
            waiting += 1;
            if waiting >= pace.accumulate || (iteration + 1) % self.batches == 0 {
                sum += f64::from(pace.rates.norm);
                waiting = 0;
            }
        }
        sum as f32
    }

    /// Weight decay for the batch that is really accumulated, where `nominal` is meant for the nominal batch.
    pub fn weight_decay(&self, nominal: f32) -> f32 {
        nominal * (self.batch * whole(self.accumulate())) as f32 / self.nominal_batch as f32
    }

    /// Batches to one step of the optimiser, after warm-up and before rounding.
    fn accumulate(&self) -> f32 {
        self.nominal_batch as f32 / self.batch as f32
    }

    /// Factor of `lr0` at `iteration`.
    fn decay(&self, iteration: usize) -> f32 {
        let x = iteration as f32 / self.iterations as f32;
        let left = match self.config.decay {
            Decay::Linear => 1.0 - x,
            Decay::Cosine => (1.0 + (x * std::f32::consts::PI).cos()) / 2.0,
        };
        left * (1.0 - self.config.lrf) + self.config.lrf
    }
}

/// At least one; halves round to even, as in Python.
fn whole(batches: f32) -> usize {
    batches.round_ties_even().max(1.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule::new(&ScheduleConfig { decay, ..Default::default() }, 10, 50, 16, 64)
    }

    fn close(a: f32, b: f32) {
        assert!((a - b).abs() < 1e-6, "{a} for {b}");
    }

    #[test]
    fn warm_up_starts_slow_except_for_biases() {
        let start = schedule(Decay::Linear).at(0);
        assert_eq!(start.rates, GroupRates { weight: 0.0, norm: 0.0, bias: 0.1 });
        assert_eq!((start.momentum, start.accumulate), (0.8, 1));
    }

    #[test]
    fn warm_up_is_linear_in_the_iteration() {
        // A fifth of 500 batches; in its middle linear decay has reached 0.9 * 0.99 + 0.01 = 0.901.
        let middle = schedule(Decay::Linear).at(50);
        close(middle.rates.weight, 0.004505);
        close(middle.rates.bias, 0.1 + (0.00901 - 0.1) / 2.0);
        close(middle.momentum, 0.8685);
        // 2.5 batches round to 2.
        assert_eq!(middle.accumulate, 2);
    }

    #[test]
    fn after_warm_up_rates_fall_with_every_batch() {
        for (decay, want) in [(Decay::Linear, 0.00505), (Decay::Cosine, 0.00505)] {
            let pace = schedule(decay).at(250);
            close(pace.rates.weight, want);
            assert_eq!(pace.rates.bias, pace.rates.weight);
            assert_eq!((pace.momentum, pace.accumulate), (0.937, 4));
        }
        close(schedule(Decay::Cosine).at(400).rates.norm, 0.01 * (0.095_491_5 * 0.99 + 0.01));
        close(schedule(Decay::Linear).at(499).rates.norm, 0.01 * (0.002 * 0.99 + 0.01));
    }

    #[test]
    fn short_epochs_still_warm_up_for_a_while() {
        let warmup = |epochs| Schedule::new(&ScheduleConfig::default(), epochs, 13, 16, 64).warmup;
        assert_eq!(warmup(100), 100);
        assert_eq!((warmup(10), warmup(1)), (26, 2), "but no more than a fifth of it all");
        let none = ScheduleConfig { warmup_epochs: 0.0, ..Default::default() };
        assert_eq!(Schedule::new(&none, 10, 13, 16, 64).at(0).rates.weight, 0.01);
    }

    #[test]
    fn travel_sums_the_rates_of_the_steps() {
        let flat = ScheduleConfig { lrf: 1.0, warmup_epochs: 0.0, ..Default::default() };
        // 50 batches an epoch, a step every 4 and one for the last 2.
        close(Schedule::new(&flat, 10, 50, 16, 64).travel(), 1.3);
        let decaying = ScheduleConfig { lrf: 0.0, ..flat };
        // 130 steps, at batches 3, 7, ... 47 and 49 of each epoch: their places in the run, shares of 500 batches, add up to 65.48.
        let travel = Schedule::new(&decaying, 10, 50, 16, 64).travel();
        assert!((travel - 0.01 * (130.0 - 65.48)).abs() < 1e-4, "{travel}");
    }

    #[test]
    fn weight_decay_follows_the_batch() {
        // Batches of 24: 64 / 24 rounds to 3, so 72 images make a step.
        close(Schedule::new(&ScheduleConfig::default(), 10, 13, 24, 64).weight_decay(5e-4), 5e-4 * 72.0 / 64.0);
    }
}
