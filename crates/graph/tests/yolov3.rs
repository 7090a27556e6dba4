//! YOLOv3 as the YOLOv5 repository builds it: what small ones predict, against the repository's package.

use graph::format::ultralytics::to_bytes;
use graph::reference::forward;
use graph::{Family, Head, Op};
use testkit::{YOLOV3S, small};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn they_predict_what_the_package_does() {
    for name in YOLOV3S {
        let small = small(name);
        let graph = &small.graph;
        assert_eq!((graph.meta.family, graph.meta.imgsz), (Family::Yolov5, [64, 96]), "{name}");
        let maps = forward(graph, &small.image()).unwrap();
        let Ok((Head::Anchor(head), inputs)) = graph.head() else { panic!("{name}: no anchor head") };
        let mut ours = vec![];
        for (level, &input) in head.levels.iter().zip(inputs) {
            let map = &maps[input];
            for (a, [aw, ah]) in level.anchors.iter().enumerate() {
                for (y, x) in (0..map.shape.h).flat_map(|y| (0..map.shape.w).map(move |x| (y, x))) {
                    let s = |k: usize| sigmoid(map.at(a * (5 + head.classes) + k, y, x));
                    let centre = |t: f64, cell: usize| (2.0 * t - 0.5 + cell as f64) * level.stride as f64;
                    ours.extend([centre(s(0), x), centre(s(1), y)]);
                    ours.extend([(2.0 * s(2)).powi(2) * f64::from(*aw), (2.0 * s(3)).powi(2) * f64::from(*ah)]);
                    ours.extend((4..5 + head.classes).map(s));
                }
            }
        }
        let theirs = &small.outputs[0];
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let mut worst = [0.0_f64; 2];
        for (i, (a, b)) in ours.iter().zip(&theirs.data).enumerate() {
            let is_box = i % 8 < 4;
            let far = (a - f64::from(*b)).abs();
            worst[usize::from(is_box)] = worst[usize::from(is_box)].max(far);
            assert!(far < if is_box { 2e-3 } else { 1e-4 }, "{name}, value {i}: {a}, the package has {b}");
        }
        println!("{name}: probabilities differ by {:.1e}, boxes by {:.1e} pixels", worst[0], worst[1]);
    }
}

/// Zeros win over what is negative, so the tiny one's padding before its last pool is not the pool's own.
#[test]
fn the_padding_of_the_tiny_one_counts_in_its_pool() {
    let small = small("yolov3-tiny");
    let maps = forward(&small.graph, &small.image()).unwrap();
    let padded = small.graph.nodes.iter().position(|n| n.name == "model.11").expect("the padding");
    let Op::Conv(conv) = &small.graph.nodes[padded].op else { panic!("no convolution") };
    assert!(conv.is_depthwise() && conv.pad == [1, 1] && conv.kernel() == [2, 2]);
    let (before, after) = (&maps[small.graph.nodes[padded].inputs[0]], &maps[padded]);
    let (h, w) = (before.shape.h, before.shape.w);
    assert_eq!((after.shape.h, after.shape.w), (h + 1, w + 1));
    for c in 0..after.shape.c {
        for (y, x) in (0..=h).flat_map(|y| (0..=w).map(move |x| (y, x))) {
            let want = if y < h && x < w { before.at(c, y, x) } else { 0.0 };
            assert!((after.at(c, y, x) - want).abs() < 1e-12, "{c} {y} {x}");
        }
    }
    assert!(before.data.iter().any(|&v| v < 0.0), "nothing is negative, so nothing was tested");
}

/// `to_bytes` reads back what it writes and compares.
#[test]
fn they_can_be_written_as_checkpoints_again() {
    for name in YOLOV3S {
        let (_, written) = to_bytes(&small(name).graph, "x.pt".as_ref()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(written.padded, [], "{name}");
    }
}
