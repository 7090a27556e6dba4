//! End-to-end detectors with the branches that help their training: a first step against their reference, training on a few
//! images with branches read and with branches grown, and what is left of them after it.

mod common;

use common::Losses;
use std::collections::HashMap;
use std::path::Path;

use data::synth::{SynthConfig, write};
use data::{OpenOptions, Target};
use graph::format::{LoadOptions, load};
use graph::{DflHead, Graph, Head, Op};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use testkit::{small, unpacked};
use train::evaluate::raw;
use train::loss::Criterion;
use train::net::{BnUpdate, TrainNet};
use train::schedule::ScheduleConfig;
use train::{Gradients, Task, Teacher, TrainConfig, fit_classes, train};

/// The small detector of family `name` with all its branches.
fn whole(name: &str) -> Graph {
    let folder = unpacked(name);
    let options = LoadOptions { one_to_many: true, ..LoadOptions::default() };
    load(&folder.path().join(format!("{name}.pt")), &options).unwrap()
}

fn head(graph: &Graph) -> &DflHead {
    let Head::Dfl(head) = graph.head().unwrap().0 else { panic!("another head") };
    head
}

/// The image of the small YOLO26 and its negative, as (N, H, W, 3).
fn batch() -> Vec<u8> {
    let image = small("yolo26").images;
    let [_, channels, h, w] = image.shape[..] else { panic!("no batch of images") };
    let plane = h * w;
    let pixel = |p: usize| (0..channels).map(move |c| c * plane + p);
    let one: Vec<u8> = (0..plane).flat_map(pixel).map(|i| image.data[i] as u8).collect();
    one.iter().copied().chain(one.iter().map(|v| 255 - v)).collect()
}

/// The reference (`data/make_e2e_step.py`) is the package YOLO26 comes from, in f64.
#[test]
fn a_first_step_is_the_one_its_reference_takes() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/e2e_step.json");
    let want: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let numbers = |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let target = |row: &Value| {
        let [image, class, bbox @ ..] = &numbers(row)[..] else { panic!("an empty row") };
        Target { image: *image as usize, class: *class as usize, bbox: [0, 1, 2, 3].map(|i| bbox[i] as f32) }
    };
    let targets: Vec<Target> = want["labels"].as_array().unwrap().iter().map(target).collect();
    let graph = whole("yolo26");
    let (criterion, head) = (Criterion::of(graph.head().unwrap().0, 96).unwrap(), graph.head().unwrap().0.clone());
    let mut net = TrainNet::new(graph, [64, 96]).unwrap();
    let maps = net.forward(&batch(), 2, BnUpdate::Momentum).unwrap();
    let loss = criterion.evaluate(&head, &raw(&maps), &targets).unwrap();
    let values = [loss.value.total].into_iter().chain(loss.value.parts.map(|(_, v)| v));
    for (got, want) in values.zip(numbers(&want["loss"])) {
        println!("{got} for {want}");
        assert!((f64::from(got) - want).abs() < 1e-4 * want, "{got}, reference {want}");
    }
    let mut gradients = Gradients::zeros(&net.graph);
    net.backward(&loss.grads, &mut gradients);
    for (name, want) in want["gradient_norms"].as_object().unwrap() {
        let got = if name == "(all parameters)" { gradients.norm() } else { norm(&net.graph, &gradients, name) };
        let want = want.as_f64().unwrap();
        println!("gradient norm of {name}: {got} for {want}");
        assert!((got - want).abs() < 1e-3 * want, "gradient norm of {name}: {got}, reference {want}");
    }
}

