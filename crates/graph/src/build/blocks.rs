//! The blocks of the tables as nodes, named and ordered as the loader of the families' own checkpoints does it. Weights are
//! zeros; `init` draws them once all nodes are there.

use crate::{Act, Attention, BatchNorm, Conv, Graph, MaxPool, NodeId, Op, Tensor};

/// BatchNorm as all families configure it.
const EPS: f32 = 1e-3;
const MOMENTUM: f32 = 0.03;

/// Channels of a head of attention.
const HEAD_CHANNELS: usize = 64;

/// A convolution's window.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
}

impl Window {
    /// `kernel` x `kernel`, padded by half of it, going on by `stride`.
    pub fn of(kernel: usize, stride: usize) -> Self {
        Self { kernel, stride, pad: kernel / 2 }
    }
}

/// A graph under construction.
pub(super) struct Builder {
    pub graph: Graph,
    /// Channels of every node's map.
    channels: Vec<usize>,
}

impl Builder {
    /// Goes on from a graph with its input alone, images of `channels` channels.
    pub fn new(graph: Graph, channels: usize) -> Self {
        Self { graph, channels: vec![channels] }
    }

    /// Channels of a node's map.
    pub fn channels(&self, id: NodeId) -> usize {
        self.channels[id]
    }

    /// Adds a node.
    pub fn push(&mut self, name: impl Into<String>, op: Op, inputs: Vec<NodeId>) -> NodeId {
        self.channels.push(match &op {
            Op::Conv(conv) => conv.out_channels(),
            Op::Concat => inputs.iter().map(|&i| self.channels[i]).sum(),
            Op::Slice { len, .. } => *len,
            Op::Attention(a) => a.heads * a.value,
            Op::Head(_) => 0,
            _ => self.channels[inputs[0]],
        });
        self.graph.push(name, op, inputs)
    }

    /// A convolution alone, with zeros for biases where `bias` is set.
    pub fn plain(
        &mut self,
        name: &str,
        x: NodeId,
        out: usize,
        Window { kernel, stride, pad }: Window,
        groups: usize,
        bias: bool,
    ) -> NodeId {
        let weight = Tensor::zeros([out, self.channels(x) / groups, kernel, kernel]);
        let bias = bias.then(|| vec![0.0; out]);
        self.push(name, Op::Conv(Conv { weight, bias, stride: [stride; 2], pad: [pad; 2], groups }), vec![x])
    }

    /// Convolution and BatchNorm.
    fn linear(&mut self, name: &str, x: NodeId, out: usize, window: Window, groups: usize) -> NodeId {
        let x = self.plain(&format!("{name}.conv"), x, out, window, groups, false);
        self.push(format!("{name}.bn"), Op::BatchNorm(BatchNorm::identity(out, EPS, MOMENTUM)), vec![x])
    }

    /// Convolution, BatchNorm, SiLU.
    pub fn conv(&mut self, name: &str, x: NodeId, out: usize, window: Window) -> NodeId {
        let x = self.linear(name, x, out, window, 1);
        self.push(format!("{name}.act"), Op::Act(Act::Silu), vec![x])
    }

    /// The same with one filter a channel.
    pub fn depthwise(&mut self, name: &str, x: NodeId, window: Window) -> NodeId {
        let channels = self.channels(x);
        let x = self.linear(name, x, channels, window, channels);
        self.push(format!("{name}.act"), Op::Act(Act::Silu), vec![x])
    }

    /// The sum of two maps.
    pub fn add(&mut self, name: String, a: NodeId, b: NodeId) -> NodeId {
        self.push(name, Op::Add, vec![a, b])
    }

    /// Two convolutions through `hidden` channels and back, plus what they read where `shortcut` is set.
    fn bottleneck(&mut self, name: &str, x: NodeId, hidden: usize, kernels: [usize; 2], shortcut: bool) -> NodeId {
        let out = self.channels(x);
        let y = self.conv(&format!("{name}.cv1"), x, hidden, Window::of(kernels[0], 1));
        let y = self.conv(&format!("{name}.cv2"), y, out, Window::of(kernels[1], 1));
        if shortcut { self.add(format!("{name}.add"), x, y) } else { y }
    }

    /// cv3 of `n` bottlenecks after cv1, joined with cv2; the first convolution of a bottleneck has `kernel`.
    pub fn c3(&mut self, name: &str, x: NodeId, out: usize, n: usize, kernel: usize, shortcut: bool) -> NodeId {
        let hidden = out / 2;
        let mut left = self.conv(&format!("{name}.cv1"), x, hidden, Window::of(1, 1));
        for i in 0..n {
            left = self.bottleneck(&format!("{name}.m.{i}"), left, hidden, [kernel, 3], shortcut);
        }
        let right = self.conv(&format!("{name}.cv2"), x, hidden, Window::of(1, 1));
        let x = self.push(format!("{name}.cat"), Op::Concat, vec![left, right]);
        self.conv(&format!("{name}.cv3"), x, out, Window::of(1, 1))
    }

