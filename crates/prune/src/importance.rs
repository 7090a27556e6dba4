//! Stage 1: rank coupled classes by importance, remove from the bottom, put a constant in place of each (METHOD.md, 2).

use std::collections::VecDeque;

use graph::{Conv, Graph, NodeId, Op, Shape};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::budget::Tracker;
use crate::constant;
use crate::coupling::Site;
use crate::coupling::dense_readers;
use crate::merging;
use crate::{ClassId, Compensation, Coupling, Error, Limits, Plan, Result, Row, Sensitivity, Stop, Target};

/// The settings of stage 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Importance {
    pub criterion: Criterion,
    pub aggregate: Aggregate,
    pub limits: Limits,
    /// What takes a removed channel's place in its readers. Anything but the default is there to be compared with.
    pub fill: Fill,
}

/// What a channel's importance is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// |gamma| of its BatchNorm (Liu 2017), which sparse training has driven to zero where it could. A convolution without
    /// one scores by the L2 norm of its filter: like |gamma|, the standard deviation of its output if its inputs have unit
    /// variance.
    #[default]
    BnScale,
    /// What removal is predicted to cost without any data: the variance a constant cannot replace (by beta and gamma
    /// alone), weighed by how strongly each reader listens, as a share of what that reader hears in all. |gamma| alone
    /// misses that a reader can scale a small channel up again. Where it has been measured what the detector minds, not as
    /// a share but in units of that.
    OutputError,
    /// L1 norm of its filter (Li 2017), relative to the mean of its layer so that layers compare.
    L1Filter,
    /// Sum of the distances of its filter to the layer's other filters (FPGM, He 2019), relative to the layer's mean: the
    /// filter nearest the geometric median is the most replaceable.
    Fpgm,
    /// Squares of all its weights, of its filters and scales and of its columns in the readers, relative to the mean of the channels
    /// tied to its layer (DepGraph, Fang 2023, without its sparse training; as Torch-Pruning's `GroupMagnitudeImportance`).
    GroupNorm,
    /// The same squares relative to the sum of those of its layer's channels that have no smaller ones (LAMP, Lee 2021, on whole
    /// channels; as Torch-Pruning's `LAMPImportance`): a layer's last channel is worth all there is.
    Lamp,
    /// What the loss would lose to first order (Molchanov 2019), measured on labelled images.
    Taylor,
    /// A seeded coin: the least a criterion has to beat.
    Random { seed: u64 },
}

/// What takes a removed channel's place in its readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Nought.
    Nothing,
    /// The constant it is without its input.
    #[default]
    Constant,
    /// A multiple of the kept channel most like it by the weights (neuron merging, Kim 2020).
    Merged,
}

/// How a class's score comes from its members'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// A class goes only if every member is negligible.
    #[default]
    Max,
    Mean,
    Sum,
}

/// Plans the removal of the least important classes until `target` is met.
///
/// Classes go in one global order: of importance, or with [`Criterion::OutputError`], which is a loss, of loss for what is
/// saved of the budget. Where [`Limits::multiple`] ties several classes of a set into one step, the step goes when its most
/// important class would. The plan's [`Stop`] says whether the target was met.
///
/// # Errors
/// Bad settings, or a graph whose shapes do not fit.
pub fn plan(graph: &Graph, coupling: &Coupling, settings: &Importance, target: &Target) -> Result<Plan> {
    plan_with(graph, coupling, settings, &Sensitivity::default(), target)
}

/// [`plan`] where it has been measured what the detector, or its loss, minds.
///
/// # Errors
/// As [`plan`]; where [`Criterion::Taylor`] has no measurement to go by; where a sensitivity is of another graph or not finite.
pub fn plan_with(
    graph: &Graph,
    coupling: &Coupling,
    settings: &Importance,
    sensitivity: &Sensitivity,
    target: &Target,
) -> Result<Plan> {
    settings.limits.check()?;
    let scores = scores(graph, coupling, settings, sensitivity)?;
    let mut tracker = Tracker::new(graph, coupling, target.latency.as_deref())?;
    let before = tracker.size();
    let mut removed: Vec<(ClassId, f64)> = Vec::new();
    let mut steps = steps(coupling, &scores, &settings.limits);
    while !target.met(tracker.size()) {
        let next = match settings.criterion {
            Criterion::OutputError => cheapest(&steps, coupling, &scores, &mut tracker, target),
            _ => (0..steps.len()).filter(|&set| !steps[set].is_empty()).min_by(|&a, &b| {
                let (x, y) = (&steps[a][0], &steps[b][0]);
                scores[x[x.len() - 1]].total_cmp(&scores[y[y.len() - 1]]).then(x[0].cmp(&y[0]))
            }),
        };
        let Some(set) = next else { break };
        for class in steps[set].pop_front().unwrap_or_default() {
            tracker.remove(class);
            removed.push((class, scores[class]));
        }
    }
    let mut plan = Plan::assemble(graph, coupling, &tracker, &removed, before);
    plan.compensations = fills(graph, coupling, tracker.removed(), settings.fill)?;
    plan.stop = if target.met(tracker.size()) { Stop::Met } else { Stop::Limits };
    plan.method =
        format!("stage 1, importance: {:?}, {:?} over coupled channels", settings.criterion, settings.aggregate);
    let without = convs_without_norm(graph, coupling);
    if settings.criterion == Criterion::BnScale && !without.is_empty() {
        plan.notes.push(format!("scored by filter norm for want of a BatchNorm: {}", without.join(", ")));
    }
    Ok(plan)
}

