//! From the image to the raw maps: the part of an ONNX graph that becomes nodes of a [`Graph`].
//!
//! Values are followed in the order of the file. What is no feature map of a detector any more (flattened, transposed,
//! combined with constants) is *deferred*: it belongs to the decoding, which [`super::head`] makes sense of.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::array::Array;
use super::attention::Turned;
use super::eval::{self, Budget, Call};
use super::problem::{Problem, title};
use super::source::Source;
use crate::format::onnx::proto::NodeProto;
use crate::graph::infer;
use crate::{Family, Graph, Meta, NodeId, Op, Result, Shape};

/// What a name of the file stands for.
#[derive(Clone, Debug)]
pub enum Value {
    /// Numbers known already.
    Const(Rc<Array>),
    /// Weights of the file, decoded when they are needed.
    Weights(String),
    /// A feature map.
    Map(NodeId),
    /// `softplus(x)` of a map: the inside of Mish.
    Softplus(NodeId),
    /// `tanh(softplus(x))`.
    MishGate(NodeId),
    /// Every other row or column, or both, of a map; `None` where an axis is whole.
    Phase { of: NodeId, row: Option<usize>, column: Option<usize> },
    /// The four phases (row, column) of a map joined along the channels.
    Phases { of: NodeId, order: [[usize; 2]; 4] },
    /// A map on its way through attention.
    Attention(Turned),
    /// Something only the decoding knows.
    Deferred,
}

/// Values that constants may take up in all.
const CONSTANTS: usize = 1 << 25;

/// The graph as it grows.
pub struct Body<'a> {
    pub source: &'a Source<'a>,
    pub graph: Graph,
    pub shapes: Vec<Shape>,
    pub values: HashMap<&'a str, Value>,
    /// The file's name for the map of a node.
    pub written: HashMap<NodeId, &'a str>,
    /// The first node whose result is no feature map.
    pub first_deferred: Option<&'a NodeProto>,
    /// Images at once.
    pub batch: usize,
    names: HashSet<String>,
    constants: Budget,
    weights: Budget,
}

