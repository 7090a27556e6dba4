//! Carries a plan out: weights are rewritten so that what is left does the work of what is gone, then channels are cut.
//!
//! [`apply`] and [`mask`] compensate in the same way; they differ in the last step only. `apply` cuts removed channels out of
//! every weight, and residual branches that go whole out of the graph; `mask` leaves the network in its old shape and zeroes what reads
//! them, or what they add. Their outputs are equal.

use std::collections::HashMap;

use graph::{Branch, Conv, Graph, NodeId, Op, Shape, Tensor};

use crate::constant::tap_shares;
use crate::coupling::{dense_readers, is_dense};
use crate::{Compensation, Coupling, Error, Plan, Result};

/// The graph without the channels the plan removes, compensated. An empty plan returns `graph` bit for bit.
///
/// # Errors
/// The plan was made for another graph, or the result is not well formed.
pub fn apply(graph: &Graph, plan: &Plan) -> Result<Graph> {
    let coupling = Coupling::of(graph)?;
    let removed = plan.resolve(graph, &coupling)?;
    let branches = plan.branches(graph)?;
    let mut slim = compensate(graph, &coupling, plan)?;
    let kept: Vec<Vec<usize>> =
        (0..graph.nodes.len()).map(|id| coupling.positions(id, |class| !removed[class])).collect();
    for id in 0..slim.nodes.len() {
        let input = slim.nodes[id].inputs.first().map_or(&[][..], |&i| &kept[i]);
        cut(&mut slim.nodes[id].op, input, &kept[id]);
    }
    let slim = slim.without_branches(&branches);
    slim.validate()?;
    Ok(slim)
}

/// What a slim graph has of the one it was cut from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// For every node of the slim graph the node it was.
    pub nodes: Vec<NodeId>,
    /// For every node of the slim graph the channels it still puts out, in its order.
    pub channels: Vec<Vec<usize>>,
}

impl Kept {
    /// All of `graph`.
    ///
    /// # Errors
    /// The graph's shapes do not fit.
    pub fn all(graph: &Graph) -> Result<Self> {
        let shapes = graph.shapes(graph.meta.imgsz)?;
        Ok(Self {
            nodes: (0..shapes.len()).collect(),
            channels: shapes.iter().map(|shape| (0..shape.c).collect()).collect(),
        })
    }

    /// The same of what another plan, carried out later, leaves.
    #[must_use]
    pub fn then(&self, later: &Self) -> Self {
        let channels = later.nodes.iter().zip(&later.channels);
        Self {
            nodes: later.nodes.iter().map(|&node| self.nodes[node]).collect(),
            channels: channels.map(|(&node, kept)| kept.iter().map(|&c| self.channels[node][c]).collect()).collect(),
        }
    }
}

/// What [`apply`] leaves of `graph`.
///
/// # Errors
/// The plan was made for another graph.
pub fn kept(graph: &Graph, plan: &Plan) -> Result<Kept> {
    let coupling = Coupling::of(graph)?;
    let removed = plan.resolve(graph, &coupling)?;
    let branches = plan.branches(graph)?;
    let nodes: Vec<NodeId> =
        (0..graph.nodes.len()).filter(|&id| !branches.iter().any(|branch| branch.covers(id))).collect();
    let channels = nodes.iter().map(|&id| coupling.positions(id, |class| !removed[class])).collect();
    Ok(Kept { nodes, channels })
}

/// The graph in its old shape, compensated, with every weight that reads a removed channel and all that a branch adds set to zero: what
/// [`apply`] computes, at the old cost. With [`Plan::uncompensated`] it is the bare mask.
///
/// # Errors
/// The plan was made for another graph.
pub fn mask(graph: &Graph, plan: &Plan) -> Result<Graph> {
    let coupling = Coupling::of(graph)?;
    let removed = plan.resolve(graph, &coupling)?;
    let mut masked = compensate(graph, &coupling, plan)?;
    for node in masked.nodes.iter_mut().filter(|n| is_dense(&n.op)) {
        let Op::Conv(conv) = &mut node.op else { continue };
        for channel in coupling.positions(node.inputs[0], |class| removed[class]) {
            for_input(&mut conv.weight, channel, |taps| taps.fill(0.0));
        }
    }
    for branch in plan.branches(graph)? {
        silence(&mut masked, &branch);
    }
    Ok(masked)
}

/// Makes `branch` add nothing: its last convolution puts out zeros, which all behind it lets pass.
fn silence(graph: &mut Graph, branch: &Branch) {
    for &id in branch.nodes.iter().rev() {
        match &mut graph.nodes[id].op {
            Op::Conv(conv) => {
                conv.weight.data.fill(0.0);
                conv.bias.iter_mut().for_each(|bias| bias.fill(0.0));
                return;
            }
            Op::BatchNorm(bn) => {
                bn.mean.fill(0.0);
                bn.beta.fill(0.0);
            }
            _ => {}
        }
    }
}

/// Where a constant can be added to the output of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BiasHome {
    /// The convolution's own bias.
    Own,
    /// The running mean of the BatchNorm that alone reads it: what is added to its input is taken from the mean.
    Mean(NodeId),
    /// Neither is there: the convolution is given a bias.
    New,
}

