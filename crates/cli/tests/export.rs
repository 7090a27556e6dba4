//! `export` from outside: what is written in eight bits or as a checkpoint is read back and finds what the detector does.

mod common;

use std::fs;
use std::path::Path;

use common::{done, prunella};
use serde_json::Value;

fn json(dir: &Path, args: &str) -> Value {
    serde_json::from_str(&done(dir, args)).unwrap_or_else(|e| panic!("{args}: {e}"))
}

/// A dataset `ds` of pictures with a dark square, 6 for training and 2 for validation, and its first picture's path.
fn squares(dir: &Path) -> &'static str {
    common::squares(dir, [6, 2], &["disc", "square"]);
    "ds/images/train/0.png"
}

/// What a detector finds on a picture, however unlikely.
fn found(dir: &Path, model: &str, picture: &str) -> Vec<Value> {
    let found = json(dir, &format!("-q predict --model {model} --conf 0.0001 --json --out seen-{model} {picture}"));
    found[0]["detections"].as_array().expect("detections").clone()
}

#[test]
fn a_checkpoint_holds_the_detector_it_was_written_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let picture = squares(dir);
    for (name, family) in [("yolov5n", "YOLOv5"), ("yolov8n", "YOLOv8"), ("yolo11n", "YOLO11")] {
        done(dir, &format!("new {name} --data ds --imgsz 64 --out {name}.safetensors"));
        let export = format!("export --model {name}.safetensors --format pt");
        assert_eq!(done(dir, &export), format!("{name}.pt\n"));
        let info = |file: &str| json(dir, &format!("info {name}.{file} --json"));
        let (ours, theirs) = (info("safetensors"), info("pt"));
        for key in ["family", "classes", "imgsz", "params", "macs", "prunable_channels", "layers"] {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
        assert_eq!(
            (&theirs["recognised"], &theirs["classes"]),
            (&family.into(), &serde_json::json!(["disc", "square"]))
        );
        let boxes = found(dir, &format!("{name}.safetensors"), picture);
        assert!(!boxes.is_empty(), "{name} finds nothing, so nothing is compared");
        assert_eq!(found(dir, &format!("{name}.pt"), picture), boxes, "{name}");
        let val = |file: &str| json(dir, &format!("-q val --model {name}.{file} --data ds --json"));
        let (ours, theirs) = (val("safetensors"), val("pt"));
        for key in ["stats", "per_class", "best_f1"] {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
    }
    // What was pruned is written as the family's package can run it, and finds the same.
    done(dir, "prune --model yolo11n.pt --macs 0.6 --out slim.safetensors");
    done(dir, "export --model slim.safetensors --format pt --out slim.pt");
    let (ours, theirs) = (found(dir, "slim.safetensors", picture), found(dir, "slim.pt", picture));
    assert!(!ours.is_empty() && ours.len() == theirs.len(), "{} and {} boxes", ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(&theirs) {
        let confidence = |found: &Value| found["confidence"].as_f64().expect("a number");
        assert!((confidence(a) - confidence(b)).abs() < 1e-5, "{a} and {b}");
    }
    let (code, _, err) = prunella(dir, "export --model yolov8n.pt --format pt");
    assert!(code == 2 && err.contains("`yolov8n.pt` is the model itself"), "{err}");
    let (code, _, err) = prunella(dir, "export --model yolov8n.pt --format pt --out x.onnx");
    assert!(code == 2 && err.contains("ends in .pt") && !dir.join("x.onnx").exists(), "{err}");
    // The name says the format where nothing else does.
    done(dir, "export --model yolov8n.safetensors --out named.pt");
    assert!(fs::read(dir.join("named.pt")).expect("written").starts_with(b"PK"), "no checkpoint");
    for (args, wanted) in [
        ("--out x.weights", "ends in .onnx"),
        ("--out x.pt --format onnx", "ends in .onnx"),
        ("--out x.onnx --format safetensors", "ends in .safetensors"),
        ("--out x.pt --dynamic", "`--dynamic` is for ONNX files"),
        ("--out x.pt --int8 --data ds", "ends in .onnx"),
    ] {
        let (code, _, err) = prunella(dir, &format!("export --model yolov8n.safetensors {args}"));
        assert!(code == 2 && err.contains(wanted), "{args}: {code} {err}");
    }
}

/// Families whose blocks cut, join and attend otherwise, pruned by both stages.
#[test]
fn pruned_detectors_of_every_family_find_the_same_as_a_checkpoint() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    common::squares(dir, [6, 2], &["red", "green", "blue"]);
    let picture = "ds/images/train/0.png";
    for name in ["yolov6", "yolov9", "yolov10", "yolo12", "yolo26"] {
        let folder = testkit::unpacked(name);
        let model = folder.path().join(format!("{name}.pt"));
        let prune = "--data ds --imgsz 96 --macs 0.9 --similarity-share 0.5";
        let said = done(dir, &format!("prune --model {} {prune} --out {name}.safetensors", model.display()));
        assert!(said.contains("\nall together\n") && !said.contains("NOT met"), "{name}: {said}");
        done(dir, &format!("export --model {name}.safetensors --format pt --out {name}.pt"));
        let see = |file: &str| found(dir, &format!("{name}.{file}"), picture);
        let (ours, theirs) = (see("safetensors"), see("pt"));
        assert!(!ours.is_empty() && ours.len() == theirs.len(), "{name}: {} and {} boxes", ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(&theirs) {
            let confidence = |found: &Value| found["confidence"].as_f64().expect("a number");
            assert!((confidence(a) - confidence(b)).abs() < 1e-5, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn what_the_packages_have_no_modules_for_is_not_written_as_a_checkpoint() {
    let Some(shared) = testkit::shared() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let model = shared.join("weights/yolo-fastest-1.1/yolo-fastest-1.1.cfg").canonicalize().expect("it is there");
    let export = format!("export --model {} --format pt --out fast.pt", model.display());
    let (code, out, err) = prunella(dir.path(), &export);
    assert!(code == 1 && out.is_empty() && err.contains("no head of a family that has a .pt"), "{err}");
    assert!(!dir.path().join("fast.pt").exists());
}

#[test]
fn eight_bits_are_smaller_and_find_nearly_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let picture = squares(dir);
    done(dir, "new yolov5n --data ds --imgsz 64 --out new.safetensors");
    let outcome = json(dir, "-q export --model new.safetensors --int8 --data ds --json");
    let number = |file: &str, key: &str| outcome[file][key].as_f64().expect("a number");
    assert_eq!((&outcome["file"], &outcome["imgsz"]), (&"new-int8.onnx".into(), &64.into()));
    assert_eq!((&outcome["calibration_images"], &outcome["validation_images"]), (&6.into(), &2.into()));
    let written = fs::metadata(dir.join("new-int8.onnx")).expect("written").len();
    assert_eq!(outcome["int8"]["bytes"], written);
    assert!(number("int8", "bytes") < 0.35 * number("f32", "bytes"), "{outcome}");
    assert!((0.0..=1.0).contains(&number("int8", "map50_95")) && number("f32", "map50") <= 1.0, "{outcome}");
    let best = |model: &str| found(dir, model, picture)[0]["confidence"].as_f64().expect("a number");
    let (exact, rounded) = (best("new.safetensors"), best("new-int8.onnx"));
    assert!((exact - rounded).abs() < 0.1 * exact, "{exact} in f32, {rounded} in eight bits");

    // Fewer images, a name of one's own, a table for people; classes of other names are told of once.
    done(dir, "new yolov5n --names round,edged --imgsz 64 --out thing.safetensors");
    let export = "export --model thing.safetensors --int8 --data ds --calibration-images 2 --out own.onnx";
    let (code, table, err) = prunella(dir, export);
    assert!(code == 0 && err.matches("compared by their place").count() == 1, "{err}");
    assert!(table.contains("int8") && table.ends_with("own.onnx\n") && dir.join("own.onnx").is_file(), "{table}");
}

#[test]
fn eight_bits_need_images_and_a_format_that_has_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    squares(dir);
    done(dir, "new yolov5n --names a,b,c --imgsz 64 --out new.safetensors");
    for (args, code, wanted) in [
        ("--int8", 2, "--data <PATH>"),
        ("--int8 --data ds --format pt", 2, "`--int8` is for ONNX files"),
        ("--int8 --data nowhere", 1, "dataset `nowhere`"),
    ] {
        let (ended, out, err) = prunella(dir, &format!("export --model new.safetensors --out x.onnx {args}"));
        assert!(ended == code && out.is_empty() && err.contains(wanted), "{args}: {ended} {err}");
        assert!(!dir.join("x.onnx").exists(), "{args}");
    }
    // Scales need no labels: with other classes mAP is left out, not the file.
    let (code, out, err) = prunella(dir, "export --model new.safetensors --int8 --data ds --json --out x.onnx");
    let outcome: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {err}"));
    assert!(code == 0 && err.contains("mAP is not measured"), "{err}");
    assert!(outcome["int8"]["map50"].is_null() && outcome["validation_images"] == 0, "{outcome}");
    assert!(dir.join("x.onnx").is_file());
}
