//! All kept channels stand in together: `x_P ~ B x_K + c` by least squares on the covariance (METHOD.md, 3).
//!
//! The search keeps, for each tensor, the precision `Q = S_KK^-1` of what is kept and the Gram matrix G of the readers'
//! weights as compensated so far. The residual variance of i given the other kept channels is `1 / Q_ii`, so removing it next
//! adds `G_ii / Q_ii` to the lost variance: exactly, because each step projects onto a smaller span of the last one's. This is
//! the saliency of the optimal brain surgeon (Hassibi and Stork 1993) with channels in place of weights. Eliminating i
//! updates both matrices in O(C^2): a Schur complement of Q, and G as the weights of i move to the stand-ins. A channel that is heard
//! with several taps is a block of positions that goes at once.

use graph::{Graph, NodeId};
use rayon::prelude::*;

use super::{Port, Price, row};
use crate::linalg::Cholesky;
use crate::{ChannelStats, Error, Result, Row};

/// Coefficients that move less than this share of the removed channel's standard deviation are left out of the plan.
const NEGLIGIBLE: f64 = 1e-6;

/// Relative accuracy expected of covariances.
const ROUNDING: f64 = 1e-12;

/// The search state of one tensor: (C, C) matrices, zero in the rows and columns of what is gone.
pub(super) struct Span {
    c: usize,
    precision: Vec<f64>,
    gram: Vec<f64>,
}

impl Span {
    pub(super) fn new(graph: &Graph, node: NodeId, stats: &ChannelStats, gram: Vec<f64>, ridge: f64) -> Result<Self> {
        let all: Vec<usize> = (0..stats.channels()).collect();
        let precision = factor(graph, node, stats, &all, ridge)?.inverse();
        Ok(Self { c: stats.channels(), precision, gram })
    }

    /// With `b` the coefficients of what goes on what stays: `Q += b q` and `G += b g + (g + b G_pp) b'`, where q and g are the rows of
    /// what goes.
    fn eliminate(&mut self, gone: &[usize]) {
        let (c, n) = (self.c, gone.len());
        let rows = |m: &[f64]| gone.iter().flat_map(|&i| m[i * c..][..c].to_vec()).collect::<Vec<f64>>();
        let (q, g) = (rows(&self.precision), rows(&self.gram));
        let block = |rows: &[f64]| (0..n * n).map(|k| rows[k / n * c + gone[k % n]]).collect::<Vec<f64>>();
        let (inverse, own) = (inverse_of_block(n, block(&q)), block(&g));
        // (n, c): what stands in for each of the gone.
        let mut b = vec![0.0; n * c];
        for (k, b) in b.chunks_mut(c).enumerate() {
            for (l, q) in q.chunks(c).enumerate() {
                b.iter_mut().zip(q).for_each(|(b, q)| *b -= q * inverse[l * n + k]);
            }
        }
        let both = self.precision.par_chunks_mut(c).zip(self.gram.par_chunks_mut(c)).with_min_len(64);
        both.enumerate().for_each(|(j, (precision, gram))| {
            if gone.contains(&j) {
                precision.fill(0.0);
                gram.fill(0.0);
                return;
            }
            // What went before is in no row of the precision.
            if precision[j] == 0.0 {
                return;
            }
            let own_b: Vec<f64> = (0..n).map(|l| b[l * c + j]).collect();
            for l in 0..n {
                let heard = g[l * c + j] + (0..n).map(|k| own_b[k] * own[k * n + l]).sum::<f64>();
                let (b, q, g) = (&b[l * c..][..c], &q[l * c..][..c], &g[l * c..][..c]);
                for k in 0..c {
                    precision[k] += own_b[l] * q[k];
                    gram[k] += own_b[l] * g[k] + heard * b[k];
                }
            }
            gone.iter().for_each(|&i| (precision[i], gram[i]) = (0.0, 0.0));
        });
    }
}

/// The inverse of a block of a precision matrix. Rounding may have left it a hair from positive definite.
fn inverse_of_block(n: usize, block: Vec<f64>) -> Vec<f64> {
    if let &[only] = &block[..] {
        return vec![1.0 / only];
    }
    let with_more = |more: f64| {
        let mut a = block.clone();
        (0..n).for_each(|i| a[i * n + i] *= 1.0 + more);
        Cholesky::new(n, a)
    };
    match [0.0, 1e-12, 1e-9, 1e-6, 1e-3].into_iter().find_map(with_more) {
        Some(factor) => factor.inverse(),
        // Not a precision matrix at all: each by itself.
        None => (0..n * n).map(|k| if k / n == k % n { 1.0 / block[k] } else { 0.0 }).collect(),
    }
}

