//! ONNX operators on feature maps as the operators of a graph.

use std::rc::Rc;

use super::array::Array;
use super::body::{Body, Value};
use super::problem::Problem;
use super::slices;
use crate::format::focus::interleave;
use crate::format::onnx::proto::NodeProto;
use crate::{Act, BatchNorm, Conv, MaxPool, NodeId, Op, Tensor};

/// Most weights of a pool of means, which a file needs no bytes for.
const MOST_MEANS: usize = 1 << 22;

impl<'a> Body<'a> {
    /// What a node with a map among its inputs writes; `None` if its result is no map of a detector.
    ///
    /// # Errors
    /// The operator is one of a detector's, but in a form that no graph can hold.
    pub(super) fn translate(
        &mut self,
        node: &'a NodeProto,
        inputs: &[Option<Value>],
    ) -> Result<Option<Vec<Value>>, Problem> {
        let maps: Option<Vec<NodeId>> =
            inputs.iter().map(|v| if let Some(Value::Map(id)) = v { Some(*id) } else { None }).collect();
        let first = match inputs.first() {
            Some(Some(Value::Map(id))) => Some(*id),
            _ => None,
        };
        if let Some(values) = self.attention(node, inputs)? {
            return Ok(Some(values));
        }
        let one = match (node.op_type.as_str(), first) {
            // The detector before it was quantised: weights are read as what their bytes stand for, maps are not rounded.
            ("QuantizeLinear" | "DequantizeLinear", Some(x)) => Some(x),
            ("Conv", _) => self.conv(node, inputs)?,
            ("ConvTranspose", Some(x)) => Some(self.conv_transpose(node, x, inputs)?),
            ("DepthToSpace", Some(x)) => Some(self.pixel_shuffle(node, x)?),
            ("BatchNormalization", Some(x)) => Some(self.norm(node, x, inputs)?),
            ("MaxPool", Some(x)) => Some(self.pool(node, x)?),
            ("AveragePool", Some(x)) => Some(self.means(node, x)?),
            ("Resize" | "Upsample", Some(x)) => Some(self.upsample(node, x, inputs)?),
            ("Slice", _) => return Ok(self.slice(node, inputs)?.map(|v| vec![v])),
            ("Split", Some(x)) => return self.split(node, x, inputs),
            ("Concat", _) => match maps {
                Some(maps) if slices::joins_channels(node)? => Some(self.push(node, "", Op::Concat, maps)?),
                _ => return Ok(slices::phases(node, inputs)?.map(|v| vec![v])),
            },
            ("Add" | "Sum", _) => match maps {
                Some(maps) if maps.len() > 1 && maps.iter().all(|&m| self.shapes[m] == self.shapes[maps[0]]) => {
                    Some(self.push(node, "", Op::Add, maps)?)
                }
                _ => None,
            },
            _ => match self.activation(node, inputs, first)? {
                Some(value) => return Ok(Some(vec![value])),
                None if node.op_type == "Mul" => self.scale(node, inputs)?,
                None => None,
            },
        };
        Ok(one.map(|id| vec![Value::Map(id)]))
    }

