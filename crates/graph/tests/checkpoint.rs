//! Checkpoints we write: what comes back is what was given, and only what the families' modules compute is written.

use graph::build::Yolov5;
use graph::format::{LoadOptions, load, ultralytics};
use graph::reference::{Map, forward};
use graph::{Act, BatchNorm, Graph, Op, Shape};

const MODELS: [&str; 3] = ["yolov5n/yolov5n.pt", "yolov8n/yolov8n-rail.pt", "yolo11n/yolo11n-ball.pt"];

/// A model of the test material; `None` where there is none.
fn model(file: &str) -> Option<Graph> {
    let path = testkit::shared()?.join("weights").join(file);
    Some(load(&path, &LoadOptions::default()).unwrap_or_else(|e| panic!("{file}: {e}")))
}

/// Writes and reads.
fn through_a_file(graph: &Graph) -> (Graph, Vec<(String, usize)>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let written = ultralytics::save(graph, &path).unwrap_or_else(|e| panic!("{e}"));
    (load(&path, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}")), written.padded)
}

fn maps(graph: &Graph) -> Vec<Map> {
    let data = (0..3 * 64 * 64).map(|i| f64::from(i * 7919 % 997) / 997.0).collect();
    let all = forward(graph, &Map { shape: Shape { c: 3, h: 64, w: 64 }, data }).unwrap();
    graph.head().unwrap().1.iter().map(|&id| all[id].clone()).collect()
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    for file in MODELS {
        let Some(graph) = model(file) else { return };
        let (again, padded) = through_a_file(&graph);
        assert!(again == graph, "{file}");
        assert_eq!(padded, [], "{file}");
    }
}

/// Of every family but the largest YOLOv9, whose two backbones no table here describes.
#[test]
fn every_family_comes_back_bit_for_bit() {
    for name in testkit::FAMILIES {
        let graph = testkit::small(name).graph;
        if name == "yolov9e" {
            let error = ultralytics::to_bytes(&graph, "model.pt".as_ref()).unwrap_err().to_string();
            assert!(error.contains("model.16") && error.contains("CBFuse"), "{error}");
            continue;
        }
        let (again, padded) = through_a_file(&graph);
        assert!(again == graph, "{name}");
        assert_eq!(padded, [], "{name}");
    }
}

/// End-to-end heads are written with the branches that help their training: their own, or copies of what predicts.
#[test]
fn one_to_many_branches_are_kept_or_copied() {
    let to_train = LoadOptions { one_to_many: true, ..LoadOptions::default() };
    for name in ["yolov10", "yolo26"] {
        let folder = testkit::unpacked(name);
        let whole = load(&folder.path().join(format!("{name}.pt")), &to_train).unwrap();
        let predicts = whole.for_inference().into_owned();
        let path = folder.path().join("again.pt");
        for (graph, own) in [(&whole, true), (&predicts, false)] {
            ultralytics::save(graph, &path).unwrap_or_else(|e| panic!("{name}: {e}"));
            let again = load(&path, &to_train).unwrap();
            assert!(*again.for_inference() == predicts, "{name}");
            assert_eq!(again == whole, own, "{name}");
            let [one, many] = again.branches().expect("both pairs of branches");
            let said = |maps: &[usize]| maps.iter().map(|&id| again.nodes[id].op.clone()).collect::<Vec<_>>();
            assert_eq!(said(one) == said(many), !own, "{name}");
        }
    }
}

/// BatchNorms that were measured anew are part of a `Conv` where the family has one there, else multiplied in.
#[test]
fn norms_measured_anew_find_a_place() {
    for (name, conv, holds) in [
        ("yolov10", "model.19.m.0.cv1.2.conv", Some("model.19.m.0.cv1.2.bn")),
        ("yolov9", "model.4.cv2.0.m.0.cv1.conv", Some("model.4.cv2.0.m.0.cv1.bn")),
        ("yolov9", "model.3.mean", None),
        ("yolov6", "model.11.0", None),
    ] {
        let mut graph = testkit::small(name).graph;
        let at = graph.nodes.iter().position(|n| n.name == conv).unwrap_or_else(|| panic!("{name}: no {conv}"));
        let Op::Conv(op) = &graph.nodes[at].op else { panic!("{conv} is no convolution") };
        let mut bn = BatchNorm::identity(op.out_channels(), 1e-3, 0.03);
        for (i, gamma) in bn.gamma.iter_mut().enumerate() {
            *gamma = 1.0 + 0.125 * i as f32;
            bn.mean[i] = 0.25 * i as f32;
        }
        for node in &mut graph.nodes {
            node.inputs.iter_mut().filter(|i| **i > at).for_each(|i| *i += 1);
        }
        for node in &mut graph.nodes[at + 1..] {
            node.inputs.iter_mut().filter(|i| **i == at).for_each(|i| *i = at + 1);
        }
        let node = graph::Node { name: format!("{conv}.bn"), op: Op::BatchNorm(bn), inputs: vec![at] };
        graph.nodes.insert(at + 1, node);
        graph.validate().unwrap();
        let (again, _) = through_a_file(&graph);
        assert_eq!(again.nodes.iter().any(|n| Some(n.name.as_str()) == holds), holds.is_some(), "{conv}");
        assert_eq!(again.nodes.len(), graph.nodes.len() - usize::from(holds.is_none()), "{conv}");
        for (a, b) in maps(&graph).iter().zip(maps(&again)) {
            let largest = a.data.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
            let far = a.data.iter().zip(&b.data).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
            // Multiplied in, a weight is rounded once more.
            assert!(far <= if holds.is_some() { 0.0 } else { 1e-5 * largest }, "{conv}: {far}");
        }
    }
}

/// Means that training has changed are convolutions; the family's `ADown` has no place for one.
#[test]
fn what_was_a_mean_is_a_convolution_where_it_can_be() {
    let graph = testkit::small("yolov9").graph;
    let changed = |name: &str| {
        let mut graph = graph.clone();
        let node = graph.nodes.iter_mut().find(|n| n.name == name).unwrap_or_else(|| panic!("no {name}"));
        let Op::Conv(conv) = &mut node.op else { panic!("{name} is no convolution") };
        conv.weight.data[1] = 0.5;
        graph
    };
    let trained = changed("model.3.mean");
    assert!(through_a_file(&trained).0 == trained);
    let error = ultralytics::to_bytes(&changed("model.7.mean"), "model.pt".as_ref()).unwrap_err().to_string();
    assert!(error.contains("model.7") && error.contains("ADown"), "{error}");
}

/// Takes channel `gone` from convolution `name` and everything that passes or reads it, where its map goes through one
/// half of a block without sums.
fn cut(graph: &mut Graph, block: &str, gone: usize) {
    let half = graph.nodes.iter().position(|n| n.name == format!("{block}.split0")).unwrap();
    let Op::Slice { len, .. } = &mut graph.nodes[half].op else { panic!("no slice") };
    assert!(gone < *len);
    *len -= 1;
    let cv1 = graph.nodes.iter().find(|n| n.name == format!("{block}.cv1.conv")).unwrap();
    let Op::Conv(cv1) = &cv1.op else { panic!("no convolution") };
    let all = cv1.out_channels();
    let kept: Vec<usize> = (0..all).filter(|&c| c != gone).collect();
    for node in &mut graph.nodes {
        let within = node.name.strip_prefix(block).unwrap_or("");
        match (&mut node.op, within) {
            (Op::Conv(conv), ".cv1.conv") => conv.weight = conv.weight.select(0, &kept),
            (Op::BatchNorm(bn), ".cv1.bn") => {
                for values in [&mut bn.gamma, &mut bn.beta, &mut bn.mean, &mut bn.var] {
                    *values = kept.iter().map(|&c| values[c]).collect();
                }
            }
            (Op::Slice { start, .. }, ".split1") => *start -= 1,
            (Op::Conv(conv), ".cv2.conv") => {
                let read: Vec<usize> = (0..conv.in_channels()).filter(|&c| c != gone).collect();
                conv.weight = conv.weight.select(1, &read);
            }
            _ => {}
        }
    }
    graph.validate().unwrap();
}

#[test]
fn halves_that_pruning_left_unequal_are_filled_up_with_zeros() {
    for (file, block) in [(MODELS[1], "model.2"), (MODELS[2], "model.10")] {
        let Some(whole) = model(file) else { return };
        let mut graph = whole.clone();
        cut(&mut graph, block, 3);
        cut(&mut graph, block, 0);
        let (again, padded) = through_a_file(&graph);
        assert_eq!(padded, [(format!("{block}.cv1.conv"), 2)]);
        let shape = |graph: &Graph| graph.shapes(graph.meta.imgsz).unwrap();
        assert_eq!(shape(&again), shape(&whole), "{file}");
        // A zero times a weight is a zero in any precision, and adding it changes no sum.
        assert_eq!(maps(&again), maps(&graph), "{file}");
        assert_ne!(maps(&again), maps(&whole), "{file}: nothing was cut");
    }
}

/// Without BatchNorm no `Conv` of the families works; what is written runs without one.
#[test]
fn a_detector_without_norms_comes_back_bit_for_bit() {
    let Some(graph) = model(MODELS[0]) else { return };
    let mut folded = graph.clone();
    let mut moved: Vec<usize> = (0..graph.nodes.len()).collect();
    folded.nodes.clear();
    for (id, node) in graph.nodes.iter().enumerate() {
        if let (Op::BatchNorm(bn), Some(Op::Conv(conv))) = (&node.op, folded.nodes.last_mut().map(|n| &mut n.op)) {
            let (weight, bias) = conv.folded(bn);
            conv.weight.data = weight;
            conv.bias = Some(bias);
            moved[id] = folded.nodes.len() - 1;
            continue;
        }
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|i| *i = moved[*i]);
        moved[id] = folded.nodes.len();
        folded.nodes.push(node);
    }
    folded.validate().unwrap();
    let (again, _) = through_a_file(&folded);
    assert!(again == folded);
}

