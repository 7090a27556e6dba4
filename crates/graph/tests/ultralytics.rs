//! Real Ultralytics checkpoints: what they decode to, against the predictions of the software that trained them.

use std::path::Path;

use graph::format::{LoadOptions, load};
use graph::reference::{Map, forward};
use graph::{Family, Graph, Head, Op, Shape, cost};
use testkit::{shared, tensors};

fn open(path: &Path) -> Graph {
    load(path, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Order of the bytes behind `images_u8`, whose header says (N, C, H, W) in every golden.
#[derive(PartialEq)]
enum Bytes {
    /// As the header says.
    Planes,
    /// Pixel by pixel, (N, H, W, C): the array was a transposed view when it was saved.
    Pixels,
}

/// Image 0 of a golden batch and what the reference predicts for it.
fn golden(dir: &Path, bytes: Bytes) -> (Map, Vec<f32>) {
    let batch = tensors(&dir.join("batch.safetensors"));
    let [_, c, h, w] = batch["images_u8"].shape[..] else { panic!("no batch of images") };
    let image = batch["images_u8"].outer(0);
    let value = |i: usize| if bytes == Bytes::Planes { image[i] } else { image[i % (h * w) * c + i / (h * w)] };
    let data = (0..image.len()).map(|i| f64::from(value(i)) / 255.0).collect();
    (Map { shape: Shape { c, h, w }, data }, batch["predictions"].outer(0).to_vec())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Asserts boxes within `pixels` and probabilities within 1e-4; `is_box` tells which an index is.
fn compare(ours: &[f64], theirs: &[f32], pixels: f64, is_box: impl Fn(usize) -> bool) {
    assert_eq!(ours.len(), theirs.len());
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let tolerance = if is_box(i) { pixels } else { 1e-4 };
        assert!((a - f64::from(*b)).abs() < tolerance, "prediction {i}: {a}, the reference has {b}");
    }
}

#[test]
fn yolov5n_predicts_what_the_reference_does() {
    let Some(shared) = shared() else { return };
    let graph = open(&shared.join("weights/yolov5n/yolov5n.pt"));
    assert_eq!(graph.meta.family, Family::Yolov5);
    assert_eq!((graph.meta.names.len(), graph.meta.names[0].as_str()), (80, "person"));
    let cost = cost::total(&graph, [640, 640]).unwrap();
    assert_eq!(cost.params, 1_872_157);
    for name in ["model.0.conv", "model.0.bn", "model.0.act", "model.2.cat", "model.2.m.0.add", "model.24.m.0"] {
        assert!(graph.nodes.iter().any(|n| n.name == name), "no node `{name}`");
    }

    let (image, theirs) = golden(&shared.join("golden/yolov5n"), Bytes::Planes);
    let maps = forward(&graph, &image).unwrap();
    let Ok((Head::Anchor(head), inputs)) = graph.head() else { panic!("no anchor head") };
    let mut ours = Vec::new();
    for (level, &input) in head.levels.iter().zip(inputs) {
        let map = &maps[input];
        for (a, [aw, ah]) in level.anchors.iter().enumerate() {
            for y in 0..map.shape.h {
                for x in 0..map.shape.w {
                    let s = |k: usize| sigmoid(map.at(a * (5 + head.classes) + k, y, x));
                    let centre = |t: f64, cell: usize| (2.0 * t - 0.5 + cell as f64) * level.stride as f64;
                    ours.extend([centre(s(0), x), centre(s(1), y)]);
                    ours.extend([(2.0 * s(2)).powi(2) * f64::from(*aw), (2.0 * s(3)).powi(2) * f64::from(*ah)]);
                    ours.extend((4..5 + head.classes).map(s));
                }
            }
        }
    }
    compare(&ours, &theirs, 1e-3, |i| i % 85 < 4);
}

#[test]
fn yolov8n_predicts_what_the_reference_does() {
    let Some(shared) = shared() else { return };
    let graph = open(&shared.join("weights/yolov8n/yolov8n-rail.pt"));
    assert_eq!(graph.meta.family, Family::Yolov8);
    assert_eq!(graph.meta.names, ["Animal", "Car", "Person", "Rock", "Trash", "Tree"]);
    assert_eq!(graph.meta.imgsz, [640, 640]);

    // The reference computes in f32; one of the 8,400 box values is 1.44e-3 pixels off, all others less than 1e-3.
    compare_dfl(&graph, &shared.join("golden/yolov8n"), 2e-3);
}

/// Compares what a distribution head predicts for a golden's first image, boxes within `pixels`.
fn compare_dfl(graph: &Graph, dir: &Path, pixels: f64) {
    let (image, theirs) = golden(dir, Bytes::Pixels);
    let maps = forward(graph, &image).unwrap();
    let Ok((Head::Dfl(head), inputs)) = graph.head() else { panic!("no DFL head") };
    let mut rows = vec![Vec::new(); 4 + head.classes];
    for (&stride, pair) in head.strides.iter().zip(inputs.chunks_exact(2)) {
        let (boxes, logits) = (&maps[pair[0]], &maps[pair[1]]);
        for y in 0..boxes.shape.h {
            for x in 0..boxes.shape.w {
                let side = |side: usize| {
                    let weight = |bin: usize| boxes.at(side * head.reg_max + bin, y, x).exp();
                    let total: f64 = (0..head.reg_max).map(weight).sum();
                    (0..head.reg_max).map(|bin| bin as f64 * weight(bin)).sum::<f64>() / total
                };
                let (l, t, r, b) = (side(0), side(1), side(2), side(3));
                let s = stride as f64;
                rows[0].push((x as f64 + 0.5 + (r - l) / 2.0) * s);
                rows[1].push((y as f64 + 0.5 + (b - t) / 2.0) * s);
                rows[2].push((l + r) * s);
                rows[3].push((t + b) * s);
                for c in 0..head.classes {
                    rows[4 + c].push(sigmoid(logits.at(c, y, x)));
                }
            }
        }
    }
    let anchors = rows[0].len();
    compare(&rows.concat(), &theirs, pixels, |i| i / anchors < 4);
}

#[test]
fn yolo11n_predicts_what_the_reference_does() {
    let Some(shared) = shared() else { return };
    let graph = open(&shared.join("weights/yolo11n/yolo11n-ball.pt"));
    assert_eq!(graph.meta.family, Family::Yolo11);
    assert_eq!(graph.meta.names.len(), 1);
    for name in ["model.10.m.0.attn.attention", "model.10.m.0.attn.pe.conv", "model.10.m.0.add1", "model.10.cat"] {
        assert!(graph.nodes.iter().any(|n| n.name == name), "no node `{name}`");
    }
    let depthwise = |n: &graph::Node| matches!(&n.op, Op::Conv(c) if c.is_depthwise());
    assert!(graph.nodes.iter().any(|n| n.name.starts_with("model.23.cv3.0.0") && depthwise(n)), "class branches");
    compare_dfl(&graph, &shared.join("golden/yolo11n"), 1e-3);
}

#[test]
fn only_the_first_node_is_an_input() {
    let Some(shared) = shared() else { return };
    let graph = open(&shared.join("weights/yolov5n/yolov5n.pt"));
    assert_eq!(graph.nodes[0].op, Op::Input { channels: 3 });
}
