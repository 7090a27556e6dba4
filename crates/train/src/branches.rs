//! Growing the branches that help an end-to-end head's training where a detector comes without them.
//!
//! Exports and pruned detectors have the one-to-one branches alone. Their authors start both pairs as copies of each other;
//! so does [`grown`], of the branches as they are now, with whatever pruning has left of them.

use std::borrow::Cow;

use graph::{Graph, Head, NodeId, Op};

/// `graph` with one-to-many branches, where its head is end-to-end and has none.
pub fn grown(graph: &Graph) -> Cow<'_, Graph> {
    let Ok((Head::Dfl(head), maps)) = graph.head() else { return Cow::Borrowed(graph) };
    if !head.end_to_end || head.one_to_many || head.extra.is_some() {
        return Cow::Borrowed(graph);
    }
    // A branch is what leads to one map alone.
    let mut leads = vec![0; graph.nodes.len()];
    for &map in maps {
        graph.behind(&[map]).into_iter().zip(&mut leads).for_each(|(behind, leads)| *leads += usize::from(behind));
    }
    let mut out = graph.clone();
    let Some(mut last) = out.nodes.pop() else { return Cow::Borrowed(graph) };
    let mut copy: Vec<NodeId> = (0..graph.nodes.len()).collect();
    for (id, node) in graph.nodes.iter().enumerate().filter(|&(id, node)| leads[id] == 1 && !node.inputs.is_empty()) {
        let inputs = node.inputs.iter().map(|&input| copy[input]).collect();
        copy[id] = out.push(name(graph, &node.name), node.op.clone(), inputs);
    }
    last.inputs.extend(maps.iter().map(|&map| copy[map]));
    if let Op::Head(Head::Dfl(head)) = &mut last.op {
        head.one_to_many = true;
    }
    out.nodes.push(last);
    Cow::Owned(out)
}

/// What a copy of the node `name` is called: as in the checkpoints of both families where the name comes from one.
fn name(graph: &Graph, name: &str) -> String {
    let plain = name.replace("one2one_", "");
    match graph.nodes.iter().any(|n| n.name == plain) {
        true => format!("one2many.{name}"),
        false => plain,
    }
}
