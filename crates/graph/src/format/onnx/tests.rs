//! What an exported file holds: weights with the normalisation folded in, and its properties.

use std::path::Path;

use prost::Message;

use crate::build::Yolov5;
use crate::{Family, Graph, Op};

use super::proto::{FLOAT, ModelProto};
use super::{ExportOptions, Metadata, export, read_metadata};

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
    let proto = ModelProto::decode(export(&detector(), &OPTIONS).unwrap().as_slice()).unwrap().graph.unwrap();
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

#[test]
fn says_what_it_is() {
    let graph = detector();
    let read = read_metadata(Path::new("x.onnx"), &export(&graph, &OPTIONS).unwrap()).unwrap();
    let expected = Metadata {
        producer: "prunella".into(),
        names: graph.meta.names,
        stride: Some(32),
        imgsz: Some([96, 64]),
        task: Some("detect".into()),
        family: Some(Family::Yolov5),
        end_to_end: false,
    };
    assert_eq!(read, expected);
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
