//! Targets in bytes, milliseconds and accuracy, from outside.

mod common;

use std::fs;
use std::path::Path;

use common::{prunella, squares};
use serde_json::Value;

const MODEL: &str = "weights/yolov5n/yolov5n.pt";

/// `prune` of the shared YOLOv5n at 64 pixels.
fn prune(dir: &Path, args: &str) -> (i32, String, String) {
    prunella(dir, &format!("prune --model {{shared}}/{MODEL} --imgsz 64 {args}"))
}

#[test]
fn targets_that_make_no_sense_are_refused_before_any_work() {
    let dir = tempfile::tempdir().expect("a folder");
    let size = "neither a share above 0 and at most 1, such as 0.5, nor a size such as 2MB";
    let time = "neither a share above 0 and at most 1, such as 0.5, nor a time such as 12ms";
    let cases = [
        ("--bytes 0", size),
        ("--bytes 2000000", size),
        ("--latency 1.5", time),
        ("--latency 12", time),
        ("--latency 0ms", time),
        ("--max-drop 2", "not a share between 0 and 1"),
        ("--max-drop 0.02 --macs 0.5", "'--max-drop <DROP>' cannot be used with '--macs <SHARE>'"),
        ("--max-drop 0.02", "`--max-drop` measures mAP on images\nhint: give `--data`"),
        ("--macs 0.5 --multiple 0", "neither `auto` nor a whole number of at least 1"),
    ];
    for (args, wanted) in cases {
        let (code, out, err) = prunella(dir.path(), &format!("prune --model m.pt --out x.safetensors {args}"));
        assert!(code == 2 && out.is_empty() && err.contains(wanted), "{args}: {code} {err}");
    }
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0);
}

#[test]
fn a_file_is_as_small_as_asked_for_and_as_predicted() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("slim.safetensors");
    for (asked, limit) in [("0.5", 0.5 * 7.6e6), ("1.5MB", 1.5e6)] {
        let (code, _, err) = prune(dir.path(), &format!("--bytes {asked} --out slim.safetensors"));
        assert!(code == 0 && err.contains("predicted") && !err.contains("warning"), "{asked}: {err}");
        let bytes = fs::metadata(&file).expect("written").len() as f64;
        // A step of one channel is far less than a fiftieth of the file.
        assert!(bytes <= limit && (limit > 2e6 || bytes > 0.98 * limit), "{asked}: {bytes}");
    }
}

#[test]
fn what_cannot_be_reached_is_refused_with_what_can() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    for (args, option) in [("--macs 0.001", "--macs "), ("--bytes 100kB", "--bytes "), ("--params 0.001", "--params ")]
    {
        let (code, out, err) = prune(dir.path(), &format!("{args} --out x.safetensors"));
        assert!(code == 1 && out.is_empty(), "{args}: {code} {err}");
        assert!(err.contains(&format!("instead of `{args}`")) || option == "--bytes ", "{args}: {err}");
        let least = err.split('`').find(|part| part.starts_with(option)).unwrap_or_else(|| panic!("{args}: {err}"));
        let (code, _, err) = prune(dir.path(), &format!("{least} --dry-run"));
        assert_eq!(code, 0, "{least} was said to be reachable: {err}");
    }
    let (code, _, err) = prune(dir.path(), "--bytes 5kB --out x.safetensors");
    assert!(code == 1 && err.contains("hold no detector like this") && err.contains("\nhint: "), "{err}");
    assert!(!dir.path().join("x.safetensors").exists());
}

#[test]
fn time_is_planned_by_a_table_and_measured_on_the_result() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (code, out, err) = prune(dir.path(), "--latency 0.85 --json --out slim.safetensors");
    assert_eq!(code, 0, "{err}");
    let plans: Value = serde_json::from_str(&out).expect("JSON");
    let plans = plans.as_array().expect("plans");
    let nanos = |plan: &Value, when: &str| plan[when]["nanos"].as_u64().expect("a time");
    let (before, after) = (nanos(&plans[0], "before"), nanos(plans.last().expect("a plan"), "after"));
    assert!(after <= (0.85 * before as f64).ceil() as u64, "{before} to {after}");
    let line = err.lines().find(|l| l.starts_with("latency: ")).unwrap_or_else(|| panic!("{err}"));
    assert!(line.contains("predicted") && line.contains("measured"), "{line}");
    assert!(err.contains("multiple"), "says what it makes of multiples: {err}");
    // One target alone is met by the other's table as well.
    let (code, _, err) = prune(dir.path(), "--latency 0.0001ms --out x.safetensors");
    assert!(
        code == 1 && err.contains("instead of `--latency 0.0001ms`") && !dir.path().join("x.safetensors").exists(),
        "{err}"
    );
}

