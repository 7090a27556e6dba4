//! What of a detector predicts and what is there for its training alone: the one-to-many branches of end-to-end heads.

use std::borrow::Cow;

use crate::{Graph, Head, Node, NodeId, Op};

impl Graph {
    /// Which nodes any of `maps` depends on, themselves among them.
    pub fn behind(&self, maps: &[NodeId]) -> Vec<bool> {
        let mut behind = vec![false; self.nodes.len()];
        maps.iter().for_each(|&id| behind[id] = true);
        for id in (0..self.nodes.len()).rev().filter(|&id| !matches!(self.nodes[id].op, Op::Head(_))) {
            if behind[id] {
                self.nodes[id].inputs.iter().for_each(|&input| behind[input] = true);
            }
        }
        behind
    }

    /// The maps of the branches that predict and, if the head has them, those of the branches that help their training.
    pub fn branches(&self) -> Option<[&[NodeId]; 2]> {
        match self.head() {
            Ok((Head::Dfl(head), inputs)) if head.one_to_many && inputs.len() >= head.pairs() => {
                let (one, many) = inputs.split_at(head.pairs());
                Some([one, many])
            }
            _ => None,
        }
    }

    /// The detector without what only training looks at: what is pruned, counted, timed and exported.
    pub fn for_inference(&self) -> Cow<'_, Self> {
        let Some([one, many]) = self.branches() else { return Cow::Borrowed(self) };
        let (predicts, helps) = (self.behind(one), self.behind(many));
        // Nothing but the head reads the maps that go, and it is not told of them any more.
        let mut graph = self.without(|id| (helps[id] && !predicts[id]).then_some(0));
        if let Some(Node { op: Op::Head(Head::Dfl(head)), inputs, .. }) = graph.nodes.last_mut() {
            inputs.truncate(head.pairs());
            head.one_to_many = false;
        }
        Cow::Owned(graph)
    }

    /// The detector with one-to-many branches, where its head is end-to-end and has none (an export, a pruned one): copies of
    /// the branches that predict, as their authors start them, with whatever pruning has left of those.
    pub fn for_training(&self) -> Cow<'_, Self> {
        let Ok((Head::Dfl(head), maps)) = self.head() else { return Cow::Borrowed(self) };
        if !head.end_to_end || head.one_to_many || head.extra.is_some() {
            return Cow::Borrowed(self);
        }
        // A branch is what leads to one map alone.
        let mut leads = vec![0; self.nodes.len()];
        for &map in maps {
            self.behind(&[map]).into_iter().zip(&mut leads).for_each(|(behind, leads)| *leads += usize::from(behind));
        }
        let mut out = self.clone();
        let Some(mut last) = out.nodes.pop() else { return Cow::Borrowed(self) };
        let mut copy: Vec<NodeId> = (0..self.nodes.len()).collect();
        for (id, node) in self.nodes.iter().enumerate().filter(|&(id, node)| leads[id] == 1 && !node.inputs.is_empty())
        {
            let inputs = node.inputs.iter().map(|&input| copy[input]).collect();
            copy[id] = out.push(self.copied(&node.name), node.op.clone(), inputs);
        }
        last.inputs.extend(maps.iter().map(|&map| copy[map]));
        if let Op::Head(Head::Dfl(head)) = &mut last.op {
            head.one_to_many = true;
        }
        out.nodes.push(last);
        Cow::Owned(out)
    }

    /// What a copy of the node `name` is called: as in the checkpoints of both families where the name comes from one.
    fn copied(&self, name: &str) -> String {
        let plain = name.replace("one2one_", "");
        match self.nodes.iter().any(|n| n.name == plain) {
            true => format!("one2many.{name}"),
            false => plain,
        }
    }
}
