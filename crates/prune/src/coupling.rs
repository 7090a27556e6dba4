//! Which channels live or die together: one forward pass that carries channel ids along every edge (METHOD.md, 0).
//!
//! Every dense convolution gives its output channels fresh ids. BatchNorm, activation, pooling, upsampling and depthwise
//! convolution pass the list of ids on, concat appends lists, slice takes a part, add unites the ids it sums, a pixel shuffle
//! those it makes one channel of, attention unites queries with keys and passes its values on. What union-find has united at the end is a [`Class`]: remove one of
//! its channels and all must go. There are no rules per architecture. A new operator has to be given its rule here before
//! this crate compiles.

use std::collections::HashMap;

use graph::{Conv, Graph, NodeId, Op, UnionFind};

use crate::Result;

/// Index of a class in [`Coupling::classes`].
pub type ClassId = usize;

/// One channel at one node. Whether it is an output or an input channel of the node is said where it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    pub node: NodeId,
    pub channel: usize,
}

/// Why a class may not be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// It is a channel of the image.
    Image,
    /// It enters the detection head.
    Head(NodeId),
    /// Nothing reads this node, so it is an output of the network.
    Output(NodeId),
    /// It enters or leaves a convolution with groups that is not depthwise: its groups must stay of one size, and a channel
    /// is read by one group only, so neither removal nor compensation follows the rules of a dense convolution.
    Grouped(NodeId),
    /// It is a query, a key or a value of attention: the heads must stay of one size, and no dense convolution reads a query
    /// or a key, so nothing could make up for its loss.
    Attention(NodeId),
}

/// Channels that can only be removed together.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// Output channels of the dense convolutions that produce it.
    pub members: Vec<Site>,
    /// Channels of the depthwise convolutions it passes through.
    pub depthwise: Vec<Site>,
    /// Channels of the BatchNorms it passes through.
    pub norms: Vec<Site>,
    /// Input channels of the dense convolutions that read it.
    pub consumers: Vec<Site>,
    /// Why it must stay, if it must. Every class that is not pinned ends in dense convolutions only, where its loss can be
    /// compensated: it is eligible for both stages.
    pub pinned: Option<Pin>,
    /// Index in [`Coupling::sets`].
    pub set: usize,
}

/// Classes carried by exactly the same tensors. Every tensor's channel count is a sum over whole sets, so a rule that
/// holds for each set (never empty, a multiple of 8) holds for every tensor; and removing any class of a set saves the same.
#[derive(Clone, Debug, Default)]
pub struct Set {
    pub classes: Vec<ClassId>,
    /// The tensors that carry it, by the node that writes them, and how many channels each class has there.
    pub carried: Vec<(NodeId, usize)>,
}

/// The coupled classes of a graph.
#[derive(Clone, Debug)]
pub struct Coupling {
    /// In order of the node and channel that first produce them.
    pub classes: Vec<Class>,
    /// In order of their first class.
    pub sets: Vec<Set>,
    channels: Vec<Vec<ClassId>>,
    readers: Vec<Vec<NodeId>>,
}

impl Coupling {
    /// Finds the classes of `graph`.
    ///
    /// # Errors
    /// The graph's shapes do not fit (see [`Graph::shapes`]).
    pub fn of(graph: &Graph) -> Result<Self> {
        graph.shapes(graph.meta.imgsz)?;
        let readers = graph.consumers();
        let (ids, mut union, pins) = propagate(graph, &readers);
        let (channels, classes) = classes(graph, &ids, &mut union, &pins);
        let mut coupling = Self { classes, sets: vec![], channels, readers };
        coupling.find_sets();
        Ok(coupling)
    }

    /// The class of every output channel of a node.
    pub fn channels(&self, node: NodeId) -> &[ClassId] {
        &self.channels[node]
    }

    /// The nodes that read a node.
    pub fn readers(&self, node: NodeId) -> &[NodeId] {
        &self.readers[node]
    }

    /// The BatchNorm that is the only reader of `node`, if there is one.
    pub fn norm_after(&self, graph: &Graph, node: NodeId) -> Option<NodeId> {
        graph.only_reader(&self.readers, node).filter(|(_, op)| matches!(op, Op::BatchNorm(_))).map(|(norm, _)| norm)
    }

