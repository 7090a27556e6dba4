//! From a graph to steps: which operators run fused, and in which buffer every feature map lies.
//!
//! A value is a node's output. Slices are views of their input. The parts of a concat are written straight into the
//! concat's buffer where that is possible: the part is made by a step (not itself a view), goes into one concat only,
//! and its step does not read from that same buffer; the rest is copied by a step of its own.

use graph::{Act, Attention, Graph, NodeId, Op, Result};
use kernels::{ConvShape, Layout, Pool};

/// What the plan is for: training keeps BatchNorm apart from the convolution, inference folds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Train,
    Infer,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub buffer: usize,
    pub layout: Layout,
}

/// One call of a kernel: reads `inputs`, writes `output`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub kind: Kind,
    pub inputs: Vec<NodeId>,
    pub output: Place,
    /// The node whose value `output` is; for a copy, the concat it fills a part of.
    pub node: NodeId,
    /// It begins a branch that is not to train what it reads: see [`super::TrainNet::joint`].
    pub stops: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Convolution `conv`; in inference with the BatchNorm after it folded in and the activation applied.
    Conv {
        conv: NodeId,
        bn: Option<NodeId>,
        act: Act,
        shape: ConvShape,
    },
    /// BatchNorm `bn` and the activation after it.
    BatchNorm {
        bn: NodeId,
        act: Act,
    },
    Act(Act),
    Pool(Pool),
    Upsample(usize),
    Shuffle(usize),
    Attention(Attention),
    Add,
    Copy,
}

impl Kind {
    /// Whether the backward pass reads the step's inputs; to a sum, a copy, a larger image or a shuffled one only the gradient matters.
    pub(crate) fn reads_again(&self) -> bool {
        !matches!(self, Self::Add | Self::Copy | Self::Upsample(_) | Self::Shuffle(_))
    }

    /// The step of an operator without weights that computes something; `None` for any other.
    pub(crate) fn plain(op: &Op) -> Option<Self> {
        match op {
            Op::Act(act) => Some(Self::Act(*act)),
            Op::MaxPool(p) => Some(Self::Pool(Pool { kernel: p.kernel, stride: p.stride, pad: p.pad })),
            Op::Upsample { factor } => Some(Self::Upsample(*factor)),
            Op::PixelShuffle { factor } => Some(Self::Shuffle(*factor)),
            Op::Attention(attention) => Some(Self::Attention(*attention)),
            Op::Add => Some(Self::Add),
            _ => None,
        }
    }
}

/// Steps in order, the place of every value, and the size in floats of every buffer.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    pub places: Vec<Option<Place>>,
    pub buffers: Vec<usize>,
    /// The nodes whose maps enter the head.
    pub outputs: Vec<NodeId>,
}

impl Plan {
    /// Plans `graph` for a batch of `n` images of `imgsz` = (H, W) pixels.
    ///
    /// # Errors
    /// The graph's shapes do not fit.
    pub(crate) fn new(graph: &Graph, mode: Mode, n: usize, imgsz: [usize; 2]) -> Result<Self> {
        let shapes = graph.shapes(imgsz)?;
        let dense = |id: NodeId| Layout::dense(n, shapes[id].h, shapes[id].w, shapes[id].c);
        let fused = Fused::of(graph, mode);
        let outputs = match graph.nodes.last() {
            Some(last) if matches!(last.op, Op::Head(_)) => last.inputs.clone(),
            _ => vec![graph.nodes.len() - 1],
        };

        // A part may be refused its place in the concat once (it would be read and written in one step); planning again
        // without it can only remove conflicts, so this ends.
        let mut refused = vec![false; graph.nodes.len()];
        let (places, buffers, in_place) = loop {
            let (places, buffers, in_place) = place(graph, &fused, &refused, &dense);
            match conflict(graph, &fused, &places, &in_place) {
                Some(node) => refused[node] = true,
                None => break (places, buffers, in_place),
            }
        };

        // The branches of end-to-end heads begin with convolutions.
        let reach = graph.branches().map(|branches| branches.map(|maps| graph.behind(maps)));
        let begins_branch =
            |id: NodeId, input: NodeId| reach.as_ref().is_some_and(|[_, many]| !many[id] && many[input]);

        let mut steps = Vec::new();
        for (id, node) in graph.nodes.iter().enumerate() {
            if fused.hidden[id] {
                continue;
            }
            let Some(output) = places[id] else { continue };
            let kind = match &node.op {
                Op::Concat => {
                    let mut start = 0;
                    for (k, &input) in node.inputs.iter().enumerate() {
                        let part = output.layout.channels(start, shapes[input].c);
                        start += shapes[input].c;
                        if !in_place.contains(&(id, k)) {
                            let output = Place { buffer: output.buffer, layout: part };
                            let (kind, inputs) = (Kind::Copy, vec![input]);
                            steps.push(Step { kind, inputs, output, node: id, stops: false });
                        }
                    }
                    continue;
                }
                Op::Input { .. } | Op::Slice { .. } | Op::Head(_) => continue,
                _ => fused.kind(graph, id),
            };
            let inputs = fused.inputs(graph, id);
            let stops = matches!(kind, Kind::Conv { .. }) && inputs.iter().any(|&input| begins_branch(id, input));
            steps.push(Step { kind, inputs, output, node: id, stops });
        }
        Ok(Self { steps, places, buffers, outputs })
    }

    /// Where the value of `node` lies; every value a step names has a place.
    pub(crate) fn place(&self, node: NodeId) -> Place {
        self.places[node].unwrap_or_else(|| unreachable!("node {node} has no map"))
    }
}

