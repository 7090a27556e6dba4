//! `new` from outside: what it writes is the detector that was asked for, and trains, exports and loads like any other.

mod common;

use std::fs;
use std::path::Path;

use common::{done, prunella};
use serde_json::Value;

/// What `info --json` says.
fn info(dir: &Path, model: &str) -> Value {
    serde_json::from_str(&done(dir, &format!("info {model} --json"))).expect("JSON")
}

#[test]
fn a_detector_is_started_for_the_classes_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    fs::create_dir_all(dir.join("ds/images/train")).expect("writable");
    image::RgbImage::new(8, 8).save(dir.join("ds/images/train/a.png")).expect("writable");
    fs::create_dir_all(dir.join("ds/labels/train")).expect("writable");
    fs::write(dir.join("ds/labels/train/a.txt"), "0 0.5 0.5 0.5 0.5\n").expect("writable");
    fs::write(dir.join("ds/data.yaml"), "train: images/train\nnames: [red cell, platelet]\n").expect("writable");
    for (args, classes, params, imgsz) in [
        ("yolov8n --classes 80", 80, 3_157_184_u64, 640),
        ("yolov5n --names cat,dog,bird --imgsz 320 --seed 7", 3, 1_872_157 - 77 * 3 * (64 + 128 + 256 + 3), 320),
    ] {
        assert_eq!(done(dir, &format!("new {args} --out new.safetensors")), "new.safetensors\n");
        let info = info(dir, "new.safetensors");
        assert_eq!(info["classes"].as_array().map(Vec::len), Some(classes), "{args}");
        assert_eq!((&info["params"], &info["imgsz"][0]), (&params.into(), &imgsz.into()), "{args}");
    }
    done(dir, "-q new yolo11n --data ds --imgsz 64 --out a.safetensors");
    assert_eq!(info(dir, "a.safetensors")["classes"], serde_json::json!(["red cell", "platelet"]));
    let (code, _, err) = prunella(dir, "info a.safetensors --imgsz 100");
    assert!(code == 2 && err.contains("`--imgsz 100` is no multiple of 32") && err.contains("try 96 or 128"), "{err}");
    // The same seed gives the same file, another seed another.
    done(dir, "new yolo11n --data ds --imgsz 64 --out b.safetensors");
    done(dir, "new yolo11n --data ds --imgsz 64 --seed 1 --out c.safetensors");
    let bytes = |name: &str| fs::read(dir.join(name)).expect("written");
    assert!(bytes("a.safetensors") == bytes("b.safetensors") && bytes("a.safetensors") != bytes("c.safetensors"));
}

#[test]
fn what_cannot_be_started_is_refused_with_what_can() {
    let dir = tempfile::tempdir().expect("a folder");
    let cases = [
        (
            "yolov9z --classes 3 --out a.safetensors",
            "no detector is called `yolov9z`\nhint: known are yolov5n, yolov5s,",
        ),
        ("yolov8n --out a.safetensors", "--classes <N>"),
        ("yolov8n --classes 0 --out a.safetensors", "not a whole number of at least 1"),
        ("yolov8n --classes 1000000000000 --out a.safetensors", "is more than any detector tells apart"),
        ("yolov8n --classes 2 --names a,b,c --out a.safetensors", "`--classes 2` and the 3 of `--names` contradict"),
        ("yolov8n --names a,,c --out a.safetensors", "a class of `--names` has no name"),
        ("yolov8n --names a,b,a --out a.safetensors", "`--names` has `a` twice"),
        ("yolov8n --classes 3 --imgsz 100 --out a.safetensors", "no multiple of 32, this detector's largest stride"),
        ("yolov8n --classes 3 --out a.pt", "give `--out` a name that ends in .safetensors"),
    ];
    for (args, wanted) in cases {
        let (code, out, err) = prunella(dir.path(), &format!("new {args}"));
        assert!(code == 2 && out.is_empty() && err.contains(wanted), "{args}: {code} {err}");
    }
    let (code, _, err) = prunella(dir.path(), "new yolov8n --data nowhere --out a.safetensors");
    assert!(code == 1 && err.contains("dataset `nowhere`"), "{err}");
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0, "nothing is written");
}
