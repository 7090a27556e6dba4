//! A run that is killed between two epochs and resumed ends with the same weights, bit for bit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use data::synth::{SynthConfig, write};
use data::{Dataset, OpenOptions};
use graph::Graph;
use graph::build::Yolov5;
use train::schedule::{Schedule, ScheduleConfig};
use train::sparse::SparseConfig;
use train::watch::{EpochReport, Quiet, Watch};
use train::{Task, TrainConfig, Trained, train};

/// Pulls the plug after the first epoch.
struct Kill;

impl Watch for Kill {
    fn epoch(&mut self, _: &EpochReport) {
        panic!("killed");
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = write(folder.path(), &SynthConfig { train: 10, val: 3, test: 1, size: 64, seed: 1 }).unwrap();
    let dataset = data::open(&yaml, &OpenOptions::default()).unwrap();
    let spec = Yolov5 { names: dataset.names.clone(), imgsz: 64, width: 0.125, depth: 0.33, seed: 2 };
    let start = spec.build().unwrap();
    let of = |base: TrainConfig, sparse| TrainConfig {
        epochs: 3,
        batch: 4,
        nominal_batch: 8,
        imgsz: 64,
        schedule: ScheduleConfig { warmup_epochs: 0.0, ..base.schedule.clone() },
        sparse,
        ..base
    };
    let sparse = SparseConfig { target: 0.2, lambda: [1e-5, 100.0], ..SparseConfig::default() };
    resumes(&of(TrainConfig::yolov5(), Some(sparse)), None, &start, &dataset, &folder.path().join("sparse"));
    resumes(&of(TrainConfig::default(), None), None, &start, &dataset, &folder.path().join("plain"));

    // A detector that knows nothing keeps nothing of a standing of 1.
    let lost = folder.path().join("lost");
    resumes(&of(TrainConfig::default(), None), Some(1.0), &start, &dataset, &lost);
    let rates = |run: &Path| -> Vec<f64> {
        let csv = std::fs::read_to_string(run.join("results.csv")).unwrap();
        csv.lines().skip(1).map(|line| line.rsplit(',').next().unwrap().parse().unwrap()).collect()
    };
    // What is left of the run is a schedule of its own, each a quarter as fast as the one before; the rate is that of an epoch's last batch.
    let expected = |retreats: usize| {
        let config = of(TrainConfig::default(), None);
        let rates = ScheduleConfig { lr0: config.schedule.lr0 * 0.25f32.powi(retreats as i32), ..config.schedule };
        f64::from(
            Schedule::new(&rates, config.epochs - retreats, 3, config.batch, config.nominal_batch).at(2).rates.weight,
        )
    };
    let rates = rates(&lost.join("whole"));
    assert_eq!(rates.len(), 3, "three epochs");
    for (retreats, rate) in rates.into_iter().enumerate() {
        assert!((rate / expected(retreats) - 1.0).abs() < 1e-6, "{retreats}: {rate} for {}", expected(retreats));
    }
}

fn resumes(config: &TrainConfig, standing: Option<f64>, start: &Graph, dataset: &Dataset, folder: &Path) {
    let run = |out: &Path, resume: bool, watch: &mut dyn Watch| -> Trained {
        std::fs::create_dir_all(out).unwrap();
        let task = Task { start, dataset, teacher: None, standing, out, resume };
        train(&task, config, watch).unwrap()
    };
    let whole = run(&folder.join("whole"), false, &mut Quiet);
    let killed = folder.join("killed");
    assert!(catch_unwind(AssertUnwindSafe(|| run(&killed, false, &mut Kill))).is_err());
    let resumed = run(&killed, true, &mut Quiet);

    assert!(whole.last == resumed.last, "the weights differ");
    assert!(whole.best == resumed.best && whole.gammas == resumed.gammas);
    assert_eq!(resumed.gammas.len(), if config.sparse.is_some() { 3 } else { 0 });
    let csv = |run: &str| std::fs::read_to_string(folder.join(run).join("results.csv")).unwrap();
    assert_eq!(csv("whole"), csv("killed"));
    assert_eq!(csv("whole").lines().count(), 4);
}
