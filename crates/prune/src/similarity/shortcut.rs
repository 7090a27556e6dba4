//! Residual branches that may go whole.
//!
//! What is lost is the variance of the last channels that the branch's last convolution reads: those removed before have cost theirs.
//! The greedy search counts every removal on top of what is gone, so what all of them would cost together is known from the
//! start, and each removal takes its share of it. By time a branch goes earlier than by multiply-accumulates, as each of its nodes takes time
//! however narrow it is.

use graph::{Branch, Graph, NodeId, Op};

use super::{Listener, Port};
use crate::coupling::is_dense;
use crate::{Coupling, Target};

/// What each layer of a branch counts for where no budget is of time, in layers of average cost: a layer takes time however few channels
/// it has, and a budget of multiply-accumulates is there for the sake of time (docs/results/latency.md).
const LAYER: f64 = 0.03;

/// A branch that is there.
pub(super) struct Candidate {
    pub(super) branch: Branch,
    /// The port its last convolution hears.
    pub(super) port: usize,
    /// What it would cost now.
    pub(super) loss: f64,
    /// Its share of the graph's layers: convolutions and additions.
    share: f64,
}

impl Candidate {
    /// How far the layers themselves get the network towards `target`, as [`Target::progress`] counts.
    pub(super) fn layers(&self, target: &Target) -> f64 {
        if target.nanos.is_some() { 0.0 } else { LAYER * self.share }
    }

    /// Some of what the last convolution reads is removed, at a loss of `loss`. What could not be told takes nothing off.
    pub(super) fn lose(&mut self, loss: f64) {
        if loss.is_finite() {
            self.loss = (self.loss - loss).max(0.0);
        }
    }
}

/// The branches of `graph` that end in a dense convolution which is one of the `listeners`, each of which has its port.
pub(super) fn candidates(
    graph: &Graph,
    coupling: &Coupling,
    listeners: &[Listener],
    ports: &[Box<dyn Port>],
) -> Vec<Candidate> {
    let is_layer = |id: NodeId| matches!(graph.nodes[id].op, Op::Conv(_) | Op::Add);
    let layers = (0..graph.nodes.len()).filter(|&id| is_layer(id)).count();
    let candidate = |branch: Branch| {
        let (last, read) = end(graph, &branch)?;
        let port = listeners.iter().position(|l: &Listener| l.readers.contains(&last))?;
        let all: Vec<usize> = (0..coupling.channels(read).len() * listeners[port].taps).collect();
        let loss = ports[port].price(&all).loss;
        let share = (branch.nodes.iter().filter(|&&id| is_layer(id)).count() + 1) as f64 / layers as f64;
        Some(Candidate { branch, port, loss, share })
    };
    removable(graph, coupling).into_iter().filter_map(candidate).collect()
}

/// The branches of `graph` that may go whole: they end in a dense convolution, some of whose inputs may go.
pub fn removable(graph: &Graph, coupling: &Coupling) -> Vec<Branch> {
    let branches = graph.residual_branches();
    // What follows attention belongs to it: no family's checkpoint has a block with the one and without the other.
    let attends = |branch: &Branch| branch.nodes.iter().any(|&id| matches!(graph.nodes[id].op, Op::Attention(_)));
    let attended: Vec<NodeId> = branches.iter().filter(|branch| attends(branch)).map(|branch| branch.add).collect();
    let free = |node: NodeId| coupling.channels(node).iter().any(|&class| coupling.classes[class].pinned.is_none());
    let ends = |branch: &Branch| end(graph, branch).is_some_and(|(_, read)| free(read));
    branches.into_iter().filter(|branch| !attended.contains(&branch.stream) && ends(branch)).collect()
}

/// The dense convolution that `branch` ends in, and the node within the branch that it reads.
fn end(graph: &Graph, branch: &Branch) -> Option<(NodeId, NodeId)> {
    let &last = branch.nodes.iter().rev().find(|&&id| !passes_zero(&graph.nodes[id].op))?;
    let read = is_dense(&graph.nodes[last].op).then(|| graph.nodes[last].inputs[0])?;
    branch.covers(read).then_some((last, read))
}

