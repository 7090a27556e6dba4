//! Optimisers over the weights of a graph, in place: SGD and AdamW with PyTorch's semantics, and Muon.

use std::borrow::Cow;

use graph::{Error, Graph, Op, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Gradients;
use crate::orthogonal::orthogonalised;

/// Which optimiser, and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimConfig {
    pub kind: OptimKind,
    /// Of convolution weights only. SGD adds it to the gradient, AdamW and Muon shrink the weight directly.
    pub weight_decay: f32,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self { kind: OptimKind::Sgd { nesterov: true }, weight_decay: 5e-4 }
    }
}

/// The update rule. The momentum of SGD and Muon and the first beta of what moves as by AdamW come with every step, as one number:
/// warm-up changes it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum OptimKind {
    /// Sutskever et al., ICML 2013, without dampening.
    Sgd { nesterov: bool },
    /// Loshchilov and Hutter, ICLR 2019.
    AdamW { beta2: f32, eps: f32 },
    /// Jordan et al., 2024: a convolution's weights, as a matrix of filters, move by their orthogonalised momentum, `spectral` times
    /// the learning rate in every direction. So single weights move the further the fewer there are, as what they come to asks for: of
    /// few channels each counts for more. All else is moved as by AdamW.
    Muon { spectral: f32, beta2: f32, eps: f32 },
}

impl OptimKind {
    /// Muon with its constants for everything but convolutions.
    pub fn muon() -> Self {
        Self::Muon { spectral: 14.0, beta2: 0.99, eps: 1e-8 }
    }

    /// AdamW with PyTorch's constants.
    pub fn adamw() -> Self {
        Self::AdamW { beta2: 0.999, eps: 1e-8 }
    }
}

/// Learning rates of the three groups of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupRates {
    /// Weights of convolutions.
    pub weight: f32,
    /// Scales of BatchNorm.
    pub norm: f32,
    /// Biases of both.
    pub bias: f32,
}

/// An optimiser with the state it has gathered.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimConfig,
    steps: u64,
    /// By node, then by weight as in [`Gradients::by_node`].
    slots: Vec<Vec<Slot>>,
}

#[derive(Clone, Debug)]
struct Slot {
    /// Prefix of the names of the state.
    name: String,
    group: Group,
    /// Filters that read the same channels: the rows of a matrix ...
    rows: usize,
    /// ... and its floats.
    floats: usize,
    /// Momentum of SGD, and of Muon for convolutions; else the first moment.
    first: Vec<f32>,
    /// Second moment of AdamW, and of Muon for all but convolutions; empty elsewhere.
    second: Vec<f32>,
}

fn conv(node: &graph::Node) -> Option<&graph::Conv> {
    match &node.op {
        Op::Conv(conv) => Some(conv),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug)]
enum Group {
    Weight,
    Norm,
    Bias,
}

/// What every weight of one step shares.
#[derive(Clone, Copy)]
struct Step {
    kind: OptimKind,
    momentum: f32,
    lr: f32,
    weight_decay: f32,
    steps: u64,
}

impl Optimizer {
    /// A fresh optimiser for the weights of `graph`.
    pub fn new(config: OptimConfig, graph: &Graph) -> Self {
        let kind = config.kind;
        let adam = |group: Group| match kind {
            OptimKind::Sgd { .. } => false,
            OptimKind::AdamW { .. } => true,
            OptimKind::Muon { .. } => !matches!(group, Group::Weight),
        };
        let slot = |node: &graph::Node, (name, values): (&str, &[f32])| {
            let group = match (&node.op, name) {
                (_, "bias") => Group::Bias,
                (Op::BatchNorm(_), _) => Group::Norm,
                _ => Group::Weight,
            };
            Slot {
                name: format!("{}.{name}", node.name),
                group,
                rows: conv(node).map_or(1, |c| c.weight.shape[0] / c.groups),
                floats: values.len() / conv(node).map_or(1, |c| c.groups),
                first: vec![0.0; values.len()],
                second: vec![0.0; if adam(group) { values.len() } else { 0 }],
            }
        };
        let node = |n: &graph::Node| n.op.trainable().into_iter().map(|w| slot(n, w)).collect();
        Self { config, steps: 0, slots: graph.nodes.iter().map(node).collect() }
    }