/// A convolution as the kernels take it.
pub(crate) fn conv_shape(conv: &graph::Conv) -> ConvShape {
    ConvShape {
        ci: conv.in_channels(),
        co: conv.out_channels(),
        kernel: conv.kernel(),
        stride: conv.stride,
        pad: conv.pad,
        groups: conv.groups,
    }
}

/// Which nodes run as part of another node's step.
struct Fused {
    /// The node never has a map of its own.
    hidden: Vec<bool>,
    /// First node of the chain (conv, or BatchNorm) that ends in this node.
    root: Vec<NodeId>,
}

impl Fused {
    fn of(graph: &Graph, mode: Mode) -> Self {
        let readers = graph.consumers();
        let mut fused = Self { hidden: vec![false; graph.nodes.len()], root: (0..graph.nodes.len()).collect() };
        for (id, node) in graph.nodes.iter().enumerate() {
            let Some(&input) = node.inputs.first() else { continue };
            if node.inputs.len() != 1 || readers[input].len() != 1 {
                continue;
            }
            let before = &graph.nodes[input].op;
            let joins = match (&node.op, mode) {
                (Op::Act(_), _) if matches!(before, Op::BatchNorm(_)) => true,
                (Op::Act(_) | Op::BatchNorm(_), Mode::Infer) => matches!(before, Op::Conv(_)),
                _ => false,
            };
            if joins {
                fused.hidden[input] = true;
                fused.root[id] = fused.root[input];
            }
        }
        fused
    }

    fn inputs(&self, graph: &Graph, id: NodeId) -> Vec<NodeId> {
        graph.nodes[self.root[id]].inputs.clone()
    }

    fn kind(&self, graph: &Graph, id: NodeId) -> Kind {
        let act = match graph.nodes[id].op {
            Op::Act(act) => act,
            _ => Act::Identity,
        };
        let root = self.root[id];
        match &graph.nodes[root].op {
            Op::Conv(c) => {
                let is_bn = |i: &NodeId| matches!(graph.nodes[*i].op, Op::BatchNorm(_)) && self.root[*i] == root;
                Kind::Conv { conv: root, bn: (root..=id).find(is_bn), act, shape: conv_shape(c) }
            }
            Op::BatchNorm(_) => Kind::BatchNorm { bn: root, act },
            op => Kind::plain(op).unwrap_or_else(|| unreachable!("{op:?} has no step")),
        }
    }
}

type Placement = (Vec<Option<Place>>, Vec<usize>, std::collections::HashSet<(NodeId, usize)>);

/// Places every value; the third part names the (concat, input number) pairs that need no copy.
fn place(graph: &Graph, fused: &Fused, refused: &[bool], dense: &dyn Fn(NodeId) -> Layout) -> Placement {
    let mut places: Vec<Option<Place>> = vec![None; graph.nodes.len()];
    let mut buffers = Vec::new();
    let mut in_place = std::collections::HashSet::new();
    // Readers before what they read: an outer concat is placed before the inner one that is a part of it.
    for id in (0..graph.nodes.len()).rev() {
        let op = &graph.nodes[id].op;
        if fused.hidden[id] || matches!(op, Op::Head(_) | Op::Slice { .. }) {
            continue;
        }
        let own = *places[id].get_or_insert_with(|| {
            let layout = dense(id);
            buffers.push(layout.end());
            Place { buffer: buffers.len() - 1, layout }
        });
        if !matches!(op, Op::Concat) {
            continue;
        }
        let mut start = 0;
        for (k, &input) in graph.nodes[id].inputs.iter().enumerate() {
            let channels = dense(input).c;
            let movable = !matches!(graph.nodes[input].op, Op::Slice { .. } | Op::Input { .. });
            if movable && !refused[input] && places[input].is_none() {
                places[input] = Some(Place { buffer: own.buffer, layout: own.layout.channels(start, channels) });
                in_place.insert((id, k));
            }
            start += channels;
        }
    }
    for (id, node) in graph.nodes.iter().enumerate() {
        if let Op::Slice { start, len } = node.op {
            places[id] = places[node.inputs[0]].map(|p| Place { layout: p.layout.channels(start, len), ..p });
        }
    }
    (places, buffers, in_place)
}

/// A node to keep out of its concat, because some step or copy would read and write one buffer.
fn conflict(
    graph: &Graph,
    fused: &Fused,
    places: &[Option<Place>],
    in_place: &std::collections::HashSet<(NodeId, usize)>,
) -> Option<NodeId> {
    let same = |a: NodeId, b: NodeId| places[a].map(|p| p.buffer) == places[b].map(|p| p.buffer);
    (0..graph.nodes.len()).filter(|&id| !fused.hidden[id]).find_map(|id| match &graph.nodes[id].op {
        Op::Slice { .. } | Op::Input { .. } | Op::Head(_) => None,
        Op::Concat => {
            let copied = |k: &usize| !in_place.contains(&(id, *k));
            let inputs = &graph.nodes[id].inputs;
            let k = (0..inputs.len()).filter(copied).find(|&k| same(inputs[k], id))?;
            Some(owner(graph, inputs[k]))
        }
        _ => fused.inputs(graph, id).iter().any(|&i| same(i, id)).then_some(id),
    })
}

/// The node whose map a chain of slices looks at.
fn owner(graph: &Graph, mut id: NodeId) -> NodeId {
    while matches!(graph.nodes[id].op, Op::Slice { .. }) {
        id = graph.nodes[id].inputs[0];
    }
    id
}
