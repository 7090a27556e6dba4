//! An ONNX graph whose names have been looked up: who writes a value, which nodes the output needs, what goes in.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::problem::{Problem, title};
use crate::format::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::graph::MAX_IMGSZ;
use crate::{Error, Result};

/// First and last opset whose operators are read as they are meant here.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=25;

/// Most images at once.
const LARGEST_BATCH: usize = 256;

/// A graph of a file, checked so far as names go.
pub struct Source<'a> {
    pub path: &'a Path,
    pub opset: i64,
    pub proto: &'a GraphProto,
    pub initializers: HashMap<&'a str, &'a TensorProto>,
    /// The node that writes a value.
    pub writers: HashMap<&'a str, &'a NodeProto>,
    /// The nodes the first output depends on, in the order of the file.
    pub needed: Vec<&'a NodeProto>,
    pub input: &'a str,
    pub output: &'a str,
    /// (N, C, H, W) of the input, `None` where it is open.
    pub shape: [Option<usize>; 4],
}

impl<'a> Source<'a> {
    /// Looks up the names of `model`.
    pub fn open(path: &'a Path, model: &'a ModelProto) -> Result<Self> {
        let proto = model.graph.as_ref().ok_or_else(|| Error::format(path, "is an ONNX model without a graph"))?;
        let opset = opset(path, model)?;
        let mut initializers = HashMap::new();
        for tensor in &proto.initializer {
            if initializers.insert(tensor.name.as_str(), tensor).is_some() {
                return Err(Error::format(path, format!("holds two weights called `{}`", tensor.name)));
            }
        }
        let mut writers = HashMap::new();
        for node in &proto.node {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                let twice = writers.insert(output.as_str(), node).is_some();
                if twice || initializers.contains_key(output.as_str()) {
                    return Err(Problem::new(format!("writes `{output}`, which is written already")).at(path, node));
                }
            }
        }
        // Older exporters list the weights among the inputs.
        let inputs: Vec<&ValueInfoProto> =
            proto.input.iter().filter(|i| !initializers.contains_key(i.name.as_str())).collect();
        let [input] = inputs[..] else {
            let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).take(8).collect();
            return Err(Error::format(path, format!("has {} inputs {names:?}, a detector has one", inputs.len())));
        };
        let output = proto.output.first().ok_or_else(|| Error::format(path, "has no output"))?;
        let shape = shape(input).ok_or_else(|| {
            Error::format(path, "does not take images as (N, C, H, W)")
                .at(format!("input `{}`", input.name))
                .hint("export the model with its input as (1, 3, height, width) f32")
        })?;
        let sides_fit = shape[2..].iter().flatten().all(|&s| s <= MAX_IMGSZ);
        if !sides_fit || shape[0].is_some_and(|n| n > LARGEST_BATCH) {
            return Err(
                Error::format(path, format!("takes {shape:?} values at once")).at(format!("input `{}`", input.name))
            );
        }
        let mut source = Self {
            path,
            opset,
            proto,
            initializers,
            writers,
            needed: vec![],
            input: &input.name,
            output: &output.name,
            shape,
        };
        source.needed = source.needed(&[source.output], |_| false);
        if let Some(foreign) = source.needed.iter().find(|n| !matches!(n.domain.as_str(), "" | "ai.onnx")) {
            let what = format!("is an operator of `{}`, not of ONNX itself", foreign.domain);
            let help = "export the model with plain ONNX operators, without a runtime's own optimisation";
            return Err(Problem::new(what).hint(help).at(path, foreign));
        }
        Ok(source)
    }

    /// The nodes that `values` depend on, in the order of the file, going no farther back than values that are `given`.
    pub fn needed(&self, values: &[&'a str], given: impl Fn(&str) -> bool) -> Vec<&'a NodeProto> {
        let mut open: Vec<&str> = values.to_vec();
        let mut seen: HashSet<&str> = open.iter().copied().collect();
        let mut kept: HashSet<*const NodeProto> = HashSet::new();
        while let Some(value) = open.pop() {
            if given(value) {
                continue;
            }
            if let Some(&node) = self.writers.get(value)
                && kept.insert(node)
            {
                open.extend(node.input.iter().map(String::as_str).filter(|i| seen.insert(i)));
            }
        }
        self.proto.node.iter().filter(|n| kept.contains(&std::ptr::from_ref(*n))).collect()
    }

    /// The error for a value nothing before `node` writes.
    pub fn missing(&self, node: &NodeProto, value: &str) -> Error {
        let (what, help) = match self.writers.get(value) {
            Some(writer) => (
                format!("reads `{value}`, which `{}` writes only later", title(writer)),
                "the nodes stand out of order or form a circle, which ONNX forbids; repeat the export",
            ),
            None => (format!("reads `{value}`, which nothing writes"), "the file is incomplete; repeat the export"),
        };
        Problem::new(what).hint(help).at(self.path, node)
    }
}

fn opset(path: &Path, model: &ModelProto) -> Result<i64> {
    let own = |d: &Option<String>| matches!(d.as_deref(), None | Some("" | "ai.onnx"));
    let version = model.opset_import.iter().find(|o| own(&o.domain)).map(|o| o.version);
    match version {
        Some(version) if OPSETS.contains(&version) => Ok(version),
        other => {
            let (first, last) = OPSETS.into_inner();
            let found = other.map_or("none".into(), |v| v.to_string());
            Err(Error::format(path, format!("uses ONNX opset {found}"))
                .hint(format!("opsets {first} to {last} can be read; export it again with opset 12 or 13")))
        }
    }
}

/// The four sizes of an input of f32 or f16, `None` where one is open; `None` if it is nothing like that.
fn shape(input: &ValueInfoProto) -> Option<[Option<usize>; 4]> {
    use crate::format::onnx::proto::{FLOAT, FLOAT16};
    let tensor = input.r#type.as_ref()?.tensor_type.as_ref()?;
    let dims = &tensor.shape.as_ref()?.dim;
    let sizes: Vec<Option<usize>> = dims
        .iter()
        .map(|d| match d.dim_value {
            None | Some(-1) => Some(None),
            Some(size) => usize::try_from(size).ok().filter(|&s| s > 0).map(Some),
        })
        .collect::<Option<_>>()?;
    matches!(tensor.elem_type, FLOAT | FLOAT16).then(|| sizes.try_into().ok())?
}
