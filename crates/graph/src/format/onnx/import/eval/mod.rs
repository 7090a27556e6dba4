//! Computing ONNX operators on plain numbers: shape arithmetic that exporters leave, and the decoding behind a head.
//!
//! Slow and small. What is computed here is thrown away once it has told what the file means.

mod broadcast;
mod quant;
mod reduce;
mod shape;

use super::array::{Array, Data, MOST_AXES, extent};
use super::attributes::axis;
use super::problem::Problem;
use crate::format::onnx::proto::NodeProto;

/// How many values may yet be computed: the end of files that ask for more than any detector needs.
#[derive(Debug)]
pub struct Budget {
    pub left: usize,
}

impl Budget {
    /// The number of values of `shape`; the budget pays for its [`extent`].
    pub fn take(&mut self, shape: &[usize]) -> Result<usize, Problem> {
        let Some(cost) = extent(shape).filter(|&n| n <= self.left) else {
            let (some, more) =
                (&shape[..shape.len().min(MOST_AXES)], if shape.len() > MOST_AXES { " and more" } else { "" });
            return Err(format!("computes a tensor of {some:?}{more}, more than a detector's decoding needs").into());
        };
        self.left -= cost;
        Ok(if shape.contains(&0) { 0 } else { cost })
    }
}

/// What an operator is given.
pub struct Call<'a> {
    pub node: &'a NodeProto,
    /// `None` where an optional input is left out.
    pub inputs: &'a [Option<&'a Array>],
    pub opset: i64,
    pub budget: &'a mut Budget,
}

impl<'a> Call<'a> {
    /// Input number `i`, which the operator cannot do without.
    fn input(&self, i: usize) -> Result<&'a Array, Problem> {
        self.optional(i).ok_or_else(|| format!("lacks its input number {i}").into())
    }

    fn optional(&self, i: usize) -> Option<&'a Array> {
        self.inputs.get(i).copied().flatten()
    }

    /// Whole numbers of the attribute, or else of input number `input`.
    fn numbers(&self, attribute: &str, input: usize) -> Result<Option<Vec<i64>>, Problem> {
        self.node.ints_or(attribute, || Ok(self.optional(input)))
    }

    /// The attribute `axis` as an axis of an array with `axes` axes.
    fn axis(&self, default: i64, axes: usize) -> Result<usize, Problem> {
        axis(self.node.int("axis").unwrap_or(default), axes)
    }
}

/// An operator on plain numbers.
pub type Operator = fn(&mut Call) -> Result<Vec<Array>, Problem>;

/// The operator called `name`, if it is one of those computed here.
pub fn operator(name: &str) -> Option<Operator> {
    Some(match name {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Equal" => |c| one(broadcast::binary(c)),
        "Where" => |c| one(broadcast::choose(c)),
        "Expand" => |c| one(broadcast::expand(c)),
        "Sigmoid" | "Exp" | "Tanh" | "Softplus" | "Neg" | "Sqrt" | "Relu" | "Log" | "Floor" | "Ceil" => {
            |c| one(unary(c))
        }
        "DequantizeLinear" => |c| one(quant::dequantize(c)),
        "Cast" => |c| one(cast(c)),
        "Identity" | "Dropout" => |c| one(identity(c)),
        "Constant" => |c| one(constant(c.node)),
        "ConstantOfShape" => |c| one(shape::constant_of_shape(c)),
        "Range" => |c| one(shape::range(c)),
        "Shape" => |c| one(c.input(0).map(|x| shape_of(c.node, &x.shape))),
        "Reshape" => |c| one(shape::reshape(c)),
        "Flatten" => |c| one(shape::flatten(c)),
        "Squeeze" => |c| one(shape::squeeze(c)),
        "Unsqueeze" => |c| one(shape::unsqueeze(c)),
        "Transpose" => |c| one(shape::transpose(c)),
        "Gather" => |c| one(shape::gather(c)),
        "Slice" => |c| one(shape::slice(c)),
        "Split" => shape::split,
        "Concat" => |c| one(shape::concat(c)),
        "Softmax" => |c| one(reduce::softmax(c)),
        "ReduceSum" => |c| one(reduce::sum(c)),
        "Conv" => |c| one(reduce::pointwise_conv(c)),
        _ => return None,
    })
}

