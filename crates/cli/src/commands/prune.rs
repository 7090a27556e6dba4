//! `prune`: removes channels once, without training.

use std::sync::Arc;

use data::Dataset;
use graph::Graph;
use graph::format::save;
use prune::{Budget, Importance, Limits, Plan, Similarity, Stop};
use train::unfold;

use crate::answers;
use crate::args::Prune;
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::pipeline::cut::{CALIBRATION_IMAGES, Calibration, Cut, Outcome};
use crate::pipeline::{Goal, search};
use crate::report::Trials;
use crate::score::{Judge, by_place};
use crate::speed::Speed;
use crate::training::{Counter, tell_left_out, tell_split};
use crate::{files, ui};

/// Runs the command.
pub fn run(args: &Prune) -> miette::Result<Exit> {
    if args.budget.is_empty() {
        return Err(Error::usage("no budget was given", "say how much to keep, such as `--macs 0.5`"));
    }
    if args.budget.max_drop.is_some() && args.data.is_none() {
        return Err(Error::usage("`--max-drop` measures mAP on images", "give `--data`"));
    }
    if let Some(out) = args.out.as_ref().filter(|_| !args.dry_run) {
        files::native(out)?;
        files::spares(out, &args.model.model)?;
        files::has_folder(out)?;
    }
    let mut model = args.model.load()?;
    model.meta.imgsz = [image_size(&model, args.imgsz)?; 2];
    let share = args.similarity_share.unwrap_or(if args.data.is_some() { 1.0 } else { 0.0 });
    if share > 0.0 && args.data.is_none() {
        return Err(Error::usage("the similarity stage needs images", "give `--data`, or `--similarity-share 0`"));
    }
    let dataset = match &args.data {
        Some(path) => Some(answers::open(path, &args.form.options(), &model.meta.names)?),
        None => None,
    };
    if let Some(dataset) = &dataset {
        // `val` is judged by, and looked at where there is no `train`.
        let judged = args.budget.max_drop.is_some() || dataset.split("train").is_err();
        tell_left_out(dataset, if judged { &["train", "val"] } else { &["train"] });
    }
    if let (Some(_), Some(dataset)) = (args.budget.max_drop, &dataset) {
        by_place(&mut model, dataset)?;
    }
    let imgsz = model.meta.imgsz[0];
    let calibration = dataset.as_ref().map(|dataset| Calibration::new(dataset, imgsz, CALIBRATION_IMAGES, args.seed));
    match &calibration {
        Some(calibration) => model = calibration.unfold(&model)?,
        None if !unfold::bare_convolutions(&model).is_empty() => ui::warn(
            "this detector has convolutions without BatchNorm, which are ranked badly without images; give `--data`",
        ),
        None => {}
    }
    let speed = args.budget.latency.map(|_| Speed::measure(&model)).transpose()?;
    let limits = |limits: Limits| {
        let limits = args.limits.over(limits);
        let measured = speed.as_ref().filter(|_| args.limits.auto(true)).and_then(Speed::faster);
        Limits { multiple: measured.unwrap_or(limits.multiple), ..limits }
    };
    let (importance, similarity) = (Importance::default(), Similarity::default());
    let job = Job {
        model: &model,
        importance: Importance {
            criterion: prune::Criterion::OutputError,
            limits: limits(importance.limits),
            ..importance
        },
        similarity: Similarity { mode: args.similarity.into(), limits: limits(similarity.limits), ..similarity },
        share,
        calibration: calibration.as_ref(),
    };
    let mut budget = args.budget.budget();
    if let (Some(max_drop), Some(dataset), Some(path)) = (args.budget.max_drop, &dataset, &args.data) {
        // A drop is seen by labels.
        let judged_by = match answers::is_bare(path, args.form.options().format) {
            true => &answers::label(dataset, &model, imgsz)?,
            false => dataset,
        };
        budget.macs = Some(job.largest_cut(judged_by, max_drop)?);
    }
    let mut goal = Goal::new(&budget, &model, speed.map(|s| Arc::new(s.latency)))?;
    goal.within_reach(job.cut())?;
    let outcome = job.cut().at_once(&model, &mut goal, calibration.as_ref())?;
    show(&outcome, args.json);
    if let Some(out) = args.out.as_ref().filter(|_| !args.dry_run) {
        let slim = job.reconstructed(outcome)?;
        save(&slim, out)?;
        ui::note(format_args!("Wrote `{}`", out.display()));
        goal.outcome(&slim)?;
    }
    Ok(Exit::Done)
}

/// How a model is cut, whatever the budget.
struct Job<'a> {
    model: &'a Graph,
    importance: Importance,
    similarity: Similarity,
    /// Share of the removal that stage 2 does.
    share: f64,
    calibration: Option<&'a Calibration<'a>>,
}

impl Job<'_> {
    fn cut(&self) -> Cut<'_> {
        Cut { importance: &self.importance, similarity: &self.similarity, similarity_share: self.share }
    }

    /// What was cut, refitted where there are images to refit it on.
    fn reconstructed(&self, outcome: Outcome) -> miette::Result<Graph> {
        match self.calibration {
            Some(calibration) => calibration.reconstruct(self.model, &outcome.plans, &outcome.slim),
            None => Ok(outcome.slim),
        }
    }

    /// The share of the multiply-accumulates to keep so that mAP50-95 on `val` falls by no more than `max_drop`.
    fn largest_cut(&self, dataset: &Dataset, max_drop: f64) -> miette::Result<f64> {
        tell_split(dataset, "val");
        let judge = Judge::new(dataset, "val", self.model.meta.imgsz[0], self.model.meta.family)?;
        let score = |graph: &Graph| judge.score(graph, &mut Counter::default()).map(|map| map.map50_95);
        let known = Trials { dense: score(self.model)?, trials: vec![] };
        let _held = self.cut().hold(self.model, self.calibration)?;
        let cut = |macs: f64| {
            let budget = Budget { macs: Some(macs), ..Budget::default() };
            let mut goal = Goal::new(&budget, self.model, None)?;
            let outcome = self.cut().towards(self.model, &mut goal, self.calibration)?;
            match goal.met(&outcome.slim)? {
                true => Ok(Some(score(&self.reconstructed(outcome)?)?)),
                false => Ok(None),
            }
        };
        Ok(search(max_drop, known, cut, |_| Ok(()))?.0)
    }
}

/// Prints the plans of a budget that is met, as a table each and one of all together, or as one JSON list.
pub fn show(outcome: &Outcome, json: bool) {
    if json {
        return ui::print_json(&outcome.plans);
    }
    for plan in &outcome.plans {
        // Why it ended is no verdict: the next one went on, or it ended within what it aimed below.
        ui::print(format_args!("{}\n", Plan { stop: Stop::Given, ..plan.clone() }));
    }
    if let [first, .., last] = &outcome.plans[..] {
        ui::print(format_args!("{}\n", together(first, last)));
    }
}

/// What the plans from `first` to `last` come to, without their layers.
fn together(first: &Plan, last: &Plan) -> Plan {
    Plan {
        method: "all together".into(),
        before: first.before,
        stop: Stop::Given,
        shortcuts: vec![],
        layers: vec![],
        notes: vec![],
        ..last.clone()
    }
}
