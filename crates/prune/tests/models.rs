//! The same on real detectors: couplings as they were reviewed, and surgery against masking.

mod common;

use std::path::PathBuf;

use common::{LOOSE, calibrate, difference, outputs, target};
use graph::format::{LoadOptions, darknet, load, ultralytics};
use graph::reference::Map;
use graph::{Graph, NodeId, Shape, cost};
use prune::{Coupling, Criterion, Importance, Mode, Plan, Similarity, Site, importance, similarity, surgery};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const MODELS: [(&str, &str); 6] = [
    ("yolov5n", "yolov5n/yolov5n.pt"),
    ("yolov8n", "yolov8n/yolov8n-rail.pt"),
    ("yolo11n", "yolo11n/yolo11n-ball.pt"),
    ("yolov3-tiny", "yolov3-tiny/yolov3-tiny.cfg"),
    ("yolo-fastest-1.1", "yolo-fastest-1.1/yolo-fastest-1.1.cfg"),
    ("yolox-nano", "yolox-nano/yolox_nano.onnx"),
];

/// Every real model of the test material, where it is there, and one small one of random weights of every other family.
fn models() -> Vec<(&'static str, Graph)> {
    let real = MODELS.into_iter().filter_map(|(name, file)| Some((name, model(file)?)));
    real.chain(testkit::FAMILIES.into_iter().map(|name| (name, testkit::small(name).graph))).collect()
}

/// A model of the test material; `None` where there is none.
fn model(file: &str) -> Option<Graph> {
    let path = testkit::shared()?.join("weights").join(file);
    let weights = path.with_extension("weights");
    let options = LoadOptions { weights: weights.is_file().then_some(weights), ..LoadOptions::default() };
    Some(load(&path, &options).unwrap_or_else(|e| panic!("{file}: {e}")))
}

fn noise(seed: u64) -> Map {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Map { shape: Shape { c: 3, h: 64, w: 64 }, data: (0..3 * 64 * 64).map(|_| rng.random_range(0.0..1.0)).collect() }
}

