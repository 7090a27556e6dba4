//! Detectors built by name against the same detectors loaded from the checkpoints of the software that publishes them.

use graph::build::Design;
use graph::format::ultralytics::to_bytes;
use graph::format::{LoadOptions, load};
use graph::{Graph, Node, NodeId, Op};
use testkit::shared;

/// What a graph is apart from the values of its weights, node by node; where `without` names one, as if it were not there.
fn structure(graph: &Graph, without: Option<&str>) -> Vec<String> {
    let blank = |op: &Op| {
        let mut op = op.clone();
        op.weights_mut().into_iter().for_each(|(_, values)| values.iter_mut().for_each(|v| *v = 0.0));
        format!("{op:?}")
    };
    let left_out = |id: NodeId| without == Some(graph.nodes[id].name.as_str());
    let read = |id: NodeId| &graph.nodes[if left_out(id) { graph.nodes[id].inputs[0] } else { id }].name;
    let told = |node: &Node| {
        format!("{} {:?} {}", node.name, node.inputs.iter().map(|&i| read(i)).collect::<Vec<_>>(), blank(&node.op))
    };
    (0..graph.nodes.len()).filter(|&id| !left_out(id)).map(|id| told(&graph.nodes[id])).collect()
}

#[test]
fn built_is_what_is_loaded() {
    let Some(shared) = shared() else { return };
    // Two of these were trained by early versions of ultralytics 8.4, which left out an activation that the versions before
    // and after them have.
    for (name, file, without) in [
        ("yolov5n", "weights/yolov5n/yolov5n.pt", None),
        ("yolov8n", "weights/yolov8n/yolov8n-rail.pt", Some("model.9.cv1.act")),
        ("yolo11n", "weights/yolo11n/yolo11n-ball.pt", Some("model.9.cv1.act")),
    ] {
        let loaded = load(&shared.join(file), &LoadOptions::default()).unwrap();
        let design = Design::named(name).expect("it is listed");
        let built = design.build(&loaded.meta.names, loaded.meta.imgsz[0], 0).unwrap();
        assert_eq!(built.meta, loaded.meta, "{name}");
        let (built, loaded) = (structure(&built, without), structure(&loaded, None));
        for (i, (ours, theirs)) in built.iter().zip(&loaded).enumerate() {
            assert!(ours == theirs, "{name}, node {i}: built {ours:.400}\nloaded {theirs:.400}");
        }
        assert_eq!(built.len(), loaded.len(), "{name}");
    }
}

/// `to_bytes` reads back what it writes and compares, so that it succeeds says that all nodes are there.
#[test]
fn built_detectors_can_be_written_as_checkpoints() {
    let names: Vec<String> = ["a", "b"].map(Into::into).to_vec();
    for name in ["yolov5n", "yolov5nu", "yolov8n", "yolo11n"] {
        let graph = Design::named(name).expect("it is listed").build(&names, 64, 1).unwrap();
        let (_, written) = to_bytes(&graph, "x.pt".as_ref()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(written.padded, [], "{name}");
    }
}

/// The published file has its BatchNorms folded in, so what is compared are the convolutions and the
/// sizes of their maps, in no order.
#[test]
fn built_yolox_has_the_convolutions_of_the_published_one() {
    let Some(shared) = shared() else { return };
    let folder = std::fs::read_dir(shared.join("weights/yolox-nano")).unwrap();
    let file = folder.map(|f| f.unwrap().path()).find(|f| f.extension().is_some_and(|e| e == "onnx")).unwrap();
    let published = load(&file, &LoadOptions::default()).unwrap();
    let built = Design::named("yolox-nano").expect("it is listed").build(&published.meta.names, 416, 0).unwrap();
    assert_eq!(built.meta.imgsz, published.meta.imgsz);
    assert_eq!(built.head().unwrap().0, published.head().unwrap().0);
    let convolutions = |graph: &Graph| {
        let shapes = graph.shapes(graph.meta.imgsz).unwrap();
        let conv = |(id, node): (usize, &Node)| match &node.op {
            Op::Conv(c) => Some((c.weight.shape.clone(), c.stride, c.pad, c.groups, shapes[id])),
            _ => None,
        };
        let mut all: Vec<_> = graph.nodes.iter().enumerate().filter_map(conv).map(|c| format!("{c:?}")).collect();
        all.sort();
        all
    };
    assert_eq!(convolutions(&built), convolutions(&published));
}
