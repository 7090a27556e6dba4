//! A folder of images without labels, from outside: the detector's own answers stand in for those.

mod common;

use std::fs;
use std::path::Path;

use common::{done, prunella};
use serde_json::Value;

const MODEL: &str = "{shared}/weights/yolov5n/yolov5n.pt";

/// A folder `photos` in `dir` with the first `count` images of COCO's sample.
fn photos(dir: &Path, shared: &Path, count: usize) {
    let images = fs::read_dir(shared.join("data/coco-val-206/images")).expect("a folder");
    let mut files: Vec<_> = images.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    fs::create_dir(dir.join("photos")).expect("writable");
    for file in files.iter().take(count) {
        fs::copy(file, dir.join("photos").join(file.file_name().expect("a name"))).expect("writable");
    }
}

#[test]
fn a_detector_is_compressed_by_what_it_finds_itself() {
    let Some(shared) = testkit::shared() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    photos(dir, &shared, 12);
    let compress =
        format!("compress --model {MODEL} --data photos --imgsz 160 --macs 0.8 --epochs 2 --batch 4 --out run");
    let (code, out, err) = prunella(dir, &format!("{compress} --json"));
    assert!(code == 0 && err.contains("No labels in `photos`") && err.contains("of 80 classes are not among"), "{err}");
    let summary: Value = serde_json::from_str(&out).expect("JSON");
    let stages = summary["stages"].as_array().expect("stages");
    let map = |stage: &Value| stage["map50_95"].as_f64().expect("a number");
    assert!(summary["agreement"] == true && (map(&stages[0]) - 1.0).abs() < 1e-9, "the detector agrees with itself");
    let (first, last) = (&stages[0], &stages[stages.len() - 1]);
    assert!(map(last) > 0.3 && map(last) < 1.0, "{stages:?}");
    assert!(last["macs"].as_f64() <= first["macs"].as_f64().map(|macs| 0.8 * macs));
    let report = fs::read_to_string(dir.join("run/report.html")).expect("written");
    assert!(report.contains("mAP is agreement with the detector"));
    // What is shipped is the best there is: what healing started from, what it ended at, or an average of both.
    let averages = fs::read_to_string(dir.join("run/heal/averages.json")).expect("written");
    let averages: Vec<Value> = serde_json::from_str(&averages).expect("JSON");
    assert_eq!(averages.iter().map(|a| a["share"].as_f64()).collect::<Vec<_>>(), [0.25, 0.5, 0.75].map(Some));
    let best = stages[1..].iter().chain(&averages).map(map).fold(0.0, f64::max);
    assert_eq!(map(last), best, "{stages:?} {averages:?}");

    // A stage that is lost is made again as it was: the same answers, the same split.
    let slim = fs::read(dir.join("run/slim.safetensors")).expect("written");
    fs::remove_dir_all(dir.join("run/heal")).expect("was there");
    for file in ["stages/healed.json", "stages/healed.safetensors", "slim.safetensors"] {
        fs::remove_file(dir.join("run").join(file)).expect("was there");
    }
    done(dir, "compress --resume --out run");
    assert!(fs::read(dir.join("run/slim.safetensors")).expect("written") == slim);
}