fn one(array: Result<Array, Problem>) -> Result<Vec<Array>, Problem> {
    array.map(|a| vec![a])
}

fn identity(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    call.budget.take(&x.shape)?;
    Ok(x.clone())
}

/// What `node`, a `Shape`, says of a tensor of this shape.
pub fn shape_of(node: &NodeProto, shape: &[usize]) -> Array {
    let axes = shape.len() as i64;
    let bound = |name: &str, default: i64| {
        let v = node.int(name).unwrap_or(default);
        (if v < 0 { v.saturating_add(axes) } else { v }).clamp(0, axes) as usize
    };
    let (start, end) = (bound("start", 0), bound("end", axes));
    Array::ints(shape[start..end.max(start)].iter().map(|&d| d as i64).collect())
}

/// The value of a `Constant` node.
pub fn constant(node: &NodeProto) -> Result<Array, Problem> {
    if let Some(tensor) = node.any("value").and_then(|a| a.t.as_deref()) {
        return Array::decode(tensor);
    }
    if let Some(value) = node.float("value_float") {
        return Ok(Array::floats(vec![], vec![value]));
    }
    if let Some(values) = node.any("value_floats") {
        return Ok(Array::floats(vec![values.floats.len()], values.floats.clone()));
    }
    if let Some(value) = node.int("value_int") {
        return Ok(Array { shape: vec![], data: Data::Ints(vec![value]) });
    }
    match node.ints("value_ints") {
        Some(values) => Ok(Array::ints(values.to_vec())),
        None => Err(Problem::new("holds no numbers").hint("only constants of numbers can be read")),
    }
}

fn unary(call: &mut Call) -> Result<Array, Problem> {
    let f: fn(f32) -> f32 = match call.node.op_type.as_str() {
        "Sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
        "Exp" => f32::exp,
        "Tanh" => f32::tanh,
        "Softplus" => |x| if x > 20.0 { x } else { x.exp().ln_1p() },
        "Neg" => |x| -x,
        "Sqrt" => f32::sqrt,
        "Log" => f32::ln,
        "Floor" => f32::floor,
        "Ceil" => f32::ceil,
        _ => |x| x.max(0.0),
    };
    let x = call.input(0)?;
    let values = x.as_floats()?;
    call.budget.take(&x.shape)?;
    Ok(Array::floats(x.shape.clone(), values.iter().map(|&v| f(v)).collect()))
}

fn cast(call: &mut Call) -> Result<Array, Problem> {
    use crate::format::onnx::proto::{BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64};
    let x = call.input(0)?;
    call.budget.take(&x.shape)?;
    let to = call.node.int("to").and_then(|t| i32::try_from(t).ok());
    let data = match (to, &x.data) {
        (Some(FLOAT | FLOAT16 | DOUBLE), Data::Ints(v)) => Data::Floats(v.iter().map(|&v| v as f32).collect()),
        (Some(INT32 | INT64), Data::Floats(v)) => Data::Ints(v.iter().map(|&v| v as i64).collect()),
        (Some(BOOL), Data::Ints(v)) => Data::Ints(v.iter().map(|&v| i64::from(v != 0)).collect()),
        (Some(BOOL), Data::Floats(v)) => Data::Ints(v.iter().map(|&v| i64::from(v != 0.0)).collect()),
        (Some(FLOAT | FLOAT16 | DOUBLE | INT32 | INT64), same) => same.clone(),
        (to, _) => return Err(format!("casts to ONNX type {to:?}").into()),
    };
    Ok(Array { shape: x.shape.clone(), data })
}