/// The score of every class, infinite where it is pinned. The lower, the sooner it goes.
///
/// # Errors
/// The graph's shapes do not fit; a sensitivity is of another graph or not finite.
pub fn scores(
    graph: &Graph,
    coupling: &Coupling,
    settings: &Importance,
    sensitivity: &Sensitivity,
) -> Result<Vec<f64>> {
    let mut members: Vec<Vec<f64>> = vec![Vec::new(); coupling.classes.len()];
    match settings.criterion {
        Criterion::Random { seed } => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            members.iter_mut().for_each(|scores| scores.push(rng.random::<f64>()));
        }
        Criterion::GroupNorm | Criterion::Lamp => {
            let squares = squares(graph, coupling);
            for set in &coupling.sets {
                let of: Vec<f64> = set.classes.iter().map(|&class| squares[class]).collect();
                let scores = if settings.criterion == Criterion::Lamp { lamp(&of) } else { relative(of) };
                set.classes.iter().zip(scores).for_each(|(&class, score)| members[class].push(score));
            }
        }
        Criterion::OutputError => {
            for (class, error) in output_errors(graph, coupling, sensitivity)?.into_iter().enumerate() {
                members[class].push(error);
            }
        }
        Criterion::Taylor => {
            if sensitivity.gates.is_empty() {
                let what = "needs to know what the loss minds, and nothing was measured".into();
                return Err(Error::Setting { option: "criterion", what, help: "give `--data`, or another criterion" });
            }
            for (&norm, gates) in &sensitivity.gates {
                if gates.iter().any(|gate| !gate.is_finite()) {
                    return Err(Error::NotFinite { what: "the gradient at", node: graph.nodes[norm].name.clone() });
                }
                for (&class, gate) in coupling.channels(norm).iter().zip(gates) {
                    members[class].push(*gate);
                }
            }
        }
        Criterion::BnScale | Criterion::L1Filter | Criterion::Fpgm => {
            for id in 0..graph.nodes.len() {
                let scores = layer_scores(graph, coupling, settings.criterion, id);
                for (&class, score) in coupling.channels(id).iter().zip(scores) {
                    members[class].push(score);
                }
            }
        }
    }
    let score = |(class, scores): (&crate::Class, &Vec<f64>)| match settings.aggregate {
        _ if class.pinned.is_some() => f64::INFINITY,
        Aggregate::Max => scores.iter().copied().fold(0.0, f64::max),
        Aggregate::Sum => scores.iter().sum(),
        Aggregate::Mean => scores.iter().sum::<f64>() / scores.len().max(1) as f64,
    };
    Ok(coupling.classes.iter().zip(&members).map(score).collect())
}

/// For every set the steps that keep to the limits, least important classes first.
fn steps(coupling: &Coupling, scores: &[f64], limits: &Limits) -> Vec<VecDeque<Vec<ClassId>>> {
    let of = |set: &crate::Set| {
        let mut order = set.classes.clone();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        let (size, mut kept) = (order.len(), order.len());
        let mut steps = VecDeque::new();
        while let Some(next) = limits.next_down(size, kept) {
            let step = order[size - kept..size - next].to_vec();
            if scores[step[step.len() - 1]].is_infinite() {
                break;
            }
            steps.push_back(step);
            kept = next;
        }
        steps
    };
    coupling.sets.iter().map(of).collect()
}

/// How much dearer the next removal is than its own loss, in a set of `size` classes of which `kept` are left.
///
/// Losses are those of one channel at a time: taken alone they empty whatever layer is cheap, where what has gone already has
/// made the rest indispensable. (Stage 2 prices what is left anew after every removal and needs no such factor.) The sixth power
/// was chosen on a trained YOLOv5n (docs/results/bccd-yolov5n.md); four and eight do nearly as well, none at all far worse.
fn strain(size: usize, kept: usize) -> f64 {
    (size as f64 / kept.max(1) as f64).powi(6)
}

