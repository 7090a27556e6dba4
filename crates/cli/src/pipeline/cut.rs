//! The two cuts: stage 1 by importance, stage 2 by similarity, both towards one budget.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use data::{Augment, Batch, Dataset, Item, Loader, LoaderConfig, Mode};
use graph::Graph;
use prune::surgery::Kept;
use prune::{
    Coupling, Importance, Limits, Plan, Sensitivity, Similarity, Statistics, Target, importance, similarity, surgery,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use train::calibrate::{self, Focus, Images};
use train::evaluate::fit;
use train::loss::{Criterion, probe};
use train::reconstruct::{self, Reconstructed, Reconstruction};
use train::unfold;

use super::Goal;
use crate::{splits, ui};

/// Images statistics are taken from where no recipe says how many.
pub const CALIBRATION_IMAGES: usize = 256;

/// Images that BatchNorm statistics are estimated anew from: a mean over so many is exact enough.
const RECALIBRATED_ON: usize = 1024;

/// The training images of a dataset as calibration sees them.
pub struct Calibration<'a> {
    pub dataset: &'a Dataset,
    pub imgsz: usize,
    /// How many images at most, spread evenly over the split.
    pub images: usize,
    pub seed: u64,
    /// What was measured last: reconstruction asks where the detector minds what stage 2 has asked for, a search for the largest cut
    /// asks for all of it time and again.
    measured: RefCell<Option<Measured>>,
}

/// What images tell of a detector.
struct Measured {
    graph: Graph,
    /// Gigabytes of them where a detector is large: there for as long as somebody holds them.
    statistics: Weak<Statistics>,
    minds: Rc<Minds>,
}

/// What a detector minds: where in the images, and of which outputs.
struct Minds {
    focus: Focus,
    sensitivity: Sensitivity,
}

impl<'a> Calibration<'a> {
    pub fn new(dataset: &'a Dataset, imgsz: usize, images: usize, seed: u64) -> Self {
        Self { dataset, imgsz, images, seed, measured: RefCell::default() }
    }

    /// In an order of their own: the first of them are looked at longest.
    fn items(&self) -> miette::Result<Vec<Item>> {
        let mut items = splits::spread(splits::to_calibrate_on(self.dataset)?, self.images);
        items.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        Ok(items)
    }

    /// The same of all images.
    pub fn of_all(&self) -> Self {
        Self::new(self.dataset, self.imgsz, usize::MAX, self.seed)
    }

    /// The same of fewer images.
    fn of_at_most(&self, images: usize) -> Self {
        Self::new(self.dataset, self.imgsz, self.images.min(images), self.seed)
    }

    /// All images, as many at a time as `graph` looks at together.
    fn loader(&self, graph: &Graph, mode: Mode) -> miette::Result<Loader> {
        self.loader_of(&self.items()?, graph, mode)
    }

    fn loader_of(&self, items: &[Item], graph: &Graph, mode: Mode) -> miette::Result<Loader> {
        let config = LoaderConfig {
            size: self.imgsz as u32,
            batch: calibrate::together(graph, [self.imgsz; 2])?,
            mode,
            seed: self.seed,
            ..LoaderConfig::default()
        };
        Ok(Loader::new(items, config)?)
    }

    /// Shows `measure` whole images, what the detector meets in use, under a bar that says `task`.
    fn over_whole_images<T>(
        &self,
        graph: &Graph,
        task: &str,
        measure: impl FnOnce(&mut dyn Iterator<Item = train::Result<Images>>) -> train::Result<T>,
    ) -> miette::Result<T> {
        let loader = self.loader(graph, Mode::Val(fit(graph.meta.family)))?;
        let bar = ui::bar(task, self.items()?.len(), "images");
        let mut batches =
            loader.epoch(0).map(images).inspect(|images| bar.inc(images.as_ref().map_or(0, |i| i.n as u64)));
        let measured = measure(&mut batches)?;
        bar.finish_and_clear();
        Ok(measured)
    }

