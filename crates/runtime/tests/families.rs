//! One small detector of every family, random weights: what it predicts, against the software it comes from; its export,
//! run by the embedded runtime, against the reference executor.

mod common;

use common::{assert_exported, predictions, raw};
use eval::{NmsConfig, detect};
use graph::reference::forward;
use graph::{Family, Graph, Tensor};
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
            compare(name, &all, &outputs[0], |i| if i / boxes < 4 { 2e-3 } else { 1e-4 });
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
