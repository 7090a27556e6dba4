//! `train`: fine-tunes a detector.

use train::optim::OptimKind;
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
    let calibration = Calibration::new(&dataset, imgsz, CALIBRATION_IMAGES, args.seed);
    let start = fit(&calibration.unfold(&model)?, &dataset, imgsz, args.seed)?;
    tell_loss(&start);
    // The proximal steps of sparse training are set up for SGD's rates.
    let usual = if args.sparse.is_some() { Optimizer::Sgd } else { Optimizer::Muon };
    let config = TrainConfig {
        epochs: args.epochs,
        batch: args.batch,
        imgsz,
        seed: args.seed,
        sparse: args.sparse.map(|target| SparseConfig { target: target as f32, ..SparseConfig::default() }),
        ..recipe(args.optimizer.unwrap_or(usual), args.lr0, args.lrf)
    };
    let out = runs::folder(args.out.as_deref(), "train", args.resume)?;
    runs::write_toml(&out.join("recipe.toml"), &config)?;
    let task = Task { start: &start, dataset: &dataset, teacher: None, standing: None, out: &out, resume: args.resume };
    let trained = train::train(&task, &config, &mut Bars::new("train"))?;
    if !trained.gammas.is_empty() {
        runs::write_json(&out.join("gammas.json"), &trained.gammas)?;
    }
    ui::note(format_args!("Best and last detector are in `{}`", out.join("weights").display()));
    Ok(Exit::Done)
}

/// The recipe of `optimizer`, with other rates where they are given.
pub fn recipe(optimizer: Optimizer, lr0: Option<f64>, lrf: Option<f64>) -> TrainConfig {
    let mut config = match optimizer {
        Optimizer::Muon => TrainConfig::default(),
        Optimizer::Sgd => TrainConfig::yolov5(),
        Optimizer::Adamw => {
            let mut config = TrainConfig::default();
            config.optimizer.kind = OptimKind::adamw();
            config
        }
    };
    config.schedule.lr0 = lr0.map_or(config.schedule.lr0, |v| v as f32);
    config.schedule.lrf = lrf.map_or(config.schedule.lrf, |v| v as f32);
    config
}
