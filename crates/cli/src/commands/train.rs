//! `train`: fine-tunes a detector.

use std::mem::discriminant;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use train::optim::OptimKind;
use train::sparse::SparseConfig;
use train::{Task, TrainConfig};

use crate::args::{Optimizer, Train};
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::pipeline::cut::{CALIBRATION_IMAGES, Calibration};
use crate::training::{Bars, fit, tell_head, tell_left_out, tell_loss, tell_split};
use crate::{files, runs, splits, ui};

/// What a run does, from which detector, on which data: its recipe.toml.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Recipe {
    model: PathBuf,
    data: PathBuf,
    #[serde(flatten)]
    config: TrainConfig,
}

/// Runs the command.
pub fn run(args: &Train) -> miette::Result<Exit> {
    let mut recipe = match runs::stored(args.out.as_deref(), args.resume)? {
        Some(file) => resumed(&file, args)?,
        None => fresh(args),
    };
    let dataset = args.data.open()?;
    tell_left_out(&dataset, &["train", "val"]);
    tell_split(&dataset, "val");
    let model = args.model.load_to_train()?;
    let config = &mut recipe.config;
    config.imgsz = image_size(&model, Some(config.imgsz).filter(|&size| size > 0))?;
    let (imgsz, seed) = (config.imgsz, config.seed);
    let calibration = Calibration::new(&dataset, imgsz, CALIBRATION_IMAGES, seed);
    let start = fit(&calibration.unfold(&model)?, &dataset, imgsz, seed)?;
    tell_head(&model, &start);
    tell_loss(&start);
    splits::labelled(&dataset, "val")?;
    let images = splits::labelled(&dataset, "train")?.len();
    recipe.config.check_for(&start.for_training(), images)?;
    let out = runs::folder(args.out.as_deref(), "train", args.resume)?;
    let _alone = runs::alone(&out)?;
    has_its_state(&out)?;
    runs::write_toml(&out.join("recipe.toml"), &recipe)?;
    runs::tell_resume(&out);
    let task = Task { start: &start, dataset: &dataset, teacher: None, standing: None, out: &out, resume: args.resume };
    let trained = train::train(&task, &recipe.config, &mut Bars::new("train"))?;
    if !trained.gammas.is_empty() {
        runs::write_json(&out.join("gammas.json"), &trained.gammas)?;
    }
    ui::note(format_args!("Best and last detector are in `{}`", out.join("weights").display()));
    Ok(Exit::Done)
}

/// Refuses a run whose last epoch is there and not what it would go on from: to begin anew would write over it.
fn has_its_state(out: &Path) -> miette::Result<()> {
    let file = |name: &str| out.join("weights").join(name);
    if !file("last.safetensors").is_file() || file("resume.safetensors").is_file() {
        return Ok(());
    }
    let what = format!("`{}` is missing, by which the run would go on", file("resume.safetensors").display());
    Err(Error::failed(what, "give its weights/last.safetensors as `--model` of a new run"))
}

/// The recipe of a run that begins; images are of 0 pixels where nobody said how large.
fn fresh(args: &Train) -> Recipe {
    // The proximal steps of sparse training are set up for SGD's rates.
    let usual = if args.sparse.is_some() { Optimizer::Sgd } else { Optimizer::Muon };
    let config = recipe(args.optimizer.unwrap_or(usual));
    over(Recipe { config: TrainConfig { epochs: 100, imgsz: 0, ..config }, ..Recipe::default() }, args)
}

/// The recipe that the run to be gone on with keeps in `file`.
///
/// # Errors
/// The command line asks for something else.
fn resumed(file: &Path, args: &Train) -> miette::Result<Recipe> {
    if files::folder_of(file).join("stages").is_dir() {
        let what = format!("`{}` holds a run of another command", files::folder_of(file).display());
        return Err(Error::failed(what, "check the path; `compress` goes on with its own runs"));
    }
    let mut stored: Recipe = runs::read_toml(file)?;
    let asked = over(stored.clone(), args);
    for (stored, asked) in [(&mut stored.model, &asked.model), (&mut stored.data, &asked.data)] {
        // Runs of older versions do not say.
        if stored.as_os_str().is_empty() || files::same(stored, asked) {
            stored.clone_from(asked);
        }
    }
    runs::same_settings(files::folder_of(file), &stored, &asked)?;
    Ok(stored)
}

/// `recipe` with what the command line says.
fn over(recipe: Recipe, args: &Train) -> Recipe {
    let mut config = recipe.config;
    config.epochs = args.epochs.unwrap_or(config.epochs);
    config.batch = args.batch.unwrap_or(config.batch);
    config.imgsz = args.imgsz.unwrap_or(config.imgsz);
    config.seed = args.seed.unwrap_or(config.seed);
    if let Some(target) = args.sparse {
        config.sparse = Some(SparseConfig { target: target as f32, ..config.sparse.unwrap_or_default() });
    }
    follow(&mut config, args.optimizer, args.lr0, args.lrf);
    Recipe { model: args.model.model.clone(), data: args.data.data.clone(), config }
}

/// `config` with what is asked for of its optimiser and rates. One that it follows already keeps its settings.
pub fn follow(config: &mut TrainConfig, optimizer: Option<Optimizer>, lr0: Option<f64>, lrf: Option<f64>) {
    if let Some(other) = optimizer
        .map(recipe)
        .filter(|other| discriminant(&other.optimizer.kind) != discriminant(&config.optimizer.kind))
    {
        config.optimizer = other.optimizer;
        config.schedule = other.schedule;
        (config.boxes, config.anchor_t) = (other.boxes, other.anchor_t);
    }
    config.schedule.lr0 = lr0.map_or(config.schedule.lr0, |v| v as f32);
    config.schedule.lrf = lrf.map_or(config.schedule.lrf, |v| v as f32);
}

/// The recipe of `optimizer`.
pub fn recipe(optimizer: Optimizer) -> TrainConfig {
    match optimizer {
        Optimizer::Muon => TrainConfig::default(),
        Optimizer::Sgd => TrainConfig::yolov5(),
        Optimizer::Adamw => {
            let mut config = TrainConfig::default();
            config.optimizer.kind = OptimKind::adamw();
            config
        }
    }
}
