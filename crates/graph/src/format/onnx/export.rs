//! A [`Graph`] as an ONNX model: batch normalisation folded into its convolution, the head's decoding as operators.

use prost::Message;

use crate::{Act, Attention, BatchNorm, Conv, Error, Graph, NodeId, Op, Result, Shape};

use super::proto::{AttributeProto, ModelProto, OperatorSetIdProto, StringStringEntryProto};
use super::writer::{Writer, value_info, value_name};
use super::{INPUT, OPSET, head, metadata, quant};
use crate::quant::Quantized;

/// ONNX IR version 7 came with opset 13; both are old enough for every runtime in use.
const IR_VERSION: i64 = 7;

/// For which input to export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// (height, width) in pixels, multiples of the largest stride; fixed in the exported file.
    pub imgsz: [usize; 2],
    /// Images at once; ignored where the batch is dynamic.
    pub batch: usize,
    /// Leaves the batch axis open.
    pub dynamic_batch: bool,
}

/// The bytes of an ONNX model with one input `images` (N, channels, H, W), RGB in 0..1, and one output `output0`:
///
/// | head | shape | order |
/// |---|---|---|
/// | anchors | (N, A, 5 + classes) | cx, cy, w, h, objectness, class probabilities; rows by level, anchor, row, column |
/// | YOLOX | (N, A, 5 + classes) | the same, rows by level, row, column |
/// | distributions | (N, 4 + classes, A) | cx, cy, w, h, class probabilities |
/// | with masks | (N, 4 + classes + P, A) | the same, then what each of P prototypes counts; they are `output1`, (N, P, H, W) |
/// | with keypoints | (N, 4 + classes + K * V, A) | the same, then x, y (and visibility 0..1) of every keypoint |
/// | turned | (N, 4 + classes + 1, A) | the same, then the angle in radians, about the centre |
///
/// Boxes are in pixels of the input. Probabilities are not multiplied with objectness. No non-maximum suppression.
///
/// # Errors
/// The graph is no detector, does not fit `imgsz`, or the batch is 0.
pub fn export(graph: &Graph, options: &ExportOptions) -> Result<Vec<u8>> {
    write(&graph.for_inference(), None, options)
}

/// The same in eight bits, as `QuantizeLinear` and `DequantizeLinear` around f32 operators; runtimes that can merge them into
/// operators on bytes. Weights are int8 with a scale a filter, maps uint8; the maps that enter the head and the decoding
/// are f32.
///
/// # Errors
/// As [`export`].
pub fn export_quantized(quantized: &Quantized, options: &ExportOptions) -> Result<Vec<u8>> {
    write(quantized.graph(), Some(quantized), options)
}

fn write(graph: &Graph, quantized: Option<&Quantized>, options: &ExportOptions) -> Result<Vec<u8>> {
    let (head, inputs) = graph.head()?;
    let shapes = graph.shapes(options.imgsz).map_err(|e| {
        let largest = head.strides().into_iter().max().unwrap_or(1);
        e.hint(format!("the image size must be a multiple of {largest} pixels on both sides"))
    })?;
    let batch = match (options.dynamic_batch, options.batch) {
        (true, _) => None,
        (false, 0) => return Err(Error::node(INPUT, "cannot export for a batch of 0 images").hint("give 1 or more")),
        (false, batch) => Some(batch),
    };

    let mut writer = Writer::default();
    let values = write_body(&mut writer, graph, &shapes, quantized)?;
    let maps: Vec<String> = inputs.iter().map(|&i| values[i].clone()).collect();
    let map_shapes: Vec<_> = inputs.iter().map(|&i| shapes[i]).collect();
    let name = &graph.nodes[graph.nodes.len() - 1].name;
    let outputs = head::write(&mut writer, head, &value_name(name), &maps, &map_shapes);

    let [height, width] = options.imgsz;
    writer.graph.name = "detector".into();
    writer.graph.input = vec![value_info(INPUT, &[batch, Some(shapes[0].c), Some(height), Some(width)])];
    let sized = |(name, shape): (&str, Vec<usize>)| {
        let axes: Vec<Option<usize>> = std::iter::once(batch).chain(shape.into_iter().map(Some)).collect();
        value_info(name, &axes)
    };
    writer.graph.output = outputs.into_iter().map(sized).collect();
    Ok(model(writer, metadata::properties(graph, head, options.imgsz)))
}