fn norm(graph: &Graph, gradients: &Gradients, name: &str) -> f64 {
    let (node, weight) = name.rsplit_once('.').unwrap();
    let id = graph.nodes.iter().position(|n| n.name == node).unwrap_or_else(|| panic!("no node {node}"));
    let k = graph.nodes[id].op.trainable().iter().position(|(w, _)| *w == weight).unwrap();
    gradients.by_node[id][k].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Branches that predict train what they read where asked to, and only there.
#[test]
fn gradients_of_the_branches_that_predict_stop_at_what_they_read() {
    let graph = whole("yolo26");
    let pairs = head(&graph).pairs();
    let reached = |joint: bool| {
        let mut net = TrainNet::new(graph.clone(), [64, 96]).unwrap();
        net.joint = joint;
        let maps = net.forward(&batch(), 2, BnUpdate::Momentum).unwrap();
        let slope = |(i, map): (usize, &train::net::HeadMap)| vec![if i < pairs { 1.0 } else { 0.0 }; map.data.len()];
        let slopes: Vec<Vec<f32>> = maps.iter().enumerate().map(slope).collect();
        let mut gradients = Gradients::zeros(&net.graph);
        net.backward(&slopes, &mut gradients);
        ["model.0.conv.weight", "model.23.one2one_cv2.0.0.conv.weight", "model.23.cv2.0.0.conv.weight"]
            .map(|name| norm(&graph, &gradients, name) > 0.0)
    };
    assert_eq!(reached(false), [false, true, false]);
    assert_eq!(reached(true), [true, true, false]);
}

#[test]
fn what_is_loaded_to_predict_has_no_other_branches() {
    for name in ["yolov10", "yolo26"] {
        let (all, predicts) = (whole(name), small(name).graph);
        assert!(head(&all).one_to_many && !head(&predicts).one_to_many, "{name}");
        assert!(*all.for_inference() == predicts, "{name}");
        assert!(predicts.nodes.len() < all.nodes.len(), "{name}");
        all.validate().unwrap();
    }
}

/// From both pairs of branches as loaded, and from one as it comes out of pruning, with a teacher and without.
#[test]
fn a_few_epochs_lower_the_loss_and_leave_what_predicts() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = write(folder.path(), &SynthConfig { train: 8, val: 2, test: 1, size: 64, seed: 1 }).unwrap();
    let dataset = data::open(&yaml, &OpenOptions::default()).unwrap();
    let config = |distill| TrainConfig {
        epochs: 6,
        batch: 4,
        nominal_batch: 4,
        imgsz: 64,
        distill,
        schedule: ScheduleConfig { warmup_epochs: 0.0, lr0: 0.003, ..ScheduleConfig::default() },
        ..TrainConfig::yolov5()
    };
    let square = |mut graph: Graph| {
        graph.meta.imgsz = [64; 2];
        fit_classes(&graph, &dataset.names, &mut ChaCha8Rng::from_seed([1; 32])).unwrap()
    };
    for name in ["yolov10", "yolo26"] {
        let (all, predicts) = (square(whole(name)), square(small(name).graph));
        for (case, start, teacher) in [
            ("read", &all, None),
            ("grown", &predicts, None),
            ("taught", &predicts, Some(Teacher { graph: &predicts, labels: false })),
        ] {
            let what = format!("{name}-{case}");
            let out = folder.path().join(&what);
            std::fs::create_dir_all(&out).unwrap();
            let mut losses = Losses::default();
            let task = Task { start, dataset: &dataset, teacher, standing: None, out: &out, resume: false };
            let config = config(if teacher.is_some() { 1.0 } else { 0.0 });
            let trained = train(&task, &config, &mut losses).unwrap_or_else(|e| panic!("{what}: {e}"));
            println!("{what}: {:?}", losses.0);
            assert!(losses.0.last().unwrap() < &(0.8 * losses.0[0]), "{what}: {:?}", losses.0);
            for graph in [&trained.last, &trained.best] {
                assert_eq!(graph.head().unwrap().0, predicts.head().unwrap().0, "{what}");
                let names = |g: &Graph| g.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
                assert_eq!(names(graph), names(&predicts), "{what}");
            }
            // The file of a run keeps what the next training needs.
            let options = LoadOptions { one_to_many: true, ..LoadOptions::default() };
            let kept = load(&out.join("weights/last.safetensors"), &options).unwrap();
            assert!(head(&kept).one_to_many && *kept.for_inference() == trained.last, "{what}");
            moved(&what, start, &kept);
        }
    }
}

/// Every convolution before the head has moved. (A shift before another BatchNorm moves nothing and so is not moved.)
fn moved(what: &str, before: &Graph, after: &Graph) {
    let after: HashMap<&str, &Op> = after.nodes.iter().map(|n| (n.name.as_str(), &n.op)).collect();
    let head = format!("{}.", before.nodes[before.nodes.len() - 1].name);
    for node in before.nodes.iter().filter(|n| !n.name.starts_with(&head) && matches!(n.op, Op::Conv(_))) {
        assert!(node.op != *after[node.name.as_str()], "{what}: `{}` is as it was", node.name);
    }
}