    /// The sets that make up a node's output, in order of first appearance: the layer's "groups".
    pub fn sets_of(&self, node: NodeId) -> Vec<usize> {
        let mut sets = Vec::new();
        for &class in &self.channels[node] {
            let set = self.classes[class].set;
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        sets
    }

    /// Positions in the output of `node` of the classes for which `belongs` holds.
    pub(crate) fn positions(&self, node: NodeId, mut belongs: impl FnMut(ClassId) -> bool) -> Vec<usize> {
        let all = self.channels[node].iter().enumerate();
        all.filter(|&(_, &class)| belongs(class)).map(|(position, _)| position).collect()
    }

    fn find_sets(&mut self) {
        let mut carried: Vec<Vec<(NodeId, usize)>> = vec![Vec::new(); self.classes.len()];
        for (node, channels) in self.channels.iter().enumerate() {
            for &class in channels {
                match carried[class].last_mut() {
                    Some((last, times)) if *last == node => *times += 1,
                    _ => carried[class].push((node, 1)),
                }
            }
        }
        let mut by_tensors: HashMap<Vec<(NodeId, usize)>, usize> = HashMap::new();
        for (id, carried) in carried.into_iter().enumerate() {
            let set = *by_tensors.entry(carried.clone()).or_insert_with(|| {
                self.sets.push(Set { classes: vec![], carried });
                self.sets.len() - 1
            });
            self.sets[set].classes.push(id);
            self.classes[id].set = set;
        }
    }
}

impl Pin {
    /// The reason in words.
    pub fn reason(self, graph: &Graph) -> String {
        match self {
            Self::Image => "a channel of the image".into(),
            Self::Head(node) => format!("enters the head `{}`", graph.nodes[node].name),
            Self::Output(node) => format!("`{}` is an output", graph.nodes[node].name),
            Self::Grouped(node) => format!("meets the grouped convolution `{}`", graph.nodes[node].name),
            Self::Attention(node) => format!("is attended over by `{}`", graph.nodes[node].name),
        }
    }
}

/// The forward pass: ids of every node's channels, what was united, and the pinned ids.
fn propagate(graph: &Graph, readers: &[Vec<NodeId>]) -> (Vec<Vec<usize>>, UnionFind, Vec<(usize, Pin)>) {
    let mut union = UnionFind::default();
    let mut pins = Vec::new();
    let mut ids: Vec<Vec<usize>> = Vec::with_capacity(graph.nodes.len());
    for (id, node) in graph.nodes.iter().enumerate() {
        let first = || ids[node.inputs[0]].clone();
        let out = match &node.op {
            Op::Input { channels } => {
                let fresh = union.fresh(*channels);
                pins.extend(fresh.iter().map(|&c| (c, Pin::Image)));
                fresh
            }
            Op::Conv(conv) if conv.is_depthwise() => first(),
            Op::Conv(conv) => {
                let fresh = union.fresh(conv.out_channels());
                if conv.groups > 1 {
                    pins.extend(first().iter().chain(&fresh).map(|&c| (c, Pin::Grouped(id))));
                }
                fresh
            }
            Op::BatchNorm(_) | Op::Act(_) | Op::Upsample { .. } | Op::MaxPool(_) => first(),
            // The phases of a channel are one channel: none can go alone.
            Op::PixelShuffle { factor } => {
                let phases = ids[node.inputs[0]].chunks(factor * factor);
                let unite = |phases: &[usize]| {
                    phases[1..].iter().for_each(|&phase| union.unite(phases[0], phase));
                    phases[0]
                };
                phases.map(unite).collect()
            }
            Op::Concat => node.inputs.iter().flat_map(|&i| ids[i].iter().copied()).collect(),
            Op::Add => {
                for &other in &node.inputs[1..] {
                    for (&a, &b) in ids[node.inputs[0]].iter().zip(&ids[other]) {
                        union.unite(a, b);
                    }
                }
                first()
            }
            // A query meets the key of the same channel, a value leaves as the same channel it came in; and every head must
            // keep as many channels as the others.
            Op::Attention(a) => {
                let input = &ids[node.inputs[0]];
                let mut out = Vec::with_capacity(a.heads * a.value);
                for [q, k, v] in (0..a.heads).map(|head| a.starts(head)) {
                    (0..a.key).for_each(|c| union.unite(input[q + c], input[k + c]));
                    out.extend_from_slice(&input[v..v + a.value]);
                }
                pins.extend(input.iter().map(|&c| (c, Pin::Attention(id))));
                out
            }
            Op::Slice { start, len } => ids[node.inputs[0]][*start..start + len].to_vec(),
            Op::Head(_) => {
                pins.extend(node.inputs.iter().flat_map(|&i| ids[i].iter().map(|&c| (c, Pin::Head(id)))));
                vec![]
            }
        };
        if readers[id].is_empty() {
            pins.extend(out.iter().map(|&c| (c, Pin::Output(id))));
        }
        ids.push(out);
    }
    (ids, union, pins)
}

/// Numbers the united ids and collects where each class lives.
fn classes(
    graph: &Graph,
    ids: &[Vec<usize>],
    union: &mut UnionFind,
    pins: &[(usize, Pin)],
) -> (Vec<Vec<ClassId>>, Vec<Class>) {
    let mut number: HashMap<usize, ClassId> = HashMap::new();
    for id in 0..union.count() {
        let next = number.len();
        number.entry(union.find(id)).or_insert(next);
    }
    let channels: Vec<Vec<ClassId>> =
        ids.iter().map(|list| list.iter().map(|&id| number[&union.find(id)]).collect()).collect();
    let mut classes = vec![Class::default(); number.len()];
    for (id, node) in graph.nodes.iter().enumerate() {
        for (channel, &class) in channels[id].iter().enumerate() {
            let site = Site { node: id, channel };
            match &node.op {
                Op::Conv(conv) if conv.is_depthwise() => classes[class].depthwise.push(site),
                Op::Conv(_) => classes[class].members.push(site),
                Op::BatchNorm(_) => classes[class].norms.push(site),
                _ => {}
            }
        }
        if is_dense(&node.op) {
            for (channel, &class) in channels[node.inputs[0]].iter().enumerate() {
                classes[class].consumers.push(Site { node: id, channel });
            }
        }
    }
    for &(id, pin) in pins {
        classes[number[&union.find(id)]].pinned.get_or_insert(pin);
    }
    (channels, classes)
}

/// A convolution every output of which reads every input: the one place where a removed channel can be compensated.
fn dense(op: &Op) -> Option<&Conv> {
    match op {
        Op::Conv(conv) if conv.groups == 1 => Some(conv),
        _ => None,
    }
}

/// Whether `op` is a dense convolution.
pub(crate) fn is_dense(op: &Op) -> bool {
    dense(op).is_some()
}

/// The dense convolutions that read `node`.
pub fn dense_readers<'a>(
    graph: &'a Graph,
    coupling: &'a Coupling,
    node: NodeId,
) -> impl Iterator<Item = (NodeId, &'a Conv)> {
    coupling.readers(node).iter().filter_map(|&reader| Some((reader, dense(&graph.nodes[reader].op)?)))
}