    /// Shows `measure` the images and their labels `epochs` times, augmented as in training, as many at a time as `graph` looks at together,
    /// under a bar that says `task`.
    fn over_augmented_images<T>(
        &self,
        graph: &Graph,
        augment: Augment,
        epochs: usize,
        task: &str,
        measure: impl FnOnce(&mut dyn Iterator<Item = data::Result<Batch>>) -> train::Result<T>,
    ) -> miette::Result<T> {
        let loader = self.loader(graph, Mode::Train(augment))?;
        let bar = ui::bar(task, epochs * loader.batches(), "batches");
        let mut batches = (0..epochs).flat_map(|e| loader.epoch(e as u64)).inspect(|_| bar.inc(1));
        let measured = measure(&mut batches)?;
        bar.finish_and_clear();
        Ok(measured)
    }

    /// Channel statistics of the tensors stage 2 looks at, over whole images: what the detector meets in use. Where its answers can
    /// be probed, positions count by how much those mind them, and where that is goes with them.
    pub fn statistics(&self, graph: &Graph, coupling: &Coupling) -> miette::Result<Rc<Statistics>> {
        if let Some(known) = self.known(graph, |measured| measured.statistics.upgrade()) {
            return Ok(known);
        }
        let (statistics, focus) = self.measure(graph, coupling)?;
        let minds = Rc::new(Minds { focus, sensitivity: statistics.sensitivity.clone() });
        let statistics = Rc::new(statistics);
        let measured = Measured { graph: graph.clone(), statistics: Rc::downgrade(&statistics), minds };
        self.measured.replace(Some(measured));
        Ok(statistics)
    }

    /// What is still known of `graph`.
    fn known<T>(&self, graph: &Graph, what: impl FnOnce(&Measured) -> Option<T>) -> Option<T> {
        self.measured.borrow().as_ref().filter(|measured| measured.graph == *graph).and_then(what)
    }

    /// Lets go of what was measured.
    pub fn forget(&self) {
        self.measured.take();
    }

    fn measure(&self, graph: &Graph, coupling: &Coupling) -> miette::Result<(Statistics, Focus)> {
        let size = [self.imgsz; 2];
        if !is_probed(graph) {
            let nodes = prune::observed(graph, coupling);
            let statistics = self
                .over_whole_images(graph, "Calibrating", |images| calibrate::statistics(graph, &nodes, size, images))?;
            return Ok((statistics, Focus::new()));
        }
        let (mut statistics, focus) = self.over_whole_images(graph, "Calibrating", |images| {
            calibrate::focused_statistics(graph, coupling, size, images)
        })?;
        statistics.sensitivity = self.sensitivity(graph)?;
        Ok((statistics, focus))
    }

    /// What the answers of `graph` mind, on images augmented as in training; nothing where they cannot be probed.
    pub fn sensitivity(&self, graph: &Graph) -> miette::Result<Sensitivity> {
        if !is_probed(graph) {
            return Ok(Sensitivity::default());
        }
        self.over_augmented_images(graph, Augment::default(), 1, "Measuring", |batches| {
            calibrate::sensitivity(graph, [self.imgsz; 2], batches.map(images))
        })
    }

    /// What the answers of `graph` mind in `images` and in those augmented as in training; nothing where they cannot be probed.
    fn minds(&self, graph: &Graph, images: &Images) -> miette::Result<Minds> {
        let focus = if is_probed(graph) { calibrate::focus(graph, [self.imgsz; 2], images)? } else { Focus::new() };
        Ok(Minds { focus, sensitivity: self.sensitivity(graph)? })
    }

    /// What the detection loss of `graph` minds by the labels of its images, augmented as in training; nothing where no loss is
    /// known for it.
    fn gates(&self, graph: &Graph) -> miette::Result<Sensitivity> {
        if !graph.head().is_ok_and(|(head, _)| Criterion::of(head, self.imgsz).is_ok()) {
            return Ok(Sensitivity::default());
        }
        self.over_augmented_images(graph, Augment::default(), 1, "Measuring", |batches| {
            calibrate::gates(graph, [self.imgsz; 2], batches)
        })
    }

