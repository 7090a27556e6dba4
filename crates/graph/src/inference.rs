//! What of a detector predicts and what is there for its training alone: the one-to-many branches of end-to-end heads.

use std::borrow::Cow;

use crate::{Graph, Head, NodeId, Op};

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
        let mut number = vec![0; self.nodes.len()];
        let mut graph = Self { nodes: vec![], meta: self.meta.clone() };
        for (id, node) in self.nodes.iter().enumerate().filter(|&(id, _)| predicts[id] || !helps[id]) {
            number[id] = graph.nodes.len();
            let mut node = node.clone();
            if let Op::Head(Head::Dfl(head)) = &mut node.op {
                node.inputs.truncate(head.pairs());
                head.one_to_many = false;
            }
            node.inputs.iter_mut().for_each(|input| *input = number[*input]);
            graph.nodes.push(node);
        }
        Cow::Owned(graph)
    }
}
