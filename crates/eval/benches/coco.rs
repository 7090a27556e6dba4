//! Median time of evaluating the detections recorded for coco-val-206, in memory and with reading the JSON.

use std::time::{Duration, Instant};

use eval::coco::{GroundTruth, detections_from_json, evaluate};

const RUNS: usize = 51;

fn main() {
    let Some(shared) = testkit::shared() else { return };
    let read = |path: &str| std::fs::read(shared.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let instances = read("data/coco-val-206/instances.json");
    for case in ["yolov5n_640", "yolov3-tiny_416"] {
        let results = read(&format!("reference/coco-map/coco-val-206/{case}_detections.json"));
        let load = || {
            let truth = GroundTruth::from_json(&instances, "instances.json").expect("annotations");
            (truth, detections_from_json(&results, case).expect("detections"))
        };
        let (truth, detections) = load();
        let in_memory = median(|| evaluate(&truth, &detections).expect("evaluation").map50_95);
        let from_json = median(|| {
            let (truth, detections) = load();
            evaluate(&truth, &detections).expect("evaluation").map50_95
        });
        println!("{case}: {} detections, evaluate {in_memory:.2?}, with JSON {from_json:.2?}", detections.len());
    }
}

/// Median of [`RUNS`] runs after one that does not count.
fn median(mut run: impl FnMut() -> f64) -> Duration {
    let mut times: Vec<Duration> = (0..=RUNS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(run());
            start.elapsed()
        })
        .skip(1)
        .collect();
    times.sort_unstable();
    times[RUNS / 2]
}
