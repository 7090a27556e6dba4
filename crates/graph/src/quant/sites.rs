//! Which maps of a detector become bytes, and which of them have to do so alike.

use crate::{Act, Graph, NodeId, Op, UnionFind};

/// For every node the first of the nodes whose maps share its scale, `None` where the map stays f32.
///
/// f32 stays what only the head reads, directly or through operators without weights: decoding squares and exponentiates
/// it. Maps that only move values about (concat, max pooling, upsampling, slices) share the scale of what they read, so
/// that a runtime moves bytes and rounds nothing twice.
pub fn sites(graph: &Graph) -> Vec<Option<NodeId>> {
    let float = float(graph);
    let mut alike = UnionFind::default();
    alike.fresh(graph.nodes.len());
    for (id, node) in graph.nodes.iter().enumerate() {
        if float[id] || !moves(&node.op) {
            continue;
        }
        node.inputs.iter().for_each(|&input| alike.unite(input, id));
    }
    (0..graph.nodes.len()).map(|id| (!float[id]).then(|| alike.find(id))).collect()
}

/// Whether `op` only moves values about.
pub fn moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Concat
            | Op::MaxPool(_)
            | Op::Upsample { .. }
            | Op::PixelShuffle { .. }
            | Op::Slice { .. }
            | Op::Act(Act::Identity)
    )
}

/// Whether `id` is a convolution that says nothing in bytes itself: what alone reads it does. A ReLU is a matter of where the bytes begin
/// and end. A leaky one next to a depthwise convolution, on either side, would be told in steps ten times too wide, for most of what it is told
/// lies below nought, and nothing averages over channels there what rounding does to one of them. (Runtimes compute such a
/// convolution in f32 then: elsewhere that would cost most of what bytes save.)
pub fn merged(graph: &Graph, readers: &[Vec<NodeId>], id: NodeId) -> bool {
    let depthwise = |id: NodeId| matches!(&graph.nodes[id].op, Op::Conv(conv) if conv.is_depthwise());
    if !matches!(graph.nodes[id].op, Op::Conv(_)) {
        return false;
    }
    match graph.only_reader(readers, id) {
        Some((_, Op::Act(Act::Relu | Act::Relu6))) => true,
        Some((act, Op::Act(Act::Leaky))) => depthwise(id) || readers[act].iter().any(|&r| depthwise(r)),
        _ => false,
    }
}

/// The maps that stay f32.
fn float(graph: &Graph) -> Vec<bool> {
    let readers = graph.consumers();
    let mut float = vec![false; graph.nodes.len()];
    for id in (0..graph.nodes.len()).rev() {
        let ends = |&r: &NodeId| match &graph.nodes[r].op {
            Op::Head(_) => true,
            Op::Conv(_) | Op::BatchNorm(_) | Op::Attention(_) => false,
            _ => float[r],
        };
        float[id] = merged(graph, &readers, id) || readers[id].iter().all(ends);
    }
    float
}