/// The set whose next step costs least for what it saves of the budget, as stage 2 chooses.
fn cheapest(
    steps: &[VecDeque<Vec<ClassId>>],
    coupling: &Coupling,
    scores: &[f64],
    tracker: &mut Tracker,
    target: &Target,
) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for (set, steps) in steps.iter().enumerate() {
        let Some(step) = steps.front() else { continue };
        let now = tracker.size();
        let progress = target.progress(tracker.saving(set, step.len()), now);
        let loss: f64 = step.iter().map(|&class| scores[class]).sum();
        let rate = loss / progress * strain(coupling.sets[set].classes.len(), tracker.kept(set));
        if progress > 0.0 && best.is_none_or(|(least, _)| rate < least) {
            best = Some((rate, set));
        }
    }
    best.map(|(_, set)| set)
}

/// The rows that fill the place of every removed channel, for every tensor a dense convolution reads.
fn fills(graph: &Graph, coupling: &Coupling, removed: &[bool], fill: Fill) -> Result<Vec<Compensation>> {
    let shapes = graph.shapes(graph.meta.imgsz)?;
    let values = constant::values(graph, coupling, &shapes, |class| removed[class]);
    let mut compensations = Vec::new();
    for (tensor, values) in values.iter().enumerate() {
        let consumers: Vec<String> =
            dense_readers(graph, coupling, tensor).map(|(id, _)| graph.nodes[id].name.clone()).collect();
        let constant = |channel: usize| {
            let constant = values[channel].as_ref().filter(|_| fill == Fill::Constant);
            Row { channel, stand_ins: vec![], constant: constant.map_or(0.0, constant::Value::mean) as f32 }
        };
        let rows: Vec<Row> = match fill {
            Fill::Merged => merging::rows(graph, coupling, tensor, |class| removed[class]),
            Fill::Nothing | Fill::Constant => {
                coupling.positions(tensor, |class| removed[class]).into_iter().map(constant).collect()
            }
        };
        if !consumers.is_empty() && !rows.is_empty() {
            compensations.push(Compensation { tensor: graph.nodes[tensor].name.clone(), consumers, rows });
        }
    }
    Ok(compensations)
}

/// Scores of one node's output channels by a criterion that looks at one layer at a time; empty where the node has none.
fn layer_scores(graph: &Graph, coupling: &Coupling, criterion: Criterion, id: NodeId) -> Vec<f64> {
    match (&graph.nodes[id].op, criterion) {
        (Op::BatchNorm(bn), Criterion::BnScale) => bn.gamma.iter().map(|&g| f64::from(g).abs()).collect(),
        // A depthwise convolution without BatchNorm only passes on what its producer, scored already, gives it.
        (Op::Conv(conv), Criterion::BnScale) if conv.is_depthwise() || coupling.norm_after(graph, id).is_some() => {
            vec![]
        }
        (Op::Conv(conv), Criterion::BnScale) => filters(conv).map(|f| f.map(|w| w * w).sum::<f64>().sqrt()).collect(),
        (Op::Conv(conv), Criterion::L1Filter) => relative(filters(conv).map(|f| f.map(f64::abs).sum()).collect()),
        (Op::Conv(conv), Criterion::Fpgm) => relative(distances(conv)),
        _ => vec![],
    }
}

fn filters(conv: &Conv) -> impl Iterator<Item = impl Iterator<Item = f64>> {
    (0..conv.out_channels()).map(|o| conv.weight.outer(o).iter().map(|&w| f64::from(w)))
}

/// Sum of the Euclidean distances of every filter to all others.
fn distances(conv: &Conv) -> Vec<f64> {
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
    let count = conv.out_channels();
    let mut sums = vec![0.0; count];
    for a in 0..count {
        for b in 0..a {
            let d = f64::from(distance(conv.weight.outer(a), conv.weight.outer(b)));
            sums[a] += d;
            sums[b] += d;
        }
    }
    sums
}

/// Scores as shares of the layer's mean.
fn relative(scores: Vec<f64>) -> Vec<f64> {
    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    if mean > 0.0 { scores.iter().map(|s| s / mean).collect() } else { scores }
}

/// Sum of the squares of every class's weights: filters and scales that make it, columns of dense convolutions that read it.
fn squares(graph: &Graph, coupling: &Coupling) -> Vec<f64> {
    let mut sums = vec![0.0; coupling.classes.len()];
    for (id, node) in graph.nodes.iter().enumerate() {
        let mut add = |squares: Vec<f64>| {
            coupling.channels(id).iter().zip(squares).for_each(|(&class, square)| sums[class] += square);
        };
        match &node.op {
            Op::Conv(conv) => add(filters(conv).map(|f| f.map(|w| w * w).sum()).collect()),
            Op::BatchNorm(bn) => add(bn.gamma.iter().map(|&g| f64::from(g) * f64::from(g)).collect()),
            _ => {}
        }
        for (reader, conv) in dense_readers(graph, coupling, id) {
            add(input_energy(graph, reader, &vec![1.0; conv.out_channels()]));
        }
    }
    sums
}