#[test]
fn a_run_keeps_its_table_of_times_and_reports_them() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    squares(dir.path(), [6, 6], &["square"]);
    // At 64 pixels starting an operator is most of its time: on a busy machine a cut saves little.
    let run = format!(
        "compress --model {{shared}}/{MODEL} --data ds --imgsz 64 --epochs 1 --batch 6 --latency 0.95 --int8 --out run"
    );
    let (code, _, err) = prunella(dir.path(), &run);
    assert_eq!(code, 0, "{err}");
    let read = |name: &str| fs::read_to_string(dir.path().join("run").join(name)).expect(name);
    let summary: Value = serde_json::from_str(&read("summary.json")).expect("JSON");
    let target = &summary["targets"][0];
    assert_eq!(target["what"], "latency");
    for key in ["asked", "predicted", "measured", "dense"] {
        assert!(target[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {target}");
    }
    assert!(target["predicted"].as_f64() <= target["asked"].as_f64(), "{target}");
    assert!(read("report.html").contains("<h2>Targets</h2>") && read("report.html").contains("<h2>Eight bits</h2>"));
    let written = fs::metadata(dir.path().join("run/slim-int8.onnx")).expect("the file in eight bits").len();
    let bytes = |file: &str| summary["int8"][file]["bytes"].as_u64().expect("a size");
    assert!(bytes("int8") == written && written < bytes("f32"), "{summary}");
    assert!(summary["int8"]["int8"]["map50_95"].is_f64(), "{summary}");
    // Planned anew after a kill, the same plans come out: the table is kept, the clock is not asked again.
    let (table, plan) = (read("latency-64.json"), read("plans/similarity.json"));
    for gone in ["plans/similarity.json", "summary.json"] {
        fs::remove_file(dir.path().join("run").join(gone)).expect(gone);
    }
    let (code, _, err) = prunella(dir.path(), &format!("{run} --resume --seed 1"));
    assert!(
        code == 1 && err.contains("`run` holds a run with other settings: ") && err.contains("`seed` is 0, not 1"),
        "{err}"
    );
    let (code, _, err) = prunella(dir.path(), &format!("{run} --resume"));
    assert!(code == 0 && !err.contains("kinds of operators"), "{err}");
    assert_eq!(read("latency-64.json"), table);
    assert_eq!(read("plans/similarity.json"), plan);
}

#[test]
fn the_largest_cut_within_a_drop_is_found_and_remembered() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    squares(dir.path(), [6, 6], &["square"]);
    let run = format!(
        "compress --model {{shared}}/{MODEL} --data ds --imgsz 96,64 --epochs 1 --batch 6 --max-drop 1 --multiple 32 --out run"
    );
    let (code, _, err) = prunella(dir.path(), &run);
    assert_eq!(code, 0, "{err}");
    let summary = fs::read_to_string(dir.path().join("run/summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    let trials = summary["trials"]["trials"].as_array().expect("trials");
    // Any cut that can be made is allowed.
    let good = trials.iter().filter(|t| t["map50_95"].is_f64()).map(|t| t["macs"].as_f64().expect("a share"));
    let share = good.fold(1.0, f64::min);
    let stages = summary["stages"].as_array().expect("stages");
    let macs = |stage: &Value| stage["macs"].as_f64().expect("a number");
    let kept = macs(stages.last().expect("a stage")) / macs(&stages[0]);
    assert!(kept <= share && kept > share - 0.02, "{kept} kept, {share} found");
    // The least that can be made is made with the smallest images.
    let sizes = |of: &[Value]| of.iter().filter_map(|of| of["imgsz"].as_u64()).collect::<Vec<_>>();
    assert!([96, 64].iter().all(|size| sizes(trials).contains(size)), "{trials:?}");
    assert_eq!([sizes(stages)[0], *sizes(stages).last().expect("a stage")], [96, 64]);
    assert!(err.contains("before healing"), "{err}");
    let (code, _, err) = prunella(dir.path(), &format!("{run} --resume"));
    assert!(code == 0, "{err}");
    let again = fs::read_to_string(dir.path().join("run/drop.json")).expect("kept");
    let again: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again["trials"].as_array().map(Vec::len), Some(trials.len()), "no cut is tried twice");
}

#[test]
fn the_size_of_images_is_chosen_by_what_is_left_at_each() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    squares(dir.path(), [6, 6], &["square"]);
    // Half of what 96 pixels cost is more than 64 do: there, nothing has to go.
    let run = format!(
        "compress --model {{shared}}/{MODEL} --data ds --imgsz 96,64 --epochs 1 --batch 6 --macs 0.5 --out run"
    );
    let (code, _, err) = prunella(dir.path(), &run);
    assert_eq!(code, 0, "{err}");
    let json = |name: &str| -> Value {
        let text = fs::read_to_string(dir.path().join("run").join(name)).expect(name);
        serde_json::from_str(&text).expect("JSON")
    };
    let summary = json("summary.json");
    let (sizes, stages) = (summary["sizes"].as_array().expect("sizes"), summary["stages"].as_array().expect("stages"));
    let number = |of: &Value, what: &str| of[what].as_f64().expect("a number");
    let [at_96, at_64] = [0, 1].map(|i| &sizes[i]["left"]);
    let (dense, slim) = (&stages[0], stages.last().expect("a stage"));
    assert_eq!([number(&sizes[0], "imgsz"), number(&sizes[1], "imgsz"), number(dense, "imgsz")], [96.0, 64.0, 96.0]);
    assert_eq!(number(at_64, "params"), number(dense, "params"), "nothing has to go");
    assert!(number(at_96, "params") < number(dense, "params"));
    for left in [at_96, at_64] {
        assert!(number(left, "macs") <= 0.5 * number(dense, "macs"), "{left}");
    }
    // What the run goes on with is the trial itself; the other is kept.
    let trial = |size: &str| dir.path().join("run/sizes").join(size).join("stages/reconstructed.json").exists();
    let promise = |left: &Value| number(left, "dense") + number(left, "map50_95");
    let first_is_best = promise(at_96) >= promise(at_64);
    let (size, best) = if first_is_best { (96.0, at_96) } else { (64.0, at_64) };
    assert_eq!([number(&summary, "imgsz"), number(slim, "imgsz")], [size; 2]);
    assert_eq!([trial("96"), trial("64")], [!first_is_best, first_is_best]);
    let reconstructed = stages.iter().find(|stage| stage["stage"] == "reconstructed").expect("a stage");
    assert_eq!([&reconstructed["macs"], &reconstructed["map50_95"]], [&best["macs"], &best["map50_95"]]);
    assert_eq!(err.matches("\nreconstructed ").count(), 2, "one a size: {err}");
    assert_eq!(number(slim, "macs"), number(best, "macs"));
    // Whoever opens what was written finds the size in it.
    let (code, out, err) = prunella(dir.path(), "info run/slim.safetensors --json");
    let info: Value = serde_json::from_str(&out).expect("JSON");
    assert!(code == 0 && info["macs"] == best["macs"], "{err} {}", info["macs"]);

    let (code, _, err) = prunella(dir.path(), &format!("{run} --resume"));
    assert!(code == 0, "{err}");
    assert_eq!(json("sizes.json").as_array().map(Vec::len), Some(2), "no size is tried twice");
    let (code, _, err) = prunella(dir.path(), "compress --out run --resume --imgsz 96");
    assert!(code == 1 && err.contains("`sizes` is"), "{err}");

    // Only a small budget is told of smaller images, and only where there are any.
    let hint = "smaller images may be worth more than channels; try `--imgsz 96,64`";
    for (args, is_told) in
        [("--imgsz 96 --macs 0.15", true), ("--imgsz 96 --macs 0.16", false), ("--imgsz 32 --macs 0.15", false)]
    {
        let small = format!("prune --model run/stages/dense.safetensors --data ds {args} --dry-run");
        let (code, _, err) = prunella(dir.path(), &small);
        assert!(
            code == 0 && err.contains(hint) == is_told && err.contains("smaller images") == is_told,
            "{args}: {err}"
        );
    }
    let prune = "prune --model run/stages/dense.safetensors --data ds --imgsz 96,64 --macs 0.5";
    let (code, _, err) = prunella(dir.path(), &format!("{prune} --out slim.safetensors"));
    assert!(code == 0 && err.contains("96 px: ") && err.contains("64 px: "), "{err}");
    let (code, _, err) =
        prunella(dir.path(), &format!("prune --model {{shared}}/{MODEL} --imgsz 96,64 --macs 0.5 --out s.safetensors"));
    assert!(code == 2 && err.contains("of several `--imgsz`"), "{err}");
}

