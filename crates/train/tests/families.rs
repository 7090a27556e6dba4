//! The executor on one small detector of every family, against the slow reference; which of them can be trained.

use graph::reference::forward;
use testkit::{FAMILIES, small};
use train::evaluate::Detector;
use train::loss::Criterion;
use train::net::Infer;

#[test]
fn inference_agrees_with_the_reference() {
    for name in FAMILIES {
        let small = small(name);
        let shape = small.image().shape;
        let pixels: Vec<u8> = (0..shape.h * shape.w)
            .flat_map(|p| (0..3).map(move |c| c * shape.h * shape.w + p))
            .map(|i| small.images.outer(0)[i] as u8)
            .collect();
        let maps = forward(&small.graph, &small.image()).unwrap();
        let ours = Infer::new(&small.graph, [shape.h, shape.w]).unwrap().run(&pixels, 1).unwrap();
        let (_, inputs) = small.graph.head().unwrap();
        for (&id, map) in inputs.iter().zip(&ours) {
            let expected = &maps[id];
            let plane = map.h * map.w;
            let scale = expected.data.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
            for (i, &v) in map.data.iter().enumerate() {
                let want = expected.data[i % map.c * plane + i / map.c];
                let far = (f64::from(v) - want).abs();
                assert!(far < 1e-4 * scale, "{name}, map {id}, value {i}: {v}, the reference has {want}");
            }
        }
    }
}

#[test]
fn heads_without_a_loss_are_refused_in_words() {
    for name in FAMILIES {
        let graph = small(name).graph;
        let head = graph.head().unwrap().0;
        let refused = Criterion::of(head, 640).err().map(|e| e.to_string());
        assert_eq!(refused.is_some(), head.extra().is_some(), "{name}: {refused:?}");
        let reason = head.extra().map_or("", graph::Extra::name);
        assert!(refused.is_none_or(|e| e.contains(reason)), "{name}");
    }
}

#[test]
fn turned_boxes_are_not_taken_for_upright_ones() {
    for name in FAMILIES {
        let graph = small(name).graph;
        let turned = graph.head().unwrap().0.extra() == Some(graph::Extra::Angle);
        let refused = Detector::new(&graph, 64).err().map(|e| e.to_string());
        assert_eq!(refused.is_some(), turned, "{name}: {refused:?}");
    }
}