/// The bytes of an ONNX model of one image of `imgsz` = (H, W) pixels that ends where the head begins: its outputs are the
/// maps that enter the head, or where there is no head those that nothing reads. It is for timing, not for detecting.
///
/// # Errors
/// The graph does not fit `imgsz`.
pub fn export_maps(graph: &Graph, imgsz: [usize; 2]) -> Result<Vec<u8>> {
    let shapes = graph.shapes(imgsz)?;
    let mut writer = Writer::default();
    let values = write_body(&mut writer, graph, &shapes, None)?;
    let readers = graph.consumers();
    let ends = match graph.head() {
        Ok((_, inputs)) => inputs.to_vec(),
        Err(_) => (0..graph.nodes.len()).filter(|&id| readers[id].is_empty()).collect(),
    };
    let sizes = |id: NodeId| [Some(1), Some(shapes[id].c), Some(shapes[id].h), Some(shapes[id].w)];
    writer.graph.name = "maps".into();
    writer.graph.input = vec![value_info(INPUT, &sizes(0))];
    writer.graph.output = ends.into_iter().map(|id| value_info(&values[id], &sizes(id))).collect();
    Ok(model(writer, vec![]))
}

/// The finished file.
fn model(writer: Writer, metadata_props: Vec<StringStringEntryProto>) -> Vec<u8> {
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: metadata::PRODUCER.into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(writer.graph),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: OPSET }],
        metadata_props,
    };
    model.encode_to_vec()
}

/// Writes every node but the head and returns the name of each one's value.
fn write_body(
    writer: &mut Writer,
    graph: &Graph,
    shapes: &[Shape],
    quantized: Option<&Quantized>,
) -> Result<Vec<String>> {
    let readers = graph.consumers();
    let mut values: Vec<String> = Vec::with_capacity(graph.nodes.len());
    for (id, node) in graph.nodes.iter().enumerate() {
        let inputs: Vec<&str> = node.inputs.iter().map(|&i| values[i].as_str()).collect();
        let map = quantized.and_then(|q| q.map(id));
        let bytes = quantized.map_or(Ok(None), |q| q.conv(id))?;
        let value = match &node.op {
            Op::Conv(conv) if let Some(bytes) = &bytes => quant::write_conv(writer, &node.name, conv, bytes, inputs[0]),
            Op::Act(Act::Silu) if map.is_some() => quant::write_silu(writer, &value_name(&node.name), inputs[0]),
            Op::BatchNorm(_) if graph.norm_behind(&readers, node.inputs[0]).is_some() => inputs[0].to_owned(),
            Op::Conv(conv) => write_conv(writer, &node.name, conv, graph.norm_behind(&readers, id), inputs[0]),
            op => write_op(writer, &node.name, op, &inputs, shapes[id]),
        };
        values.push(match map {
            // What an identity reads is rounded already.
            Some(affine) if node.op != Op::Act(Act::Identity) => {
                quant::rounded(writer, &value_name(&node.name), &value, affine)
            }
            _ => value,
        });
    }
    Ok(values)
}

fn write_conv(w: &mut Writer, name: &str, conv: &Conv, norm: Option<&BatchNorm>, x: &str) -> String {
    let (weight, bias) = match norm {
        Some(norm) => {
            let (weight, bias) = conv.folded(norm);
            (weight, Some(bias))
        }
        None => (conv.weight.data.clone(), conv.bias.clone()),
    };
    let weight = w.floats(&format!("{name}.weight"), &conv.weight.shape, &weight);
    let bias = bias.map(|b| w.floats(&format!("{name}.bias"), &[b.len()], &b));
    w.conv(name, conv, &[Some(x), Some(&weight), bias.as_deref()])
}