    /// `slim`, cut from `dense` by `plans` one after the other, with its weights refitted so that its maps come closest to
    /// those of `dense`.
    pub fn reconstruct(&self, dense: &Graph, plans: &[Plan], slim: &Graph) -> miette::Result<Graph> {
        let kept = trace(dense, plans)?;
        let images = self.for_reconstruction(dense)?;
        let minds = match self.known(dense, |measured| Some(Rc::clone(&measured.minds))) {
            Some(known) => known,
            None => Rc::new(self.minds(dense, &images)?),
        };
        let bar = ui::bar("Reconstructing", slim.nodes.len(), "nodes");
        let job = Reconstruction {
            dense,
            slim,
            kept: &kept,
            images: &images,
            imgsz: [self.imgsz; 2],
            seed: self.seed,
            focus: &minds.focus,
            sensitivity: &minds.sensitivity,
        };
        let Reconstructed { graph, refitted, recast } = job.run(|done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let images = images.n;
        match refitted.len() {
            0 => ui::note(format_args!("No convolution was refitted on {images} images: too few, or nothing to mend")),
            count => {
                let left = refitted.iter().map(|r| r.left).sum::<f64>() / count as f64;
                ui::note(format_args!(
                    "Refitted {count} convolutions to the dense detector's maps on {images} images and their mirrors; \
                     {:.0} % of what was missing on held-out images is left on average; {} layers recast for their readers",
                    100.0 * left,
                    recast.len()
                ));
            }
        }
        self.rebase(&graph)
    }

    /// `graph`, computing what it does, with BatchNorm statistics as training will find them.
    fn rebase(&self, graph: &Graph) -> miette::Result<Graph> {
        let few = self.of_at_most(reconstruct::IMAGES);
        few.over_augmented_images(graph, Augment::default(), 1, "Rebasing BatchNorm", |batches| {
            calibrate::rebase_batch_norm(graph, [self.imgsz; 2], batches.map(images))
        })
    }

    /// Whole images for reconstruction, as `graph` is shown them.
    fn for_reconstruction(&self, graph: &Graph) -> miette::Result<Images> {
        let mut chosen = self.items()?;
        chosen.truncate(reconstruct::IMAGES);
        let loader = self.loader_of(&chosen, graph, Mode::Val(fit(graph.meta.family)))?;
        let mut images = Images { data: vec![], n: 0 };
        for batch in loader.epoch(0) {
            let batch = batch?;
            images.data.extend_from_slice(&batch.images);
            images.n += batch.n;
        }
        Ok(images)
    }

    /// `graph` with the BatchNorm that its export has folded away, as whole images give it; as it is where nothing is
    /// missing.
    pub fn unfold(&self, graph: &Graph) -> miette::Result<Graph> {
        let bare = unfold::bare_convolutions(graph).len();
        if bare == 0 {
            return Ok(graph.clone());
        }
        let unfolded = self.over_whole_images(graph, "Unfolding BatchNorm", |images| {
            unfold::unfold_batch_norm(graph, [self.imgsz; 2], images)
        })?;
        ui::note(format_args!(
            "{bare} convolutions without BatchNorm have one again, measured on the dataset's images"
        ));
        Ok(unfolded)
    }

    /// `graph` with BatchNorm statistics estimated anew over images augmented as in training.
    pub fn recalibrate(&self, graph: &Graph, augment: Augment, epochs: usize) -> miette::Result<Graph> {
        self.of_at_most(RECALIBRATED_ON).over_augmented_images(graph, augment, epochs, "Recalibrating", |batches| {
            calibrate::reestimate_batch_norm(graph, [self.imgsz; 2], batches.map(images))
        })
    }
}

/// A batch without its labels.
fn images(batch: data::Result<Batch>) -> train::Result<Images> {
    let batch = batch?;
    Ok(Images { data: batch.images, n: batch.n })
}

/// Whether it can be told what the answers of `graph` mind.
fn is_probed(graph: &Graph) -> bool {
    graph.head().is_ok_and(|(head, _)| probe::is_probed(head))
}

/// Stage 1: what plans the removal of unimportant channels towards any target, once what it goes by is measured.
pub fn by_importance<'a>(
    graph: &'a Graph,
    settings: &'a Importance,
    calibration: Option<&Calibration>,
) -> miette::Result<impl Fn(&Target) -> miette::Result<Plan> + use<'a>> {
    let sensitivity = match (settings.criterion, calibration) {
        (prune::Criterion::OutputError, Some(calibration)) => calibration.sensitivity(graph)?,
        (prune::Criterion::Taylor, Some(calibration)) => calibration.gates(graph)?,
        _ => Sensitivity::default(),
    };
    let coupling = Coupling::of(graph)?;
    Ok(move |target: &Target| Ok(importance::plan_with(graph, &coupling, settings, &sensitivity, target)?))
}

