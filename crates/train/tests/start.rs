//! Untrained detectors of every family take their first steps: every layer is reached, and what comes out is sound.

mod common;

use common::Losses;
use data::OpenOptions;
use data::synth::{SynthConfig, write};
use graph::build::Design;
use train::schedule::ScheduleConfig;
use train::{Task, TrainConfig, train};

#[test]
fn untrained_detectors_can_be_trained() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = write(folder.path(), &SynthConfig { train: 8, val: 2, test: 1, size: 64, seed: 1 }).unwrap();
    let dataset = data::open(&yaml, &OpenOptions::default()).unwrap();
    let config = TrainConfig {
        epochs: 2,
        batch: 4,
        nominal_batch: 4,
        imgsz: 64,
        schedule: ScheduleConfig { warmup_epochs: 0.0, ..TrainConfig::default().schedule },
        ..TrainConfig::default()
    };
    for name in ["yolov5n", "yolov8n", "yolo11n", "yolox-nano"] {
        let start = Design::named(name).expect("it is listed").build(&dataset.names, 64, 3).unwrap();
        let out = folder.path().join(name);
        std::fs::create_dir_all(&out).unwrap();
        let mut losses = Losses::default();
        let task = Task { start: &start, dataset: &dataset, teacher: None, standing: None, out: &out, resume: false };
        let trained = train(&task, &config, &mut losses).unwrap_or_else(|e| panic!("{name}: {e}"));
        trained.last.validate().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(losses.0.len() == 2 && losses.0.iter().all(|&l| l.is_finite() && l > 0.0), "{name}: {:?}", losses.0);
        // A level that no object of the few images belongs to learns nothing; what all levels read does.
        let head = format!("{}.", start.nodes[start.nodes.len() - 1].name);
        let pairs = start.nodes.iter().zip(&trained.last.nodes).filter(|(n, _)| !n.name.starts_with(&head));
        for (before, after) in pairs {
            for ((what, before_values), (_, after_values)) in before.op.weights().iter().zip(after.op.weights()) {
                assert!(*before_values != after_values, "{name}: `{what}` of `{}` is as it was", before.name);
            }
        }
    }
}