pub(crate) fn bias_home(graph: &Graph, coupling: &Coupling, conv: NodeId) -> BiasHome {
    match &graph.nodes[conv].op {
        Op::Conv(Conv { bias: Some(_), .. }) => BiasHome::Own,
        _ => coupling.norm_after(graph, conv).map_or(BiasHome::New, BiasHome::Mean),
    }
}

/// Folds every removed channel into its stand-ins and its constant, in every dense convolution that reads it.
fn compensate(graph: &Graph, coupling: &Coupling, plan: &Plan) -> Result<Graph> {
    let ids: HashMap<&str, NodeId> = graph.nodes.iter().enumerate().map(|(id, n)| (n.name.as_str(), id)).collect();
    let shapes = graph.shapes(plan.imgsz)?;
    let mut out = graph.clone();
    for compensation in &plan.compensations {
        let name = &compensation.tensor;
        let tensor = *ids.get(name.as_str()).ok_or_else(|| Error::plan(format!("there is no node `{name}`")))?;
        let fits = |channel: usize| channel < shapes[tensor].c;
        if !compensation.rows.iter().all(|r| fits(r.channel) && r.stand_ins.iter().all(|&(j, _)| fits(j))) {
            return Err(Error::plan(format!("`{name}` has {} channels, the plan names more", shapes[tensor].c)));
        }
        for (id, conv) in dense_readers(graph, coupling, tensor) {
            let (weight, shift) = fold(conv, compensation, shapes[tensor], shapes[id]);
            let Op::Conv(target) = &mut out.nodes[id].op else { continue };
            target.weight = weight;
            match bias_home(graph, coupling, id) {
                BiasHome::Own | BiasHome::New => {
                    let bias = target.bias.get_or_insert_with(|| vec![0.0; shift.len()]);
                    bias.iter_mut().zip(shift).for_each(|(b, s)| *b = (f64::from(*b) + s) as f32);
                }
                BiasHome::Mean(norm) => {
                    let Op::BatchNorm(bn) = &mut out.nodes[norm].op else { continue };
                    bn.mean.iter_mut().zip(shift).for_each(|(m, s)| *m = (f64::from(*m) - s) as f32);
                }
            }
        }
    }
    Ok(out)
}

/// The weights of a convolution with every row folded into its stand-ins, and the constant (O) its output is short of.
///
/// With zero padding a border position sees fewer taps, so the constant's true contribution differs there; a bias can only
/// add its spatial mean, the least-squares choice (METHOD.md, 2).
fn fold(conv: &Conv, compensation: &Compensation, input: Shape, output: Shape) -> (Tensor, Vec<f64>) {
    let shares = tap_shares(conv, input, output);
    let taps = shares.len();
    let mut shift = vec![0.0; conv.out_channels()];
    let mut weight = conv.weight.clone();
    let mut filter = vec![0.0_f64; conv.weight.shape[1] * taps];
    for (o, shift) in shift.iter_mut().enumerate() {
        let old = conv.weight.outer(o);
        filter.iter_mut().zip(old).for_each(|(f, &w)| *f = f64::from(w));
        for row in &compensation.rows {
            let gone = &old[row.channel * taps..][..taps];
            *shift += f64::from(row.constant) * gone.iter().zip(&shares).map(|(&w, s)| f64::from(w) * s).sum::<f64>();
            for &(kept, coefficient) in &row.stand_ins {
                let stand_in = filter[kept * taps..][..taps].iter_mut();
                stand_in.zip(gone).for_each(|(f, &w)| *f += f64::from(coefficient) * f64::from(w));
            }
        }
        weight.data[o * filter.len()..][..filter.len()].iter_mut().zip(&filter).for_each(|(w, &f)| *w = f as f32);
    }
    (weight, shift)
}

/// Cuts an operator down to the `input` channels and `output` channels that are kept.
fn cut(op: &mut Op, input: &[usize], output: &[usize]) {
    match op {
        Op::Conv(conv) => {
            if conv.is_depthwise() {
                conv.groups = output.len();
            } else if conv.groups == 1 {
                conv.weight = conv.weight.select(1, input);
            }
            conv.weight = conv.weight.select(0, output);
            conv.bias = conv.bias.as_ref().map(|bias| output.iter().map(|&c| bias[c]).collect());
        }
        Op::BatchNorm(bn) => {
            for values in [&mut bn.gamma, &mut bn.beta, &mut bn.mean, &mut bn.var] {
                *values = output.iter().map(|&c| values[c]).collect();
            }
        }
        Op::Slice { start, len } => {
            *start = input.iter().filter(|&c| c < start).count();
            *len = output.len();
        }
        Op::Input { .. }
        | Op::Act(_)
        | Op::Concat
        | Op::Add
        | Op::Upsample { .. }
        | Op::PixelShuffle { .. }
        | Op::MaxPool(_)
        | Op::Attention(_)
        | Op::Head(_) => {}
    }
}

/// Calls `f` on the taps of input channel `channel` of every filter.
fn for_input(weight: &mut Tensor, channel: usize, mut f: impl FnMut(&mut [f32])) {
    let (inputs, taps) = (weight.shape[1], weight.shape[2] * weight.shape[3]);
    weight.data.chunks_mut(inputs * taps).for_each(|filter| f(&mut filter[channel * taps..][..taps]));
}