#[test]
fn methods_are_compared_on_images_of_every_size() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    squares(dir.path(), [6, 6], &["square"]);
    let run = format!(
        "compare --model {{shared}}/{MODEL} --data ds --imgsz 96,64 --epochs 1 --batch 6 --macs 0.3 --methods \
         longer,l1,prunella --out cmp --json"
    );
    let (code, out, err) = prunella(dir.path(), &run);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("\n      healed  "), "{err}");
    let compared: Value = serde_json::from_str(&out).expect("JSON");
    let entries = compared["entries"].as_array().expect("entries");
    let told = entries.iter().map(|e| (e["method"].as_str().expect("a name"), e["imgsz"].as_u64().expect("a size")));
    let wanted = [("longer", 96), ("l1", 96), ("l1", 64), ("prunella", 96), ("prunella", 64)];
    assert_eq!(told.collect::<Vec<_>>(), wanted);
    // Shares are of the dense detector on the first size, whatever the size of the slim one's images.
    let macs = |entry: &Value| entry["macs"]["mean"].as_f64().expect("a number");
    let params = |entry: &Value| entry["params"]["mean"].as_f64().expect("a number");
    let limit = 0.3 * macs(&entries[0]);
    for (large, small) in [(1, 2), (3, 4)] {
        let (large, small) = (&entries[large], &entries[small]);
        assert!(macs(large) <= limit && macs(small) <= limit && macs(small) > 0.9 * limit, "{large} {small}");
        assert!(params(small) > params(large), "{large} {small}");
    }
    let page = fs::read_to_string(dir.path().join("cmp/report.html")).expect("a report");
    assert!(page.contains("<th>imgsz</th>") && page.contains("prunella, 64 px: "), "a column and points of their own");
    // One size more joins what has been finished. Of several jobs every line says which it is of.
    let (code, _, err) = prunella(dir.path(), &format!("{} --jobs 2", run.replace("96,64", "96,128")));
    assert_eq!(code, 0, "{err}");
    for name in ["l1-0.3-128px", "prunella-0.3-128px"] {
        assert!(err.contains(&format!("\nSeed 0, {name}:       healed  ")), "{err}");
    }
    assert!(!err.contains("\n      healed  "), "{err}");
    let compared = fs::read_to_string(dir.path().join("cmp/compare.json")).expect("written");
    let compared: Value = serde_json::from_str(&compared).expect("JSON");
    assert_eq!(compared["entries"].as_array().map(Vec::len), Some(7));
    let (code, _, err) = prunella(dir.path(), &run.replace("96,64", "64,96"));
    assert!(code == 1 && err.contains("`imgsz` is 96, not 64"), "{err}");
    // What is out of reach on one size is left out there; on all of them it is an error.
    let far = |macs: &str| run.replace("0.3", macs).replace("longer,l1,prunella", "l1");
    let (code, out, err) = prunella(dir.path(), &far("0.05"));
    let left_out = "warning: `l1` is left out where it cannot go: on images of 96 px, the budget cannot be met";
    assert!(code == 0 && err.contains(left_out) && out.contains("\"macs_kept\": 0.05"), "{err}");
    let (code, _, err) = prunella(dir.path(), &far("0.001"));
    assert!(code == 1 && err.contains("error: `l1`: on images of 96 px, the budget cannot be met"), "{err}");
}
