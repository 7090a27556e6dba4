//! Darknet files: published sizes, outputs against OpenCV's, and what damaged ones are told.

use std::path::Path;

use graph::format::{LoadOptions, darknet::load_without_weights, load};
use graph::reference::{Map, forward};
use graph::{Family, Graph, Shape, cost};
use proptest::prelude::*;
use testkit::{shared, tensors};

const SMALL: &str = "[net]\nheight=32\nwidth=32\nchannels=3\n[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\nstride=2\npad=1\n\
activation=leaky\n[maxpool]\nsize=2\nstride=2\n[convolutional]\nfilters=4\nsize=1\nactivation=mish\n[shortcut]\nfrom=-2\n\
activation=linear\n[route]\nlayers=-1\ngroups=2\ngroup_id=1\n[route]\nlayers=-1,1\n[convolutional]\nfilters=7\nsize=1\n\
activation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=2\nnum=1\n";

/// Numbers `SMALL` asks for: 3x3x3x4 + 4x4 (normalised), 4x4 + 4, 6x7 + 7.
const FLOATS: usize = 108 + 16 + 20 + 49;

fn small(cfg: &str) -> Result<Graph, String> {
    load_without_weights(cfg, Path::new("small.cfg")).map_err(|e| e.to_string())
}

/// Loads `SMALL` with a `.weights` of `bytes` bytes after a header of version 0.`minor`.
fn with_weights(minor: i32, bytes: usize) -> Result<Graph, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("small.cfg"), SMALL).unwrap();
    let mut file: Vec<u8> = [0, minor, 0].iter().flat_map(|v: &i32| v.to_le_bytes()).collect();
    file.resize(if minor >= 2 { 20 } else { 16 }, 0);
    file.extend((0..bytes / 4).flat_map(|i| (i as f32).to_le_bytes()));
    file.resize(file.len() + bytes % 4, 0);
    std::fs::write(dir.path().join("small.weights"), file).unwrap();
    load(&dir.path().join("small.weights"), &LoadOptions::default()).map_err(|e| e.to_string())
}

#[test]
fn published_architectures_have_their_published_size() {
    let Some(shared) = shared() else { return };
    // Without running means and variances; with them YOLOv3-tiny's file holds 8,858,734 numbers, 2 x 3,184 more.
    let known = [("yolov3", 61_949_149), ("yolov3-tiny", 8_852_366), ("yolov4-tiny", 6_056_606)];
    let mut built = 0;
    for entry in std::fs::read_dir(shared.join("cfg")).unwrap() {
        let path = entry.unwrap().path();
        let graph = load_without_weights(&std::fs::read_to_string(&path).unwrap(), &path).unwrap();
        let params = cost::total(&graph, graph.meta.imgsz).unwrap().params;
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        println!("{name}: {params}");
        if let Some((_, want)) = known.iter().find(|(n, _)| *n == name) {
            assert_eq!(params, *want, "{name}");
            built += 1;
        }
    }
    assert_eq!(built, known.len());
}

fn compare(name: &str) {
    let Some(shared) = shared() else { return };
    let graph = load(&shared.join(format!("weights/{name}/{name}.cfg")), &LoadOptions::default()).unwrap();
    assert_eq!(graph.meta.family, Family::Darknet);
    let golden = tensors(&shared.join(format!("golden/{name}/forward.safetensors")));
    let image = &golden["image_u8"];
    let [_, c, h, w] = image.shape[..] else { panic!("no image") };
    let planes = |i: usize| f64::from(image.data[i]) / 255.0;
    let image = Map { shape: Shape { c, h, w }, data: (0..c * h * w).map(planes).collect() };
    let maps = forward(&graph, &image).unwrap();
    let (_, inputs) = graph.head().unwrap();
    assert_eq!(inputs.len(), 2);
    for (level, &id) in inputs.iter().enumerate() {
        let (ours, theirs) = (&maps[id], &golden[&format!("head{level}")]);
        let s = ours.shape;
        assert_eq!(theirs.shape, [1, s.h, s.w, s.c]);
        let worst = (0..theirs.data.len())
            .map(|i| (ours.data[i % s.c * s.h * s.w + i / s.c] - f64::from(theirs.data[i])).abs())
            .fold(0.0, f64::max);
        println!("{name} head{level}: at most {worst:.2e} off");
        assert!(worst < 1e-3, "{name} head{level}: {worst}");
    }
}

#[test]
fn yolov3_tiny_computes_what_opencv_does() {
    compare("yolov3-tiny");
}

#[test]
fn yolo_fastest_computes_what_opencv_does() {
    compare("yolo-fastest-1.1");
}

#[test]
fn yolo_fastest_xl_computes_what_opencv_does() {
    compare("yolo-fastest-1.1-xl");
}

#[test]
fn weights_are_read_in_their_order() {
    for minor in [1, 2] {
        let graph = with_weights(minor, 4 * FLOATS).unwrap();
        let bn = graph.nodes.iter().find(|n| n.name == "layer0.bn").unwrap();
        let first: Vec<f32> = bn.op.weights().iter().map(|(_, values)| values[0]).collect();
        assert_eq!(first, [4.0, 0.0, 8.0, 12.0], "gamma, beta, mean, variance; beta comes first in the file");
    }
}

#[test]
fn weights_of_the_wrong_length_name_the_layer_and_the_count() {
    let short = with_weights(2, 4 * (FLOATS - 3)).unwrap_err();
    assert!(short.contains("layer6") && short.contains("3 floats early"), "{short}");
    let long = with_weights(2, 4 * (FLOATS + 5)).unwrap_err();
    assert!(long.contains("after layer6") && long.contains("5 floats are left over"), "{long}");
    let ragged = with_weights(2, 4 * FLOATS + 2).unwrap_err();
    assert!(ragged.contains("2 bytes"), "{ragged}");
}

#[test]
fn mistakes_in_a_cfg_are_named_with_their_line() {
    for (from, to, want) in [
        ("[maxpool]", "[sam]", "line 12, [sam]"),
        ("activation=mish", "activation=gelu", "line 18, [convolutional]"),
        ("filters=4", "filters=four", "line 7, [convolutional]"),
        ("from=-2", "from=-9", "line 20, [shortcut]"),
        ("group_id=1", "group_id=2", "line 24, [route]"),
        ("classes=2", "classes=3", "line 32, [yolo]"),
        ("height=32", "height 32", "line 2"),
    ] {
        let error = small(&SMALL.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(want), "{from} -> {to}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_cfg_panics(edits in prop::collection::vec((0..SMALL.len(), "[-0-9a-z=,\\[\\]\n]{0,3}"), 1..4)) {
        let mut text = SMALL.to_owned();
        for (at, with) in edits {
            let at = at.min(text.len().saturating_sub(1));
            text.replace_range(at..=at, &with);
        }
        let _ = small(&text);
    }
}
