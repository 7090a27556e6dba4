//! Random small networks of every operator, and running them with the reference executor.
#![allow(dead_code)] // Each test binary uses a part of it.

use graph::reference::{Map, forward};
use graph::{
    Act, AnchorHead, AnchorLevel, Attention, BatchNorm, BoxDecode, Conv, Family, Graph, Head, MaxPool, Meta, NodeId,
    Op, Shape, Tensor,
};
use proptest::prelude::*;
use prune::{Budget, ChannelStats, ClassId, Coupling, Limits, Size, Statistics, Target, observed};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Image size of all random networks.
pub const IMGSZ: [usize; 2] = [12, 8];

/// Limits that let a layer go down to one channel.
pub const LOOSE: Limits = Limits::NONE;

/// A graph under construction, with seeded weights.
pub struct Builder {
    pub graph: Graph,
    pub rng: ChaCha8Rng,
}

impl Builder {
    pub fn new(seed: u64) -> Self {
        let meta = Meta { family: Family::Other, names: vec!["thing".into()], imgsz: IMGSZ };
        Self { graph: Graph::new(meta, 3), rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    pub fn shape(&self, node: NodeId) -> Shape {
        self.graph.shapes(IMGSZ).expect("well formed so far")[node]
    }

    pub fn attention(&mut self, from: NodeId, attention: Attention) -> NodeId {
        self.push("attention", Op::Attention(attention), vec![from])
    }

    pub fn floats(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        (0..count).map(|_| self.rng.random_range(low..high)).collect()
    }

    pub fn push(&mut self, kind: &str, op: Op, inputs: Vec<NodeId>) -> NodeId {
        let name = format!("{kind}{}", self.graph.nodes.len());
        self.graph.push(name, op, inputs)
    }

    pub fn conv(
        &mut self,
        from: NodeId,
        out: usize,
        kernel: usize,
        stride: usize,
        groups: usize,
        bias: bool,
    ) -> NodeId {
        let inputs = self.shape(from).c / groups;
        let reach = 1.0 / ((inputs * kernel * kernel) as f32).sqrt();
        let weight = self.floats(out * inputs * kernel * kernel, -reach, 1.5 * reach);
        let bias = bias.then(|| self.floats(out, -0.5, 0.5));
        let weight = Tensor::new([out, inputs, kernel, kernel], weight);
        let op = Conv { weight, bias, stride: [stride; 2], pad: [kernel / 2; 2], groups };
        self.push("conv", Op::Conv(op), vec![from])
    }

    pub fn norm(&mut self, from: NodeId) -> NodeId {
        let c = self.shape(from).c;
        let bn = BatchNorm {
            gamma: self.floats(c, 0.3, 1.5),
            beta: self.floats(c, -0.7, 0.7),
            mean: self.floats(c, -0.3, 0.3),
            var: self.floats(c, 0.4, 1.6),
            eps: 1e-3,
            momentum: 0.03,
        };
        self.push("bn", Op::BatchNorm(bn), vec![from])
    }

    pub fn act(&mut self, from: NodeId, act: Act) -> NodeId {
        self.push("act", Op::Act(act), vec![from])
    }

    /// Convolution, BatchNorm, SiLU.
    pub fn block(&mut self, from: NodeId, out: usize, kernel: usize) -> NodeId {
        let conv = self.conv(from, out, kernel, 1, 1, false);
        let norm = self.norm(conv);
        self.act(norm, Act::Silu)
    }

    pub fn image(&mut self) -> Map {
        let [h, w] = IMGSZ;
        let data = (0..3 * h * w).map(|_| self.rng.random_range(-1.0..1.0)).collect();
        Map { shape: Shape { c: 3, h, w }, data }
    }

    /// Gives every loose end a 1x1 convolution to read it; with `detector`, the last of them enters a head.
    pub fn finish(&mut self, detector: bool) {
        let loose: Vec<NodeId> =
            self.graph.consumers().iter().enumerate().filter(|(_, r)| r.is_empty()).map(|(id, _)| id).collect();
        let outs: Vec<NodeId> = loose.iter().map(|&id| self.conv(id, 6, 1, 1, 1, true)).collect();
        let last = outs[outs.len() - 1];
        let stride = IMGSZ[0] / self.shape(last).h;
        if detector && self.shape(last).h * stride == IMGSZ[0] && self.shape(last).w * stride == IMGSZ[1] {
            let levels = vec![AnchorLevel { stride, anchors: vec![[4.0, 4.0]], decode: BoxDecode::V5 }];
            self.push("head", Op::Head(Head::Anchor(AnchorHead { classes: 1, levels })), vec![last]);
        }
    }
}

/// A random network: a list of (operator, two choices), each applied to tensors made so far.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub steps: Vec<(u8, u8, u8)>,
    pub seed: u64,
    pub detector: bool,
}

pub fn recipes(longest: usize) -> impl Strategy<Value = Recipe> {
    (prop::collection::vec((0..14_u8, any::<u8>(), any::<u8>()), 2..longest), any::<u64>(), any::<bool>())
        .prop_map(|(steps, seed, detector)| Recipe { steps, seed, detector })
}

impl Recipe {
    pub fn build(&self) -> Builder {
        let mut b = Builder::new(self.seed);
        let stem = b.block(0, 5, 3);
        let mut tensors = vec![stem];
        for &(op, x, y) in &self.steps {
            // Recent tensors are likelier, so that networks grow deep as well as wide.
            let from = tensors[tensors.len() - 1 - (x as usize % tensors.len().min(3))];
            let made = step(&mut b, &tensors, from, op, x as usize, y as usize);
            tensors.extend(made);
        }
        b.finish(self.detector);
        b.graph.validate().expect("random networks are well formed");
        b
    }
}

fn step(b: &mut Builder, tensors: &[NodeId], from: NodeId, op: u8, x: usize, y: usize) -> Option<NodeId> {
    let shape = b.shape(from);
    let acts = [Act::Silu, Act::Leaky, Act::Relu, Act::Mish, Act::Identity, Act::Sigmoid];
    let act = acts[y % acts.len()];
    Some(match op {
        0 | 1 => b.block(from, 3 + x % 5, 1 + 2 * (y % 2)),
        2 => {
            let conv = b.conv(from, 3 + x % 5, 3, 1 + usize::from(shape.h > 3), 1, y.is_multiple_of(2));
            let norm = b.norm(conv);
            b.act(norm, act)
        }
        3 => {
            let conv = b.conv(from, 3 + x % 5, 1 + 2 * (y % 2), 1, 1, x.is_multiple_of(2));
            b.act(conv, act)
        }
        4 | 5 => {
            let same = |t: &&NodeId| **t != from && b.shape(**t) == shape;
            let other = tensors.iter().rev().find(same).copied();
            let other = other.unwrap_or_else(|| b.block(from, shape.c, 3));
            b.push("add", Op::Add, vec![from, other])
        }
        6 | 7 => {
            let near = |t: &NodeId| (b.shape(*t).h, b.shape(*t).w) == (shape.h, shape.w);
            let mut parts: Vec<NodeId> = tensors.iter().rev().copied().filter(near).take(2 + y % 2).collect();
            parts.push(from);
            b.push("concat", Op::Concat, parts)
        }
        8 => {
            let start = x % shape.c;
            let len = 1 + y % (shape.c - start);
            b.push("slice", Op::Slice { start, len }, vec![from])
        }
        9 => {
            let conv = b.conv(from, shape.c, 3, 1 + y % 2 * usize::from(shape.h > 3), shape.c, x.is_multiple_of(2));
            let norm = if x.is_multiple_of(3) { conv } else { b.norm(conv) };
            b.act(norm, act)
        }
        10 if shape.h > 3 && y.is_multiple_of(2) => {
            b.push("pool", Op::MaxPool(MaxPool { kernel: 2, stride: 2, pad: [0, 0] }), vec![from])
        }
        10 => b.push("pool", Op::MaxPool(MaxPool { kernel: 3, stride: 1, pad: [1, 1] }), vec![from]),
        11 => {
            let attention = Attention { heads: 1 + x % 2, key: 1 + x % 3, value: 1 + y % 3, areas: 1 };
            let qkv = b.conv(from, attention.heads * attention.head_channels(), 1, 1, 1, x.is_multiple_of(2));
            b.attention(qkv, attention)
        }
        12 if shape.h <= 3 => {
            let conv = b.conv(from, 4 * (2 + x % 4), 1, 1, 1, y.is_multiple_of(2));
            b.push("shuffle", Op::PixelShuffle { factor: 2 }, vec![conv])
        }
        _ if shape.h <= 3 => b.push("up", Op::Upsample { factor: 2 }, vec![from]),
        _ if shape.c.is_multiple_of(2) && shape.c > 2 => b.conv(from, shape.c, 3, 1, 2, true),
        _ => return None,
    })
}

/// Sets every gamma of a class to 0.
pub fn silence(graph: &mut Graph, coupling: &Coupling, class: prune::ClassId) {
    for norm in &coupling.classes[class].norms {
        if let Op::BatchNorm(bn) = &mut graph.nodes[norm.node].op {
            bn.gamma[norm.channel] = 0.0;
        }
    }
}

/// A target that removes the share `rate` of the prunable channels.
pub fn target(graph: &Graph, coupling: &Coupling, rate: f64) -> Target {
    let size = Size::of(graph, coupling).expect("well formed");
    Budget { rate: Some(rate), ..Budget::default() }.target(size).expect("a rate below 1")
}

/// Maps of the nodes that are outputs: read by nothing, or by the head.
pub fn outputs(graph: &Graph, image: &Map) -> Vec<Map> {
    let maps = forward(graph, image).expect("runs");
    let readers = graph.consumers();
    let is_output = |id: &usize| {
        !matches!(graph.nodes[*id].op, Op::Head(_))
            && readers[*id].iter().all(|&r| matches!(graph.nodes[r].op, Op::Head(_)))
    };
    (0..graph.nodes.len()).filter(is_output).map(|id| maps[id].clone()).collect()
}

/// Largest absolute difference between two lists of maps of the same shapes.
pub fn difference(a: &[Map], b: &[Map]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.shape, b.shape);
        a.data.iter().zip(&b.data)
    });
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, testkit::larger)
}

