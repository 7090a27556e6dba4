//! `prune`: removes channels once, without training.

use std::sync::Arc;

use data::Dataset;
use graph::format::save;
use graph::{Graph, cost};
use prune::{Budget, Importance, Limits, Plan, Similarity, Size, Stop};
use train::unfold;

use crate::answers;
use crate::args::Prune;
use crate::detector::image_sizes;
use crate::exit::{Error, Exit};
use crate::pipeline::cut::{CALIBRATION_IMAGES, Calibration, Cut, Outcome};
use crate::pipeline::{Found, Goal, best_size, search, size_of, suggest, with_images_of};
use crate::report::{Left, Trials};
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
    let sizes = sizes(args, &model)?;
    model.meta.imgsz = [sizes[0]; 2];
    let share = args.similarity_share.unwrap_or(if args.data.is_some() { 1.0 } else { 0.0 });
    if share > 0.0 && args.data.is_none() {
        return Err(Error::usage("the similarity stage needs images", "give `--data`, or `--similarity-share 0`"));
    }
    let dataset = match &args.data {
        Some(path) => Some(answers::open(path, &args.form.options(), &model.meta.names)?),
        None => None,
    };
    let is_judged = args.budget.max_drop.is_some() || sizes.len() > 1;
    if let Some(dataset) = &dataset {
        // `val` is judged by, and looked at where there is no `train`.
        let judged = is_judged || dataset.split("train").is_err();
        tell_left_out(dataset, if judged { &["train", "val"] } else { &["train"] });
        if is_judged {
            by_place(&mut model, dataset)?;
        }
    }
    match dataset.as_ref().map(|dataset| calibration(args, dataset, sizes[0])) {
        Some(calibration) => model = calibration.unfold(&model)?,
        None if !unfold::bare_convolutions(&model).is_empty() => ui::warn(
            "this detector has convolutions without BatchNorm, which are ranked badly without images; give `--data`",
        ),
        None => {}
    }
    // What is judged is seen by labels.
    let labelled = match (&dataset, &args.data) {
        (Some(dataset), Some(path)) if is_judged && answers::is_bare(path, args.form.options().format) => {
            Some(answers::label(dataset, &model, sizes[0])?)
        }
        _ => None,
    };
    let jobs = sizes.iter().map(|&imgsz| Job::new(args, &model, imgsz, dataset.as_ref(), share));
    let mut jobs = jobs.collect::<miette::Result<Vec<_>>>()?;
    let judged_by = labelled.as_ref().or(dataset.as_ref());
    let mut budget = args.budget.budget();
    let reference = size_of(&jobs[0].model, jobs[0].speed.as_ref().map(|speed| &speed.latency))?;
    if let (Some(max_drop), Some(dataset)) = (args.budget.max_drop, judged_by) {
        let found = largest_cut(&jobs, reference, dataset, max_drop)?;
        budget.macs = Some(found.macs);
        jobs.retain(|job| job.imgsz() == found.imgsz);
    }
    // What cannot be reached with the smallest images can be with none.
    if let Some(smallest) = jobs.iter().min_by_key(|job| job.model.meta.imgsz) {
        smallest.goal(&budget, reference)?.within_reach(smallest.cut())?;
    }
    if sizes.len() == 1 && dataset.is_some() {
        suggest(&args.budget.budget(), &jobs[0].model, jobs[0].speed.as_ref())?;
    }
    let is_written = !args.dry_run && args.out.is_some();
    let Made { outcome, slim, goal } = match (&jobs[..], judged_by) {
        ([_, _, ..], Some(dataset)) => best(&jobs, &budget, reference, dataset)?,
        _ => {
            let mut goal = jobs[0].goal(&budget, reference)?;
            let outcome = jobs[0].cut().at_once(&jobs[0].model, &mut goal, jobs[0].calibration.as_ref())?;
            let slim = if is_written { jobs[0].reconstructed(&outcome)? } else { outcome.slim.clone() };
            Made { outcome, slim, goal }
        }
    };
    show(&outcome, args.json);
    if let Some(out) = args.out.as_ref().filter(|_| is_written) {
        save(&slim, out)?;
        ui::note(format_args!("Wrote `{}`", out.display()));
        goal.outcome(&slim)?;
    }
    Ok(Exit::Done)
}

/// The sizes of images to choose from.
fn sizes(args: &Prune, model: &Graph) -> miette::Result<Vec<usize>> {
    let sizes = image_sizes(model, &args.imgsz)?;
    if sizes.len() > 1 && args.data.is_none() {
        return Err(Error::usage("of several `--imgsz` the most accurate is measured on images", "give `--data`"));
    }
    Ok(sizes)
}

fn calibration<'a>(args: &Prune, dataset: &'a Dataset, imgsz: usize) -> Calibration<'a> {
    Calibration::new(dataset, imgsz, CALIBRATION_IMAGES, args.seed)
}

/// How a model is cut on images of one size, whatever the budget.
struct Job<'a> {
    /// Meant for images of that size.
    model: Graph,
    importance: Importance,
    similarity: Similarity,
    /// Share of the removal that stage 2 does.
    share: f64,
    calibration: Option<Calibration<'a>>,
    /// Its times, where the budget is of time.
    speed: Option<Speed>,
}

/// A cut.
struct Made {
    outcome: Outcome,
    /// What it leaves, refitted.
    slim: Graph,
    goal: Goal,
}