#[test]
fn nothing_is_trained_where_no_epochs_are_asked_for() {
    let Some(shared) = testkit::shared() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    photos(dir, &shared, 12);
    let compress = format!("compress --model {MODEL} --data photos --imgsz 160 --macs 0.8 --epochs 0 --out run --json");
    let (code, out, err) = prunella(dir, &compress);
    assert!(code == 0 && !dir.join("run/heal").exists(), "{err}");
    let summary: Value = serde_json::from_str(&out).expect("JSON");
    let stages = summary["stages"].as_array().expect("stages");
    let of = |stage: &str, figure: &str| {
        let stage = stages.iter().find(|s| s["stage"] == stage).expect("is there");
        stage[figure].as_f64().expect("a number")
    };
    // Whichever of the two is better is what is shipped.
    let best = of("reconstructed", "map50_95").max(of("recalibrated", "map50_95"));
    assert_eq!(stages.last().and_then(|s| s["map50_95"].as_f64()), Some(best));
    assert_eq!(of("reconstructed", "ms_per_image"), of("recalibrated", "ms_per_image"), "one network");
    assert!(of("dense", "ms_per_image") > 0.0);

    // A stage that is damaged is named; one that is gone is made again.
    let slim = fs::read(dir.join("run/slim.safetensors")).expect("written");
    let stage = dir.join("run/stages/reconstructed.safetensors");
    fs::write(&stage, "half").expect("writable");
    let (code, _, err) = prunella(dir, "compress --resume --out run");
    assert!(code == 1 && err.contains("run/stages/reconstructed.safetensors`"), "{err}");
    assert!(err.contains("delete it and resume the run"), "{err}");
    fs::remove_file(&stage).expect("was there");
    done(dir, "compress --resume --out run");
    assert!(stage.exists() && fs::read(dir.join("run/slim.safetensors")).expect("written") == slim);
}

#[test]
fn a_drop_is_judged_by_agreement_where_there_are_no_labels() {
    let Some(shared) = testkit::shared() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    photos(dir, &shared, 10);
    let prune = format!("prune --model {MODEL} --data photos --imgsz 96 --max-drop 0.9 --out slim.safetensors");
    let (code, _, err) = prunella(dir, &prune);
    assert!(code == 0 && err.contains("No labels in `photos`") && err.contains("0.1000 allowed"), "{err}");
}

#[test]
fn images_in_which_nothing_is_found_are_refused() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    fs::create_dir(dir.join("grey")).expect("writable");
    let compress = format!("compress --model {MODEL} --data grey --imgsz 64 --macs 0.8 --epochs 1 --out run");
    for (image, wanted) in
        [(0, "`grey` holds one image"), (1, "the detector finds next to nothing in the images of `grey`")]
    {
        let grey = image::RgbImage::from_pixel(64, 64, image::Rgb([114; 3]));
        grey.save(dir.join(format!("grey/{image}.png"))).expect("writable");
        let (code, out, err) = prunella(dir, &compress);
        assert!(code == 1 && out.is_empty() && err.contains(wanted) && err.contains("\nhint: "), "{code} {err}");
    }
    assert!(!dir.join("run").exists());
}

#[test]
fn a_folder_of_images_is_checked_as_one() {
    let Some(shared) = testkit::shared() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    photos(dir, &shared, 2);
    let (code, out, err) = prunella(dir, "data check photos");
    assert!(
        code == 0 && out.contains("nothing is wrong") && err.contains("`photos` is no dataset"),
        "{code} {out} {err}"
    );
    fs::create_dir(dir.join("none")).expect("writable");
    let (code, _, err) = prunella(dir, "data check none");
    assert!(code == 1 && err.contains("not recognised as a dataset"), "{code} {err}");
    for (name, bytes) in [("broken.jpg", "no image"), ("worse.png", ""), ("other.tiff", "II*")] {
        fs::write(dir.join("photos").join(name), bytes).expect("writable");
    }
    let (code, out, _) = prunella(dir, "data check photos");
    assert!(code != 0 && !out.contains("nothing is wrong"), "{out}");
    for name in ["photos/broken.jpg", "photos/worse.png", "photos/other.tiff"] {
        assert!(out.contains(name), "{name}: {out}");
    }
    // `predict` says what it leaves out.
    let (code, out, err) = prunella(dir, &format!("predict --model {MODEL} --imgsz 64 photos --out seen"));
    assert!(code == 1 && err.contains("2 of 4 images cannot be read"), "{code} {out} {err}");
    assert!(err.contains("1 images in `photos` are of kinds that are not read, such as `photos/other.tiff`"), "{err}");
}