/// Every square over the sum of those that are no smaller; of equal ones the first counts as the smaller.
fn lamp(squares: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..squares.len()).collect();
    order.sort_by(|&a, &b| squares[b].total_cmp(&squares[a]).then(b.cmp(&a)));
    let (mut scores, mut sum) = (vec![0.0; squares.len()], 0.0);
    for i in order {
        sum += squares[i];
        scores[i] = if sum > 0.0 { squares[i] / sum } else { 0.0 };
    }
    scores
}

/// [`Criterion::OutputError`] of every class: summed over its readers, `Var(x_i) |W[:, i]|^2 / sum_j Var(x_j) |W[:, j]|^2`
/// with `W` as the BatchNorm after the reader scales it. Channels whose variance the weights do not tell (no BatchNorm,
/// attention, the image) count with variance 1.
///
/// Where the detector's sensitivity to the reader's outputs is known it takes the place of the scale and of the sum over j.
fn output_errors(graph: &Graph, coupling: &Coupling, sensitivity: &Sensitivity) -> Result<Vec<f64>> {
    let shapes: Vec<Shape> = graph.shapes(graph.meta.imgsz)?;
    let values = constant::values(graph, coupling, &shapes, |_| true);
    let mut errors = vec![0.0; coupling.classes.len()];
    for (tensor, values) in values.iter().enumerate() {
        for (reader, _) in dense_readers(graph, coupling, tensor) {
            let minds = sensitivity.of(graph, coupling, reader)?;
            let scale = match minds {
                Some(minds) => minds.iter().map(|f| f.sqrt()).collect(),
                None => output_scale(graph, coupling, reader),
            };
            let energy = input_energy(graph, reader, &scale);
            let heard: Vec<f64> = values
                .iter()
                .zip(energy)
                .map(|(v, e)| e * v.as_ref().and_then(constant::Value::variance).unwrap_or(1.0))
                .collect();
            let all = if minds.is_some() { 1.0 } else { heard.iter().sum::<f64>().max(f64::MIN_POSITIVE) };
            for (&class, heard) in coupling.channels(tensor).iter().zip(&heard) {
                errors[class] += heard / all;
            }
        }
    }
    Ok(errors)
}

/// `|W[:, i]|^2` of every input channel of a dense convolution, each filter multiplied by its `scale`.
fn input_energy(graph: &Graph, id: NodeId, scale: &[f64]) -> Vec<f64> {
    let Op::Conv(conv) = &graph.nodes[id].op else { return vec![] };
    let [kh, kw] = conv.kernel();
    let mut energy = vec![0.0; conv.in_channels()];
    for (o, scale) in scale.iter().enumerate() {
        for (sum, taps) in energy.iter_mut().zip(conv.weight.outer(o).chunks(kh * kw)) {
            *sum += scale * scale * taps.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>();
        }
    }
    energy
}

/// The factor by which the BatchNorm after a convolution scales each of its outputs; 1 where there is none.
///
/// Loss at a reader is measured behind its BatchNorm: the scale of the weights before it is arbitrary.
pub(crate) fn output_scale(graph: &Graph, coupling: &Coupling, conv: NodeId) -> Vec<f64> {
    match coupling.norm_after(graph, conv).map(|norm| &graph.nodes[norm].op) {
        Some(Op::BatchNorm(bn)) => bn.scale_shift().0.into_iter().map(f64::from).collect(),
        _ => vec![1.0; coupling.channels(conv).len()],
    }
}

/// Names of the convolutions with prunable channels that no BatchNorm follows.
fn convs_without_norm(graph: &Graph, coupling: &Coupling) -> Vec<String> {
    let free = |s: &&Site| coupling.norm_after(graph, s.node).is_none();
    let mut nodes: Vec<NodeId> = coupling
        .classes
        .iter()
        .filter(|class| class.pinned.is_none())
        .flat_map(|class| class.members.iter().filter(free).map(|s| s.node))
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.into_iter().map(|id| graph.nodes[id].name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_channels_of_a_layer_are_dear() {
        assert_eq!([(8, 8), (8, 4), (9, 3), (4, 0)].map(|(size, kept)| strain(size, kept)), [1.0, 64.0, 729.0, 4096.0]);
    }
}