/// Statistics of every observed node over `images`, from the reference executor.
pub fn calibrate(graph: &Graph, coupling: &Coupling, images: &[Map]) -> Statistics {
    let runs: Vec<Vec<Map>> = images.iter().map(|image| forward(graph, image).expect("runs")).collect();
    let mut statistics = Statistics::default();
    for node in observed(graph, coupling) {
        let c = runs[0][node].shape.c;
        let (mut count, mut sums, mut products) = (0, vec![0.0; c], vec![0.0; c * c]);
        for map in runs.iter().map(|run| &run[node]) {
            count += (map.shape.h * map.shape.w) as u64;
            for i in 0..c {
                sums[i] += map.channel(i).iter().sum::<f64>();
                for j in 0..c {
                    products[i * c + j] += map.channel(i).iter().zip(map.channel(j)).map(|(x, y)| x * y).sum::<f64>();
                }
            }
        }
        statistics.by_node.insert(node, ChannelStats::from_sums(count, &sums, &products));
    }
    statistics
}

/// Makes class `copy` compute exactly what class `original` of the same set computes.
pub fn duplicate(graph: &mut Graph, coupling: &Coupling, original: ClassId, copy: ClassId) {
    let sites = |class: ClassId| {
        let class = &coupling.classes[class];
        class.members.iter().chain(&class.depthwise).chain(&class.norms).copied().collect::<Vec<_>>()
    };
    for (from, to) in sites(original).into_iter().zip(sites(copy)) {
        assert_eq!(from.node, to.node, "classes of one set live in the same tensors");
        for (_, values) in graph.nodes[from.node].op.weights_mut() {
            let step = values.len() / coupling.channels(from.node).len();
            values.copy_within(from.channel * step..(from.channel + 1) * step, to.channel * step);
        }
    }
}
