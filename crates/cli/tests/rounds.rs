//! Cutting and healing in rounds, from outside.

mod common;

use std::fs;

use common::{done, squares};
use serde_json::Value;

#[test]
fn two_rounds_go_equal_parts_of_the_way_and_resume_in_between() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    squares(dir, [8, 4], &["square"]);
    let run = "compress --model {shared}/weights/yolov5n/yolov5n.pt --data ds --imgsz 64 --epochs 3 --batch 4 --macs 0.25 \
               --rounds 2 --out run --json";
    let said = done(dir, run);
    let summary: Value = serde_json::from_str(&said).expect("JSON");
    let stages = summary["stages"].as_array().expect("stages");
    let macs = |name: &str| {
        let stage = stages.iter().find(|s| s["stage"] == name).unwrap_or_else(|| panic!("no {name} in {stages:?}"));
        stage["macs"].as_f64().expect("a number")
    };
    for (cut, share) in [("replaced-1", 0.5), ("healed-1", 0.5), ("reconstructed", 0.25), ("healed", 0.25)] {
        let kept = macs(cut) / macs("dense");
        assert!(kept <= share + 1e-4 && kept > share - 0.03, "{cut} keeps {kept}");
    }
    let epochs = |heal: &str| {
        fs::read_to_string(dir.join("run").join(heal).join("results.csv")).expect("kept").lines().count() - 1
    };
    assert_eq!([epochs("heal-1"), epochs("heal")], [1, 2]);

    let slim = fs::read(dir.join("run/slim.safetensors")).expect("written");
    for stage in ["reconstructed", "recalibrated", "healed"] {
        fs::remove_file(dir.join(format!("run/stages/{stage}.json"))).expect("was there");
    }
    fs::remove_dir_all(dir.join("run/heal")).expect("was there");
    done(dir, &format!("{run} --resume"));
    assert!(fs::read(dir.join("run/slim.safetensors")).expect("written") == slim, "another detector");
}
