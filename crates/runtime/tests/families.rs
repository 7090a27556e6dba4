//! One small detector of every family, random weights: what it predicts, against the software it comes from; its export,
//! run by the embedded runtime, against the reference executor.

mod common;

use common::{assert_exported, predictions, raw};
use eval::{NmsConfig, detect};
use graph::format::onnx::{ExportOptions, export};
use graph::reference::forward;
use graph::{Extra, Family, Graph, Tensor};
use testkit::{FAMILIES, Small, small};

/// Boxes as (x1, y1, x2, y2, score, class), best first: every one, as the end-to-end heads give them.
fn selected(graph: &Graph, maps: &[graph::reference::Map], boxes: usize) -> Vec<[f64; 6]> {
    let (head, inputs) = graph.head().unwrap();
    assert!(head.end_to_end());
    let dense = raw(maps, inputs);
    let views: Vec<_> = dense.iter().map(|m| m.view()).collect();
    // An overlap of nought would leave one box a class, had the head to be suppressed.
    let config = NmsConfig { conf: 0.0, iou: 0.0, max_det: boxes, multi_label: true };
    let row = |d: &eval::Detection| {
        let [x1, y1, x2, y2] = d.bbox.map(f64::from);
        [x1, y1, x2, y2, f64::from(d.score), d.class as f64]
    };
    detect(head, &views, &config)[0].iter().map(row).collect()
}

/// Asserts values within `tolerance(index)`.
fn compare(name: &str, ours: &[f64], theirs: &Tensor, tolerance: impl Fn(usize) -> f64) {
    assert_eq!(ours.len(), theirs.len(), "{name}: {:?}", theirs.shape);
    let mut worst: f64 = 0.0;
    for (i, (a, b)) in ours.iter().zip(&theirs.data).enumerate() {
        let far = (a - f64::from(*b)).abs();
        worst = worst.max(far);
        assert!(far < tolerance(i), "{name}: value {i} of {:?} is {a}, the reference has {b}", theirs.shape);
    }
    println!("{name}: largest difference {worst:.2e}");
}

#[test]
fn every_family_predicts_what_the_reference_does() {
    for name in FAMILIES {
        let Small { graph, outputs, .. } = &small(name);
        let maps = forward(graph, &small(name).image()).unwrap();
        if graph.head().unwrap().0.end_to_end() {
            let rows = selected(graph, &maps, outputs[0].shape[1]);
            // Pixels for the four sides; the class is exact.
            compare(name, &rows.concat(), &outputs[0], |i| if i % 6 < 4 { 2e-3 } else { 1e-4 });
        } else {
            let all: Vec<f64> = predictions(graph, &maps).into_iter().map(f64::from).collect();
            let boxes = outputs[0].shape[2];
            let (rows, prototypes) = all.split_at(outputs[0].len());
            // Boxes and keypoints are in pixels, as is the sum that a mask is made of in its own unit.
            let pixels = |row: usize| row < 4 || row >= 4 + graph.meta.names.len();
            compare(name, rows, &outputs[0], |i| if pixels(i / boxes) { 2e-3 } else { 1e-4 });
            assert_eq!(prototypes.is_empty(), outputs.len() == 1, "{name}");
            if let Some(theirs) = outputs.get(1) {
                compare(name, prototypes, theirs, |_| 1e-4);
            }
        }
    }
}

#[test]
fn families_are_told_apart() {
    for (name, family) in [
        ("yolov6", Family::Yolov6),
        ("yolov9", Family::Yolov9),
        ("yolov9e", Family::Yolov9),
        ("yolov10", Family::Yolov10),
        ("yolo12", Family::Yolo12),
        ("yolo26", Family::Yolo26),
        ("yolov8-seg", Family::Yolov8),
        ("yolov8-obb", Family::Yolov8),
        ("yolo11-seg", Family::Yolo11),
        ("yolo11-obb", Family::Yolo11),
    ] {
        let graph = small(name).graph;
        assert_eq!(graph.meta.family, family, "{name}");
        assert_eq!((graph.meta.names.join(" ").as_str(), graph.meta.imgsz), ("red green blue", [64, 96]), "{name}");
    }
}

#[test]
fn exports_are_what_the_reference_computes() {
    for name in FAMILIES {
        println!("{name}");
        assert_exported(&small(name).graph, [64, 96], 2e-3);
    }
}

#[test]
fn what_is_told_beside_a_box_is_read_from_the_file() {
    for (name, extra) in [
        ("yolov6", None),
        ("yolov8-seg", Some(Extra::Masks { prototypes: 6 })),
        ("yolov8-pose", Some(Extra::Keypoints { points: 4, values: 2 })),
        ("yolo11-pose", Some(Extra::Keypoints { points: 3, values: 3 })),
        ("yolov8-obb", Some(Extra::Angle)),
        ("yolo11-seg", Some(Extra::Masks { prototypes: 5 })),
        ("yolo11-obb", Some(Extra::Angle)),
    ] {
        assert_eq!(small(name).graph.head().unwrap().0.extra(), extra, "{name}");
    }
}

/// Only their own exports: nothing here makes a graph of such a file again.
#[test]
fn exports_with_more_than_boxes_are_refused_as_graphs() {
    let graph = small("yolov8-seg").graph;
    let folder = testkit::unpacked("yolov8-seg");
    let path = folder.path().join("seg.onnx");
    let bytes = export(&graph, &ExportOptions { imgsz: [64, 96], batch: 1, dynamic_batch: false }).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let refused = graph::format::load(&path, &Default::default()).unwrap_err().to_string();
    assert!(refused.contains("task `segment`"), "{refused}");
}
