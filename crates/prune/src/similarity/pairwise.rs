//! One channel stands in for another: `x_i ~ a x_j + b` with `a = S_ij / S_jj` and `b = mu_i - a mu_j` (METHOD.md, 3).
//!
//! The loss of replacing i by j is `(1 - rho^2) S_ii |W[:, i]|^2`. A channel that stands in for others may go later itself;
//! its dependants then move on to their next best stand-in, and what that adds to their loss is part of its price.

use super::{Port, Price, row};
use crate::{ChannelStats, Row};

/// The search state of one tensor.
pub(super) struct Pairs {
    stats: ChannelStats,
    /// `|W[:, i]|^2` over all readers, as shares of their output variance.
    energy: Vec<f64>,
    threshold: f64,
    kept: Vec<bool>,
    /// The stand-in of every removed channel; `None` where no kept channel varies.
    stand_in: Vec<Option<usize>>,
}

impl Pairs {
    pub(super) fn new(stats: &ChannelStats, gram: Vec<f64>, threshold: f64) -> Self {
        let c = stats.channels();
        Self {
            stats: stats.clone(),
            energy: (0..c).map(|i| gram[i * c + i]).collect(),
            threshold,
            kept: vec![true; c],
            stand_in: vec![None; c],
        }
    }

    /// The best stand-in for channel `i` among the kept ones that are not `going`.
    fn best(&self, i: usize, going: &[usize]) -> Option<usize> {
        best(&self.stats, i, (0..self.kept.len()).filter(|j| self.kept[*j] && !going.contains(j)))
    }

    fn lost(&self, i: usize, stand_in: Option<usize>) -> f64 {
        (1.0 - rho2(&self.stats, i, stand_in)) * self.stats.at(i, i) * self.energy[i]
    }

    /// Removed channels that one of `going` stands in for.
    fn dependants(&self, going: &[usize]) -> impl Iterator<Item = usize> {
        let dependant = |&p: &usize| !self.kept[p] && self.stand_in[p].is_some_and(|j| going.contains(&j));
        (0..self.kept.len()).filter(dependant)
    }
}

impl Port for Pairs {
    fn price(&self, positions: &[usize]) -> Price {
        let mut price = Price { loss: 0.0, allowed: true };
        for i in positions.iter().copied().chain(self.dependants(positions)) {
            let stand_in = self.best(i, positions);
            price.loss += self.lost(i, stand_in);
            price.allowed &= rho2(&self.stats, i, stand_in) >= self.threshold;
            if !self.kept[i] {
                price.loss -= self.lost(i, self.stand_in[i]);
            }
        }
        price
    }

    fn remove(&mut self, positions: &[usize]) {
        let homeless: Vec<usize> = positions.iter().copied().chain(self.dependants(positions)).collect();
        positions.iter().for_each(|&i| self.kept[i] = false);
        for i in homeless {
            self.stand_in[i] = self.best(i, &[]);
        }
    }
}

/// The compensation of the `gone` channels once it is known which are `kept`.
pub(super) fn rows(stats: &ChannelStats, gone: &[usize], kept: &[usize]) -> Vec<Row> {
    let replaced = |&i: &usize| {
        let stand_in = best(stats, i, kept.iter().copied());
        row(stats, i, stand_in.map(|j| (j, (stats.at(i, j) / stats.at(j, j)) as f32)).into_iter().collect())
    };
    gone.iter().map(replaced).collect()
}

/// The candidate with the largest rho^2 to channel `i`; none where no candidate explains anything.
fn best(stats: &ChannelStats, i: usize, candidates: impl Iterator<Item = usize>) -> Option<usize> {
    let mut best = None;
    let mut most = 0.0;
    for j in candidates {
        let (s_ij, s_jj) = (stats.at(i, j), stats.at(j, j));
        if s_jj > 0.0 && s_ij * s_ij / s_jj > most {
            most = s_ij * s_ij / s_jj;
            best = Some(j);
        }
    }
    best
}

/// The share of channel i's variance that its stand-in explains; all of it where there is none to explain.
fn rho2(stats: &ChannelStats, i: usize, stand_in: Option<usize>) -> f64 {
    let variance = stats.at(i, i);
    if variance <= 0.0 {
        return 1.0;
    }
    stand_in.map_or(0.0, |j| stats.at(i, j).powi(2) / (variance * stats.at(j, j))).min(1.0)
}
