//! The native file: exact round trips, and every way in which a file can disagree with its graph.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use graph::format::{LoadOptions, load, save, write_whole};
use graph::{
    Act, AnchorHead, AnchorLevel, Attention, BatchNorm, BoxDecode, Conv, DflHead, Extra, Family, Graph, Head, MaxPool,
    Meta, Node, Op, Tensor, YoloxHead,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A detector of every operator but the rarer heads; its weights have all kinds of bits.
fn detector() -> Graph {
    let conv = |shape: [usize; 4], bias: bool, stride: usize, groups| {
        let values = |n: usize| (0..n).map(|i| (i as f32 * 0.377).sin() / 3.0).collect::<Vec<_>>();
        let weight = Tensor::new(shape, values(shape.iter().product()));
        let pad = shape[2] / 2;
        Op::Conv(Conv { weight, bias: bias.then(|| values(shape[0])), stride: [stride; 2], pad: [pad; 2], groups })
    };
    let meta = Meta { family: Family::Yolov5, names: vec!["red".into(), "white \u{e9}".into()], imgsz: [32, 64] };
    let mut g = Graph::new(meta, 3);
    let a = g.push("model.0.conv", conv([8, 3, 3, 3], false, 2, 1), vec![0]);
    let b = g.push("model.0.bn", Op::BatchNorm(BatchNorm::identity(8, 1e-3, 0.03)), vec![a]);
    let c = g.push("model.0.act", Op::Act(Act::Silu), vec![b]);
    let d = g.push("model.1.dw", conv([8, 1, 3, 3], true, 1, 8), vec![c]);
    let e = g.push("model.1.add", Op::Add, vec![c, d]);
    let f = g.push("model.2.pool", Op::MaxPool(MaxPool { kernel: 2, stride: 2, pad: [0, 0] }), vec![e]);
    let h = g.push("model.3.up", Op::Upsample { factor: 2 }, vec![f]);
    let i = g.push("model.4.part", Op::Slice { start: 2, len: 4 }, vec![h]);
    let attention = Op::Attention(Attention { heads: 2, key: 1, value: 2, areas: 4 });
    let mixed = g.push("model.4.attention", attention, vec![h]);
    let sum = g.push("model.4.add", Op::Add, vec![i, mixed]);
    let j = g.push("model.5.cat", Op::Concat, vec![sum, e]);
    let k = g.push("model.6.m.0", conv([14, 12, 1, 1], true, 1, 1), vec![j]);
    let levels = vec![AnchorLevel { stride: 2, anchors: vec![[1.1, 2.3], [0.7, 9.9]], decode: BoxDecode::V5 }];
    g.push("model.6", Op::Head(Head::Anchor(AnchorHead { classes: 2, levels })), vec![k]);
    g.validate().unwrap();
    g
}

fn saved(graph: &Graph) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save(graph, &path).unwrap();
    (folder, path)
}

fn open(path: &Path) -> graph::Result<Graph> {
    load(path, &LoadOptions::default())
}