impl Port for Span {
    /// `trace(G_bb Q_bb^-1)` of the block b of positions.
    fn price(&self, positions: &[usize]) -> Price {
        let at = |m: &[f64], i: usize, j: usize| m[i * self.c + j];
        let loss = match positions {
            &[i] => {
                let q = at(&self.precision, i, i);
                (q > 0.0).then(|| at(&self.gram, i, i) / q)
            }
            block => {
                let n = block.len();
                let take = |m: &[f64]| (0..n * n).map(|k| at(m, block[k / n], block[k % n])).collect::<Vec<f64>>();
                Cholesky::new(n, take(&self.precision))
                    .map(|q| q.inverse().iter().zip(take(&self.gram)).map(|(r, g)| r * g).sum::<f64>())
            }
        };
        // Rounding may leave next to nothing just below zero; what cannot be told is not free.
        let loss = loss.filter(|loss| !loss.is_nan()).map_or(f64::INFINITY, |loss| loss.max(0.0));
        Price { loss, allowed: true }
    }

    fn remove(&mut self, positions: &[usize]) {
        self.eliminate(positions);
    }
}

/// The compensation of the `gone` channels by the `kept` ones.
pub(super) fn rows(
    graph: &Graph,
    node: NodeId,
    stats: &ChannelStats,
    gone: &[usize],
    kept: &[usize],
    ridge: f64,
) -> Result<Vec<Row>> {
    let factor = factor(graph, node, stats, kept, ridge)?;
    let regress = |&i: &usize| {
        let mut b: Vec<f64> = kept.iter().map(|&j| stats.at(i, j)).collect();
        factor.solve(&mut b);
        let moves = |j: usize, b: f64| b * b * stats.at(j, j) > NEGLIGIBLE * NEGLIGIBLE * stats.at(i, i);
        let stand_ins = kept.iter().zip(&b).filter(|&(&j, &b)| moves(j, b)).map(|(&j, &b)| (j, b as f32)).collect();
        row(stats, i, stand_ins)
    };
    Ok(gone.iter().map(regress).collect())
}

/// Factors the covariance of the `kept` channels with the ridge on its diagonal.
///
/// Covariances come from sums over millions of samples and are only as good as their rounding, which grows with the square of
/// a channel's mean: a trace of that is added to the diagonal. So a channel that (almost) never varies explains nothing and
/// costs nothing. Where the matrix is still not positive definite the ridge is raised until it is.
fn factor(graph: &Graph, node: NodeId, stats: &ChannelStats, kept: &[usize], ridge: f64) -> Result<Cholesky> {
    let n = kept.len();
    let largest = (0..stats.channels()).map(|i| stats.at(i, i)).fold(1e-30, f64::max);
    let mut ridge = ridge;
    while ridge < 1.0 {
        let mut a: Vec<f64> = (0..n * n).map(|k| stats.at(kept[k / n], kept[k % n])).collect();
        for (i, &channel) in kept.iter().enumerate() {
            a[i * n + i] += ridge * a[i * n + i] + ROUNDING * (largest + stats.mean[channel].powi(2));
        }
        match Cholesky::new(n, a) {
            Some(factor) => return Ok(factor),
            None => ridge *= 10.0,
        }
    }
    let what = "the covariance is not positive semidefinite".into();
    Err(Error::Statistics { node: graph.nodes[node].name.clone(), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variance of a channel far from nought is known to the rounding of its mean's square.
    #[test]
    fn what_is_as_good_as_constant_explains_nothing() {
        let graph = Graph::new(graph::Meta { family: graph::Family::Other, names: vec![], imgsz: [4, 4] }, 2);
        let stats = ChannelStats { mean: vec![1e4, 0.0], cov: vec![1e-6, 1e-4, 1e-4, 1.0], count: 1000 };
        let rows = rows(&graph, 0, &stats, &[1], &[0], 1e-5).expect("fits");
        let by = rows[0].stand_ins.iter().map(|(_, by)| by.abs()).fold(0.0, f32::max);
        assert!(by < 2.0, "{by}, where its covariance says 100");
    }

    #[test]
    fn what_cannot_be_told_is_not_free() {
        let loss = |precision: f64, gram: f64| {
            let one = Span { c: 1, precision: vec![precision], gram: vec![gram] }.price(&[0]).loss;
            let two = Span { c: 2, precision: vec![precision; 4], gram: vec![gram; 4] };
            assert_eq!(two.price(&[0]).loss, one, "in whatever company");
            one
        };
        assert_eq!((loss(2.0, 3.0), loss(2.0, -1e-20)), (1.5, 0.0));
        for (precision, gram) in [(-1e-9, 3.0), (0.0, 0.0), (f64::NAN, 3.0), (2.0, f64::NAN)] {
            assert_eq!(loss(precision, gram), f64::INFINITY, "{precision} {gram}");
        }
    }
}