    /// Changes every weight of `graph` by one step against `gradients`. `momentum` is also the first beta of what moves as by
    /// AdamW.
    ///
    /// # Panics
    /// If graph or gradients are not those of [`Optimizer::new`].
    pub fn step(&mut self, graph: &mut Graph, gradients: &Gradients, lrs: GroupRates, momentum: f32) {
        assert_eq!(self.slots.len(), graph.nodes.len(), "the graph has changed under the optimiser");
        assert_eq!(self.slots.len(), gradients.by_node.len(), "gradients of another graph");
        self.steps += 1;
        let (config, steps) = (&self.config, self.steps);
        graph.nodes.par_iter_mut().zip(&gradients.by_node).zip(&mut self.slots).for_each(|((node, grads), slots)| {
            let weights = node.op.trainable_mut();
            assert_eq!(weights.len(), grads.len(), "gradients of `{}`", node.name);
            for (((_, weight), grad), slot) in weights.into_iter().zip(grads).zip(slots) {
                assert_eq!(weight.len(), slot.first.len(), "`{}` has changed its size", slot.name);
                assert_eq!(weight.len(), grad.len(), "gradient of `{}`", slot.name);
                let (lr, weight_decay) = match slot.group {
                    Group::Weight => (lrs.weight, config.weight_decay),
                    Group::Norm => (lrs.norm, 0.0),
                    Group::Bias => (lrs.bias, 0.0),
                };
                slot.apply(weight, grad, Step { kind: config.kind, momentum, lr, weight_decay, steps });
            }
        });
    }

    /// All state as flat tensors, to be stored and given to [`Optimizer::load_state`].
    pub fn state(&self) -> Vec<(String, Cow<'_, [f32]>)> {
        // Two halves: one f32 holds whole numbers only up to 2^24.
        let steps = [(self.steps >> 20) as f32, (self.steps & 0xf_ffff) as f32];
        let mut all = vec![("steps".to_string(), Cow::from(steps.to_vec()))];
        for slot in self.slots.iter().flatten() {
            all.push((format!("{}.first", slot.name), (&slot.first).into()));
            if !slot.second.is_empty() {
                all.push((format!("{}.second", slot.name), (&slot.second).into()));
            }
        }
        all
    }

