//! What an exported file holds: weights with the normalisation folded in, and its properties.

use std::path::Path;

use prost::Message;

use crate::build::Yolov5;
use crate::quant::{Affine, Quantized, folded, sites};
use crate::reference::{Map, forward};
use crate::{Conv, Family, Graph, Op, Shape, Tensor};

use super::proto::{
    AttributeProto, FLOAT, GraphProto, INT8, INT32, ModelProto, NodeProto, StringStringEntryProto, TensorProto, UINT8,
};
use super::{ExportOptions, Metadata, export, export_quantized, load, read_metadata};

const OPTIONS: ExportOptions = ExportOptions { imgsz: [96, 64], batch: 1, dynamic_batch: false };

fn detector() -> Graph {
    let names = vec!["driver's seat".into(), "a\\b, \"c\": {}".into(), "löwe".into()];
    Yolov5 { names, imgsz: 64, width: 0.125, depth: 0.33, seed: 1 }.build().unwrap()
}

#[test]
fn holds_every_weight_once_and_no_normalisation() {
    let graph = detector();
    let model = ModelProto::decode(export(&graph, &OPTIONS).unwrap().as_slice()).unwrap();
    let proto = model.graph.unwrap();
    assert!(proto.node.iter().all(|n| n.op_type != "BatchNormalization"));

    // A folded convolution has its weights and one bias a filter, whether or not it had one.
    let convs = || graph.nodes.iter().filter_map(|n| if let Op::Conv(c) = &n.op { Some(c) } else { None });
    let expected: usize = convs().map(|c| c.weight.len() + c.out_channels()).sum();
    let weights: Vec<_> = proto.initializer.iter().filter(|t| !t.name.starts_with('/')).collect();
    let parameters = |t: &&&super::proto::TensorProto| t.name.ends_with(".weight") || t.name.ends_with(".bias");
    let held: i64 = weights.iter().filter(parameters).map(|t| t.dims.iter().product::<i64>()).sum();
    assert_eq!(held as usize, expected);
    for tensor in proto.initializer.iter().filter(|t| t.data_type == FLOAT) {
        assert_eq!(tensor.raw_data.len() as i64, 4 * tensor.dims.iter().product::<i64>(), "{}", tensor.name);
    }
}

#[test]
fn every_value_has_one_writer_before_its_readers() {
    for bytes in [export(&detector(), &OPTIONS).unwrap(), export_quantized(&quantized(), &OPTIONS).unwrap()] {
        written_before_read(&bytes);
    }
}

fn written_before_read(bytes: &[u8]) {
    let proto = ModelProto::decode(bytes).unwrap().graph.unwrap();
    let mut known = std::collections::HashSet::from(["images", ""]);
    for tensor in &proto.initializer {
        assert!(known.insert(&tensor.name), "{} twice", tensor.name);
    }
    for node in &proto.node {
        assert!(node.input.iter().all(|i| known.contains(i.as_str())), "{} reads {:?}", node.name, node.input);
        assert!(node.output.iter().all(|o| known.insert(o)), "{} writes {:?}", node.name, node.output);
    }
    assert!(known.contains("output0"));
}

/// [`detector`] in eight bits, with scales out of thin air.
fn quantized() -> Quantized {
    let (graph, _) = folded(&detector());
    let maps = sites(&graph).into_iter().map(|s| s.map(|_| Affine::covering(-2.0, 3.0).unwrap())).collect();
    Quantized::new(graph, maps).unwrap()
}

