//! Running the decoding behind a head on maps of our choosing.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use super::array::Array;
use super::eval::{Budget, Call, operator};
use super::problem::Problem;
use crate::Result;
use crate::format::onnx::proto::NodeProto;

/// A part of an ONNX graph with one output.
pub struct Tail<'a> {
    pub path: &'a Path,
    pub opset: i64,
    /// In an order in which they can be computed.
    pub nodes: Vec<&'a NodeProto>,
    pub output: &'a str,
}

impl Tail<'_> {
    /// The output, with `given` naming the values no node of the tail writes. Values are dropped once they are read.
    pub fn run(
        &self,
        mut given: impl FnMut(&str) -> std::result::Result<Option<Rc<Array>>, Problem>,
        budget: &mut Budget,
    ) -> Result<Rc<Array>> {
        let mut readers: HashMap<&str, usize> = HashMap::new();
        for input in self.nodes.iter().flat_map(|n| &n.input) {
            *readers.entry(input).or_default() += 1;
        }
        *readers.entry(self.output).or_default() += 1;
        let mut values: HashMap<&str, Rc<Array>> = HashMap::new();
        let absent = |name: &str| Problem::new(format!("reads `{name}`, which is not known in the decoding"));
        for node in &self.nodes {
            let results = (|| {
                let mut inputs = Vec::with_capacity(node.input.len());
                for name in &node.input {
                    inputs.push(match (name.as_str(), values.get(name.as_str())) {
                        ("", _) => None,
                        (_, Some(value)) => Some(value.clone()),
                        (name, None) => Some(given(name)?.ok_or_else(|| absent(name))?),
                    });
                }
                let inputs: Vec<Option<&Array>> = inputs.iter().map(|v| v.as_deref()).collect();
                let compute = operator(&node.op_type).ok_or("is an operator no decoding here has")?;
                compute(&mut Call { node, inputs: &inputs, opset: self.opset, budget })
            })()
            .map_err(|p: Problem| p.at(self.path, node))?;
            for name in &node.input {
                let left = readers.entry(name).or_default();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    values.remove(name.as_str());
                }
            }
            for (name, value) in node.output.iter().zip(results) {
                if readers.contains_key(name.as_str()) {
                    values.insert(name, Rc::new(value));
                }
            }
        }
        match values.remove(self.output) {
            Some(value) => Ok(value),
            None => given(self.output).ok().flatten().ok_or_else(|| {
                crate::Error::format(self.path, "is written by nothing").at(format!("output `{}`", self.output))
            }),
        }
    }
}