    /// Takes up the state of an equal optimiser of an equal graph; the order of `state` does not matter.
    ///
    /// # Errors
    /// Names the first tensor that is missing or has another size; nothing has been changed then.
    pub fn load_state(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<()> {
        let mut state: std::collections::HashMap<String, Vec<f32>> = state.into_iter().collect();
        let mut take = |name: String, len: usize| match state.remove(&name) {
            Some(values) if values.len() == len => Ok(values),
            found => {
                let what = found.map_or("is missing".into(), |v| format!("has {} values, not {len}", v.len()));
                Err(Error::node(name, format!("the optimiser state {what}"))
                    .hint("the checkpoint is of another model or optimiser; start the training anew"))
            }
        };
        let steps = take("steps".into(), 2)?;
        let mut slots = self.slots.clone();
        for slot in slots.iter_mut().flatten() {
            slot.first = take(format!("{}.first", slot.name), slot.first.len())?;
            if !slot.second.is_empty() {
                slot.second = take(format!("{}.second", slot.name), slot.second.len())?;
            }
        }
        self.steps = ((steps[0] as u64) << 20) + steps[1] as u64;
        self.slots = slots;
        Ok(())
    }
}

impl Slot {
    fn apply(&mut self, weight: &mut [f32], grad: &[f32], step: Step) {
        let Step { momentum, lr, weight_decay, .. } = step;
        match step.kind {
            OptimKind::Muon { spectral, .. } if matches!(self.group, Group::Weight) => {
                let keep = 1.0 - lr * weight_decay;
                let floats = self.floats;
                let matrices = weight.chunks_exact_mut(floats).zip(grad.chunks_exact(floats));
                for ((weight, grad), buf) in matrices.zip(self.first.chunks_exact_mut(floats)) {
                    let follow = |(&g, buf): (&f32, &mut f32)| {
                        *buf = momentum * *buf + g;
                        g + momentum * *buf
                    };
                    let ahead: Vec<f32> = grad.iter().zip(buf).map(follow).collect();
                    let rate = lr * spectral;
                    for (w, d) in weight.iter_mut().zip(orthogonalised(&ahead, self.rows)) {
                        *w = *w * keep - rate * d;
                    }
                }
            }
            OptimKind::Sgd { nesterov } => {
                for ((w, &g), buf) in weight.iter_mut().zip(grad).zip(&mut self.first) {
                    let g = g + weight_decay * *w;
                    *buf = momentum * *buf + g;
                    *w -= lr * if nesterov { g + momentum * *buf } else { *buf };
                }
            }
            OptimKind::AdamW { beta2, eps } | OptimKind::Muon { beta2, eps, .. } => {
                let unbias = |beta: f32| 1.0 - f64::from(beta).powf(step.steps as f64);
                let rate = (f64::from(lr) / unbias(momentum)) as f32;
                let root = unbias(beta2).sqrt() as f32;
                let keep = 1.0 - lr * weight_decay;
                let moments = self.first.iter_mut().zip(&mut self.second);
                for ((w, &g), (m, v)) in weight.iter_mut().zip(grad).zip(moments) {
                    *m = momentum * *m + (1.0 - momentum) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *w = *w * keep - rate * *m / (v.sqrt() / root + eps);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use graph::{BatchNorm, Conv, Family, Meta, Node, Tensor};

    use super::*;

    /// A 1x1 convolution with bias and its BatchNorm, every weight 1 (beta 0).
    fn graph() -> Graph {
        let conv = Conv {
            weight: Tensor::new([1, 1, 1, 1], vec![1.0]),
            bias: Some(vec![1.0]),
            stride: [1, 1],
            pad: [0, 0],
            groups: 1,
        };
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [8, 8] };
        let mut graph = Graph::new(meta, 1);
        let node = |name: &str, op, input| Node { name: name.into(), op, inputs: vec![input] };
        graph.nodes.push(node("conv", Op::Conv(conv), 0));
        graph.nodes.push(node("bn", Op::BatchNorm(BatchNorm::identity(1, 1e-3, 0.03)), 1));
        graph
    }

    fn gradients(graph: &Graph, value: f32) -> Gradients {
        let mut g = Gradients::zeros(graph);
        g.by_node.iter_mut().flatten().for_each(|v| v.fill(value));
        g
    }

    fn weights(graph: &Graph) -> Vec<f32> {
        graph.nodes.iter().flat_map(|n| n.op.trainable()).flat_map(|(_, w)| w.to_vec()).collect()
    }

    fn close(got: &[f32], want: &[f32]) {
        // A largest difference would pass over what is no number.
        let near = got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(got.len() == want.len() && near, "{got:?} for {want:?}");
    }

    const RATES: GroupRates = GroupRates { weight: 0.1, norm: 0.2, bias: 0.4 };

    #[test]
    fn sgd_by_hand() {
        let mut g = graph();
        let config = OptimConfig { kind: OptimKind::Sgd { nesterov: false }, weight_decay: 0.5 };
        let mut optim = Optimizer::new(config, &g);
        // Weight: g = 1 + 0.5 * 1 = 1.5. The others decay not.
        let grads = gradients(&g, 1.0);
        optim.step(&mut g, &grads, RATES, 0.9);
        close(&weights(&g), &[0.85, 0.6, 0.8, -0.4]);
        // Weight: g = 1 + 0.425 = 1.425, buf = 1.35 + 1.425 = 2.775. The others: buf = 1.9.
        optim.step(&mut g, &grads, RATES, 0.9);
        close(&weights(&g), &[0.5725, -0.16, 0.42, -1.16]);
    }

    #[test]
    fn nesterov_by_hand() {
        let mut g = graph();
        let config = OptimConfig { kind: OptimKind::Sgd { nesterov: true }, weight_decay: 0.0 };
        let mut optim = Optimizer::new(config, &g);
        let grads = gradients(&g, 1.0);
        // First step: buf = 1, d = 1 + 0.9. Second: buf = 1.9, d = 1 + 1.71.
        optim.step(&mut g, &grads, RATES, 0.9);
        close(&weights(&g), &[0.81, 0.24, 0.62, -0.76]);
        optim.step(&mut g, &grads, RATES, 0.9);
        close(&weights(&g), &[0.539, -0.844, 0.078, -1.844]);
    }

    #[test]
    fn adamw_by_hand() {
        let mut g = graph();
        let config = OptimConfig { kind: OptimKind::AdamW { beta2: 0.99, eps: 0.0 }, weight_decay: 0.5 };
        let mut optim = Optimizer::new(config, &g);
        // Both moments unbiased are 2 and 4, so the step is lr; the weight first shrinks by lr * decay = 5 %.
        let grads = gradients(&g, 2.0);
        optim.step(&mut g, &grads, RATES, 0.9);
        close(&weights(&g), &[0.85, 0.6, 0.8, -0.4]);
        optim.step(&mut g, &grads, RATES, 0.9);
        close(&weights(&g), &[0.7075, 0.2, 0.6, -0.8]);
    }

    /// Muon at one and a half times the rate.
    const MUON: OptimKind = OptimKind::Muon { spectral: 1.5, beta2: 0.99, eps: 1e-8 };

    #[test]
    fn muon_moves_a_convolution_by_its_rate_whatever_the_gradient() {
        for scale in [1e-6, 1.0, 1e6] {
            let mut g = graph();
            let weight = vec![0.0; 12 * 4];
            g.nodes[1].op = Op::Conv(Conv {
                weight: Tensor::new([12, 4, 1, 1], weight),
                bias: None,
                stride: [1, 1],
                pad: [0, 0],
                groups: 1,
            });
            let mut optim = Optimizer::new(OptimConfig { kind: MUON, weight_decay: 0.0 }, &g);
            let mut grads = gradients(&g, 0.0);
            for (i, d) in grads.by_node[1][0].iter_mut().enumerate() {
                *d = scale * ((i * 7 % 13) as f32 - 6.0);
            }
            optim.step(&mut g, &grads, RATES, 0.9);
            let Op::Conv(conv) = &g.nodes[1].op else { panic!("no convolution") };
            // In each of the four directions there are.
            let moved = (conv.weight.data.iter().map(|w| w * w).sum::<f32>() / 4.0).sqrt();
            // The rate is 0.1, half as much again asked for; the iteration leaves singular values within 0.7 to 1.2.
            assert!((0.105..0.18).contains(&moved), "{moved} for gradients of {scale}");
            let against: f32 = conv.weight.data.iter().zip(&grads.by_node[1][0]).map(|(w, d)| w * d).sum();
            assert!(against < 0.0, "uphill");
        }
    }

    /// Two groups, of which one has a thousandth of the other's gradients: each is a matrix of its own.
    #[test]
    fn muon_moves_every_group_by_its_rate() {
        let mut g = graph();
        let weight = Tensor::new([4, 2, 1, 1], vec![0.0; 8]);
        g.nodes[1].op = Op::Conv(Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 2 });
        let mut optim = Optimizer::new(OptimConfig { kind: MUON, weight_decay: 0.0 }, &g);
        let mut grads = gradients(&g, 0.0);
        grads.by_node[1][0].copy_from_slice(&[1.0, 0.0, 0.0, 1.0, 1e-3, 0.0, 0.0, -1e-3]);
        optim.step(&mut g, &grads, RATES, 0.9);
        let moved = weights(&g);
        assert!(
            [0, 3, 4].map(|i| moved[i]).iter().all(|&w| (-0.18..-0.105).contains(&w)) && moved[7] > 0.105,
            "{moved:?}"
        );
    }

    #[test]
    fn muon_looks_ahead_and_decays() {
        let mut g = graph();
        let mut optim = Optimizer::new(OptimConfig { kind: OptimKind::muon(), weight_decay: 0.5 }, &g);
        // Momentum still points up (0.9 - 0.5), one more step of it and the gradient do not (-0.5 + 0.9 * 0.4).
        optim.step(&mut g, &gradients(&graph(), 1.0), RATES, 0.9);
        let before = weights(&g)[0];
        optim.step(&mut g, &gradients(&graph(), -0.5), RATES, 0.9);
        assert!(weights(&g)[0] > before, "{before} to {}", weights(&g)[0]);
        let mut g = graph();
        let mut optim = Optimizer::new(OptimConfig { kind: OptimKind::muon(), weight_decay: 0.5 }, &g);
        optim.step(&mut g, &gradients(&graph(), 0.0), RATES, 0.9);
        close(&weights(&g), &[0.95, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn nothing_moves_without_a_gradient() {
        let mut g = graph();
        let mut optim = Optimizer::new(OptimConfig { kind: OptimKind::adamw(), weight_decay: 0.0 }, &g);
        optim.step(&mut g, &gradients(&graph(), 0.0), RATES, 0.9);
        close(&weights(&g), &weights(&graph()));
    }

    #[test]
    fn a_long_training_goes_on_where_it_was() {
        let g = graph();
        let mut optim = Optimizer::new(OptimConfig::default(), &g);
        optim.steps = (1 << 25) + 3;
        let mut other = Optimizer::new(OptimConfig::default(), &g);
        let state = owned_state(&optim);
        assert!(state.iter().all(|(name, _)| !name.ends_with(".second")), "SGD has no second moment");
        other.load_state(state.clone()).unwrap();
        assert_eq!(other.steps, optim.steps);
        let mut long = state;
        long.last_mut().unwrap().1.push(0.0);
        assert!(other.load_state(long).unwrap_err().to_string().contains("values, not"));
    }

    fn owned_state(optim: &Optimizer) -> Vec<(String, Vec<f32>)> {
        optim.state().into_iter().map(|(name, values)| (name, values.into_owned())).collect()
    }

    #[test]
    fn state_resumes_to_the_same_weights() {
        for kind in [OptimKind::Sgd { nesterov: true }, OptimKind::adamw(), OptimKind::muon()] {
            let config = OptimConfig { kind, weight_decay: 0.01 };
            let mut g = graph();
            let mut optim = Optimizer::new(config.clone(), &g);
            let grads = gradients(&g, 0.3);
            optim.step(&mut g, &grads, RATES, 0.8);
            let (mut copy, mut resumed) = (g.clone(), Optimizer::new(config, &g));
            let mut state = owned_state(&optim);
            state.reverse();
            resumed.load_state(state).unwrap();
            optim.step(&mut g, &grads, RATES, 0.9);
            resumed.step(&mut copy, &grads, RATES, 0.9);
            assert_eq!(weights(&g), weights(&copy), "{kind:?}");
        }
    }

    #[test]
    fn a_foreign_state_is_refused_by_name() {
        let g = graph();
        let mut optim = Optimizer::new(OptimConfig::default(), &g);
        let mut state = owned_state(&optim);
        state.retain(|(name, _)| name != "bn.weight.first");
        let err = optim.load_state(state).unwrap_err().to_string();
        assert!(err.contains("bn.weight.first") && err.contains("missing"), "{err}");
    }
}