/// Every set, the layers it ties together, who reads it and why it is pinned.
fn details(graph: &Graph) -> String {
    let coupling = Coupling::of(graph).unwrap();
    let names = |sites: &[Site]| {
        let mut nodes: Vec<NodeId> = sites.iter().map(|s| s.node).collect();
        nodes.dedup();
        nodes.iter().map(|&n| graph.nodes[n].name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    for (id, set) in coupling.sets.iter().enumerate() {
        let class = &coupling.classes[set.classes[0]];
        let members = if class.members.is_empty() { "the image".into() } else { names(&class.members) };
        text += &format!("group {id}: {} channels of {members}", set.classes.len());
        if !class.depthwise.is_empty() {
            text += &format!("; through {}", names(&class.depthwise));
        }
        if !class.consumers.is_empty() {
            text += &format!("; read by {}", names(&class.consumers));
        }
        if let Some(pin) = class.pinned {
            text += &format!("; pinned: {}", pin.reason(graph));
        }
        text.push('\n');
    }
    text
}

/// Compares with `couplings/<name>.txt`, which channels are tied and why; run with `UPDATE_SNAPSHOTS=1` to write it anew, then read the difference.
#[test]
fn couplings_are_those_that_were_reviewed() {
    for (name, graph) in models() {
        let details = details(&graph);
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/couplings").join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(&path, &details).unwrap();
        }
        let reviewed = std::fs::read_to_string(&path).unwrap();
        for (line, (now, then)) in details.lines().zip(reviewed.lines()).enumerate() {
            assert_eq!(now, then, "{name}, line {}", line + 1);
        }
        assert_eq!(details.lines().count(), reviewed.lines().count(), "{name}");
    }
}

fn check(name: &str, graph: &Graph, plan: &Plan) -> Graph {
    let slim = surgery::apply(graph, plan).unwrap();
    let masked = surgery::mask(graph, plan).unwrap();
    let image = noise(1);
    let error = difference(&outputs(&slim, &image), &outputs(&masked, &image));
    assert!(error < 1e-6, "{name}: surgery and masking differ by {error}");
    let counted = cost::total(&slim, slim.meta.imgsz).unwrap();
    assert_eq!((plan.after.params, plan.after.macs), (counted.params, counted.macs), "{name}");
    slim
}

#[test]
fn surgery_equals_masking_on_real_models() {
    for (name, graph) in models() {
        let coupling = Coupling::of(&graph).unwrap();
        assert_eq!(surgery::apply(&graph, &Plan::empty(&graph).unwrap()).unwrap(), graph, "{name}");

        let random = Importance { criterion: Criterion::Random { seed: 3 }, limits: LOOSE, ..Importance::default() };
        let plan = importance::plan(&graph, &coupling, &random, &target(&graph, &coupling, 0.4)).unwrap();
        let first = check(name, &graph, &plan);

        // Both stages in a row, as a run does it.
        let coupling = Coupling::of(&first).unwrap();
        let statistics = calibrate(&first, &coupling, &[noise(2)]);
        for mode in [Mode::Pairwise, Mode::Span] {
            let settings = Similarity { mode, threshold: 0.0, limits: LOOSE, ..Similarity::default() };
            let target = target(&first, &coupling, 0.3);
            let plan = similarity::plan(&first, &coupling, &statistics, &settings, &target).unwrap();
            check(&format!("{name}, {mode:?}"), &first, &plan);
        }
    }
}

/// A pruned Darknet detector is a Darknet detector: its files give back what was cut, bit for bit.
#[test]
fn a_pruned_darknet_detector_is_saved_as_one() {
    let Some(graph) = model("yolo-fastest-1.1/yolo-fastest-1.1.cfg") else { return };
    let coupling = Coupling::of(&graph).unwrap();
    let settings = Importance { limits: LOOSE, ..Importance::default() };
    let plan = importance::plan(&graph, &coupling, &settings, &target(&graph, &coupling, 0.4)).unwrap();
    let slim = surgery::apply(&graph, &plan).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slim.cfg");
    darknet::save(&slim, &path).unwrap();
    let again = load(&path, &LoadOptions::default()).unwrap();
    let image = noise(4);
    assert_eq!(difference(&outputs(&again, &image), &outputs(&slim, &image)), 0.0);
    let cost = |graph: &Graph| cost::total(graph, graph.meta.imgsz).unwrap();
    assert!(cost(&again).params < cost(&graph).params, "nothing was cut");
    assert_eq!(cost(&again).macs, cost(&slim).macs);
}

/// A pruned detector of a family that has its own package is a checkpoint of that package: where its code cuts a map into
/// halves they are of one size, and the detector computes what it did.
#[test]
fn a_pruned_detector_is_saved_as_a_checkpoint() {
    for (name, file) in &MODELS[..3] {
        let Some(graph) = model(file) else { return };
        let coupling = Coupling::of(&graph).unwrap();
        let random = Importance { criterion: Criterion::Random { seed: 5 }, limits: LOOSE, ..Importance::default() };
        let plan = importance::plan(&graph, &coupling, &random, &target(&graph, &coupling, 0.4)).unwrap();
        let slim = surgery::apply(&graph, &plan).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slim.pt");
        let written = ultralytics::save(&slim, &path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let again = load(&path, &LoadOptions::default()).unwrap();
        let image = noise(6);
        assert_eq!(difference(&outputs(&again, &image), &outputs(&slim, &image)), 0.0, "{name}");
        // YOLOv5's blocks have a convolution for each half, so nothing has to be added.
        assert_eq!(written.padded.is_empty(), *name == "yolov5n", "{name}: {:?}", written.padded);
        assert_eq!(again == slim, *name == "yolov5n", "{name}");
        let params = |graph: &Graph| cost::total(graph, graph.meta.imgsz).unwrap().params;
        assert!(params(&again) < params(&graph), "{name}: nothing was cut");
    }
}

/// Blocks whose residual branches are gone, one of them or all, are still blocks of the family's own files.
#[test]
fn a_detector_without_its_residual_branches_is_saved_as_one_of_its_family() {
    let names = ["yolo-fastest", "yolov5", "yolov8", "yolov9", "yolov10", "yolo11", "yolo12"];
    // Two linked backbones are written by no package's code.
    let written = |name: &str| name != "yolov9e" && names.iter().any(|family| name.starts_with(family));
    for (name, graph) in models().into_iter().filter(|(name, _)| written(name)) {
        let coupling = Coupling::of(&graph).unwrap();
        let statistics = calibrate(&graph, &coupling, &[noise(2)]);
        // So little that everything goes that may.
        let none = prune::Budget { macs: Some(1e-9), ..prune::Budget::default() };
        let none = none.target(prune::Size::of(&graph, &coupling).unwrap()).unwrap();
        let settings = Similarity { limits: LOOSE, ..Similarity::default() };
        let shortcuts = similarity::plan(&graph, &coupling, &statistics, &settings, &none).unwrap().shortcuts;
        let plan =
            |shortcuts: &[prune::Shortcut]| Plan { shortcuts: shortcuts.to_vec(), ..Plan::empty(&graph).unwrap() };
        for some in [&shortcuts[..shortcuts.len().min(1)], &shortcuts[..]] {
            let slim = surgery::apply(&graph, &plan(some)).unwrap();
            assert_eq!(some.is_empty(), slim == graph, "{name}");
            let masked = surgery::mask(&graph, &plan(some)).unwrap();
            let image = noise(6);
            let error = difference(&outputs(&slim, &image), &outputs(&masked, &image));
            assert!(error < 1e-6, "{name}: surgery and masking differ by {error}");
            let folder = tempfile::tempdir().unwrap();
            let darknet = name.starts_with("yolo-fastest");
            let path = folder.path().join(if darknet { "slim.cfg" } else { "slim.pt" });
            let saved = match darknet {
                true => darknet::save(&slim, &path).map(drop),
                false => ultralytics::save(&slim, &path).map(drop),
            };
            saved.unwrap_or_else(|e| panic!("{name}: {e}: {}", plan(some)));
            let again = load(&path, &LoadOptions::default()).unwrap();
            assert_eq!(difference(&outputs(&again, &image), &outputs(&slim, &image)), 0.0, "{name}");
        }
    }
}

/// The same for what the package has beside plain detectors: a learnt upsampling, masks, keypoints and turned boxes.
#[test]
fn pruned_heads_of_every_task_are_saved_as_checkpoints() {
    for name in ["yolov6", "yolov8-seg", "yolov8-pose", "yolov8-obb", "yolo11-seg", "yolo11-pose", "yolo11-obb"] {
        let graph = testkit::small(name).graph;
        let coupling = Coupling::of(&graph).unwrap();
        let random = Importance { criterion: Criterion::Random { seed: 5 }, limits: LOOSE, ..Importance::default() };
        let plan = importance::plan(&graph, &coupling, &random, &target(&graph, &coupling, 0.3)).unwrap();
        let slim = surgery::apply(&graph, &plan).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slim.pt");
        ultralytics::save(&slim, &path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let again = load(&path, &LoadOptions::default()).unwrap();
        let image = noise(6);
        assert_eq!(difference(&outputs(&again, &image), &outputs(&slim, &image)), 0.0, "{name}");
        assert_eq!(again.head().unwrap().0, graph.head().unwrap().0, "{name}");
        let params = |graph: &Graph| cost::total(graph, graph.meta.imgsz).unwrap().params;
        assert!(params(&again) < params(&graph), "{name}: nothing was cut");
    }
}
