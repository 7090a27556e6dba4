//! Residual branches: what an addition adds to a map that is there without it.

use crate::{Graph, NodeId, Op};

/// A branch beside a shortcut: nodes between a map and the addition that adds what they make of it to that map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The addition.
    pub add: NodeId,
    /// The map the branch reads and is added to.
    pub stream: NodeId,
    /// What lies between, in order; nothing else reads any of it.
    pub nodes: Vec<NodeId>,
}

impl Branch {
    /// Whether node `id` is there for the branch alone: one of its nodes, or its addition.
    pub fn covers(&self, id: NodeId) -> bool {
        id == self.add || self.nodes.binary_search(&id).is_ok()
    }
}

impl Graph {
    /// All residual branches that read nothing but the map they are added to, in order.
    pub fn residual_branches(&self) -> Vec<Branch> {
        let readers = self.consumers();
        let adds = (0..self.nodes.len()).filter(|&id| matches!(self.nodes[id].op, Op::Add));
        let branch = |add: NodeId| {
            let &[a, b] = self.nodes[add].inputs.as_slice() else { return None };
            [(a, b), (b, a)].into_iter().find_map(|(stream, end)| {
                let nodes = self.between(stream, end, add, &readers)?;
                Some(Branch { add, stream, nodes })
            })
        };
        adds.filter_map(branch).collect()
    }

    /// The nodes that lead from `stream` through `end` to `add`, if they lead nowhere else and come from nowhere else.
    fn between(&self, stream: NodeId, end: NodeId, add: NodeId, readers: &[Vec<NodeId>]) -> Option<Vec<NodeId>> {
        if end <= stream {
            return None;
        }
        let mut nodes: Vec<NodeId> = vec![];
        for id in (stream + 1..=end).rev() {
            let needed = id == end || readers[id].iter().any(|reader| nodes.contains(reader));
            if !needed {
                continue;
            }
            if !readers[id].iter().all(|reader| *reader == add || nodes.contains(reader)) {
                return None;
            }
            nodes.push(id);
        }
        nodes.reverse();
        let inside = |&input: &NodeId| input == stream || nodes.contains(&input);
        nodes.iter().all(|&id| self.nodes[id].inputs.iter().all(inside)).then_some(nodes)
    }

    /// The graph in which `branches` are not there and whatever read their additions reads the maps they were added to.
    pub fn without_branches(&self, branches: &[Branch]) -> Self {
        self.without(|id| branches.iter().find(|branch| branch.covers(id)).map(|branch| branch.stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Act, Family, Meta};

    /// act0 -> [act1 -> act2] + act0 -> [act4] + sum3, and what `more` adds.
    fn two_blocks(more: impl FnOnce(&mut Graph)) -> Graph {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [8, 8] };
        let mut graph = Graph::new(meta, 3);
        let act = |graph: &mut Graph, from| graph.push(format!("act{from}"), Op::Act(Act::Silu), vec![from]);
        let first = act(&mut graph, 0);
        let inner = act(&mut graph, first);
        let end = act(&mut graph, inner);
        let sum = graph.push("sum", Op::Add, vec![first, end]);
        let other = act(&mut graph, sum);
        graph.push("sum of sums", Op::Add, vec![other, sum]);
        more(&mut graph);
        graph
    }

    #[test]
    fn a_branch_is_what_leads_from_a_map_to_where_it_is_added_to_it() {
        let want = [Branch { add: 4, stream: 1, nodes: vec![2, 3] }, Branch { add: 6, stream: 4, nodes: vec![5] }];
        assert_eq!(two_blocks(|_| {}).residual_branches(), want);
    }

    #[test]
    fn what_something_else_reads_or_what_reads_something_else_is_no_branch() {
        let read = two_blocks(|graph| {
            graph.push("reader", Op::Act(Act::Relu), vec![2]);
        });
        assert_eq!(read.residual_branches().iter().map(|b| b.add).collect::<Vec<_>>(), [6]);
        let mut reads = two_blocks(|_| {});
        reads.nodes[5].inputs = vec![1];
        assert_eq!(reads.residual_branches().iter().map(|b| b.add).collect::<Vec<_>>(), [4]);
        reads.nodes[6].inputs = vec![4, 4];
        assert_eq!(reads.consumers()[4], [6], "one reader, though it reads it twice");
        assert_eq!(reads.residual_branches().iter().map(|b| b.add).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn without_its_branches_a_graph_is_the_rest_in_order() {
        let graph = two_blocks(|graph| {
            graph.push("end", Op::Act(Act::Relu), vec![6]);
        });
        let all = graph.residual_branches();
        let names = |graph: &Graph| graph.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
        let inputs = |graph: &Graph| graph.nodes.iter().map(|n| n.inputs.clone()).collect::<Vec<_>>();
        let first = graph.without_branches(&all[..1]);
        assert_eq!(names(&first), ["images", "act0", "act4", "sum of sums", "end"]);
        assert_eq!(inputs(&first), [vec![], vec![0], vec![1], vec![2, 1], vec![3]]);
        let none = graph.without_branches(&all);
        assert_eq!(names(&none), ["images", "act0", "end"]);
        assert_eq!(inputs(&none), [vec![], vec![0], vec![1]]);
        assert_eq!(graph.without_branches(&[]), graph);
    }
}