#[test]
fn an_untrained_yolov5_is_written_like_a_trained_one() {
    let spec = Yolov5 { names: vec!["a".into(), "b".into()], imgsz: 96, width: 0.125, depth: 0.33, seed: 1 };
    let graph = spec.build().unwrap();
    assert!(through_a_file(&graph).0 == graph);
}

/// The same detector gives the same bytes, and its storages lie where PyTorch can map them.
#[test]
fn a_checkpoint_is_aligned_and_always_the_same() {
    let spec = Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.125, depth: 0.33, seed: 1 };
    let graph = spec.build().unwrap();
    let (bytes, _) = ultralytics::to_bytes(&graph, "model.pt".as_ref()).unwrap();
    assert!(bytes == ultralytics::to_bytes(&graph, "model.pt".as_ref()).unwrap().0);
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap();
    assert!(zip.len() > 300);
    for i in 0..zip.len() {
        let entry = zip.by_index(i).unwrap();
        assert_eq!(entry.data_start().unwrap() % 64, 0, "{:?}", entry.name());
        assert_eq!(entry.compression(), zip::CompressionMethod::Stored);
    }
}

/// Everything a module of the right name would compute otherwise, or that no module is: an error that names it.
#[test]
fn what_the_families_have_no_module_for_is_refused() {
    let spec = Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.125, depth: 0.33, seed: 1 };
    let graph = spec.build().unwrap();
    let at = |graph: &Graph, name: &str| graph.nodes.iter().position(|n| n.name == name).unwrap();
    type Change = fn(&mut Graph, usize);
    let cases: [(&str, &str, Change); 8] = [
        ("model.9.m.1", "model.9", |g, id| g.nodes[id].op = Op::Act(Act::Silu)),
        ("model.9.m.2", "YOLOv5 has no block", |g, id| {
            g.nodes[id].name = "model.9.m.2x".into();
            g.nodes[id + 1].inputs.pop();
            let Op::Conv(conv) = &mut g.nodes[id + 2].op else { panic!() };
            let kept: Vec<usize> = (0..conv.in_channels() * 3 / 4).collect();
            conv.weight = conv.weight.select(1, &kept);
            g.nodes.remove(id);
            for node in &mut g.nodes[id..] {
                node.inputs.iter_mut().filter(|i| **i > id).for_each(|i| *i -= 1);
            }
        }),
        ("model.13.cat", "model.13", |g, id| g.nodes[id].inputs.reverse()),
        ("model.2.m.0.add", "model.2", |g, id| g.nodes[id].inputs[0] = g.nodes[id].inputs[1]),
        ("model.5.act", "backbone.act", |g, id| g.nodes[id].name = "backbone.act".into()),
        ("model.5.act", "model.five.act", |g, id| g.nodes[id].name = "model.five.act".into()),
        ("model.5.act", "model.4294967295.act", |g, id| g.nodes[id].name = "model.4294967295.act".into()),
        ("model.5.act", "model.5.a.a.a", |g, id| g.nodes[id].name = format!("model.5{}", ".a".repeat(100_000))),
    ];
    for (node, needle, change) in cases {
        let mut graph = graph.clone();
        let id = at(&graph, node);
        change(&mut graph, id);
        graph.validate().unwrap_or_else(|e| panic!("{node}: {e}"));
        let error = match ultralytics::to_bytes(&graph, "model.pt".as_ref()) {
            Ok(_) => panic!("{node}: was written"),
            Err(e) => format!("{e}"),
        };
        assert!(error.contains(needle), "{needle}: {}", &error[..error.len().min(300)]);
    }
}