/// Any operator but a convolution; `out` is the shape of its map. Returns its value; the head has none.
fn write_op(w: &mut Writer, name: &str, op: &Op, inputs: &[&str], out: Shape) -> String {
    let value = value_name(name);
    match op {
        Op::Input { .. } => INPUT.into(),
        Op::Conv(conv) => write_conv(w, name, conv, None, inputs[0]),
        Op::BatchNorm(norm) => {
            let mut all = vec![inputs[0].to_owned()];
            let channels = norm.gamma.len();
            all.extend(op.weights().into_iter().map(|(what, v)| w.floats(&format!("{name}.{what}"), &[channels], v)));
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            w.node("BatchNormalization", &value, &all, vec![AttributeProto::float("epsilon", norm.eps)])
        }
        Op::Act(act) => write_act(w, &value, *act, inputs[0]),
        Op::Concat => w.node("Concat", &value, inputs, vec![AttributeProto::int("axis", 1)]),
        Op::Add => {
            // ONNX adds two at a time; the last sum has the node's own name.
            let mut sum = inputs[0].to_owned();
            for (i, term) in inputs.iter().enumerate().skip(1) {
                let name = if i + 1 == inputs.len() { value.clone() } else { format!("{value}.{i}") };
                sum = w.node("Add", &name, &[&sum, term], vec![]);
            }
            sum
        }
        Op::Upsample { factor } => {
            let factor = *factor as f32;
            let scales = w.floats(&format!("{name}.scales"), &[4], &[1.0, 1.0, factor, factor]);
            let attributes = vec![
                AttributeProto::string("coordinate_transformation_mode", "asymmetric"),
                AttributeProto::string("mode", "nearest"),
                AttributeProto::string("nearest_mode", "floor"),
            ];
            w.node("Resize", &value, &[inputs[0], "", &scales], attributes)
        }
        Op::PixelShuffle { factor } => {
            let attributes = vec![
                AttributeProto::int("blocksize", i64::try_from(*factor).unwrap_or(i64::MAX)),
                AttributeProto::string("mode", "CRD"),
            ];
            w.node("DepthToSpace", &value, inputs, attributes)
        }
        Op::MaxPool(pool) => {
            let [before, after] = pool.pad;
            let attributes = vec![
                AttributeProto::ints("kernel_shape", &[pool.kernel; 2]),
                AttributeProto::ints("pads", &[before, before, after, after]),
                AttributeProto::ints("strides", &[pool.stride; 2]),
            ];
            w.node("MaxPool", &value, inputs, attributes)
        }
        Op::Slice { start, len } => w.slice(&value, inputs[0], 1, *start, *len),
        Op::Attention(attention) => write_attention(w, &value, attention, inputs[0], out),
        Op::Head(_) => String::new(),
    }
}

/// Heads and areas become axes of their own beside the batch, over which `MatMul` repeats; the batch axis is never named.
fn write_attention(w: &mut Writer, value: &str, a: &Attention, x: &str, out: Shape) -> String {
    let named = |part: &str| format!("{value}.{part}");
    let (heads, areas, area) = (a.heads as i64, a.areas as i64, (out.h * out.w / a.areas) as i64);
    let x = w.reshape(&named("heads"), x, &[0, heads, a.head_channels() as i64, areas * area]);
    let [q, k, v] = a.starts(0);
    // (N, heads, channels, positions), or with areas (N, heads, areas, channels, positions of one).
    let mut part = |name: &str, start: usize, len: usize| {
        let x = w.slice(&named(name), &x, 2, start, len);
        if areas == 1 {
            return x;
        }
        let x = w.reshape(&named(&format!("{name}.cut")), &x, &[0, heads, len as i64, areas, area]);
        w.transpose(&named(&format!("{name}.areas")), &x, &[0, 1, 3, 2, 4])
    };
    let (queries, keys, values) = (part("queries", q, a.key), part("keys", k, a.key), part("values", v, a.value));
    let turned: &[usize] = if areas == 1 { &[0, 1, 3, 2] } else { &[0, 1, 2, 4, 3] };
    let queries = w.with_constant("Mul", &named("scaled"), &queries, &[], &[a.scale() as f32]);
    let queries = w.transpose(&named("rows"), &queries, turned);
    let scores = w.node("MatMul", &named("scores"), &[&queries, &keys], vec![]);
    let axis = AttributeProto::int("axis", turned.len() as i64 - 1);
    let shares = w.node("Softmax", &named("shares"), &[&scores], vec![axis]);
    let shares = w.transpose(&named("columns"), &shares, turned);
    let mut mixed = w.node("MatMul", &named("mixed"), &[&values, &shares], vec![]);
    if areas > 1 {
        mixed = w.transpose(&named("joined"), &mixed, &[0, 1, 3, 2, 4]);
    }
    w.reshape(value, &mixed, &[0, out.c as i64, out.h as i64, out.w as i64])
}

fn write_act(w: &mut Writer, value: &str, act: Act, x: &str) -> String {
    match act {
        Act::Identity => x.to_owned(),
        Act::Silu => {
            let gate = w.node("Sigmoid", &format!("{value}.sigmoid"), &[x], vec![]);
            w.node("Mul", value, &[x, &gate], vec![])
        }
        Act::Leaky => w.node("LeakyRelu", value, &[x], vec![AttributeProto::float("alpha", 0.1)]),
        Act::Mish => {
            let soft = w.node("Softplus", &format!("{value}.softplus"), &[x], vec![]);
            let gate = w.node("Tanh", &format!("{value}.tanh"), &[&soft], vec![]);
            w.node("Mul", value, &[x, &gate], vec![])
        }
        Act::Relu => w.node("Relu", value, &[x], vec![]),
        Act::Relu6 => {
            let low = w.floats(&format!("{value}.min"), &[], &[0.0]);
            let high = w.floats(&format!("{value}.max"), &[], &[6.0]);
            w.node("Clip", value, &[x, &low, &high], vec![])
        }
        Act::Sigmoid => w.node("Sigmoid", value, &[x], vec![]),
    }
}