    fn conv(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Result<Option<NodeId>, Problem> {
        let (x, phases) = match inputs.first() {
            Some(Some(Value::Map(id))) => (*id, None),
            Some(Some(Value::Phases { of, order })) => (*of, Some(*order)),
            _ => return Ok(None),
        };
        let weight = self.constant(inputs, 1)?.ok_or("has no weight")?;
        let bias = self.constant(inputs, 2)?;
        let shape = weight.shape.clone();
        let &[_, _, kh, kw] = shape.as_slice() else {
            return Err(format!("has a weight of {shape:?}; only convolutions in two dimensions can be read").into());
        };
        if node.ints("kernel_shape").is_some_and(|k| k != [kh as i64, kw as i64]) {
            return Err(format!("has a kernel of {:?} and a weight of {shape:?}", node.ints("kernel_shape")).into());
        }
        if node.pair("dilations", 1)? != [1, 1] {
            return Err(Problem::new(format!("is dilated by {:?}", node.ints("dilations")))
                .hint("dilated convolutions have no counterpart here"));
        }
        let groups = usize::try_from(node.int("group").unwrap_or(1)).map_err(|_| "has a negative number of groups")?;
        let stride = node.pair("strides", 1)?;
        let mut map = self.shapes[x];
        if phases.is_some() {
            (map.h, map.w) = (map.h / 2, map.w / 2);
        }
        let [top, left, bottom, right] = pads(node, [map.h, map.w], [kh, kw], stride)?;
        if (top, left) != (bottom, right) {
            return Err(Problem::new(format!(
                "pads {:?} pixels, not the same on both sides",
                [top, left, bottom, right]
            ))
            .hint("export the model with symmetric padding"));
        }
        let mut conv =
            Conv { weight: tensor(weight)?, bias: bias.map(floats).transpose()?, stride, pad: [top, left], groups };
        if let Some(order) = phases {
            if conv.stride != [1, 1] || groups != 1 || shape[1] != 4 * self.shapes[x].c {
                return Err(
                    "reads every other pixel of a map, but is strided, grouped or of other than four phases".into()
                );
            }
            conv.weight = interleave(&conv.weight, order);
            (conv.stride, conv.pad) = ([2, 2], [2 * top, 2 * left]);
        }
        self.push(node, "", Op::Conv(conv), vec![x]).map(Some)
    }

    fn norm(&mut self, node: &NodeProto, x: NodeId, inputs: &[Option<Value>]) -> Result<NodeId, Problem> {
        if node.int("training_mode").unwrap_or(0) != 0 {
            return Err(Problem::new("is in training mode").hint("call model.eval() before exporting"));
        }
        let mut vectors = Vec::with_capacity(4);
        for i in 1..5 {
            vectors.push(floats(self.constant(inputs, i)?.ok_or_else(|| format!("lacks its input number {i}"))?)?);
        }
        let [gamma, beta, mean, var] = <[Vec<f32>; 4]>::try_from(vectors).unwrap_or_default();
        // ONNX's momentum is what is kept, PyTorch's what is new.
        let momentum = node.float("momentum").map(|kept| 1.0 - kept).filter(|m| (0.0..1.0).contains(m)).unwrap_or(0.1);
        let eps = node.float("epsilon").unwrap_or(1e-5);
        self.push(node, "", Op::BatchNorm(BatchNorm { gamma, beta, mean, var, eps, momentum }), vec![x])
    }

    fn pool(&mut self, node: &NodeProto, x: NodeId) -> Result<NodeId, Problem> {
        let (kernel, stride) = (node.pair("kernel_shape", 0)?, node.pair("strides", 1)?);
        if node.pair("dilations", 1)? != [1, 1] || kernel[0] != kernel[1] || stride[0] != stride[1] {
            return Err(format!("pools {kernel:?} pixels by {stride:?}; only square windows can be read").into());
        }
        let map = self.shapes[x];
        let mut pads = pads(node, [map.h, map.w], kernel, stride)?;
        if node.int("ceil_mode").unwrap_or(0) != 0 {
            // Rounding up is padding after the map, which never wins, to the next whole step.
            for (after, size, before) in [(2, map.h, pads[0]), (3, map.w, pads[1])] {
                let over =
                    (size + before + pads[after]).checked_sub(kernel[0]).ok_or("has a window larger than its map")?;
                pads[after] += (stride[0] - over % stride[0].max(1)) % stride[0].max(1);
            }
        }
        let [top, left, bottom, right] = pads;
        if top != left || bottom != right {
            return Err(format!("pads {pads:?} pixels; only the same in both directions can be read").into());
        }
        let pool = MaxPool { kernel: kernel[0], stride: stride[0], pad: [top, bottom] };
        self.push(node, "", Op::MaxPool(pool), vec![x])
    }

    /// A map times one number a channel, as larger YOLO12s have it: a depthwise convolution of one pixel.
    fn scale(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Result<Option<NodeId>, Problem> {
        let (x, i) = match inputs {
            [Some(Value::Map(x)), Some(Value::Const(_) | Value::Weights(_))] => (*x, 1),
            [Some(Value::Const(_) | Value::Weights(_)), Some(Value::Map(x))] => (*x, 0),
            _ => return Ok(None),
        };
        let Some(numbers) = self.constant(inputs, i)? else { return Ok(None) };
        let c = self.shapes[x].c;
        if c < 2 || !matches!(numbers.shape[..], [1, n, 1, 1] | [n, 1, 1] if n == c) {
            return Ok(None);
        }
        let weight = Tensor::new([c, 1, 1, 1], floats(numbers)?);
        let conv = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: c };
        self.push(node, "", Op::Conv(conv), vec![x]).map(Some)
    }

    /// Means of windows, as YOLOv9 takes them, as a depthwise convolution of equal weights.
    fn means(&mut self, node: &NodeProto, x: NodeId) -> Result<NodeId, Problem> {
        let (kernel, stride) = (node.pair("kernel_shape", 0)?, node.pair("strides", 1)?);
        let map = self.shapes[x];
        let [top, left, bottom, right] = pads(node, [map.h, map.w], kernel, stride)?;
        let counted = node.int("count_include_pad").unwrap_or(0) != 0 || [top, left, bottom, right] == [0; 4];
        let ceil = node.int("ceil_mode").unwrap_or(0) != 0;
        if !counted || ceil || (top, left) != (bottom, right) || node.pair("dilations", 1)? != [1, 1] {
            return Err("takes means that count no padding, are dilated or round up; the graph has no such pool".into());
        }
        let size = kernel[0].saturating_mul(kernel[1]);
        if size == 0 || map.c.saturating_mul(size) > MOST_MEANS {
            return Err(format!("takes means of {kernel:?} pixels of {} channels", map.c).into());
        }
        let weight = Tensor::new([map.c, 1, kernel[0], kernel[1]], vec![1.0 / size as f32; map.c * size]);
        let conv = Conv { weight, bias: None, stride, pad: [top, left], groups: map.c };
        self.push(node, "", Op::Conv(conv), vec![x])
    }

    /// Sets up `Value::Map` of an activation.
    pub(super) fn act(&mut self, node: &NodeProto, act: Act, x: NodeId) -> Result<Value, Problem> {
        Ok(Value::Map(self.push(node, "", Op::Act(act), vec![x])?))
    }
}

/// Pixels added before and after both axes, `[top, left, bottom, right]`.
pub(super) fn pads(
    node: &NodeProto,
    map: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
) -> Result<[usize; 4], Problem> {
    let same_upper = match node.word("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" | "" => {
            let Some(pads) = node.ints("pads") else { return Ok([0; 4]) };
            let sizes: Option<Vec<usize>> =
                pads.iter().map(|&p| usize::try_from(p).ok().filter(|&p| p < 1 << 16)).collect();
            return sizes
                .and_then(|s| s.try_into().ok())
                .ok_or_else(|| format!("pads {pads:?} pixels, not four sizes").into());
        }
        "VALID" => return Ok([0; 4]),
        "SAME_UPPER" => true,
        "SAME_LOWER" => false,
        other => return Err(format!("pads as `{other}` says").into()),
    };
    let mut pads = [0; 4];
    for i in 0..2 {
        let step = stride[i].max(1);
        let total =
            (map[i].div_ceil(step).max(1) - 1).saturating_mul(step).saturating_add(kernel[i]).saturating_sub(map[i]);
        (pads[i], pads[i + 2]) =
            if same_upper { (total / 2, total.div_ceil(2)) } else { (total.div_ceil(2), total / 2) };
    }
    Ok(pads)
}

pub(super) fn tensor(array: Rc<Array>) -> Result<Tensor, Problem> {
    let shape = array.shape.clone();
    Ok(Tensor::new(shape, floats(array)?))
}

/// The values of a constant as f32, without a copy where nothing else reads it.
pub(super) fn floats(array: Rc<Array>) -> Result<Vec<f32>, Problem> {
    use super::array::Data;
    match Rc::try_unwrap(array) {
        Ok(Array { data: Data::Floats(v), .. }) => Ok(v),
        Ok(ints) => ints.as_floats().map(<[f32]>::to_vec),
        Err(shared) => shared.as_floats().map(<[f32]>::to_vec),
    }
}
