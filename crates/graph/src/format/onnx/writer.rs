//! Collects the nodes and constants of an ONNX graph under names that do not collide.

use super::proto::{
    AttributeProto, DimensionProto, FLOAT, GraphProto, INT8, INT32, INT64, NodeProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, UINT8, ValueInfoProto,
};
use crate::Conv;

/// Value of a node. The slash keeps it apart from the input, the output and the weights.
pub fn value_name(node: &str) -> String {
    format!("/{node}")
}

/// An ONNX graph as it grows.
#[derive(Default)]
pub struct Writer {
    pub graph: GraphProto,
}

impl Writer {
    /// Adds an operator; its only output is the value `name`, which is returned.
    pub fn node(&mut self, op: &str, name: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&i| i.into()).collect(),
            output: vec![name.into()],
            name: name.into(),
            op_type: op.into(),
            attribute: attributes,
            domain: String::new(),
        });
        name.into()
    }

    /// Adds the convolution `name` of the values `inputs`: map, weight and bias.
    pub fn conv(&mut self, name: &str, conv: &Conv, inputs: &[Option<&str>]) -> String {
        let [ph, pw] = conv.pad;
        let attributes = vec![
            AttributeProto::ints("dilations", &[1, 1]),
            AttributeProto::int("group", conv.groups as i64),
            AttributeProto::ints("kernel_shape", &conv.kernel()),
            AttributeProto::ints("pads", &[ph, pw, ph, pw]),
            AttributeProto::ints("strides", &conv.stride),
        ];
        let inputs: Vec<&str> = inputs.iter().copied().flatten().collect();
        self.node("Conv", &value_name(name), &inputs, attributes)
    }

    /// Adds an f32 constant.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, shape, FLOAT, raw)
    }

    /// Adds a vector of whole numbers: shapes, axes, bounds.
    pub fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, &[values.len()], INT64, raw)
    }

    /// Adds one unsigned byte.
    pub fn byte(&mut self, name: &str, value: u8) -> String {
        self.tensor(name, &[], UINT8, vec![value])
    }

    /// Adds signed bytes.
    pub fn signed_bytes(&mut self, name: &str, shape: &[usize], values: &[i8]) -> String {
        let raw = values.iter().map(|v| v.cast_unsigned()).collect();
        self.tensor(name, shape, INT8, raw)
    }

    /// Adds a vector of whole numbers of 32 bits.
    pub fn words(&mut self, name: &str, values: &[i32]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, &[values.len()], INT32, raw)
    }

    fn tensor(&mut self, name: &str, shape: &[usize], data_type: i32, raw_data: Vec<u8>) -> String {
        let dims = shape.iter().map(|&d| d as i64).collect();
        self.graph.initializer.push(TensorProto {
            dims,
            data_type,
            name: name.into(),
            raw_data,
            ..TensorProto::default()
        });
        name.into()
    }

    /// `x` in another shape: 0 keeps the axis, -1 takes what is left.
    pub fn reshape(&mut self, name: &str, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(&format!("{name}.shape"), shape);
        self.node("Reshape", name, &[x, &shape], vec![])
    }

    /// Indices `start..start + len` of `axis`.
    pub fn slice(&mut self, name: &str, x: &str, axis: i64, start: usize, len: usize) -> String {
        let starts = self.ints(&format!("{name}.starts"), &[start as i64]);
        let ends = self.ints(&format!("{name}.ends"), &[start.saturating_add(len) as i64]);
        let axes = self.ints(&format!("{name}.axes"), &[axis]);
        self.node("Slice", name, &[x, &starts, &ends, &axes], vec![])
    }

    /// `x` with its axes in another order.
    pub fn transpose(&mut self, name: &str, x: &str, order: &[usize]) -> String {
        self.node("Transpose", name, &[x], vec![AttributeProto::ints("perm", order)])
    }

    /// All of `parts` along `axis`; a single part is itself.
    pub fn concat(&mut self, name: &str, parts: &[String], axis: i64) -> String {
        if let [only] = parts {
            return only.clone();
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.node("Concat", name, &parts, vec![AttributeProto::int("axis", axis)])
    }

    /// `x` combined with an f32 constant that broadcasts.
    pub fn with_constant(&mut self, op: &str, name: &str, x: &str, shape: &[usize], values: &[f32]) -> String {
        let constant = self.floats(&format!("{name}.constant"), shape, values);
        self.node(op, name, &[x, &constant], vec![])
    }
}

/// An f32 input or output. `None` is the batch axis left open.
pub fn value_info(name: &str, shape: &[Option<usize>]) -> ValueInfoProto {
    let dimension = |d: &Option<usize>| match d {
        Some(size) => DimensionProto { dim_value: Some(*size as i64), dim_param: None },
        None => DimensionProto { dim_value: None, dim_param: Some("batch".into()) },
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dimension).collect() };
    let tensor_type = Some(TensorTypeProto { elem_type: FLOAT, shape: Some(shape) });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}
