//! Real files of every format, mangled in the ways that reach furthest: each is read to an error or a checked graph, without
//! a panic and in memory that the file gives cause for.
//!
//! One test, so that the process's peak of memory is of its making alone.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use graph::build::Yolov5;
use graph::format::onnx::{ExportOptions, export};
use graph::format::{LoadOptions, load, to_bytes, ultralytics};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// Most that reading mangled files may add to the memory that reading whole ones took.
const SPARE: usize = 256 << 20;

/// Lengths and counts that files lie with: little-endian words, a varint, digits.
const HUGE: [&[u8]; 8] = [
    &[0xff, 0xff, 0xff, 0x7f],
    &[0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0, 0x40],
    &[0xff; 8],
    &[0, 0, 0, 0, 1, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff, 0x07],
    b"2147483647",
    b"99999999999999999999",
];

/// One change of a file.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    /// Some bytes become a huge number.
    Inflate(Index, usize),
    /// A stretch of at most this many bytes is copied to another place, over what is there or between.
    Splice {
        from: Index,
        len: usize,
        to: Index,
        over: bool,
    },
    Remove(Index, usize),
    Truncate(Index),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let index = any::<Index>;
        prop_oneof![
            3 => (index(), any::<u8>()).prop_map(|(at, value)| Self::Set(at, value)),
            4 => (index(), 0..HUGE.len()).prop_map(|(at, which)| Self::Inflate(at, which)),
            3 => (index(), select(vec![1, 4, 16, 200, 5000]), index(), any::<bool>())
                .prop_map(|(from, len, to, over)| Self::Splice { from, len, to, over }),
            1 => (index(), select(vec![1, 4, 16, 200, 5000])).prop_map(|(at, len)| Self::Remove(at, len)),
            1 => index().prop_map(Self::Truncate),
        ]
    }

    /// Applies it; `places` are where lies matter most.
    fn apply(&self, bytes: &mut Vec<u8>, places: &[usize]) {
        if bytes.is_empty() {
            return;
        }
        let at = |index: &Index| places[index.index(places.len())].min(bytes.len() - 1);
        match self {
            Self::Set(i, value) => {
                let i = at(i);
                bytes[i] = *value;
            }
            Self::Inflate(i, which) => {
                let start = at(i);
                // A number in text is replaced whole, or the rest of it would make the huge one wrong.
                let digits = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
                let len = if digits > 0 && HUGE[*which][0].is_ascii_digit() { digits } else { HUGE[*which].len() };
                let end = bytes.len().min(start + len);
                bytes.splice(start..end, HUGE[*which].iter().copied());
            }
            Self::Splice { from, len, to, over } => {
                let (from, to) = (at(from), at(to));
                let part = bytes[from..bytes.len().min(from + len)].to_vec();
                let end = if *over { bytes.len().min(to + part.len()) } else { to };
                bytes.splice(to..end, part);
            }
            Self::Remove(i, len) => {
                let start = at(i);
                let end = bytes.len().min(start + len);
                bytes.drain(start..end);
            }
            Self::Truncate(i) => {
                let end = at(i);
                bytes.truncate(end);
            }
        }
    }
}

/// Everywhere, and as often where a file is no weights: its ends, and runs of small numbers and text.
fn places(bytes: &[u8]) -> Vec<usize> {
    let mut dense: Vec<usize> = (0..bytes.len().saturating_sub(8))
        .filter(|&i| bytes[i..i + 8].iter().all(|b| *b < 0x80) && bytes[i..i + 8].iter().any(|b| *b != 0))
        .collect();
    dense.extend(0..bytes.len().min(300));
    dense.extend(bytes.len().saturating_sub(2000)..bytes.len());
    let step = (bytes.len() / dense.len().max(1)).max(1);
    dense.extend((0..bytes.len()).step_by(step));
    dense
}

/// Loads it. What loads is a graph that has passed the check; its weights are no more than the file has bytes for.
fn read(path: &Path, bytes: &[u8], beside: usize) {
    std::fs::write(path, bytes).unwrap();
    if let Ok(graph) = load(path, &LoadOptions::default()) {
        let weights: usize = graph.nodes.iter().flat_map(|n| n.op.weights()).map(|(_, v)| v.len()).sum();
        assert!(weights <= 4 * (bytes.len() + beside), "{weights} weights of {} bytes", bytes.len());
    }
}

