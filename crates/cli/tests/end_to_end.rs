//! End-to-end detectors from outside: they train, compress and heal, and what comes out counts only what predicts.

mod common;

use std::fs;
use std::path::Path;

use common::{done, prunella, squares};
use serde_json::Value;

/// A folder with the small `{name}.pt` and images of squares of its last class.
fn folder(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let unpacked = testkit::unpacked(name);
    let file = format!("{name}.pt");
    fs::copy(unpacked.path().join(&file), dir.path().join(&file)).expect("writable");
    squares(dir.path(), [8, 4], &["red", "green", "blue"]);
    dir
}

fn info(dir: &Path, model: &str) -> Value {
    serde_json::from_str(&done(dir, &format!("info {model} --imgsz 64 --json"))).expect("JSON")
}

#[test]
fn a_run_trains_both_pairs_of_branches_and_shows_the_one() {
    let dir = folder("yolov10");
    let dir = dir.path();
    done(dir, "train --model yolov10.pt --data ds --imgsz 64 --epochs 2 --batch 4 --out run");
    let csv = fs::read_to_string(dir.join("run/results.csv")).expect("written");
    assert_eq!(csv.lines().count(), 3, "{csv}");
    // Gone on with it is the same run, or none.
    let again = "train --model ./yolov10.pt --data ds --out run --resume";
    done(dir, &format!("{again} --epochs 2"));
    let (code, _, err) = prunella(dir, &format!("{again} --epochs 3 --lr0 0.5"));
    let wanted =
        "`run` holds a run with other settings: `epochs` is 2, not 3, `schedule.lr0` is 0.001, not 0.5\nhint: ";
    assert!(code == 1 && err.contains(wanted), "{err}");
    let (before, after) = (info(dir, "yolov10.pt"), info(dir, "run/weights/last.safetensors"));
    assert_eq!(before["macs"], after["macs"]);
    // The file keeps the other branches, from which the next training goes on.
    done(dir, "train --model run/weights/last.safetensors --data ds --imgsz 64 --epochs 1 --batch 4 --out again");
    done(dir, "export --model again/weights/best.safetensors --format onnx --out out.onnx");
    let size = |name: &str| fs::metadata(dir.join(name)).expect("written").len();
    assert!(size("out.onnx") < size("again/weights/best.safetensors"));
}

#[test]
fn a_detector_is_compressed_and_healed() {
    let dir = folder("yolo26");
    let dir = dir.path();
    // Random weights amplify every rounding: the runtime then disagrees with ours by more than it may.
    done(dir, "train --model yolo26.pt --data ds --imgsz 64 --epochs 30 --batch 4 --out trained");
    let said = done(
        dir,
        "compress --model trained/weights/last.safetensors --data ds --imgsz 64 --epochs 4 --batch 4 --macs 0.8 --out run \
         --json",
    );
    let summary: Value = serde_json::from_str(&said).expect("JSON");
    let stages: Vec<&str> =
        summary["stages"].as_array().expect("stages").iter().map(|s| s["stage"].as_str().unwrap_or("")).collect();
    assert!(stages.contains(&"healed"), "{stages:?}");
    let (before, after) = (info(dir, "yolo26.pt"), info(dir, "run/slim.safetensors"));
    let macs = |info: &Value| info["macs"].as_f64().expect("a number");
    assert!(macs(&after) <= 0.8 * macs(&before), "{} of {}", macs(&after), macs(&before));
    // It trains on, with branches of its own size beside its own.
    done(dir, "train --model run/slim.safetensors --data ds --imgsz 64 --epochs 1 --batch 4 --out on");
}