/// A native file taken apart: tensors as (shape, bytes) by name, and the metadata.
struct Parts {
    tensors: HashMap<String, (Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

/// Saves a detector, lets `change` at the parts of its file and says what loading it then reports.
fn report_after(change: impl FnOnce(&mut Parts)) -> String {
    let (_folder, path) = saved(&detector());
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter();
    let mut parts = Parts {
        tensors: tensors.map(|(n, t)| (n, (t.shape().to_vec(), t.data().to_vec()))).collect(),
        metadata: metadata.metadata().clone().unwrap(),
    };
    change(&mut parts);
    let views = parts.tensors.iter().map(|(n, (shape, data))| {
        (n, TensorView::new(Dtype::F32, shape.clone(), data).expect("the change keeps tensors whole"))
    });
    write_whole(&path, &safetensors::serialize(views, Some(parts.metadata)).unwrap()).unwrap();
    match open(&path) {
        Ok(_) => "loaded".into(),
        Err(e) => {
            assert!(e.to_string().contains("model.safetensors"), "no file is named: {e}");
            e.to_string()
        }
    }
}

#[test]
fn a_round_trip_is_exact() {
    let graph = detector();
    let (_folder, path) = saved(&graph);
    assert_eq!(open(&path).unwrap(), graph);
    assert_eq!(report_after(|_| {}), "loaded");
}

#[test]
fn saving_twice_writes_the_same_bytes() {
    let ((_a, first), (_b, second)) = (saved(&detector()), saved(&detector()));
    assert_eq!(std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
}

#[test]
fn a_real_detector_round_trips() {
    let Some(shared) = testkit::shared() else { return };
    let graph = open(&shared.join("weights/yolov5n/yolov5n.pt")).unwrap();
    let (_folder, path) = saved(&graph);
    assert_eq!(open(&path).unwrap(), graph);
}

#[test]
fn disagreements_name_the_node_or_tensor() {
    type Change = fn(&mut Parts);
    let cases: [(Change, &[&str]); 9] = [
        (|p| drop(p.tensors.remove("model.0.bn.running_var")), &["model.0.bn", "running_var"]),
        (|p| drop(p.tensors.remove("model.0.conv.weight")), &["model.0.conv", "weight"]),
        (|p| drop(p.tensors.insert("model.9.weight".into(), (vec![1], vec![0; 4]))), &["model.9.weight", "no node"]),
        (|p| drop(p.tensors.insert("model.0.bn.bias".into(), (vec![7], vec![0; 28]))), &["model.0.bn", "[7]", "[8]"]),
        (|p| drop(p.tensors.insert("model.1.dw.bias".into(), (vec![2, 4], vec![0; 32]))), &["model.1.dw", "[2, 4]"]),
        (|p| drop(p.tensors.insert("model.6.m.0.weight".into(), (vec![14, 12], vec![0; 672]))), &["[14, 12]"]),
        (
            |p| drop(p.tensors.insert("model.6.m.0.weight".into(), (vec![14, 11, 1, 1], vec![0; 616]))),
            &["model.6.m.0", "11", "12"],
        ),
        (|p| p.tensors.get_mut("model.0.bn.bias").unwrap().1[..4].fill(0xff), &["model.0.bn", "NaN", "index 0"]),
        (|p| p.metadata.clear(), &["prunella"]),
    ];
    for (change, needles) in cases {
        let report = report_after(change);
        assert!(needles.iter().all(|n| report.contains(n)), "{needles:?} in: {report}");
    }
}

#[test]
fn hostile_descriptions_are_refused() {
    let cases = [
        ("\"format_version\":1", "\"format_version\":2", "version 2"),
        ("\"factor\":2", "\"factor\":18446744073709551615", "model.3.up"),
        ("\"start\":2", "\"start\":18446744073709551615", "model.4.part"),
        ("\"factor\":2", "\"factor\":65", "model.3.up"),
        ("\"kernel\":2", "\"kernel\":0", "model.2.pool"),
        ("\"kernel\":2", "\"kernel\":1099511627776", "model.2.pool"),
        ("\"pad\":[1,1]", "\"pad\":[20000,20000]", "model.0.conv"),
        ("\"channels\":3", "\"channels\":1099511627776", "images"),
        ("\"imgsz\":[32,64]", "\"imgsz\":[4294967296,64]", "4294967296x64 pixels"),
        ("\"imgsz\":[32,64]", "\"imgsz\":[32,0]", "32x0 pixels"),
        ("\"imgsz\":[32,64]", "\"imgsz\":[16384,16384]", "makes a map of 3x16384x16384"),
        ("\"eps\":0.001", "\"eps\":1e39", "eps is inf"),
        ("\"momentum\":0.03", "\"momentum\":-0.5", "momentum is -0.5"),
        ("[1.1,2.3]", "[1.1,0.0]", "anchor is 1.1 x 0"),
        ("[1.1,2.3]", "[1e39,2.3]", "anchor is inf x 2.3"),
        ("{\"rule\":\"v5\"}", "{\"rule\":\"darknet\",\"scale_xy\":1e39}", "scaled by inf"),
        ("\"heads\":2", "\"heads\":18446744073709551615", "model.4.attention"),
        ("\"key\":1", "\"key\":9223372036854775807", "model.4.attention"),
        ("\"key\":1,\"value\":2", "\"key\":0,\"value\":4", "model.4.attention"),
        ("\"areas\":4", "\"areas\":0", "model.4.attention"),
        ("\"areas\":4", "\"areas\":3", "model.4.attention"),
        ("\"groups\":8", "\"groups\":0", "model.1.dw"),
        ("\"inputs\":[0]", "\"inputs\":[77]", "model.0.conv"),
        ("\"type\":\"add\"", "\"type\":\"exec\"", "exec"),
    ];
    for (from, to, needle) in cases {
        let report = report_after(|p| {
            let json = p.metadata.get_mut("prunella").unwrap();
            assert!(json.contains(from), "no {from} in {json}");
            *json = json.replacen(from, to, 1);
        });
        assert!(report.contains(needle), "{to}: {report}");
    }
}

fn node<'a>(g: &'a mut Graph, name: &str) -> &'a mut Op {
    &mut g.nodes.iter_mut().find(|n| n.name == name).unwrap().op
}

/// Puts `head`, which reads nothing, in the place of the graph's own.
fn head(g: &mut Graph, head: Head) {
    g.nodes.pop();
    g.push("head", Op::Head(head), vec![]);
}

/// One thing wrong at a time in a graph that is in order.
#[test]
fn parts_that_do_not_fit_each_other_are_refused() {
    fn conv<'a>(g: &'a mut Graph, name: &str) -> &'a mut Conv {
        let Op::Conv(conv) = node(g, name) else { panic!("`{name}` is no convolution") };
        conv
    }
    fn norm(g: &mut Graph) -> &mut BatchNorm {
        let Op::BatchNorm(bn) = node(g, "model.0.bn") else { panic!("`model.0.bn` is no BatchNorm") };
        bn
    }
    fn pool(g: &mut Graph, kernel: usize, stride: usize, pad: [usize; 2]) {
        *node(g, "model.2.pool") = Op::MaxPool(MaxPool { kernel, stride, pad });
    }
    fn dfl(g: &mut Graph, change: fn(&mut DflHead)) {
        let mut dfl = DflHead::new(2, 16, vec![2]);
        change(&mut dfl);
        head(g, Head::Dfl(dfl));
    }
    type Change = fn(&mut Graph);
    let cases: &[(Change, &str)] = &[
        (|g| g.nodes[3].name = g.nodes[2].name.clone(), "in node `model.0.bn`: two nodes have this name"),
        (
            |g| *node(g, "model.2.pool") = Op::Input { channels: 3 },
            "in node `model.2.pool`: a graph has one input node",
        ),
        (|g| *node(g, "images") = Op::Act(Act::Relu), "in node `images`: a graph has one input node"),
        (|g| drop(g.meta.names.pop()), "the head has 2 classes, 1 names are given"),
        (|g| conv(g, "model.0.conv").groups = 3, "8 filters in 3 groups"),
        (|g| conv(g, "model.0.conv").stride = [2, 0], "stride [2, 0]"),
        (
            |g| conv(g, "model.0.conv").weight = Tensor::zeros([8, 4, 3, 3]),
            "weight expects 4 channels, the input has 3",
        ),
        (|g| conv(g, "model.0.conv").weight = Tensor::zeros([8, 27, 1]), "not (O, I, KH, KW)"),
        (|g| conv(g, "model.1.dw").bias = Some(vec![0.0; 7]), "7 biases for 8 filters"),
        (|g| conv(g, "model.1.dw").stride = [2, 2], "adds 8x16x32 and 8x8x16"),
        (|g| norm(g).mean = vec![0.0; 7], "`running_mean` has 7 values, the input 8 channels"),
        (|g| norm(g).momentum = 1.5, "momentum is 1.5"),
        (|g| norm(g).eps = 0.0, "eps is 0"),
        // Together with eps it is 0, by which nothing can be divided.
        (|g| norm(g).var[2] = -1e-3, "`running_var` holds -0.001 at index 2"),
        (|g| pool(g, 2, 0, [0, 0]), "pools with kernel 2, stride 0"),
        (|g| pool(g, 2, 2, [2, 0]), "pools with kernel 2, stride 2, pad [2, 0]"),
        (|g| pool(g, 2, 2, [0, 2]), "pools with kernel 2, stride 2, pad [0, 2]"),
        (|g| pool(g, 17, 1, [0, 0]), "a window of 17 does not fit 16 pixels with 0 of padding"),
        (|g| *node(g, "model.4.part") = Op::Slice { start: 5, len: 4 }, "takes channels 5..9 of 8"),
        (|g| *node(g, "model.4.part") = Op::Slice { start: 2, len: 0 }, "takes channels 2..2 of 8"),
        (|g| *node(g, "model.3.up") = Op::Upsample { factor: 0 }, "upsamples by 0"),
        (|g| *node(g, "model.3.up") = Op::Upsample { factor: 1 }, "joins maps of 8x16 and 16x32"),
        (|g| *node(g, "model.3.up") = Op::PixelShuffle { factor: 3 }, "every 3 x 3, the input has 8"),
        (|g| *node(g, "model.3.up") = Op::PixelShuffle { factor: 0 }, "every 0 x 0, the input has 8"),
        (
            |g| *node(g, "model.4.attention") = Op::Attention(Attention { heads: 2, key: 1, value: 3, areas: 4 }),
            "2 heads of 2 x 1 + 3 channels attend over a map of 8",
        ),
        (|g| g.nodes[3].inputs = vec![2, 2], "takes 1 inputs, got 2"),
        (|g| g.nodes[3].inputs = vec![3], "in node `model.0.act`: reads node 3, which comes after it"),
        // Each of them makes maps of 16 x 32, which are not half as long on the side that is odd.
        (|g| g.meta.imgsz = [32, 63], "input 0 is 16x32 at stride 2, the image 32x63"),
        (|g| g.meta.imgsz = [31, 64], "input 0 is 16x32 at stride 2, the image 31x64"),
        (
            |g| {
                let Op::Head(Head::Anchor(head)) = node(g, "model.6") else { panic!("`model.6` is no head") };
                head.classes = 3;
            },
            "input 0 has 14 channels, the head needs 16",
        ),
        (|g| dfl(g, |h| h.one_to_many = true), "one-to-many branches, which only end-to-end heads"),
        (
            |g| dfl(g, |h| (h.end_to_end, h.one_to_many, h.extra) = (true, true, Some(Extra::Angle))),
            "one-to-many branches, which only end-to-end heads of boxes and classes have",
        ),
        (|g| dfl(g, |h| h.extra = Some(Extra::Keypoints { points: 0, values: 3 })), "tells 0 keypoints of 3 values"),
        (|g| dfl(g, |h| h.extra = Some(Extra::Keypoints { points: 5, values: 1 })), "tells 5 keypoints of 1 values"),
        (|g| dfl(g, |h| h.extra = Some(Extra::Keypoints { points: 5, values: 4 })), "tells 5 keypoints of 4 values"),
        (|g| dfl(g, |h| h.extra = Some(Extra::Masks { prototypes: 0 })), "makes masks of no prototypes"),
    ];
    for (i, (change, needle)) in cases.iter().enumerate() {
        let mut graph = detector();
        change(&mut graph);
        let report = graph.validate().expect_err(needle).to_string();
        assert!(report.contains(needle), "case {i}, {needle}: {report}");
    }
    // The ends of what there can be.
    let ends: &[Change] = &[
        |g| norm(g).momentum = 0.0,
        |g| norm(g).momentum = 1.0,
        |g| norm(g).var[2] = 0.0,
        |g| *node(g, "model.4.part") = Op::Slice { start: 4, len: 4 },
        |g| pool(g, 3, 2, [0, 1]),
    ];
    for (i, change) in ends.iter().enumerate() {
        let mut graph = detector();
        change(&mut graph);
        graph.validate().unwrap_or_else(|e| panic!("end {i}: {e}"));
    }
}

