//! Activations: single operators, and those that exporters write as several.

use super::body::{Body, Value};
use super::problem::Problem;
use crate::format::onnx::proto::NodeProto;
use crate::{Act, NodeId, Op};

/// Darknet's slope of leaky ReLU, and the only one a graph has.
const SLOPE: f32 = 0.1;

impl<'a> Body<'a> {
    /// An activation of map `x`, or a part of one; `None` if the node is neither.
    pub(super) fn activation(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
        x: Option<NodeId>,
    ) -> Result<Option<Value>, Problem> {
        let single = match (node.op_type.as_str(), x) {
            ("Relu", Some(_)) => Act::Relu,
            ("Sigmoid", Some(_)) => Act::Sigmoid,
            ("Mish", Some(_)) => Act::Mish,
            ("Swish", Some(_)) if node.float("alpha").is_none_or(|a| a == 1.0) => Act::Silu,
            ("LeakyRelu", Some(_)) => match node.float("alpha").unwrap_or(0.01) {
                slope if (slope - SLOPE).abs() < 1e-6 => Act::Leaky,
                slope => return Err(format!("is leaky with slope {slope}; a graph knows only {SLOPE}").into()),
            },
            ("Clip", Some(_)) => match self.bounds(node, inputs)? {
                [Some(0.0), Some(6.0)] => Act::Relu6,
                [Some(0.0), None | Some(f32::INFINITY)] => Act::Relu,
                bounds => return Err(format!("clips to {bounds:?}; a graph knows only 0 to 6").into()),
            },
            ("Softplus", Some(x)) => return Ok(Some(Value::Softplus(x))),
            ("Tanh", None) => match inputs {
                [Some(Value::Softplus(x))] => return Ok(Some(Value::MishGate(*x))),
                _ => return Ok(None),
            },
            ("Mul", _) => return self.gated(node, inputs),
            _ => return Ok(None),
        };
        match x {
            Some(x) => self.act(node, single, x).map(Some),
            None => Ok(None),
        }
    }

    /// `x * sigmoid(x)` and `x * tanh(softplus(x))`.
    fn gated(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Result<Option<Value>, Problem> {
        let [Some(a), Some(b)] = inputs else { return Ok(None) };
        for (x, gate) in [(a, b), (b, a)] {
            let Value::Map(x) = x else { continue };
            match gate {
                Value::MishGate(of) if of == x => return self.act(node, Act::Mish, *x).map(Some),
                Value::Map(gate) => {
                    let gate = &self.graph.nodes[*gate];
                    if gate.op == Op::Act(Act::Sigmoid) && gate.inputs == [*x] {
                        return self.act(node, Act::Silu, *x).map(Some);
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The bounds of a `Clip`: attributes before opset 11, inputs since.
    fn bounds(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Result<[Option<f32>; 2], Problem> {
        let mut bounds = [node.float("min"), node.float("max")];
        for (i, bound) in bounds.iter_mut().enumerate() {
            if let Some(array) = self.constant(inputs, i + 1)? {
                *bound = array.as_floats()?.first().copied();
            }
        }
        Ok(bounds)
    }
}
