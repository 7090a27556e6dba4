//! `train`: fine-tunes a detector.

use train::optim::{OptimConfig, OptimKind};
use train::schedule::ScheduleConfig;
use train::sparse::SparseConfig;
use train::{Task, TrainConfig};

use crate::args::{Optimizer, Train};
use crate::detector::image_size;
use crate::exit::Exit;
use crate::pipeline::cut::{CALIBRATION_IMAGES, Calibration};
use crate::runs;
use crate::training::{Bars, fit, tell_loss, tell_skipped};
use crate::ui;

/// Runs the command.
pub fn run(args: &Train) -> miette::Result<Exit> {
    let dataset = args.data.open()?;
    tell_skipped(&dataset);
    let model = args.model.load_to_train()?;
    let imgsz = image_size(&model, args.imgsz)?;
    let calibration = Calibration { dataset: &dataset, imgsz, images: CALIBRATION_IMAGES, seed: args.seed };
    let start = fit(&calibration.unfold(&model)?, &dataset, imgsz, args.seed)?;
    tell_loss(&start);
    let config = TrainConfig {
        epochs: args.epochs,
        batch: args.batch,
        imgsz,
        seed: args.seed,
        sparse: args.sparse.map(|target| SparseConfig { target: target as f32, ..SparseConfig::default() }),
        ..recipe(args.optimizer, args.lr0, args.lrf)
    };
    let out = runs::folder(args.out.as_deref(), "train", args.resume)?;
    runs::write_toml(&out.join("recipe.toml"), &config)?;
    let task = Task { start: &start, dataset: &dataset, teacher: None, out: &out, resume: args.resume };
    let trained = train::train(&task, &config, &mut Bars::new("train"))?;
    if !trained.gammas.is_empty() {
        runs::write_json(&out.join("gammas.json"), &trained.gammas)?;
    }
    ui::note(format_args!("Best and last detector are in `{}`", out.join("weights").display()));
    Ok(Exit::Done)
}

/// The default recipe with another optimiser and rates.
pub fn recipe(optimizer: Optimizer, lr0: Option<f64>, lrf: Option<f64>) -> TrainConfig {
    let (kind, rate) = match optimizer {
        Optimizer::Sgd => (OptimKind::Sgd { nesterov: true }, 0.01),
        Optimizer::Adamw => (OptimKind::AdamW { beta2: 0.999, eps: 1e-8 }, 0.001),
    };
    let defaults = ScheduleConfig::default();
    TrainConfig {
        optimizer: OptimConfig { kind, ..OptimConfig::default() },
        schedule: ScheduleConfig {
            lr0: lr0.unwrap_or(rate) as f32,
            lrf: lrf.map_or(defaults.lrf, |v| v as f32),
            ..defaults
        },
        ..TrainConfig::default()
    }
}