/// Graphs whose parts fit each other, and that are no detectors all the same.
#[test]
fn what_no_detector_is_is_refused() {
    /// `concat` of what a graph of one pixel has, `times` over.
    fn joined(g: &mut Graph, times: usize, concat: impl Fn(usize) -> Vec<usize>) {
        g.nodes.truncate(1);
        g.meta.imgsz = [1, 1];
        for i in 0..times {
            g.push(format!("cat{i}"), Op::Concat, concat(i));
        }
    }
    type Change = fn(&mut Graph);
    let cases: [(Change, &str); 12] = [
        (|g| joined(g, 30, |last| vec![last; 2]), "makes a map of 98304x1x1"),
        (|g| joined(g, 70, |_| vec![0; 21_000]), "channels in all"),
        (|g| *node(g, "images") = Op::Input { channels: 4 }, "4 channels"),
        (|g| g.nodes.push(Node { name: "more".into(), ..g.nodes[g.nodes.len() - 1].clone() }), "one head"),
        (|g| head(g, Head::Anchor(AnchorHead { classes: 2, levels: vec![] })), "no levels"),
        (|g| head(g, Head::Yolox(YoloxHead { classes: 2, strides: vec![] })), "no levels"),
        (|g| head(g, Head::Yolox(YoloxHead { classes: 0, strides: vec![2] })), "no classes"),
        (|g| head(g, Head::Dfl(DflHead::new(2, 0, vec![2]))), "no bins"),
        (
            |g| {
                let level = AnchorLevel { stride: 2, anchors: vec![], decode: BoxDecode::V5 };
                head(g, Head::Anchor(AnchorHead { classes: 2, levels: vec![level] }));
            },
            "no anchors at stride 2",
        ),
        (
            |g| {
                let Op::Conv(conv) = node(g, "model.6.m.0") else { panic!() };
                (conv.weight, conv.bias) = (Tensor::zeros([0, 12, 1, 1]), None);
            },
            "weight has shape [0, 12, 1, 1]",
        ),
        (
            |g| {
                let Op::BatchNorm(bn) = node(g, "model.0.bn") else { panic!() };
                bn.var[3] = -1.0;
            },
            "`running_var` holds -1 at index 3",
        ),
        (
            |g| {
                g.nodes.truncate(1);
                g.meta.imgsz = [256, 256];
                g.push("attention", Op::Attention(Attention { heads: 1, key: 1, value: 1, areas: 1 }), vec![0]);
            },
            "attends over",
        ),
    ];
    for (i, (change, needle)) in cases.into_iter().enumerate() {
        let mut graph = detector();
        change(&mut graph);
        let report = graph.validate().expect_err(needle).to_string();
        assert!(report.contains(needle), "case {i}, {needle}: {report}");
    }
    // A graph without a head is in order, yet no detector's file.
    let mut graph = detector();
    graph.nodes.pop();
    let (_folder, path) = saved(&graph);
    assert!(open(&path).unwrap_err().to_string().contains("does not end in a detection head"));
}