impl<'a> Job<'a> {
    fn new(
        args: &Prune,
        model: &Graph,
        imgsz: usize,
        dataset: Option<&'a Dataset>,
        share: f64,
    ) -> miette::Result<Self> {
        let model = with_images_of(model, imgsz);
        let speed = args.budget.latency.map(|_| Speed::measure(&model)).transpose()?;
        let limits = |limits: Limits| {
            let limits = args.limits.over(limits);
            let measured = speed.as_ref().filter(|_| args.limits.auto(true)).and_then(Speed::faster);
            Limits { multiple: measured.unwrap_or(limits.multiple), ..limits }
        };
        let (importance, similarity) = (Importance::default(), Similarity::default());
        Ok(Self {
            importance: Importance {
                criterion: prune::Criterion::OutputError,
                limits: limits(importance.limits),
                ..importance
            },
            similarity: Similarity { mode: args.similarity.into(), limits: limits(similarity.limits), ..similarity },
            share,
            calibration: dataset.map(|dataset| calibration(args, dataset, imgsz)),
            model,
            speed,
        })
    }

    /// Height and width of its images in pixels.
    fn imgsz(&self) -> usize {
        self.model.meta.imgsz[0]
    }

    fn cut(&self) -> Cut<'_> {
        Cut { importance: &self.importance, similarity: &self.similarity, similarity_share: self.share }
    }

    /// What `budget`, of which shares are of `reference`, asks of this cut.
    fn goal(&self, budget: &Budget, reference: Size) -> miette::Result<Goal> {
        let latency = self.speed.as_ref().map(|speed| Arc::new(speed.latency.clone()));
        Goal::of(budget, reference, &self.model, latency)
    }

    /// What was cut, refitted where there are images to refit it on.
    fn reconstructed(&self, outcome: &Outcome) -> miette::Result<Graph> {
        match &self.calibration {
            Some(calibration) => calibration.reconstruct(&self.model, &outcome.plans, &outcome.slim),
            None => Ok(outcome.slim.clone()),
        }
    }

    /// The cut towards `goal`; nothing where that is out of reach.
    fn made(&self, mut goal: Goal) -> miette::Result<Option<Made>> {
        let outcome = self.cut().towards(&self.model, &mut goal, self.calibration.as_ref())?;
        if !goal.met(&outcome.slim)? {
            return Ok(None);
        }
        let slim = self.reconstructed(&outcome)?;
        Ok(Some(Made { outcome, slim, goal }))
    }

    /// Who measures on `val`, on images of the job's size.
    fn judge<'d>(&self, dataset: &'d Dataset) -> miette::Result<Judge<'d>> {
        Judge::new(dataset, "val", self.imgsz(), self.model.meta.family)
    }
}

/// That one of `jobs` which is for images of `imgsz`, a size of theirs.
fn job_at<'a, 'd>(jobs: &'a [Job<'d>], imgsz: usize) -> &'a Job<'d> {
    jobs.iter().find(|job| job.imgsz() == imgsz).expect("a size of one of them")
}

/// The largest cut by one of `jobs` that costs no more than `max_drop` of the mAP50-95 that the model of the first has on `val`;
/// `reference` is the size of that model.
fn largest_cut(jobs: &[Job], reference: Size, dataset: &Dataset, max_drop: f64) -> miette::Result<Found> {
    tell_split(dataset, "val");
    let score = |judge: &Judge, graph: &Graph| judge.score(graph, &mut Counter::default()).map(|map| map.map50_95);
    let known = Trials { dense: score(&jobs[0].judge(dataset)?, &jobs[0].model)?, trials: vec![] };
    let sizes: Vec<usize> = jobs.iter().map(Job::imgsz).collect();
    let at = |imgsz: usize| {
        let job = job_at(jobs, imgsz);
        let judge = job.judge(dataset)?;
        let held = job.cut().hold(&job.model, job.calibration.as_ref())?;
        Ok(move |macs: f64| {
            let _held = &held;
            let goal = job.goal(&Budget { macs: Some(macs), ..Budget::default() }, reference)?;
            job.made(goal)?.map(|made| score(&judge, &made.slim)).transpose()
        })
    };
    Ok(search(&sizes, max_drop, known, at, |_| Ok(()))?.0)
}

/// The cut of that one of `jobs` which leaves most accuracy.
fn best(jobs: &[Job], budget: &Budget, reference: Size, dataset: &Dataset) -> miette::Result<Made> {
    tell_split(dataset, "val");
    let mut cuts = vec![];
    let sizes: Vec<usize> = jobs.iter().map(Job::imgsz).collect();
    let cut = |imgsz: usize| {
        let job = job_at(jobs, imgsz);
        let Some(made) = job.made(job.goal(budget, reference)?)? else { return Ok(None) };
        let left = left(&job.model, &made.slim, &job.judge(dataset)?)?;
        cuts.push((imgsz, made));
        Ok(Some(left))
    };
    let (best, _) = best_size(&sizes, false, vec![], cut, |_| Ok(()))?;
    let at = cuts.iter().position(|(imgsz, _)| *imgsz == best).expect("a size that was cut for");
    Ok(cuts.swap_remove(at).1)
}

/// What `slim`, cut from `whole` for images of its size, comes to by `judge`.
fn left(whole: &Graph, slim: &Graph, judge: &Judge) -> miette::Result<Left> {
    let cost = cost::total(slim, slim.meta.imgsz)?;
    let [dense, map50_95] = [judge.score(whole, &mut Counter::default())?, judge.score(slim, &mut Counter::default())?]
        .map(|map| map.map50_95);
    Ok(Left { params: cost.params, macs: cost.macs, dense, map50_95 })
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