/// Whether nothing comes out where nothing comes in, once a BatchNorm has been given no shift.
fn passes_zero(op: &Op) -> bool {
    match op {
        Op::BatchNorm(_) => true,
        Op::Act(act) => act.apply(0.0) == 0.0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use graph::{Act, Attention, BatchNorm, Conv, Family, Graph, Meta, Tensor};

    use super::*;

    fn conv(graph: &mut Graph, from: NodeId, [outputs, inputs]: [usize; 2]) -> NodeId {
        let weight = Tensor::new([outputs, inputs, 1, 1], vec![0.5; outputs * inputs]);
        let conv = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 1 };
        graph.push(format!("conv{}", graph.nodes.len()), Op::Conv(conv), vec![from])
    }

    /// The additions behind which a branch may go, in a network of a convolution, what `block` adds to it, and a reader.
    fn ends(block: impl FnOnce(&mut Graph, NodeId) -> NodeId) -> Vec<String> {
        let mut graph = Graph::new(Meta { family: Family::Other, names: vec![], imgsz: [4, 4] }, 3);
        let stream = conv(&mut graph, 0, [4, 3]);
        let end = block(&mut graph, stream);
        let sum = graph.push("sum", Op::Add, vec![stream, end]);
        conv(&mut graph, sum, [2, 4]);
        let coupling = Coupling::of(&graph).expect("fits");
        let names = |branch: Branch| graph.nodes[branch.add].name.clone();
        removable(&graph, &coupling).into_iter().map(names).collect()
    }

    #[test]
    fn a_branch_may_go_where_its_last_convolution_makes_all_that_it_adds() {
        let two = |graph: &mut Graph, stream: NodeId| {
            let inner = conv(graph, stream, [3, 4]);
            conv(graph, inner, [4, 3])
        };
        let behind = |act: Act| {
            ends(|graph, stream| {
                let end = two(graph, stream);
                let norm = graph.push("norm", Op::BatchNorm(BatchNorm::identity(4, 1e-3, 0.03)), vec![end]);
                graph.push("act", Op::Act(act), vec![norm])
            })
        };
        assert_eq!((ends(two), behind(Act::Silu)), (vec!["sum".to_owned()], vec!["sum".to_owned()]));
        assert_eq!(behind(Act::Sigmoid), [""; 0], "a half of it stays");
        assert_eq!(ends(|graph, stream| conv(graph, stream, [4, 4])), [""; 0], "what it reads stays");
        let pinned = ends(|graph, stream| {
            let inner = conv(graph, stream, [3, 4]);
            let end = conv(graph, inner, [4, 3]);
            if let Op::Conv(inner) = &mut graph.nodes[inner].op {
                // A convolution in three groups of one input would be depthwise; these have more outputs.
                (inner.groups, inner.weight) = (2, Tensor::new([6, 2, 1, 1], vec![0.5; 12]));
            }
            if let Op::Conv(end) = &mut graph.nodes[end].op {
                end.weight = Tensor::new([4, 6, 1, 1], vec![0.5; 24]);
            }
            end
        });
        assert_eq!(pinned, [""; 0], "none of what it reads may go");
    }

    #[test]
    fn what_follows_attention_stays_with_it() {
        let found = ends(|graph, stream| {
            let qkv = conv(graph, stream, [12, 4]);
            let attention = Op::Attention(Attention { heads: 1, key: 4, value: 4, areas: 1 });
            let mixed = graph.push("attention", attention, vec![qkv]);
            let end = conv(graph, mixed, [4, 4]);
            let attended = graph.push("attended", Op::Add, vec![stream, end]);
            let inner = conv(graph, attended, [3, 4]);
            let end = conv(graph, inner, [4, 3]);
            let fed = graph.push("fed", Op::Add, vec![attended, end]);
            let inner = conv(graph, fed, [3, 4]);
            let end = conv(graph, inner, [4, 3]);
            graph.push("plain", Op::Add, vec![fed, end])
        });
        assert!(found.contains(&"plain".to_owned()) && !found.contains(&"fed".to_owned()), "{found:?}");
    }

    #[test]
    fn what_a_branch_has_lost_is_not_lost_again() {
        let branch = Branch { add: 2, stream: 0, nodes: vec![1] };
        let mut candidate = Candidate { branch, port: 0, loss: 3.0, share: 0.5 };
        let mut left = |loss: f64| {
            candidate.lose(loss);
            candidate.loss
        };
        assert_eq!([1.0, f64::INFINITY, f64::NAN, 5.0].map(&mut left), [2.0, 2.0, 2.0, 0.0]);
    }
}