#[test]
fn names_do_not_reach_a_terminal_as_they_are() {
    let mut graph = detector();
    graph.nodes[3].name = "model\u{1b}[2J".into();
    graph.meta.names[1] = "white\r".into();
    let (_folder, path) = saved(&graph);
    let again = open(&path).unwrap();
    assert_eq!((again.nodes[3].name.as_str(), again.meta.names[1].as_str()), ("model\\u{1b}[2J", "white\\r"));
}

#[test]
fn a_graph_that_is_wrong_is_not_saved() {
    let mut graph = detector();
    let Op::Conv(conv) = &mut graph.nodes[1].op else { panic!("node 1 is a convolution") };
    conv.weight.data[3] = f32::NAN;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    assert!(save(&graph, &path).unwrap_err().to_string().contains("model.0.conv"));
    assert!(!path.exists());
}

#[test]
fn files_are_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    write_whole(&path, b"first").unwrap();
    write_whole(&path, b"second").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"second");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left beside the file");

    let nowhere = folder.path().join("missing/file");
    assert!(write_whole(&nowhere, b"x").unwrap_err().to_string().contains("missing/file"));
}

/// Bytes of a file in order.
static WHOLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
    let (_folder, path) = saved(&detector());
    std::fs::read(path).unwrap()
});

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(300))]
    /// Whatever bytes change: an error, or a graph that passes validation.
    #[test]
    fn damaged_files_never_panic(changes in proptest::collection::vec((0usize..1 << 16, proptest::num::u8::ANY), 1..6), cut in 0usize..1 << 16) {
        let mut bytes = WHOLE.clone();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        if cut % 4 == 0 {
            bytes.truncate(cut % len);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        let _ = open(&path);
    }
}
