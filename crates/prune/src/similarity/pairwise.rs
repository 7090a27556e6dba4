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

#[cfg(test)]
mod tests {
    use super::*;

    /// Six channels made of three independent ones.
    fn stats() -> ChannelStats {
        let made =
            [[1.0, 0.0, 0.2], [0.9, 0.3, 0.0], [0.1, 1.0, 0.4], [0.0, 0.8, 0.5], [0.3, 0.2, 1.0], [0.7, 0.7, 0.1]];
        let cov = |k: usize| made[k / 6].iter().zip(made[k % 6]).map(|(a, b): (&f64, f64)| a * b).sum();
        ChannelStats { mean: vec![0.0; 6], cov: (0..36).map(cov).collect(), count: 100 }
    }

    /// Who stood in for a channel may go: prices add up to what is lost once all of them are gone, from the best left.
    #[test]
    fn prices_add_up_to_what_is_lost() {
        let stats = stats();
        let energy = |i: usize| 1.0 + i as f64;
        let gram = (0..36).map(|k| if k / 6 == k % 6 { energy(k / 6) } else { 9.0 }).collect();
        let mut pairs = Pairs::new(&stats, gram, 0.0);
        let mut sum = 0.0;
        let mut gone = vec![];
        for positions in [vec![0], vec![1], vec![5, 2]] {
            sum += pairs.price(&positions).loss;
            pairs.remove(&positions);
            gone.extend(positions);
            let left = |i: usize| {
                let unexplained = |j: usize| stats.at(i, i) - stats.at(i, j).powi(2) / stats.at(j, j);
                energy(i) * (0..6).filter(|j| !gone.contains(j)).map(unexplained).fold(f64::INFINITY, f64::min)
            };
            let expected: f64 = gone.iter().map(|&i| left(i)).sum();
            assert!((sum - expected).abs() < 1e-12, "{gone:?}: {sum} for {expected}");
        }
    }

    #[test]
    fn what_is_all_explained_may_go_at_any_threshold() {
        let stats =
            ChannelStats { mean: vec![1.0; 3], cov: vec![1.0, 2.0, 0.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.0], count: 9 };
        let pairs = Pairs::new(&stats, vec![1.0; 9], 1.0);
        for (positions, expected) in [([0], (0.0, true)), ([2], (0.0, true))] {
            let Price { loss, allowed } = pairs.price(&positions);
            assert_eq!((loss, allowed), expected, "{positions:?}");
        }
        assert!(!pairs.price(&[0, 1]).allowed, "nothing is left to stand in");
    }
}
