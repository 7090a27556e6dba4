//! Least squares for one convolution: the change of its weights that brings what it computes from the pruned network's maps
//! closest to what it computed in the dense network (He, Zhang and Sun 2017, "Channel pruning", for 3x3 kernels and all).
//!
//! Stage 2 compensates with covariances between channels alone; it sees neither that neighbouring taps look at overlapping
//! pixels, nor the zeros beyond the border, nor what earlier layers have already got wrong. This sees all three.

use rayon::prelude::*;

use crate::linalg::{Cholesky, dot};

/// Ridges tried, as shares of each feature's own mean square. Which one is right depends on how many samples there are and
/// how alike the features: held-out images decide.
const RIDGES: [f64; 4] = [1e-4, 1e-3, 1e-2, 1e-1];

/// Share of the held-out error a change has to take away to be made at all: below, it fits noise.
pub const LEAST_GAIN: f64 = 1e-3;

/// Sums over samples of a linear problem `residual ~ change * features`: everything least squares needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Normal {
    /// (F, F): products of features.
    pub gram: Vec<f64>,
    /// (O, F): products of what is missing of each output with the features.
    pub cross: Vec<f64>,
    /// (O): squares of what is missing.
    pub missing: Vec<f64>,
}

impl Normal {
    /// That of these samples and those.
    pub fn with(&self, others: &Self) -> Self {
        let plus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect();
        Self {
            gram: plus(&self.gram, &others.gram),
            cross: plus(&self.cross, &others.cross),
            missing: plus(&self.missing, &others.missing),
        }
    }

    /// F.
    fn features(&self) -> usize {
        self.cross.len() / self.missing.len().max(1)
    }

    /// The least-squares change with that ridge, (O, F); `None` as for [`ridged`].
    pub fn solve(&self, ridge: f64) -> Option<Vec<f64>> {
        let factor = ridged(&self.gram, ridge)?;
        let mut change = self.cross.clone();
        change.par_chunks_mut(self.features()).for_each(|row| factor.solve(row));
        Some(change)
    }

    /// Sum over outputs of `weight * |missing - change * features|^2`.
    fn error(&self, change: &[f64], weights: &[f64]) -> f64 {
        let features = self.features();
        let of = |o: usize| {
            let (d, c) = (&change[o * features..][..features], &self.cross[o * features..][..features]);
            let quadratic: f64 = self.gram.chunks(features.max(1)).zip(d).map(|(row, by)| by * dot(row, d)).sum();
            weights[o] * (self.missing[o] - 2.0 * dot(d, c) + quadratic)
        };
        let errors: Vec<f64> = (0..self.missing.len()).into_par_iter().map(of).collect();
        errors.iter().sum()
    }
}

/// The factor of the products `gram` (F, F) of features with `ridge` times each feature's own on the diagonal; `None` where that is
/// not positive definite.
pub fn ridged(gram: &[f64], ridge: f64) -> Option<Cholesky> {
    let features = gram.len().isqrt();
    let mut a = gram.to_vec();
    let largest = (0..features).map(|i| a[i * features + i]).fold(f64::MIN_POSITIVE, f64::max);
    for i in 0..features {
        a[i * features + i] += ridge * a[i * features + i] + 1e-9 * largest;
    }
    Cholesky::new(features, a)
}

/// A change worth making.
#[derive(Clone, Debug, PartialEq)]
pub struct Refit {
    /// (O, F), to be added to the weights.
    pub change: Vec<f64>,
    /// Share of the held-out error that is left.
    pub left: f64,
    /// The ridge that held-out samples chose.
    pub ridge: f64,
}