#[test]
fn in_eight_bits_every_convolution_reads_bytes() {
    let quantized = quantized();
    let proto = ModelProto::decode(export_quantized(&quantized, &OPTIONS).unwrap().as_slice()).unwrap().graph.unwrap();
    let writer = |value: &str| proto.node.iter().find(|n| n.output[0] == value);
    let tensor = |name: &str| proto.initializer.iter().find(|t| t.name == name);
    let axis = |n: &NodeProto| n.attribute.iter().find(|a| a.name == "axis").and_then(|a| a.i);
    let (mut convs, mut in_float) = (0, 0);
    for conv in proto.node.iter().filter(|n| n.op_type == "Conv") {
        convs += 1;
        let [map, weight, bias] = [0, 1, 2].map(|i| writer(&conv.input[i]));
        let (map, weight) = (map.unwrap(), weight.unwrap());
        assert_eq!([&map.op_type, &weight.op_type], ["DequantizeLinear"; 2], "{}", conv.name);
        assert_eq!(writer(&map.input[0]).unwrap().op_type, "QuantizeLinear", "{}", conv.name);
        assert_eq!(tensor(&map.input[2]).unwrap().data_type, UINT8, "{}", conv.name);
        let bytes = tensor(&weight.input[0]).unwrap();
        let scales = tensor(&weight.input[1]).unwrap();
        assert_eq!((bytes.data_type, scales.dims[0], axis(weight)), (INT8, bytes.dims[0], Some(0)));
        let read_by = |value: &str| -> Vec<&str> {
            proto.node.iter().filter(|n| n.input.iter().any(|i| i == value)).map(|n| n.op_type.as_str()).collect()
        };
        match bias {
            // The scale of a bias is that of the products.
            Some(bias) => {
                assert_eq!((bias.op_type.as_str(), axis(bias)), ("DequantizeLinear", Some(0)));
                assert_eq!(tensor(&bias.input[0]).unwrap().data_type, INT32);
                let floats = |t: &TensorProto| -> Vec<f32> {
                    t.raw_data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
                };
                let input = floats(tensor(&map.input[1]).unwrap())[0];
                let products: Vec<f32> = floats(scales).iter().map(|s| s * input).collect();
                assert_eq!(floats(tensor(&bias.input[1]).unwrap()), products, "{}", conv.name);
                assert_eq!(read_by(&conv.output[0]), ["QuantizeLinear"], "{}", conv.name);
            }
            None => {
                in_float += 1;
                assert_eq!(read_by(&conv.output[0]), ["Reshape"], "{}", conv.name);
            }
        }
    }
    assert_eq!((convs, in_float), (60, 3));
    // What moves values about has the same scale on both sides.
    for node in proto.node.iter().filter(|n| matches!(n.op_type.as_str(), "MaxPool" | "Resize" | "Concat")) {
        let Some(out) = proto.node.iter().find(|n| n.op_type == "QuantizeLinear" && n.input[0] == node.output[0])
        else {
            continue;
        };
        for input in node.input.iter().filter_map(|i| writer(i)) {
            for k in [1, 2] {
                let [a, b] = [&input.input[k], &out.input[k]].map(|name| &tensor(name).unwrap().raw_data);
                assert_eq!(a, b, "{}", node.name);
            }
        }
    }
}

#[test]
fn says_what_it_is() {
    let graph = detector();
    let read = read_metadata(Path::new("x.onnx"), &export(&graph, &OPTIONS).unwrap()).unwrap();
    let expected = Metadata {
        names: graph.meta.names,
        imgsz: Some([96, 64]),
        task: Some("detect".into()),
        family: Some(Family::Yolov5),
        end_to_end: false,
        selected: false,
    };
    assert_eq!(read, expected);
}

#[test]
fn boxes_that_are_selected_already_are_told() {
    for (key, value, selected) in [
        ("end2end", "True", true),
        ("end2end", "False", false),
        ("args", "{'batch': 1, 'nms': True}", true),
        ("args", "{'batch': 1, 'nms': False}", false),
        // Not a number, and nobody's business.
        ("stride", "32.0", false),
    ] {
        let property = StringStringEntryProto { key: key.into(), value: value.into() };
        let graph = Some(GraphProto::default());
        let model = ModelProto { metadata_props: vec![property], graph, ..ModelProto::default() };
        let read = read_metadata(Path::new("x.onnx"), &model.encode_to_vec()).unwrap();
        assert_eq!(read.selected, selected, "{key}: {value}");
    }
}

#[test]
fn refuses_what_it_cannot_export() {
    let graph = detector();
    let odd = export(&graph, &ExportOptions { imgsz: [96, 50], ..OPTIONS }).unwrap_err();
    assert!(format!("{odd:?}").contains("multiple of 32"), "{odd:?}");
    let none = export(&graph, &ExportOptions { batch: 0, ..OPTIONS }).unwrap_err();
    assert!(none.to_string().contains("batch of 0"), "{none}");
    let headless = Graph { nodes: graph.nodes[..4].to_vec(), ..graph };
    assert!(export(&headless, &OPTIONS).unwrap_err().to_string().contains("head"));
}

#[test]
fn a_damaged_file_is_an_error() {
    let bytes = export(&detector(), &OPTIONS).unwrap();
    for length in [0, 1, 100, bytes.len() / 2] {
        let error = read_metadata(Path::new("x.onnx"), &bytes[..length]).unwrap_err();
        assert!(error.to_string().contains("x.onnx"), "{error}");
    }
}

