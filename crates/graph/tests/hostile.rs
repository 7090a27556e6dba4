//! Checkpoints that are damaged, truncated or built to harm: an error that says where, never a panic.

use std::io::{Cursor, Read, Write};
use std::path::PathBuf;

use graph::format::{LoadOptions, load};
use graph::{Graph, Op};
use proptest::num::u8::ANY;
use proptest::prelude::*;
use zip::CompressionMethod::{Deflated, Stored};
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

/// Loads `bytes` as if they were a file of this name.
fn load_bytes(name: &str, bytes: &[u8]) -> graph::Result<Graph> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    load(&path, &LoadOptions::default())
}

fn report(bytes: &[u8]) -> String {
    let error = load_bytes("model.pt", bytes).expect_err("this file must not load");
    assert!(error.to_string().contains("model.pt"), "no file is named: {error}");
    error.to_string()
}

fn archive(entries: &[(String, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn pickled(pickle: &[u8]) -> Vec<u8> {
    archive(&[("archive/data.pkl".into(), pickle.to_vec())], Stored)
}

fn yolov5n() -> Option<PathBuf> {
    Some(testkit::shared()?.join("weights/yolov5n/yolov5n.pt"))
}

/// The entries of a real checkpoint, its pickle first.
fn entries(path: &PathBuf) -> Vec<(String, Vec<u8>)> {
    let mut zip = ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut all: Vec<_> = (0..zip.len())
        .map(|i| {
            let mut file = zip.by_index(i).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            (file.name().unwrap().to_string(), bytes)
        })
        .collect();
    all.sort_by_key(|(name, _)| !name.ends_with("data.pkl"));
    all
}

/// A YOLOv5 model of one layer and a head, as protocol 2 writes it; `layer` is the layer's pickle.
fn model(layer: &[u8]) -> Vec<u8> {
    let module = |class: &str, children: &[u8]| {
        let mut bytes = format!("c{class}\n)").into_bytes();
        bytes.extend_from_slice(b"\x81}X\x08\x00\x00\x00_modules}(");
        bytes.extend_from_slice(children);
        bytes.extend_from_slice(b"usb");
        bytes
    };
    let head = module("models.yolo\nDetect", b"");
    let mut layers = b"X\x01\x00\x00\x000".to_vec();
    layers.extend_from_slice(layer);
    layers.extend_from_slice(b"X\x01\x00\x00\x001");
    layers.extend_from_slice(&head);
    let mut children = b"X\x05\x00\x00\x00model".to_vec();
    children.extend(module("torch.nn.modules.container\nSequential", &layers));
    let mut bytes = b"\x80\x02}X\x05\x00\x00\x00model".to_vec();
    bytes.extend(module("models.yolo\nModel", &children));
    bytes.extend_from_slice(b"s.");
    bytes
}

/// Pickle of a convolution whose weight is `shape` with `strides` at `offset` of storage `0`, `len` values of f16.
fn conv(len: u32, offset: u32, shape: [u32; 4], strides: [u32; 4]) -> Vec<u8> {
    let int = |bytes: &mut Vec<u8>, value: u32| {
        bytes.push(b'J');
        bytes.extend_from_slice(&value.to_le_bytes());
    };
    let mut bytes =
        b"ctorch.nn.modules.conv\nConv2d\n)\x81}(X\x0b\x00\x00\x00_parameters}X\x06\x00\x00\x00weight".to_vec();
    bytes.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nHalfStorage\n");
    bytes.extend_from_slice(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu");
    int(&mut bytes, len);
    bytes.extend_from_slice(b"tQ");
    int(&mut bytes, offset);
    for sizes in [shape, strides] {
        bytes.push(b'(');
        sizes.into_iter().for_each(|s| int(&mut bytes, s));
        bytes.push(b't');
    }
    bytes.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtRsub");
    bytes
}

/// Numbers of YOLO11's attention that do not fit its weights: an error that names the module, before anything is made for
/// each of the heads.
#[test]
fn attention_that_does_not_fit_its_weights_is_an_error() {
    let Some(shared) = testkit::shared() else { return };
    let all = entries(&shared.join("weights/yolo11n/yolo11n-ball.pt"));
    // A small whole number is the opcode `K` and a byte.
    for (attribute, value) in [("num_heads", 0), ("num_heads", 255), ("key_dim", 0), ("key_dim", 33), ("head_dim", 63)]
    {
        let mut all = all.clone();
        let pickle = &mut all[0].1;
        let name = pickle.windows(attribute.len()).position(|w| w == attribute.as_bytes()).unwrap();
        let number = name + pickle[name..].iter().position(|&b| b == b'K').unwrap() + 1;
        assert!(number - name < 20, "`{attribute}` is no small number");
        pickle[number] = value;
        let report = report(&archive(&all, Stored));
        assert!(report.contains("model.10.m.0.attn") && report.contains("heads"), "{attribute} {value}: {report}");
    }
}

/// Numbers of YOLOv5's head that its maps do not bear out: refused before anything is made as often.
#[test]
fn heads_of_any_number_of_classes_or_of_no_anchors_are_errors() {
    let Some(path) = yolov5n() else { return };
    let original = entries(&path);
    let find = |bytes: &[u8]| original[0].1.windows(bytes.len()).position(|w| w == bytes).unwrap();
    // A small whole number is the opcode `K` and a byte, one of 32 bits `J` and four.
    let classes = find(b"X\x02\x00\x00\x00nc");
    let classes = classes + original[0].1[classes..].iter().position(|&b| b == b'K').unwrap();
    let mut many = original.clone();
    many[0].1.splice(classes..classes + 2, [b'J', 0xff, 0xff, 0xff, 0x7f]);
    let told = report(&archive(&many, Stored));
    assert!(told.contains("model.24") && told.contains("2147483647 classes"), "{told}");

    let mut none = original.clone();
    let shape = find(b"K\x03K\x03K\x02\x87");
    none[0].1[shape + 3] = 0;
    let told = report(&archive(&none, Stored));
    assert!(told.contains("model.24") && told.contains("no anchors"), "{told}");
}

#[test]
fn truncated_checkpoints_are_errors() {
    let Some(path) = yolov5n() else { return };
    let bytes = std::fs::read(path).unwrap();
    for len in [0, 1, 3, 4, 30, 1000, 50_000, 83_500, bytes.len() / 2, bytes.len() - 30, bytes.len() - 1] {
        report(&bytes[..len]);
    }
}

#[test]
fn what_is_no_checkpoint_is_told_apart() {
    let zip = |name: &str| archive(&[(name.into(), b"\x80\x02N.".to_vec())], Stored);
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let script = archive(&[("a/data.pkl".into(), vec![]), ("a/constants.pkl".into(), vec![])], Stored);
    let big =
        archive(&[("a/data.pkl".into(), b"\x80\x02N.".to_vec()), ("a/byteorder".into(), b"big".to_vec())], Stored);
    let deflated = archive(&[("a/data.pkl".into(), vec![b'N'; 1 << 20])], Deflated);
    let weights_only = pickled(b"\x80\x02}X\x05\x00\x00\x00model}s.");
    let cases: [(&[u8], &str); 10] = [
        (b"", "empty"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
        (&tar, "tar format"),
        (b"<html>not found</html>", "no zip"),
        (&zip("weights.bin"), "data.pkl"),
        (&zip("archive/data.pkl"), "no module"),
        (&script, "TorchScript"),
        (&big, "big-endian"),
        (&deflated, "compressed"),
        (&weights_only, "state dict"),
    ];
    for (bytes, needle) in cases {
        let report = report(bytes);
        assert!(report.contains(needle), "{needle}: {report}");
    }
}

#[test]
fn a_command_in_a_checkpoint_is_named_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let command = format!("touch {}", trace.display());
    let mut pickle = b"\x80\x02cos\nsystem\nX".to_vec();
    pickle.extend_from_slice(&(command.len() as u32).to_le_bytes());
    pickle.extend_from_slice(command.as_bytes());
    pickle.extend_from_slice(b"\x85R.");
    let report = report(&pickled(&pickle));
    assert!(report.contains("`os.system`") && report.contains("data.pkl, byte 2"), "{report}");
    assert!(!trace.exists());
}

#[test]
fn tensors_must_lie_within_their_storage() {
    let big = u32::MAX >> 1;
    let file = |len, offset, shape, strides, bytes: usize| {
        let pickle = model(&conv(len, offset, shape, strides));
        report(&archive(&[("a/data.pkl".into(), pickle), ("a/data/0".into(), vec![0; bytes])], Stored))
    };
    let cases = [
        (file(16, 0, [4, 1, 2, 2], [4, 4, 2, 1], 30), "holds 30 bytes"),
        (file(big, 0, [4, 1, 2, 2], [4, 4, 2, 1], 32), "holds 32 bytes"),
        (file(16, 1, [4, 1, 2, 2], [4, 4, 2, 1], 32), "leaves its storage"),
        (file(16, 0, [4, 1, 2, 2], [big, 4, 2, 1], 32), "leaves its storage"),
        (file(16, 0, [big, big, big, big], [0, 0, 0, 0], 32), "leaves its storage"),
        (file(16, 0, [16, 16, 1, 1], [0, 0, 0, 0], 32), "leaves its storage"),
        // This tensor is in order: the layer lacks the rest of what a convolution is.
        (file(16, 0, [4, 1, 2, 2], [4, 4, 2, 1], 32), "`dilation`"),
    ];
    for (report, needle) in cases {
        assert!(report.contains(needle) && report.contains("model.0"), "{needle}: {report}");
    }
    let missing = report(&pickled(&model(&conv(16, 0, [4, 1, 2, 2], [4, 4, 2, 1]))));
    assert!(missing.contains("archive/data/0"), "{missing}");
}

/// A file of two storages of 2^20 values of f16 and of many convolutions, each a window of `shape` on one or the other in turn.
fn windows(shape: [u32; 4], storages: [u8; 2]) -> Vec<u8> {
    let one = conv(1 << 20, 0, shape, [shape[1], 1, 1, 1]);
    let state = one.len() - 2;
    assert_eq!(&one[state..], b"ub");
    let mut whole = one[..state].to_vec();
    for name in ["kernel_size", "stride", "padding", "dilation", "groups"] {
        whole.extend([b'X', name.len() as u8, 0, 0, 0]);
        whole.extend(name.as_bytes());
        whole.extend([b'K', u8::from(name != "padding")]);
    }
    whole.extend(b"ub");
    let mut layers = b"ctorch.nn.modules.container\nSequential\n)\x81}X\x08\x00\x00\x00_modules}(".to_vec();
    let key = b"X\x01\x00\x00\x000X\x03";
    let key = whole.windows(key.len()).position(|w| w == key).unwrap() + 5;
    for i in 0..2_000 {
        layers.push(b'M');
        layers.extend((i as u16).to_le_bytes());
        whole[key] = storages[i % 2];
        layers.extend(&whole);
    }
    layers.extend(b"usb");
    let storage = |key: &str| (format!("a/data/{key}"), vec![0; 2 << 20]);
    archive(&[("a/data.pkl".into(), model(&layers)), storage("0"), storage("1")], Stored)
}

/// Small in the file, and beyond all memory if each were read.
#[test]
fn a_storage_that_many_modules_read_is_no_bomb() {
    let file = windows([1 << 10, 1 << 10, 1, 1], *b"00");
    assert!(file.len() < 6 << 20);
    assert!(report(&file).contains("many windows on `a/data/0`"), "{}", report(&file));
}

/// A storage is not read for each of the tensors that lie in it, nor again and again.
#[test]
fn small_windows_on_large_storages_cost_no_time() {
    let told = report(&windows([1, 1, 1, 1], *b"00"));
    assert!(told.contains("has no `stride`"), "{told}");
    let told = report(&windows([1, 1, 1, 1], *b"01"));
    assert!(told.contains("many windows on `a/data/"), "{told}");
}

#[test]
fn a_module_inside_itself_is_refused() {
    let looped =
        b"ctorch.nn.modules.container\nSequential\n)\x81q\x01}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x000h\x01ssb";
    assert!(report(&pickled(&model(looped))).contains("nested deeper"));
}

#[test]
fn modules_that_multiply_are_refused() {
    // Sixty sequences, each running the one before it twice.
    let mut layer = b"ctorch.nn.modules.linear\nIdentity\n)\x81q\x00".to_vec();
    for _ in 0..60 {
        layer.extend_from_slice(b"0ctorch.nn.modules.container\nSequential\n)\x81}X\x08\x00\x00\x00_modules}(");
        layer.extend_from_slice(b"X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00usbq\x00");
    }
    assert!(report(&pickled(&model(&layer))).contains("more, than in any detector"));
}

#[test]
fn unknown_layers_and_files_are_named() {
    let layer = report(&pickled(&model(b"cmodels.common\nGhostConv\n)\x81")));
    assert!(layer.contains("model.0") && layer.contains("models.common.GhostConv"), "{layer}");
    assert!(load_bytes("model.engine", b"x").unwrap_err().to_string().contains("model.engine"));
    let options = LoadOptions { weights: Some("yolo.weights".into()), ..LoadOptions::default() };
    assert!(load("model.pt".as_ref(), &options).unwrap_err().to_string().contains("weights"));
    assert!(load("none/model.pt".as_ref(), &LoadOptions::default()).unwrap_err().to_string().contains("none/model.pt"));
}

#[test]
fn a_fused_checkpoint_loads_without_its_norms() {
    let Some(path) = yolov5n() else { return };
    let mut entries = entries(&path);
    // The name is written once and referred to from every block: renaming it leaves no block with a norm.
    let name = b"X\x02\x00\x00\x00bn";
    let at: Vec<_> = entries[0].1.windows(name.len()).enumerate().filter(|(_, w)| w == name).map(|(i, _)| i).collect();
    let [at] = at[..] else { panic!("`bn` is written {} times", at.len()) };
    entries[0].1[at + 5..at + 7].copy_from_slice(b"no");
    let graph = load_bytes("model.pt", &archive(&entries, Stored)).unwrap();
    assert!(!graph.nodes.iter().any(|n| matches!(n.op, Op::BatchNorm(_))));
}

/// The blocks of the later families take sizes and lists from the file: numbers changed one by one, and bytes anywhere in the
/// description.
#[test]
fn mutated_families_never_panic() {
    for name in testkit::FAMILIES.into_iter().chain(testkit::YOLOV3S) {
        let original = entries(&testkit::unpacked(name).path().join(format!("{name}.pt")));
        let load = |at: usize, value: u8| {
            let mut entries = original.clone();
            entries[0].1[at] = value;
            let _ = load_bytes("model.pt", &archive(&entries, Stored));
        };
        let pickle = &original[0].1;
        for attribute in
            ["num_heads", "head_dim", "key_dim", "area", "c2s", "idx", "reg_max", "groups", "nc", "padding"]
        {
            let Some(at) = pickle.windows(attribute.len()).rposition(|w| w == attribute.as_bytes()) else { continue };
            // A small whole number is the opcode `K` and a byte.
            let number = at + pickle[at..].iter().position(|&b| b == b'K').unwrap() + 1;
            [0, 1, 3, 255].into_iter().for_each(|value| load(number, value));
        }
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(24));
        runner
            .run(&(0..pickle.len(), ANY), |(at, value)| {
                load(at, value);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn mutated_checkpoints_never_panic() {
    let Some(path) = yolov5n() else { return };
    let original = entries(&path);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(40));
    // In the pickle, so that the archive around it stays whole.
    let pickle = proptest::collection::vec((0..original[0].1.len(), ANY), 1..4);
    runner
        .run(&pickle, |changes| {
            let mut entries = original.clone();
            changes.into_iter().for_each(|(at, value)| entries[0].1[at] = value);
            let _ = load_bytes("model.pt", &archive(&entries, Stored));
            Ok(())
        })
        .unwrap();
    // Anywhere in the file: headers, directory, storages.
    let bytes = std::fs::read(&path).unwrap();
    let anywhere = proptest::collection::vec((0..bytes.len(), ANY), 1..50);
    let tail = proptest::collection::vec((bytes.len() - 2000..bytes.len(), ANY), 1..4);
    runner
        .run(&prop_oneof![anywhere, tail], |changes| {
            let mut bytes = bytes.clone();
            changes.into_iter().for_each(|(at, value)| bytes[at] = value);
            let _ = load_bytes("model.pt", &bytes);
            Ok(())
        })
        .unwrap();
}
