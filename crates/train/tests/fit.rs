//! Fitting heads to other classes: what is kept, what starts anew, and from which prior.

use data::Target;
use graph::build::Design;
use graph::format::{LoadOptions, load};
use graph::{Conv, Graph, Head, Op};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use train::fit_classes;
use train::loss::{Criterion, RawMap};

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.into()).collect()
}

fn built(design: &str, names: &[&str]) -> Graph {
    Design::named(design).expect("it is listed").build(&strings(names), 64, 5).unwrap()
}

fn fitted(graph: &Graph, names: &[&str]) -> Graph {
    let fitted = fit_classes(graph, &strings(names), &mut ChaCha8Rng::seed_from_u64(9)).unwrap();
    assert_eq!(fitted.meta.names, names);
    fitted
}

/// The last convolution of every map the head reads.
fn last(graph: &Graph) -> Vec<&Conv> {
    let conv = |&id: &usize| if let Op::Conv(conv) = &graph.nodes[id].op { conv } else { panic!("no convolution") };
    graph.head().unwrap().1.iter().map(conv).collect()
}

fn row(conv: &Conv, row: usize) -> (&[f32], f32) {
    (conv.weight.outer(row), conv.bias.as_ref().unwrap()[row])
}

/// A single class is certain in YOLOv5's prior, and stays so: its loss never touches the class, so that a prior of a rare one
/// would keep every score near zero for good.
#[test]
fn a_single_class_of_an_anchor_head_is_certain() {
    let graph = built("yolov5n", &["red", "white", "platelet"]);
    let one = fitted(&graph, &["cell"]);
    for (before, after) in last(&graph).into_iter().zip(last(&one)) {
        assert_eq!(after.out_channels(), 3 * 6);
        for anchor in 0..3 {
            for k in 0..5 {
                assert_eq!(row(after, 6 * anchor + k), row(before, 8 * anchor + k), "box and objectness are kept");
            }
            let (weight, bias) = row(after, 6 * anchor + 5);
            assert!((f64::from(bias) - (0.6_f64 / 1e-5).ln()).abs() < 1e-4, "{bias}");
            // Whatever the maps are, within the reach of fresh weights the class is as good as told.
            assert!(weight.iter().all(|w| w.abs() <= 1.0 / (weight.len() as f32).sqrt()));
            assert!(1.0 / (1.0 + (-bias).exp()) > 0.9999);
        }
    }
    // The same as a detector of one class starts from, within what its bias is drawn from.
    let started = built("yolov5n", &["cell"]);
    for (fitted, started) in last(&one).into_iter().zip(last(&started)) {
        let reach = 1.0 / (started.weight.shape[1] as f32).sqrt();
        assert!((row(fitted, 5).1 - row(started, 5).1).abs() <= reach + 1e-4);
    }
    let head = one.head().unwrap().0.clone();
    let data: Vec<Vec<f32>> = [8, 4, 2].map(|side| vec![0.1; side * side * 18]).to_vec();
    let maps: Vec<RawMap> =
        data.iter().zip([8, 4, 2]).map(|(data, side)| RawMap { n: 1, h: side, w: side, c: 18, data }).collect();
    let targets = [Target { image: 0, class: 0, bbox: [0.5, 0.5, 0.4, 0.5] }];
    let loss = Criterion::of(&head, 64).unwrap().evaluate(&head, &maps, &targets).unwrap();
    assert!(loss.value.parts[0].1 > 0.0, "an object is matched");
    let of_class = loss.grads.iter().flat_map(|g| g.iter().skip(5).step_by(6));
    assert!(of_class.into_iter().all(|&g| g == 0.0), "the class is left alone");
}

#[test]
fn several_classes_start_as_rare() {
    let graph = built("yolov5n", &["red", "white", "platelet"]);
    let two = fitted(&graph, &["cell", "dirt"]);
    for conv in last(&two) {
        for k in [5, 6, 12, 13] {
            assert!((row(conv, k).1 - (0.6_f32 / 1.00001).ln()).abs() < 1e-4, "{}", row(conv, k).1);
        }
    }
}

/// By name, in the order asked for; the others start anew. In the heads of all families, and in both pairs of branches.
#[test]
fn classes_known_by_name_keep_their_weights() {
    let folder = testkit::unpacked("yolo26");
    let options = LoadOptions { one_to_many: true, ..LoadOptions::default() };
    let end_to_end = load(&folder.path().join("yolo26.pt"), &options).unwrap();
    let names = ["red", "green", "blue"];
    let graphs = ["yolov5n", "yolov8n", "yolox-nano"].map(|design| built(design, &names));
    for graph in graphs.iter().chain([&end_to_end]) {
        let fitted = fitted(graph, &["blue", "black", "red", "white"]);
        let head = graph.head().unwrap().0;
        for (i, (before, after)) in last(graph).into_iter().zip(last(&fitted)).enumerate() {
            let (blocks, keep) = match head {
                Head::Anchor(_) => (3, 5),
                Head::Dfl(_) if i % 2 == 1 => (1, 0),
                Head::Yolox(_) if i % 3 == 2 => (1, 0),
                _ => {
                    assert!(before == after, "map {i} has no classes");
                    continue;
                }
            };
            assert_eq!(after.out_channels(), blocks * (keep + 4), "map {i}");
            for block in 0..blocks {
                let (old, new) = (block * (keep + 3) + keep, block * (keep + 4) + keep);
                assert_eq!(row(after, new), row(before, old + 2), "blue of map {i}");
                assert_eq!(row(after, new + 2), row(before, old), "red of map {i}");
                assert!(row(after, new + 1).0 != row(after, new + 3).0, "each starts by itself");
            }
        }
    }
}

/// As many classes, none by the same name: the same ones under other names.
#[test]
fn classes_under_other_names_keep_theirs_too() {
    let graph = built("yolov8n", &["red", "white"]);
    let renamed = fitted(&graph, &["erythrocyte", "leukocyte"]);
    assert!(graph.nodes == renamed.nodes);
}