/// [`detector`] with transposed convolutions in place of its upsampling.
fn transposing() -> Graph {
    let old = detector();
    let shapes = old.shapes(old.meta.imgsz).unwrap();
    let mut graph = Graph { nodes: vec![], meta: old.meta };
    let mut place = vec![];
    for node in old.nodes {
        let inputs = node.inputs.iter().map(|&i| place[i]).collect();
        place.push(match node.op {
            Op::Upsample { factor } => {
                let c = shapes[node.inputs[0]].c;
                let weight = (0..c * c * factor * factor).map(|i| (i % 17) as f32 / 64.0 - 0.1).collect::<Vec<_>>();
                let bias: Vec<f32> = (0..c).map(|i| i as f32 / 8.0).collect();
                let conv = Conv::unfolding(&Tensor::new([c, c, factor, factor], weight), Some(&bias), factor);
                let conv = graph.push(format!("{}.0", node.name), Op::Conv(conv), inputs);
                graph.push(format!("{}.1", node.name), Op::PixelShuffle { factor }, vec![conv])
            }
            op => graph.push(node.name, op, inputs),
        });
    }
    graph.validate().unwrap();
    graph
}

/// Dimensions and values of a tensor from those of another.
type Change = dyn Fn(&[i64], &[[u8; 4]]) -> (Vec<i64>, Vec<u8>);

/// Rewrites every 1x1 convolution before a `DepthToSpace` as the `ConvTranspose` that does the same.
fn with_conv_transpose(bytes: &[u8]) -> Vec<u8> {
    let mut model = ModelProto::decode(bytes).unwrap();
    let proto = model.graph.as_mut().unwrap();
    while let Some(at) = proto.node.iter().position(|n| n.op_type == "DepthToSpace") {
        let shuffle = proto.node.remove(at);
        let conv = proto.node.iter_mut().find(|n| n.output == shuffle.input).unwrap();
        let mut tensor = |input: usize, change: &Change| {
            let held = proto.initializer.iter_mut().find(|t| t.name == conv.input[input]).unwrap();
            (held.dims, held.raw_data) = change(&held.dims, held.raw_data.as_chunks().0);
        };
        tensor(1, &|dims, values| {
            let [o, i] = [dims[0] as usize, dims[1] as usize];
            let turned = (0..i * o).flat_map(|k| values[k % o * i + k / o]).collect();
            (vec![dims[1], dims[0] / 4, 2, 2], turned)
        });
        tensor(2, &|dims, values| (vec![dims[0] / 4], values.iter().step_by(4).flatten().copied().collect()));
        conv.op_type = "ConvTranspose".into();
        conv.attribute = vec![AttributeProto::ints("kernel_shape", &[2, 2]), AttributeProto::ints("strides", &[2, 2])];
        conv.output = shuffle.output;
    }
    model.encode_to_vec()
}

#[test]
fn a_transposed_convolution_is_read_as_its_parts() {
    let graph = transposing();
    let image = Map {
        shape: Shape { c: 3, h: 96, w: 64 },
        data: (0..3 * 96 * 64).map(|i| f64::from(i % 101) / 101.0).collect(),
    };
    let maps = |graph: &Graph| {
        let maps = forward(graph, &image).unwrap();
        graph.head().unwrap().1.iter().flat_map(|&i| maps[i].data.clone()).collect::<Vec<f64>>()
    };
    let expected = maps(&graph);
    let own = export(&graph, &OPTIONS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("own", own.clone()), ("transposed", with_conv_transpose(&own))] {
        let count = |op: &str| {
            ModelProto::decode(&bytes[..]).unwrap().graph.unwrap().node.iter().filter(|n| n.op_type == op).count()
        };
        assert_eq!((count("DepthToSpace"), count("ConvTranspose")), if name == "own" { (2, 0) } else { (0, 2) });
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let read = load(&path).unwrap();
        let found = maps(&read);
        assert_eq!(found.len(), expected.len(), "{name}");
        let worst =
            found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, testkit::larger);
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

#[test]
fn a_transposed_convolution_whose_windows_overlap_is_refused() {
    let mut model = ModelProto::decode(&with_conv_transpose(&export(&transposing(), &OPTIONS).unwrap())[..]).unwrap();
    for node in model.graph.as_mut().unwrap().node.iter_mut().filter(|n| n.op_type == "ConvTranspose") {
        node.attribute.push(AttributeProto::ints("pads", &[1, 1, 0, 0]));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("padded.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let refused = load(&path).unwrap_err().to_string();
    assert!(refused.contains("transposed convolution"), "{refused}");
}