impl<'a> Body<'a> {
    /// Follows all values of `source` from an input of (C, H, W); `bytes` is the size of the file.
    pub fn read(source: &'a Source<'a>, input: Shape, bytes: usize) -> Result<Self> {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [input.h, input.w] };
        let graph = Graph::new(meta, input.c);
        let mut body = Self {
            source,
            names: HashSet::from([graph.nodes[0].name.clone()]),
            graph,
            shapes: vec![input],
            values: HashMap::from([(source.input, Value::Map(0))]),
            written: HashMap::from([(0, source.input)]),
            first_deferred: None,
            batch: source.shape[0].unwrap_or(1),
            constants: Budget { left: CONSTANTS },
            // Every weight is read once or a few times; a file that reads one a thousand times is no detector.
            weights: Budget { left: bytes.saturating_mul(4).saturating_add(1 << 20) },
        };
        for &node in &source.needed {
            body.node(node)?;
        }
        Ok(body)
    }

    fn node(&mut self, node: &'a NodeProto) -> Result<()> {
        let mut inputs = Vec::with_capacity(node.input.len());
        for name in &node.input {
            inputs.push(match name.as_str() {
                "" => None,
                name => Some(self.value(name).ok_or_else(|| self.source.missing(node, name))?),
            });
        }
        let outputs = self.outputs(node, &inputs).map_err(|p| p.at(self.source.path, node))?;
        for (name, value) in node.output.iter().zip(outputs) {
            if let Value::Map(id) = value {
                self.written.entry(id).or_insert(name);
            }
            self.values.insert(name, value);
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Option<Value> {
        let weights = || self.source.initializers.contains_key(name).then(|| Value::Weights(name.into()));
        self.values.get(name).cloned().or_else(weights)
    }

    fn outputs(&mut self, node: &'a NodeProto, inputs: &[Option<Value>]) -> Result<Vec<Value>, Problem> {
        let known = |v: &Value| matches!(v, Value::Const(_) | Value::Weights(_));
        if let ("Identity" | "Dropout", [Some(same), ..]) = (node.op_type.as_str(), inputs) {
            return Ok(vec![same.clone()]);
        }
        if inputs.iter().flatten().all(known) {
            return self.fold(node, inputs);
        }
        if let ("Shape", [Some(Value::Map(id))]) = (node.op_type.as_str(), inputs) {
            let Shape { c, h, w } = self.shapes[*id];
            let shape = eval::shape_of(node, &[self.batch, c, h, w]);
            return Ok(vec![Value::Const(Rc::new(shape))]);
        }
        if !inputs.iter().flatten().any(|v| matches!(v, Value::Deferred))
            && let Some(values) = self.translate(node, inputs)?
        {
            return Ok(values);
        }
        if eval::operator(&node.op_type).is_none() {
            return Err(unknown(node));
        }
        self.first_deferred.get_or_insert(node);
        Ok(vec![Value::Deferred; node.output.len()])
    }

    /// Computes a node all of whose inputs are known.
    fn fold(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Result<Vec<Value>, Problem> {
        let arrays = inputs.iter().map(|v| v.as_ref().map(|v| self.numbers(v)).transpose());
        let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
        let arrays: Vec<Option<&Array>> = arrays.iter().map(|a| a.as_deref()).collect();
        let opset = self.source.opset;
        let operator = eval::operator(&node.op_type).ok_or_else(|| unknown(node))?;
        let results = operator(&mut Call { node, inputs: &arrays, opset, budget: &mut self.constants })?;
        Ok(results.into_iter().map(|a| Value::Const(Rc::new(a))).collect())
    }

    /// The numbers a value stands for.
    pub fn numbers(&mut self, value: &Value) -> Result<Rc<Array>, Problem> {
        match value {
            Value::Const(array) => Ok(array.clone()),
            Value::Weights(name) => {
                let tensor = self.source.initializers[name.as_str()];
                let array = Array::decode(tensor)?;
                self.weights.take(&[array.len()]).map_err(|_| "reads the same weights too many times")?;
                Ok(Rc::new(array))
            }
            _ => Err("computes its weights from the image".into()),
        }
    }

    /// Numbers of input `i`, if it is there.
    pub fn constant(&mut self, inputs: &[Option<Value>], i: usize) -> Result<Option<Rc<Array>>, Problem> {
        inputs.get(i).and_then(Option::as_ref).map(|v| self.numbers(v)).transpose()
    }

    /// Whole numbers of the attribute `name` of `node`, or else of input `i`.
    pub fn numbers_of(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<Value>],
        i: usize,
    ) -> Result<Option<Vec<i64>>, Problem> {
        node.ints_or(name, || self.constant(inputs, i))
    }

    /// Adds a node called as `node` is, plus `suffix`, after checking it against its inputs.
    pub fn push(&mut self, node: &NodeProto, suffix: &str, op: Op, inputs: Vec<NodeId>) -> Result<NodeId, Problem> {
        let shapes: Vec<Shape> = inputs.iter().map(|&i| self.shapes[i]).collect();
        let shape = infer(&op, &shapes, self.graph.meta.imgsz)?;
        let name = self.unique(&format!("{}{suffix}", title(node).trim_start_matches('/')));
        self.shapes.push(shape);
        Ok(self.graph.push(name, op, inputs))
    }

    /// `name`, or with a number after it where it is taken.
    pub fn unique(&mut self, name: &str) -> String {
        let mut free = name.to_owned();
        let mut n = 2;
        while !self.names.insert(free.clone()) {
            free = format!("{name}.{n}");
            n += 1;
        }
        free
    }
}

fn unknown(node: &NodeProto) -> Problem {
    let help = match node.op_type.as_str() {
        "HardSwish" | "HardSigmoid" => {
            "hard swish has no counterpart here; export a detector with SiLU, ReLU or leaky ReLU"
        }
        "NonMaxSuppression" | "TopK" | "ReduceMax" => {
            "export it again without non-maximum suppression and without end-to-end selection (Ultralytics: leave `nms` out; end2end=False where it has that option)"
        }
        "DynamicQuantizeLinear" | "QLinearConv" | "ConvInteger" => {
            "of quantised detectors those with QuantizeLinear and DequantizeLinear can be read; export it so, or in f32"
        }
        _ => {
            "known are convolutions, BatchNorm, ReLU, leaky ReLU, SiLU, Mish, Concat, Add, nearest Resize, ConvTranspose, DepthToSpace, MaxPool, AveragePool, Slice, Split, attention of YOLOv10 to YOLO26"
        }
    };
    Problem::new("is an operator no detector here has").hint(help)
}
