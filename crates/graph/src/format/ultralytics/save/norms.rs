//! Puts BatchNorms that were measured anew where the families' modules have them.

use crate::{Graph, NodeId, Op};

/// `graph` with no BatchNorm named as if it were part of the convolution before it (`x.conv.bn`), as those are that
/// training gives a convolution without one. With `x.conv` they make a `Conv` named `x`. What is no such convolution
/// (a mean, a transposed one) cannot have a BatchNorm, and is multiplied with it.
pub(super) fn placed(graph: &Graph) -> Graph {
    let mut out = Graph { nodes: Vec::with_capacity(graph.nodes.len()), meta: graph.meta.clone() };
    let mut place: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    let readers = graph.consumers();
    for (id, node) in graph.nodes.iter().enumerate() {
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|i| *i = place[*i]);
        let before = graph.nodes[id].inputs.first().copied().unwrap_or(0);
        let (Op::BatchNorm(bn), Op::Conv(conv)) = (&node.op, &graph.nodes[before].op) else {
            place.push(out.nodes.len());
            out.nodes.push(node);
            continue;
        };
        let convolution = &graph.nodes[before].name;
        let own = node.name.strip_prefix(convolution.as_str()) == Some(".bn");
        let block = convolution.strip_suffix(".conv").map(|block| format!("{block}.bn"));
        match block.filter(|name| graph.nodes.iter().all(|n| n.name != *name)) {
            Some(name) if own => node.name = name,
            None if own && readers[before].len() == 1 => {
                let (weight, bias) = conv.folded(bn);
                if let Op::Conv(conv) = &mut out.nodes[place[before]].op {
                    conv.weight.data = weight;
                    conv.bias = Some(bias);
                }
                place.push(place[before]);
                continue;
            }
            _ => {}
        }
        place.push(out.nodes.len());
        out.nodes.push(node);
    }
    out
}
