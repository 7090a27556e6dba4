//! Where a detector's maps end and its decoding begins.

use std::collections::HashSet;
use std::rc::Rc;

use super::array::Array;
use super::body::{Body, Value};
use super::eval::Budget;
use super::tail::Tail;
use crate::format::onnx::proto::NodeProto;
use crate::{Act, NodeId, Op, Result, Shape};

/// Values that all trials of all decodings may compute.
const WORK: usize = 1 << 30;

/// Maps of the graph, and the nodes of the file that lead from them to the output.
pub struct Cut<'a> {
    pub maps: Vec<NodeId>,
    nodes: Vec<&'a NodeProto>,
}

/// The maps that the decoding reads, in the order in which the output is put together.
pub fn frontier(body: &Body) -> Vec<NodeId> {
    let mut found = Vec::new();
    let mut open = vec![body.source.output];
    let mut seen: HashSet<&str> = open.iter().copied().collect();
    while let Some(name) = open.pop() {
        match body.values.get(name) {
            Some(Value::Map(id)) if !found.contains(id) => found.push(*id),
            Some(Value::Map(_) | Value::Const(_) | Value::Weights(_)) | None => {}
            Some(_) => {
                let inputs = body.source.writers.get(name).map_or(&[][..], |n| n.input.as_slice());
                open.extend(inputs.iter().rev().map(String::as_str).filter(|i| seen.insert(i)));
            }
        }
    }
    found
}

/// `maps` with joints and sigmoids taken back: what the last convolutions say, raw.
pub fn raw(body: &Body, maps: &[NodeId]) -> Vec<NodeId> {
    let mut found = Vec::new();
    let mut open: Vec<NodeId> = maps.iter().rev().copied().collect();
    let mut seen = HashSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = &body.graph.nodes[id];
        match node.op {
            Op::Concat | Op::Act(Act::Sigmoid) => open.extend(node.inputs.iter().rev()),
            _ => found.push(id),
        }
    }
    found
}

impl<'a> Cut<'a> {
    /// The cut at `maps`; `None` if the output also depends on something before them.
    pub fn at(body: &Body<'a>, maps: Vec<NodeId>) -> Option<Self> {
        let known = |name: &str| match body.values.get(name) {
            Some(Value::Map(id)) => maps.contains(id),
            Some(Value::Const(_) | Value::Weights(_)) => true,
            _ => false,
        };
        let nodes = body.source.needed(&[body.source.output], known);
        let whole = nodes.iter().all(|n| n.input.iter().all(|i| i != body.source.input));
        (whole && !maps.contains(&0)).then_some(Self { maps, nodes })
    }

    /// Shapes of the maps.
    pub fn shapes(&self, body: &Body) -> Vec<Shape> {
        self.maps.iter().map(|&id| body.shapes[id]).collect()
    }

    /// What the file makes of `maps`, one a map of the cut.
    pub fn run(&self, body: &mut Body<'a>, maps: &[Rc<Array>], budget: &mut Budget) -> Result<Rc<Array>> {
        let source = body.source;
        let tail = Tail { path: source.path, opset: source.opset, nodes: self.nodes.clone(), output: source.output };
        let given = |name: &str| {
            let value = match body.values.get(name) {
                Some(value) => value.clone(),
                None if source.initializers.contains_key(name) => Value::Weights(name.into()),
                None => return Ok(None),
            };
            match value {
                Value::Map(id) => Ok(self.maps.iter().position(|&m| m == id).map(|i| maps[i].clone())),
                known => body.numbers(&known).map(Some),
            }
        };
        tail.run(given, budget)
    }
}

/// A fresh allowance for trials.
pub fn budget() -> Budget {
    Budget { left: WORK }
}