/// Stage 2: what plans the removal of channels that others can stand in for.
pub fn by_similarity<'a>(
    graph: &'a Graph,
    settings: &'a Similarity,
    calibration: &Calibration,
) -> miette::Result<impl Fn(&Target) -> miette::Result<Plan> + use<'a>> {
    let coupling = Coupling::of(graph)?;
    let statistics = calibration.statistics(graph, &coupling)?;
    Ok(move |target: &Target| {
        let spinner = ui::spinner("Choosing");
        let plan = similarity::plan(graph, &coupling, &statistics, settings, target)?;
        spinner.finish_and_clear();
        Ok(plan)
    })
}

/// What to cut, and how both stages share the work.
pub struct Cut<'a> {
    pub importance: &'a Importance,
    pub similarity: &'a Similarity,
    /// Share of the removal that stage 2 does, in 0..=1.
    pub similarity_share: f64,
}

/// The plans of a cut without training in between, in order, and what they leave.
pub struct Outcome {
    pub plans: Vec<Plan>,
    pub slim: Graph,
}

impl Cut<'_> {
    /// How far it can go: the limits of what does the last of it, and whether branches go whole.
    pub fn reach(&self) -> (Limits, bool) {
        match self.similarity_share > 0.0 {
            true => (self.similarity.limits, self.similarity.shortcuts),
            false => (self.importance.limits, false),
        }
    }

    /// What several cuts of `model` need to know of it, for as long as it is held: otherwise each of them looks anew.
    pub fn hold(&self, model: &Graph, calibration: Option<&Calibration>) -> miette::Result<Option<Rc<Statistics>>> {
        // Where stage 1 comes first, stage 2 meets another detector each time.
        let calibration = calibration.filter(|_| self.similarity_share >= 1.0);
        calibration.map(|calibration| calibration.statistics(model, &Coupling::of(model)?)).transpose()
    }

    /// Plans and carries out both stages at once; stage 2 only where it has a share, which needs `calibration`.
    ///
    /// # Errors
    /// The budget cannot be met.
    pub fn at_once(
        &self,
        model: &Graph,
        goal: &mut Goal,
        calibration: Option<&Calibration>,
    ) -> miette::Result<Outcome> {
        let outcome = self.towards(model, goal, calibration)?;
        goal.must_meet(&outcome.slim)?;
        Ok(outcome)
    }

    /// The same as far as it goes, where the budget cannot be met.
    ///
    /// # Errors
    /// The detector cannot be measured.
    pub fn towards(
        &self,
        model: &Graph,
        goal: &mut Goal,
        calibration: Option<&Calibration>,
    ) -> miette::Result<Outcome> {
        let similar = calibration.filter(|_| self.similarity_share > 0.0);
        let (mut slim, mut plans) = (model.clone(), vec![]);
        if similar.is_none() || self.similarity_share < 1.0 {
            let plan = by_importance(model, self.importance, calibration)?;
            let first = match similar {
                Some(_) => plan(&goal.target.before_similarity(goal.size(model)?, self.similarity_share))?,
                None => goal.reach(model, plan)?,
            };
            slim = apply(model, &first)?;
            plans.push(first);
        }
        if let Some(calibration) = similar {
            let second = goal.reach(&slim, by_similarity(&slim, self.similarity, calibration)?)?;
            slim = apply(&slim, &second)?;
            plans.push(second);
        }
        if !goal.met(&slim)? {
            let rest = goal.reach(&slim, by_importance(&slim, self.importance, calibration)?)?;
            slim = apply(&slim, &rest)?;
            plans.push(rest);
        }
        Ok(Outcome { plans, slim })
    }
}

/// What is left of `dense` after all of `plans`.
fn trace(dense: &Graph, plans: &[Plan]) -> miette::Result<Kept> {
    let (mut graph, mut kept) = (dense.clone(), Kept::all(dense)?);
    for plan in plans {
        kept = kept.then(&surgery::kept(&graph, plan)?);
        graph = surgery::apply(&graph, plan)?;
    }
    Ok(kept)
}

/// Carries out `plan`.
pub fn apply(graph: &Graph, plan: &Plan) -> miette::Result<Graph> {
    Ok(surgery::apply(graph, plan)?)
}

#[cfg(test)]
mod tests {
    use data::synth::{self, SynthConfig};
    use graph::Op;

