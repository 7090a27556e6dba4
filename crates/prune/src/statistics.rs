//! Mean and covariance of the channels that dense convolutions read: all that stage 2 needs to know of the data.

use std::collections::BTreeMap;

use graph::{Graph, NodeId, Op};

use crate::coupling::dense_readers;
use crate::{Coupling, Error, Result, Sensitivity};

/// Statistics of the tensors of one graph, by the node that writes them. [`observed`] lists the nodes stage 2 needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    pub by_node: BTreeMap<NodeId, ChannelStats>,
    /// Of all that a dense convolution of several taps reads at a place, by convolution: (I kh kw) features in the order of its weights.
    /// Neighbouring pixels tell much of one another, so what one tap lacks the others know. Taps of a convolution that is missing
    /// here are taken as uncorrelated.
    pub by_reader: BTreeMap<NodeId, ChannelStats>,
    /// What the detector minds. Where nothing was measured, every reader of a tensor counts alike.
    pub sensitivity: Sensitivity,
}

/// First and second moments of the C channels of one tensor, or of what a convolution reads, over all images and positions.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelStats {
    /// (C).
    pub mean: Vec<f64>,
    /// (C, C), row-major, symmetric.
    pub cov: Vec<f64>,
    /// Samples seen: of a tensor images * H * W, of what a convolution reads the places that were drawn.
    pub count: u64,
}

impl ChannelStats {
    /// From running sums over `count` samples: `sums[i] = sum x_i`, `products[i * C + j] = sum x_i x_j`.
    /// Accumulate them in f64: the variance of a channel is the small difference of two large numbers.
    pub fn from_sums(count: u64, sums: &[f64], products: &[f64]) -> Self {
        let (c, n) = (sums.len(), count.max(1) as f64);
        let mean: Vec<f64> = sums.iter().map(|s| s / n).collect();
        let mut cov: Vec<f64> = (0..c * c).map(|k| products[k] / n - mean[k / c] * mean[k % c]).collect();
        // Rounding may leave the variance of a constant channel just below zero.
        (0..c).for_each(|i| cov[i * c + i] = cov[i * c + i].max(0.0));
        Self { mean, cov, count }
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    pub(crate) fn at(&self, i: usize, j: usize) -> f64 {
        self.cov[i * self.mean.len() + j]
    }
}

impl Statistics {
    /// The statistics of a node's output, checked against its shape.
    pub(crate) fn of(&self, graph: &Graph, coupling: &Coupling, node: NodeId) -> Result<&ChannelStats> {
        checked(self.by_node.get(&node), graph, [node; 2], coupling.channels(node).len())
    }

    /// The statistics of what a convolution reads, checked against its weights.
    pub(crate) fn of_reader(&self, graph: &Graph, coupling: &Coupling, reader: NodeId) -> Result<&ChannelStats> {
        let read = graph.nodes[reader].inputs[0];
        let taps = match &graph.nodes[reader].op {
            Op::Conv(conv) => conv.kernel().iter().product(),
            _ => 1,
        };
        checked(self.by_reader.get(&reader), graph, [reader, read], coupling.channels(read).len() * taps)
    }
}

/// The statistics of `node`, which are of the map of `map`, if there are any and they are of `c` channels.
fn checked<'a>(
    stats: Option<&'a ChannelStats>,
    graph: &Graph,
    [node, map]: [NodeId; 2],
    c: usize,
) -> Result<&'a ChannelStats> {
    let name = |id: NodeId| graph.nodes[id].name.clone();
    let fail = |what: String| Error::Statistics { node: name(node), what };
    let stats = stats.ok_or_else(|| fail("there are none".into()))?;
    if stats.mean.len() != c || stats.cov.len() != c * c {
        let (mean, cov) = (stats.mean.len(), stats.cov.len());
        return Err(fail(format!("{mean} means and {cov} covariances for {c} channels")));
    }
    if stats.count == 0 {
        return Err(fail("no sample was seen".into()));
    }
    if stats.mean.iter().chain(&stats.cov).any(|v| !v.is_finite()) {
        return Err(Error::NotFinite { what: "the map of", node: name(map) });
    }
    Ok(stats)
}

/// The nodes whose output statistics stage 2 needs: those a dense convolution reads and of which a channel may go.
pub fn observed(graph: &Graph, coupling: &Coupling) -> Vec<NodeId> {
    let free = |node: NodeId| coupling.channels(node).iter().any(|&class| coupling.classes[class].pinned.is_none());
    let read = |node: NodeId| dense_readers(graph, coupling, node).next().is_some();
    (0..graph.nodes.len()).filter(|&node| read(node) && free(node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_has_no_variance_below_nought() {
        for value in (1..200).map(|i| 0.1 * f64::from(i)) {
            let sum: f64 = (0..7).map(|_| value).sum();
            let squares: f64 = (0..7).map(|_| value * value).sum();
            let stats = ChannelStats::from_sums(7, &[sum], &[squares]);
            assert!((0.0..1e-12).contains(&stats.cov[0]), "{value}: {}", stats.cov[0]);
        }
    }
}
