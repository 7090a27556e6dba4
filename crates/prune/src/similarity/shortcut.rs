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
