//! `prune`: removes channels once, without training.

use data::OpenOptions;
use graph::format::save;
use prune::{Importance, Plan, Similarity};
use serde::Serialize;
use train::unfold;

use crate::args::Prune;
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::pipeline::cut::{self, Calibration};
use crate::ui;

/// Images stage 2 learns from.
const CALIBRATION_IMAGES: usize = 256;

/// What `prune --json` prints.
#[derive(Serialize)]
struct Plans {
    importance: Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    similarity: Option<Plan>,
}

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
    let reference = cut::size(&model)?;
    let target = args.budget.budget().target(reference)?;
    let dataset = args.data.as_ref().map(|path| data::open(path, &OpenOptions::default())).transpose()?;
    let imgsz = model.meta.imgsz[0];
    let calibration =
        dataset.as_ref().map(|dataset| Calibration { dataset, imgsz, images: CALIBRATION_IMAGES, seed: args.seed });
    match &calibration {
        Some(calibration) => model = calibration.unfold(&model)?,
        None if !unfold::bare_convolutions(&model).is_empty() => ui::warn(
            "this detector has convolutions without BatchNorm, which are ranked badly without images; give `--data`",
        ),
        None => {}
    }
    let importance = Importance {
        criterion: prune::Criterion::OutputError,
        limits: args.limits.over(prune::Limits::default()),
        ..Importance::default()
    };
    let first = cut::by_importance(&model, &importance, &target.before_similarity(reference, share))?;
    let mut slim = cut::apply(&model, &first)?;
    let mut second = None;
    if let Some(calibration) = calibration.as_ref().filter(|_| share > 0.0) {
        let settings = Similarity { mode: args.similarity.into(), limits: importance.limits, ..Similarity::default() };
        let plan = cut::by_similarity(&slim, &settings, &target, calibration)?;
        slim = cut::apply(&slim, &plan)?;
        second = Some(plan);
    }
    let plans = Plans { importance: first, similarity: second };
    if args.json {
        ui::print_json(&plans);
    } else {
        ui::print(format_args!("{}\n", plans.importance));
        if let Some(plan) = &plans.similarity {
            ui::print(format_args!("{plan}\n"));
        }
    }
    cut::must_meet(&slim, &target)?;
    if let Some(out) = args.out.as_ref().filter(|_| !args.dry_run) {
        save(&slim, out)?;
        ui::note(format_args!("Wrote `{}`", out.display()));
    }
    Ok(Exit::Done)
}