/// Mangles `bytes`, `cases` times, and has `then` read them.
fn mangle(bytes: &[u8], cases: u32, mut then: impl FnMut(&[u8])) {
    let places = places(bytes);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let then = std::cell::RefCell::new(&mut then);
    TestRunner::new(config)
        .run(&prop::collection::vec(Change::any(), 1..5), |changes| {
            let mut bytes = bytes.to_vec();
            changes.iter().for_each(|change| change.apply(&mut bytes, &places));
            then.borrow_mut()(&bytes);
            Ok(())
        })
        .unwrap();
}

/// The most address space the process has had, bytes; `None` where the system does not say.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmPeak:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? << 10)
}

/// Entries of a zip, and a zip of entries: what is changed within one keeps its right checksum.
fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).unwrap();
    let len = zip.len();
    let entry = |i| {
        let mut file = zip.by_index(i).unwrap();
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).unwrap();
        (file.name().unwrap().to_string(), bytes)
    };
    (0..len).map(entry).collect()
}

fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn mangled_files_of_every_format_are_errors_or_graphs() {
    let small = Yolov5 { names: vec!["a".into()], imgsz: 32, width: 0.125, depth: 0.33, seed: 1 }.build().unwrap();
    let options = ExportOptions { imgsz: [32, 32], batch: 1, dynamic_batch: false };
    let mut files = vec![
        ("own.pt", ultralytics::to_bytes(&small, "own.pt".as_ref()).unwrap().0, 300),
        ("own.onnx", export(&small, &options).unwrap(), 150),
        ("own.safetensors", to_bytes(&small, "own.safetensors".as_ref()).unwrap(), 300),
    ];
    let mut darknet = None;
    if let Some(shared) = testkit::shared() {
        let file = |name: &str| std::fs::read(shared.join("weights").join(name)).unwrap();
        files.extend([
            ("v5.pt", file("yolov5n/yolov5n.pt"), 60),
            ("v8.pt", file("yolov8n/yolov8n-rail.pt"), 60),
            ("v11.pt", file("yolo11n/yolo11n-ball.pt"), 60),
            ("yolox.onnx", file("yolox-nano/yolox_nano.onnx"), 60),
        ]);
        darknet = Some(["cfg", "weights"].map(|e| file(&format!("yolo-fastest-1.1/yolo-fastest-1.1.{e}"))));
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, _) in &files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        load(&path, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    }
    let before = peak();
    let bounded = |what: &str| {
        if let (Some(before), Some(now)) = (before, peak()) {
            assert!(now - before < SPARE, "{what}: {} MiB more than for whole files", (now - before) >> 20);
        }
    };
    for (name, bytes, cases) in &files {
        let path = folder.path().join(name);
        mangle(bytes, *cases, |bytes| read(&path, bytes, 0));
        bounded(name);
        if name.ends_with(".pt") {
            let mut parts = entries(bytes);
            let at = parts.iter().position(|(name, _)| name.ends_with("data.pkl")).unwrap();
            let pickle = parts[at].1.clone();
            mangle(&pickle, *cases, |pickle| {
                parts[at].1 = pickle.to_vec();
                read(&path, &archive(&parts), 0);
            });
            bounded(&format!("{name}, its pickle"));
        }
    }
    let Some([cfg, weights]) = darknet else { return };
    let path = folder.path().join("fast.cfg");
    let beside = path.with_extension("weights");
    std::fs::write(&beside, &weights).unwrap();
    mangle(&cfg, 300, |cfg| {
        read(&path, cfg, weights.len());
        let _ = load(&path, &LoadOptions { untrained: Some(1), ..LoadOptions::default() });
    });
    bounded("fast.cfg");
    std::fs::write(&path, &cfg).unwrap();
    mangle(&weights, 100, |weights| {
        std::fs::write(&beside, weights).unwrap();
        let _ = load(&path, &LoadOptions::default());
    });
    bounded("fast.weights");
}