    /// cv1 to twice `half` channels, cut into halves.
    fn halves(&mut self, name: &str, x: NodeId, half: usize) -> [NodeId; 2] {
        let both = self.conv(&format!("{name}.cv1"), x, 2 * half, Window::of(1, 1));
        [0, 1].map(|i| self.push(format!("{name}.split{i}"), Op::Slice { start: i * half, len: half }, vec![both]))
    }

    /// `parts` joined, then a 1x1 convolution cv2.
    fn join(&mut self, name: &str, parts: Vec<NodeId>, out: usize) -> NodeId {
        let x = self.push(format!("{name}.cat"), Op::Concat, parts);
        self.conv(&format!("{name}.cv2"), x, out, Window::of(1, 1))
    }

    /// Halves, `n` bottlenecks after the second, all of them joined.
    pub fn c2f(&mut self, name: &str, x: NodeId, out: usize, n: usize, shortcut: bool) -> NodeId {
        let half = out / 2;
        let mut parts = self.halves(name, x, half).to_vec();
        for i in 0..n {
            parts.push(self.bottleneck(&format!("{name}.m.{i}"), parts[i + 1], half, [3, 3], shortcut));
        }
        self.join(name, parts, out)
    }

    /// Halves of `half` channels, `n` blocks after the second, all of them joined.
    pub fn c3k2(&mut self, name: &str, x: NodeId, out: usize, n: usize, half: usize, deep: bool) -> NodeId {
        let mut parts = self.halves(name, x, half).to_vec();
        for i in 0..n {
            let (name, last) = (format!("{name}.m.{i}"), parts[i + 1]);
            parts.push(match deep {
                true => self.c3(&name, last, half, 2, 3, true),
                false => self.bottleneck(&name, last, half / 2, [3, 3], true),
            });
        }
        self.join(name, parts, out)
    }

    /// Halves, `n` blocks of attention after the second, both joined.
    pub fn c2psa(&mut self, name: &str, x: NodeId, out: usize, n: usize) -> NodeId {
        let half = out / 2;
        let [a, mut b] = self.halves(name, x, half);
        for i in 0..n {
            let name = format!("{name}.m.{i}");
            let y = self.attention(&format!("{name}.attn"), b);
            let y = self.add(format!("{name}.add0"), b, y);
            let z = self.conv(&format!("{name}.ffn.0"), y, 2 * half, Window::of(1, 1));
            let z = self.linear(&format!("{name}.ffn.1"), z, half, Window::of(1, 1), 1);
            b = self.add(format!("{name}.add1"), y, z);
        }
        self.join(name, vec![a, b], out)
    }

    /// Attention whose queries and keys have half the channels of its values, plus a depthwise convolution of the values.
    fn attention(&mut self, name: &str, x: NodeId) -> NodeId {
        let channels = self.channels(x);
        let heads = (channels / HEAD_CHANNELS).max(1);
        let value = channels / heads;
        let op = Attention { heads, key: value / 2, value, areas: 1 };
        let qkv = self.linear(&format!("{name}.qkv"), x, heads * op.head_channels(), Window::of(1, 1), 1);
        let mixed = self.push(format!("{name}.attention"), Op::Attention(op), vec![qkv]);
        let slice = |i: usize| Op::Slice { start: op.starts(i)[2], len: value };
        let values: Vec<NodeId> = (0..heads).map(|i| self.push(format!("{name}.v{i}"), slice(i), vec![qkv])).collect();
        let v = match values[..] {
            [only] => only,
            _ => self.push(format!("{name}.v"), Op::Concat, values),
        };
        let place = self.linear(&format!("{name}.pe"), v, channels, Window::of(3, 1), channels);
        let sum = self.add(format!("{name}.add"), mixed, place);
        self.linear(&format!("{name}.proj"), sum, channels, Window::of(1, 1), 1)
    }

    /// Half the channels beside three ever wider maxima of them, joined.
    pub fn sppf(&mut self, name: &str, x: NodeId, out: usize) -> NodeId {
        let mut parts = vec![self.conv(&format!("{name}.cv1"), x, self.channels(x) / 2, Window::of(1, 1))];
        for i in 0..3 {
            let pool = Op::MaxPool(MaxPool { kernel: 5, stride: 1, pad: [2, 2] });
            parts.push(self.push(format!("{name}.m.{i}"), pool, vec![parts[i]]));
        }
        self.join(name, parts, out)
    }
}
