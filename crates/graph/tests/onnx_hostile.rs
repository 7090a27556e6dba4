//! ONNX files that are damaged or built to harm: an error that names the node, never a panic or runaway memory.

use graph::build::Yolov5;
use graph::format::onnx::{ExportOptions, export};
use graph::format::{LoadOptions, load};
use graph::{Graph, Result};
use proptest::num::u8::ANY;
use proptest::prelude::*;

fn load_bytes(bytes: &[u8]) -> Result<Graph> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    load(&path, &LoadOptions::default())
}

fn report(bytes: &[u8]) -> String {
    let error = load_bytes(bytes).expect_err("this file must not load");
    assert!(error.to_string().contains("model.onnx"), "no file is named: {error}");
    format!("{error} | {error:?}")
}

/// A field of protocol buffers: `bytes` under `number`.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(&mut out, bytes.len() as u64);
    out.extend_from_slice(bytes);
    out
}

fn number(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    varint(&mut out, value);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// An operator that reads `inputs` and writes a value of its own name.
fn node(op: &str, name: &str, inputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut body: Vec<u8> = inputs.iter().flat_map(|i| field(1, i.as_bytes())).collect();
    body.extend(field(2, name.as_bytes()));
    body.extend(field(3, name.as_bytes()));
    body.extend(field(4, op.as_bytes()));
    attributes.iter().for_each(|a| body.extend(field(5, a)));
    field(1, &body)
}

/// An attribute of a whole number.
fn int(name: &str, value: u64) -> Vec<u8> {
    [field(1, name.as_bytes()), number(3, value)].concat()
}

/// An attribute of whole numbers.
fn ints(name: &str, values: &[u64]) -> Vec<u8> {
    let mut body = field(1, name.as_bytes());
    values.iter().for_each(|&v| body.extend(number(8, v)));
    body
}

/// A weight of f32 zeros.
fn weight(name: &str, dims: &[u64], floats: usize) -> Vec<u8> {
    tensor(name, dims, 1, &vec![0; 4 * floats])
}

/// A weight of ONNX type `kind`.
fn tensor(name: &str, dims: &[u64], kind: u64, raw: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = dims.iter().flat_map(|&d| number(1, d)).collect();
    body.extend(number(2, kind));
    body.extend(field(8, name.as_bytes()));
    body.extend(field(9, raw));
    field(5, &body)
}

/// A model of an image of 32 x 32 pixels called `x` and the output `y`.
fn model(parts: &[Vec<u8>]) -> Vec<u8> {
    model_of([1, 3, 32, 32], parts)
}

/// The same of images of another shape.
fn model_of(image: [u64; 4], parts: &[Vec<u8>]) -> Vec<u8> {
    let dims: Vec<u8> = image.iter().flat_map(|&d| field(1, &number(1, d))).collect();
    let tensor = [number(1, 1), field(2, &dims)].concat();
    let input = [field(1, b"x"), field(2, &field(1, &tensor))].concat();
    let mut graph = parts.concat();
    graph.extend(field(11, &input));
    graph.extend(field(12, &field(1, b"y")));
    [number(1, 7), field(7, &graph), field(8, &number(2, 13))].concat()
}

#[test]
fn what_is_wrong_is_named() {
    let conv = |inputs: &[&str], attributes: &[Vec<u8>]| node("Conv", "c", inputs, attributes);
    let w = || weight("w", &[4, 3, 1, 1], 12);
    let end = node("Transpose", "y", &["c"], &[]);
    let external = {
        let mut body: Vec<u8> = [4, 3, 1, 1].iter().flat_map(|&d| number(1, d)).collect();
        body.extend([number(2, 1), field(8, b"w"), number(14, 1)].concat());
        field(5, &body)
    };
    let foreign = {
        let body = [field(2, b"y"), field(4, b"FusedConv"), field(7, b"com.microsoft")].concat();
        field(1, &body)
    };
    let cases: Vec<(Vec<Vec<u8>>, &[&str])> = vec![
        (vec![conv(&["x", "w"], &[]), end.clone()], &["`c` (Conv)", "`w`, which nothing writes"]),
        (vec![node("Relu", "a", &["y"], &[]), node("Relu", "y", &["a"], &[])], &["circle"]),
        (vec![node("Relu", "y", &["y"], &[])], &["`y` (Relu)", "circle"]),
        (vec![node("Relu", "y", &["x"], &[]), node("Sigmoid", "y", &["x"], &[])], &["written already"]),
        (vec![w(), w(), conv(&["x", "w"], &[]), end.clone()], &["two weights called `w`"]),
        (vec![weight("w", &[4, 3, 1, 1], 11), conv(&["x", "w"], &[]), end.clone()], &["holds 11 values"]),
        (vec![weight("w", &[127; 40], 1), conv(&["x", "w"], &[]), end.clone()], &["holds 1 values"]),
        (vec![weight("w", &[4, 3, 1], 12), conv(&["x", "w"], &[]), end.clone()], &["two dimensions"]),
        (vec![weight("w", &[4, 5, 1, 1], 20), conv(&["x", "w"], &[]), end.clone()], &["expects 5 channels"]),
        (vec![external, conv(&["x", "w"], &[]), end.clone()], &["in another file", "inside"]),
        (vec![foreign], &["com.microsoft"]),
        (vec![w(), conv(&["x", "w"], &[ints("dilations", &[2, 2])]), end.clone()], &["dilated"]),
        (vec![w(), conv(&["x", "w"], &[ints("pads", &[0, 0, 1, 1])]), end.clone()], &["not the same on both sides"]),
        (vec![w(), conv(&["x", "w"], &[ints("strides", &[0, 0])]), end.clone()], &["stride [0, 0]"]),
        (vec![w(), conv(&["x", "x"], &[]), end.clone()], &["computes its weights from the image"]),
        (vec![node("HardSwish", "y", &["x"], &[])], &["`y` (HardSwish)", "hard swish"]),
        (vec![node("NonMaxSuppression", "y", &["x", "x"], &[])], &["without non-maximum suppression"]),
        (vec![w(), conv(&["x", "w"], &[]), node("Relu", "y", &["c"], &[])], &["output `y`", "no head known"]),
        (vec![node("Transpose", "y", &["x"], &[])], &["`y` (Transpose)", "to the image itself"]),
        (vec![node("Relu", "z", &["x"], &[])], &["output `y`"]),
        (vec![], &["output `y`"]),
    ];
    for (parts, needles) in cases {
        let report = report(&model(&parts));
        for needle in needles {
            assert!(report.contains(needle), "{needle}: {report}");
        }
    }
}

#[test]
fn numbers_built_to_explode_are_refused() {
    // A constant that doubles forty times.
    let mut parts = vec![weight("v0", &[64], 64)];
    for i in 0..40 {
        let (from, to) = (format!("v{i}"), format!("v{}", i + 1));
        parts.push(node("Concat", &to, &[&from, &from], &[int("axis", 0)]));
    }
    parts.push(node("Add", "y", &["x", "v40"], &[]));
    assert!(report(&model(&parts)).contains("more than a detector's decoding needs"));

    // Axes of any length beside one of 0: nothing to hold, and no end of places to walk through or to sum into.
    let (long, longest) = (1 << 20, 1 << 60);
    let indices = tensor("i", &[1], 7, &0_i64.to_le_bytes());
    let cases = [
        vec![
            weight("w", &[long, 0, long], 0),
            node("ReduceSum", "v", &["w"], &[ints("axes", &[1]), int("keepdims", 0)]),
        ],
        vec![weight("w", &[longest, 0], 0), node("Concat", "v", &["w", "w"], &[int("axis", 1)])],
        vec![weight("w", &[longest, 1, 0], 0), indices, node("Gather", "v", &["w", "i"], &[int("axis", 1)])],
    ];
    for mut parts in cases {
        parts.push(node("Add", "y", &["x", "v"], &[]));
        assert!(report(&model(&parts)).contains("larger than a weight of any detector"));
    }
    let shape = tensor("s", &[3], 7, &[long, 0, long].map(u64::to_le_bytes).concat());
    let parts = [shape, node("ConstantOfShape", "v", &["s"], &[]), node("Add", "y", &["x", "v"], &[])];
    assert!(report(&model(&parts)).contains("more than a detector's decoding needs"));

    // Images of which a decoding could be shown no batch.
    let parts =
        [weight("w", &[64, 3, 1, 1], 192), node("Conv", "c", &["x", "w"], &[]), node("Transpose", "y", &["c"], &[])];
    assert!(report(&model_of([256, 3, 1 << 11, 1 << 11], &parts)).contains("more than a detector's decoding needs"));

    // A map that grows by 64 again and again.
    let mut parts = vec![w_scales()];
    for i in 0..20 {
        let from = if i == 0 { "x".to_owned() } else { format!("m{i}") };
        let mode = [field(1, b"coordinate_transformation_mode"), field(4, b"asymmetric")].concat();
        let floor = [field(1, b"nearest_mode"), field(4, b"floor")].concat();
        parts.push(node("Resize", &format!("m{}", i + 1), &[&from, "", "s"], &[mode, floor]));
    }
    parts.push(node("Transpose", "y", &["m20"], &[]));
    assert!(report(&model(&parts)).contains("makes a map of"));

    // Joints of joints: 2^60 ways from the output to one convolution.
    let mut parts = vec![weight("w", &[1, 3, 1, 1], 3), node("Conv", "j0", &["x", "w"], &[])];
    for i in 0..60 {
        let (from, to) = (format!("j{i}"), format!("j{}", i + 1));
        parts.push(node("Concat", &to, &[&from, &from], &[int("axis", 1)]));
    }
    parts.push(node("Transpose", "y", &["j60"], &[]));
    assert!(report(&model(&parts)).contains("values"));

    // Two bytes a node: half a million of them are refused before they become objects.
    let nodes = vec![[1 << 3 | 2, 0]; 1 << 20].concat();
    assert!(report(&field(7, &nodes)).contains("parts, more than any detector"));
}

/// A constant `s` of the scales 1, 1, 64, 64.
fn w_scales() -> Vec<u8> {
    let values: Vec<u8> = [1.0_f32, 1.0, 64.0, 64.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    field(5, &[number(1, 4), number(2, 1), field(8, b"s"), field(9, &values)].concat())
}

#[test]
fn truncated_files_are_errors() {
    let Some(shared) = testkit::shared() else { return };
    let bytes = std::fs::read(shared.join("weights/yolox-nano/yolox_nano.onnx")).unwrap();
    for len in [0, 1, 3, 30, 1000, 50_000, bytes.len() / 2, bytes.len() - 30, bytes.len() - 1] {
        report(&bytes[..len]);
    }
}

/// Bytes that are no weights: what is left of a file if the weights are taken out, as places in the file.
fn structure(bytes: &[u8]) -> Vec<usize> {
    // Runs of text and small numbers: weights are f32 of all kinds.
    let plain = |b: &u8| *b < 0x80;
    (0..bytes.len().saturating_sub(8)).filter(|&i| bytes[i..i + 8].iter().all(plain)).collect()
}

#[test]
fn mutated_files_never_panic() {
    let small = Yolov5 { names: vec!["a".into()], imgsz: 32, width: 0.125, depth: 0.33, seed: 1 }.build().unwrap();
    let own = export(&small, &ExportOptions { imgsz: [32, 32], batch: 1, dynamic_batch: false }).unwrap();
    let areas = testkit::unpacked("yolo12-exported");
    let mut files = vec![own, std::fs::read(areas.path().join("yolo12.onnx")).unwrap()];
    if let Some(shared) = testkit::shared() {
        files.push(std::fs::read(shared.join("weights/yolox-nano/yolox_nano.onnx")).unwrap());
    }
    for bytes in files {
        let places = structure(&bytes);
        let inside = prop::collection::vec((0..places.len(), ANY), 1..6)
            .prop_map(move |changes| changes.into_iter().map(|(i, v)| (places[i], v)).collect::<Vec<_>>());
        let anywhere = prop::collection::vec((0..bytes.len(), ANY), 1..50);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(150));
        runner
            .run(&prop_oneof![3 => inside, 1 => anywhere], |changes| {
                let mut bytes = bytes.clone();
                changes.into_iter().for_each(|(at, value)| bytes[at] = value);
                let _ = load_bytes(&bytes);
                Ok(())
            })
            .unwrap();
    }
}
