//! `compress`: the whole method, from a trained detector to a small one with its report.

mod recipe;

use std::path::Path;

use data::Dataset;
use graph::Graph;
use train::loss::Criterion;

use crate::answers;
use crate::args::{Compress, load_to_train};
use crate::commands::prune::show;
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::pipeline::cut::Calibration;
use crate::pipeline::{Goal, Pipeline, Recipe, stage_table, suggest, with_images_of};
use crate::score::by_place;
use crate::speed::Speed;
use crate::training::{fit, tell_head, tell_left_out, tell_loss, tell_split};
use crate::{runs, splits, ui};

/// Runs the command.
pub fn run(args: &Compress) -> miette::Result<Exit> {
    let stored = runs::stored(args.out.as_deref(), args.resume)?;
    let recipe = match &stored {
        Some(file) => recipe::resumed(file, args)?,
        None => recipe::fresh(args)?,
    };
    budgeted(&recipe)?;
    if args.dry_run && recipe.sizes.len() > 1 {
        let help = "leave out `--dry-run`, or give one `--imgsz`";
        return Err(Error::usage("a choice of sizes has to cut and look, which a dry run does not", help));
    }
    if args.dry_run && recipe.max_drop.is_some() {
        let help = "leave out `--dry-run`, or dry-run a budget such as `--macs 0.5`";
        return Err(Error::usage("`--max-drop` has to cut and look, which a dry run does not", help));
    }
    let mut model = load_to_train(&recipe.model, recipe.weights.as_deref())?;
    let mut dataset = answers::open(&recipe.data, &recipe.form(), &model.meta.names)?;
    tell_left_out(&dataset, &["train", "val"]);
    let mut recipe = fitted(recipe, &model, &dataset.names)?;
    recipe.check()?;
    if recipe.dense.epochs == 0 {
        by_place(&mut model, &dataset)?;
    }
    if recipe.has_no_labels() {
        dataset = answers::label(&dataset, &model, recipe.heal.imgsz)?;
    }
    tell_split(&dataset, "val");
    // A recipe that was written down says how often.
    let images = match [&recipe.dense, &recipe.sparse, &recipe.heal].iter().any(|t| t.epochs > 0) {
        true => splits::labelled(&dataset, "train")?.len(),
        false => splits::images(&dataset, "train")?.len(),
    };
    if stored.is_none() && args.recipe.is_none() {
        recipe.step_often(images);
    }
    let calibration = Calibration::new(&dataset, recipe.heal.imgsz, recipe.calibration_images, recipe.seed);
    let model = calibration.unfold(&model)?;
    let fitted = fit(&model, &dataset, recipe.heal.imgsz, recipe.seed)?;
    let start = fitted.for_inference();
    if args.dry_run {
        return dry_run(&recipe, &start, &dataset, args.json);
    }
    trainable(&recipe, &fitted)?;
    // What has been begun was found to be within reach.
    let speeds = match stored {
        None => recipe.reachable(&start, images)?,
        Some(_) => vec![],
    };
    if stored.is_none() {
        tell_head(&model, &fitted);
        if recipe.sizes().len() == 1 {
            suggest(&recipe.budget, &start, speeds.first())?;
        }
    }
    let out = runs::folder(args.out.as_deref(), "compress", args.resume)?;
    let _alone = runs::alone(&out)?;
    speeds.iter().try_for_each(|speed| speed.keep(&out))?;
    runs::write_toml(&out.join("recipe.toml"), &recipe)?;
    runs::tell_resume(&out);
    compress(&recipe, &fitted, &dataset, &out, args.json)
}

/// Runs a complete recipe on `model`, which has a head for the classes of `dataset`, and shows what came of it.
pub fn compress(recipe: &Recipe, model: &Graph, dataset: &Dataset, out: &Path, json: bool) -> miette::Result<Exit> {
    let summary = Pipeline::new(recipe, dataset, out, model.meta.family)?.run(model)?;
    if json {
        ui::print_json(&summary);
    } else {
        ui::print(format_args!("{}\n", stage_table(&summary.stages)));
        if let Some(int8) = &summary.int8 {
            ui::print(int8.table());
        }
    }
    ui::note(format_args!("The report is `{}`", out.join("report.html").display()));
    Ok(Exit::Done)
}

/// Refuses a recipe that does not say how small, or says so twice.
fn budgeted(recipe: &Recipe) -> miette::Result<()> {
    match (recipe.budget == prune::Budget::default(), recipe.max_drop) {
        (true, None) => Err(Error::usage("no budget was given", "say how much to keep, such as `--macs 0.5`")),
        (false, Some(_)) => Err(Error::usage(
            "the recipe has both a budget and `max_drop`, which looks for one",
            "delete one of them; on the command line, `--max-drop` or a budget takes the place of both",
        )),
        (_, Some(drop)) if !(0.0..=1.0).contains(&drop) => Err(Error::usage(
            format!("`max_drop` is {drop}, not between 0 and 1"),
            "0.02 allows two points of mAP50-95",
        )),
        _ => Ok(()),
    }
}

/// What depends on the detector: its image size where none was asked for, and no dense training where it needs none.
fn fitted(mut recipe: Recipe, model: &Graph, names: &[String]) -> miette::Result<Recipe> {
    let asked = Some(recipe.heal.imgsz).filter(|&size| size > 0);
    let imgsz = image_size(model, asked)?;
    recipe.each_training(|t| t.imgsz = if t.imgsz == 0 { imgsz } else { t.imgsz });
    for &size in &recipe.sizes {
        image_size(model, Some(size))?;
    }
    recipe.skip_dense(model, names);
    if model.is_untrained() {
        match recipe.dense.epochs {
            0 => ui::warn("this detector has never been trained, and the recipe has no dense training"),
            n => {
                ui::note(format_args!("This detector has never been trained: {n} epochs of dense training come first"))
            }
        }
    }
    Ok(recipe)
}

/// Refuses, before any work, a recipe that trains a detector no loss is written for.
fn trainable(recipe: &Recipe, model: &Graph) -> miette::Result<()> {
    let epochs = [&recipe.dense, &recipe.sparse, &recipe.heal].map(|t| t.epochs);
    if epochs == [0; 3] {
        return Ok(());
    }
    match Criterion::of(model.head()?.0, recipe.heal.imgsz) {
        Ok(_) => {
            tell_loss(model);
            Ok(())
        }
        Err(error) => Err(Error::failed(
            error.to_string(),
            "`--epochs 0` compresses it without training; heal the result with its authors' trainer",
        )),
    }
}

/// Plans both cuts on `start`, the detector as it is with a head for the dataset's classes.
fn dry_run(recipe: &Recipe, start: &Graph, dataset: &Dataset, json: bool) -> miette::Result<Exit> {
    let imgsz = recipe.sizes()[0];
    let whole = with_images_of(start, imgsz);
    let calibration = Calibration::new(dataset, imgsz, recipe.calibration_images, recipe.seed);
    let (mut goal, speeds) = Goal::timed(&recipe.budget, start, &whole, Speed::measure)?;
    let mut recipe = recipe.clone();
    recipe.round_by(speeds.last());
    show(&recipe.cut().at_once(&whole, &mut goal, Some(&calibration))?, json);
    Ok(Exit::Done)
}
