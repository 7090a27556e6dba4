//! `prune`: removes channels once, without training.

use graph::format::save;
use prune::{Importance, Similarity};
use train::unfold;

use crate::args::Prune;
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::pipeline::cut::{CALIBRATION_IMAGES, Calibration, Cut, Outcome};
use crate::ui;

/// Runs the command.
pub fn run(args: &Prune) -> miette::Result<Exit> {
    if args.budget.is_empty() {
        return Err(Error::usage("no budget was given", "say how much to keep, such as `--macs 0.5`"));
    }
    let mut model = args.model.load()?;
    model.meta.imgsz = [image_size(&model, args.imgsz)?; 2];
    let share = args.similarity_share.unwrap_or(if args.data.is_some() { 0.8 } else { 0.0 });
    if share > 0.0 && args.data.is_none() {
        return Err(Error::usage("the similarity stage needs images", "give `--data`, or `--similarity-share 0`"));
    }
    let limits = args.limits.over(prune::Limits::default());
    let importance = Importance { criterion: prune::Criterion::OutputError, limits, ..Importance::default() };
    let similarity = Similarity { mode: args.similarity.into(), limits, ..Similarity::default() };
    let dataset = match &args.data {
        Some(path) => Some(data::open(path, &args.form.options())?),
        None => None,
    };
    let calibration = dataset.as_ref().map(|dataset| Calibration {
        dataset,
        imgsz: model.meta.imgsz[0],
        images: CALIBRATION_IMAGES,
        seed: args.seed,
    });
    match &calibration {
        Some(calibration) => model = calibration.unfold(&model)?,
        None if !unfold::bare_convolutions(&model).is_empty() => ui::warn(
            "this detector has convolutions without BatchNorm, which are ranked badly without images; give `--data`",
        ),
        None => {}
    }
    let cut = Cut {
        importance: &importance,
        similarity: &similarity,
        budget: &args.budget.budget(),
        similarity_share: share,
    };
    let outcome = cut.at_once(&model, calibration.as_ref())?;
    show(&outcome, args.json);
    if let Some(out) = args.out.as_ref().filter(|_| !args.dry_run) {
        let slim = match &calibration {
            Some(calibration) => calibration.reconstruct(&model, &outcome.plans, &outcome.slim)?,
            None => outcome.slim,
        };
        save(&slim, out)?;
        ui::note(format_args!("Wrote `{}`", out.display()));
    }
    Ok(Exit::Done)
}

/// Prints the plans, as a table each or as one JSON list.
pub fn show(outcome: &Outcome, json: bool) {
    if json {
        ui::print_json(&outcome.plans);
    } else {
        outcome.plans.iter().for_each(|plan| ui::print(format_args!("{plan}\n")));
    }
}