/// The best change by least squares over `fit`, with the ridge that does best on `check`; `None` where none does better
/// there than leaving the weights alone. `weights` (O) says how much each output matters.
pub fn refit(fit: &Normal, check: &Normal, weights: &[f64]) -> Option<Refit> {
    let before: f64 = weights.iter().zip(&check.missing).map(|(weight, missing)| weight * missing).sum();
    if fit.features() == 0 || before <= 0.0 {
        return None;
    }
    let solve = |ridge: f64| {
        let change = fit.solve(ridge)?;
        let left = check.error(&change, weights) / before;
        left.is_finite().then_some(Refit { change, left, ridge })
    };
    let best = RIDGES.into_iter().filter_map(solve).min_by(|a, b| a.left.total_cmp(&b.left))?;
    (best.left < 1.0 - LEAST_GAIN).then_some(best)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Samples of `features` random features (the last always 1) whose outputs miss `truth * features + noise`.
    fn samples(seed: u64, count: usize, features: usize, truth: &[f64], noise: f64) -> Normal {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let outputs = truth.len() / features;
        let mut normal = Normal {
            gram: vec![0.0; features * features],
            cross: vec![0.0; outputs * features],
            missing: vec![0.0; outputs],
        };
        for _ in 0..count {
            let mut x: Vec<f64> = (0..features).map(|_| rng.random_range(-1.0..1.0)).collect();
            x[features - 1] = 1.0;
            for i in 0..features * features {
                normal.gram[i] += x[i / features] * x[i % features];
            }
            for o in 0..outputs {
                let y = dot(&truth[o * features..][..features], &x) + noise * rng.random_range(-1.0..1.0);
                (0..features).for_each(|i| normal.cross[o * features + i] += y * x[i]);
                normal.missing[o] += y * y;
            }
        }
        normal
    }

    #[test]
    fn what_is_linear_is_found() {
        let truth: Vec<f64> = (0..3 * 7).map(|i| f64::from(i % 5) - 2.0).collect();
        let found = refit(&samples(1, 500, 7, &truth, 0.0), &samples(2, 100, 7, &truth, 0.0), &[1.0; 3]).unwrap();
        assert_eq!(found.ridge, RIDGES[0]);
        assert!(found.left < 1e-6, "{}", found.left);
        assert!(found.change.iter().zip(&truth).all(|(a, b)| (a - b).abs() < 1e-2), "{:?}", found.change);
    }

    #[test]
    fn outputs_count_as_their_weights_say() {
        // Of the first output nine tenths can be made up for, of the second nothing.
        let normal = Normal { gram: vec![1.0], cross: vec![0.9_f64.sqrt(), 0.0], missing: vec![1.0, 1.0] };
        let left = |weights: [f64; 2]| refit(&normal, &normal, &weights).expect("helps").left;
        assert!((left([1.0, 1.0]) - 1.1 / 2.0).abs() < 1e-4);
        assert!((left([3.0, 1.0]) - 1.3 / 4.0).abs() < 1e-4);
    }

    #[test]
    fn a_feature_that_is_never_there_does_no_harm() {
        let normal = Normal { gram: vec![1.0, 0.0, 0.0, 0.0], cross: vec![0.5, 0.0], missing: vec![1.0] };
        let change = refit(&normal, &normal, &[1.0]).expect("the other helps").change;
        assert!((change[0] - 0.5).abs() < 1e-3 && change[1] == 0.0, "{change:?}");
    }

    #[test]
    fn a_gain_too_small_to_tell_is_not_made() {
        let of = |gain: f64| Normal { gram: vec![1.0], cross: vec![gain.sqrt()], missing: vec![1.0] };
        let worth = |gain: f64| refit(&of(gain), &of(gain), &[1.0]).is_some();
        assert!(worth(1.5 * LEAST_GAIN) && !worth(0.5 * LEAST_GAIN));
    }

    #[test]
    fn noise_is_left_alone() {
        let nothing = vec![0.0; 2 * 30];
        assert_eq!(refit(&samples(3, 40, 30, &nothing, 1.0), &samples(4, 400, 30, &nothing, 1.0), &[1.0; 2]), None);
    }

    #[test]
    fn few_samples_ask_for_a_larger_ridge() {
        let truth: Vec<f64> = (0..30).map(|i| f64::from(i % 3) - 1.0).collect();
        let few = refit(&samples(5, 32, 30, &truth, 2.0), &samples(6, 500, 30, &truth, 2.0), &[1.0]).unwrap();
        let many = refit(&samples(5, 5000, 30, &truth, 2.0), &samples(6, 500, 30, &truth, 2.0), &[1.0]).unwrap();
        assert!(few.ridge > many.ridge, "{} and {}", few.ridge, many.ridge);
        assert!(many.left < few.left, "{} and {}", many.left, few.left);
    }
}