    use super::*;

    #[test]
    fn fewer_images_than_there_are_lie_all_over_the_split() {
        let item = |id| Item { image: format!("{id}.png").into(), id, size: (8, 8), boxes: vec![] };
        let train = data::Split { items: (0..10).map(item).collect(), problems: vec![] };
        let dataset = Dataset {
            path: "sorted".into(),
            format: data::Format::Ultralytics,
            names: vec!["a".into()],
            category_ids: vec![0],
            splits: [("train".to_string(), train)].into(),
        };
        let all = Calibration::new(&dataset, 8, usize::MAX, 0);
        let ids = |of: &Calibration| {
            let mut ids: Vec<_> = of.items().expect("has a split").iter().map(|i| i.id).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(ids(&all), (0..10).collect::<Vec<_>>());
        assert_eq!(ids(&all.of_at_most(4)), [0, 2, 5, 7]);
        assert_eq!(ids(&all.of_at_most(3).of_at_most(4)), [0, 3, 6]);
    }

    #[test]
    fn what_somebody_holds_is_not_measured_again() -> miette::Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let config = SynthConfig { train: 4, val: 1, test: 1, size: 32, seed: 1 };
        let dataset = data::open(&synth::write(folder.path(), &config)?, &data::OpenOptions::default())?;
        let detector = |seed| {
            let names = dataset.names.clone();
            graph::build::Yolov5 { names, imgsz: 32, width: 0.25, depth: 0.33, seed }.build()
        };
        let (one, other) = (detector(1)?, detector(2)?);
        let coupling = Coupling::of(&one)?;
        let calibration = Calibration::new(&dataset, 32, usize::MAX, 0);
        let first = calibration.statistics(&one, &coupling)?;
        assert!(Rc::ptr_eq(&first, &calibration.statistics(&one, &coupling)?));
        assert_ne!(first, calibration.statistics(&other, &coupling)?, "of another detector");
        assert!(calibration.known(&other, |measured| measured.statistics.upgrade()).is_none(), "nobody holds them");
        assert_eq!(first, calibration.statistics(&one, &coupling)?, "the same images in the same order");
        Ok(())
    }

    #[test]
    fn what_is_reconstructed_has_the_statistics_that_training_will_find() -> miette::Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let config = SynthConfig { train: 12, val: 1, test: 1, size: 64, seed: 1 };
        let dataset = data::open(&synth::write(folder.path(), &config)?, &data::OpenOptions::default())?;
        let names = dataset.names.clone();
        let dense = graph::build::Yolov5 { names, imgsz: 64, width: 0.25, depth: 0.33, seed: 1 }.build()?;
        let calibration = Calibration::new(&dataset, 64, usize::MAX, 0);
        let (importance, similarity) = (Importance::default(), Similarity::default());
        let cut = Cut { importance: &importance, similarity: &similarity, similarity_share: 1.0 };
        let budget = prune::Budget { macs: Some(0.5), ..prune::Budget::default() };
        let outcome = cut.at_once(&dense, &mut Goal::new(&budget, &dense, None)?, Some(&calibration))?;

        let slim = calibration.reconstruct(&dense, &outcome.plans, &outcome.slim)?;
        calibration.forget();
        let again = calibration.reconstruct(&dense, &outcome.plans, &outcome.slim)?;
        assert_eq!(slim, again, "a resumed run measures anew where the detector minds");
        let fresh = calibration.recalibrate(&slim, Augment::default(), 1)?;
        // Of the same images the first BatchNorm finds the same; later ones read what the ones before make of them, batch by batch.
        let first = |graph: &Graph| {
            graph.nodes.iter().find_map(|n| if let Op::BatchNorm(bn) = &n.op { Some(bn.clone()) } else { None })
        };
        let (Some(kept), Some(found), Some(before)) = (first(&slim), first(&fresh), first(&outcome.slim)) else {
            panic!("no BatchNorm")
        };
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f32::max);
        assert!(apart(&kept.mean, &found.mean) < 1e-3, "{:?} {:?}", kept.mean, found.mean);
        assert!(apart(&kept.var, &found.var) < 1e-3, "{:?} {:?}", kept.var, found.var);
        assert!(apart(&before.var, &found.var) > 0.5, "as it came: nothing is shown");
        Ok(())
    }
}
