//! The two cuts: stage 1 by importance, stage 2 by similarity, both towards one budget.

use data::{Augment, Dataset, Item, Loader, LoaderConfig, Mode};
use graph::Graph;
use prune::{Coupling, Importance, Plan, Similarity, Size, Statistics, Target, importance, similarity, surgery};
use train::calibrate::{self, Images};
use train::evaluate::fit;
use train::unfold;

use crate::exit::Error;
use crate::ui;

/// The training images of a dataset as calibration sees them.
pub struct Calibration<'a> {
    pub dataset: &'a Dataset,
    pub imgsz: usize,
    /// How many images at most.
    pub images: usize,
    pub seed: u64,
}

impl Calibration<'_> {
    fn items(&self) -> miette::Result<&[Item]> {
        let split = self.dataset.split("train").or_else(|_| self.dataset.split("val"))?;
        Ok(&split.items[..split.items.len().min(self.images)])
    }

    fn loader(&self, mode: Mode) -> miette::Result<Loader> {
        let config =
            LoaderConfig { size: self.imgsz as u32, batch: 16, mode, seed: self.seed, ..LoaderConfig::default() };
        Ok(Loader::new(self.items()?, config)?)
    }

    /// Channel statistics of the tensors stage 2 looks at, over whole images: what the detector meets in use.
    pub fn statistics(&self, graph: &Graph, coupling: &Coupling) -> miette::Result<Statistics> {
        let nodes = prune::observed(graph, coupling);
        let loader = self.loader(Mode::Val(fit(graph)))?;
        let bar = ui::bar("Calibrating", self.items()?.len(), "images");
        let batches = loader.epoch(0).map(|batch| {
            let batch = batch?;
            bar.inc(batch.n as u64);
            Ok::<_, train::Error>(Images { data: batch.images, n: batch.n })
        });
        let statistics = calibrate::statistics(graph, &nodes, [self.imgsz; 2], batches)?;
        bar.finish_and_clear();
        Ok(statistics)
    }

    /// `graph` with the BatchNorm that its export has folded away, as whole images give it; as it is where nothing is
    /// missing.
    pub fn unfold(&self, graph: &Graph) -> miette::Result<Graph> {
        let bare = unfold::bare_convolutions(graph).len();
        if bare == 0 {
            return Ok(graph.clone());
        }
        let loader = self.loader(Mode::Val(fit(graph)))?;
        let bar = ui::bar("Unfolding BatchNorm", self.items()?.len(), "images");
        let batches = loader.epoch(0).map(|batch| {
            let batch = batch?;
            bar.inc(batch.n as u64);
            Ok::<_, train::Error>(Images { data: batch.images, n: batch.n })
        });
        let unfolded = unfold::unfold_batch_norm(graph, [self.imgsz; 2], batches)?;
        bar.finish_and_clear();
        ui::note(format_args!(
            "{bare} convolutions without BatchNorm have one again, measured on the dataset's images"
        ));
        Ok(unfolded)
    }

    /// `graph` with BatchNorm statistics estimated anew over images augmented as in training.
    pub fn recalibrate(&self, graph: &Graph, augment: Augment, epochs: usize) -> miette::Result<Graph> {
        let loader = self.loader(Mode::Train(augment))?;
        let bar = ui::bar("Recalibrating", epochs * loader.batches(), "batches");
        let batches = (0..epochs).flat_map(|e| loader.epoch(e as u64)).map(|batch| {
            let batch = batch?;
            bar.inc(1);
            Ok::<_, train::Error>(Images { data: batch.images, n: batch.n })
        });
        let graph = calibrate::reestimate_batch_norm(graph, [self.imgsz; 2], batches)?;
        bar.finish_and_clear();
        Ok(graph)
    }
}

/// Stage 1: plans the removal of unimportant channels.
pub fn by_importance(graph: &Graph, settings: &Importance, target: &Target) -> miette::Result<Plan> {
    Ok(importance::plan(graph, &Coupling::of(graph)?, settings, target)?)
}

/// Stage 2: plans the removal of channels that others can stand in for.
pub fn by_similarity(
    graph: &Graph,
    settings: &Similarity,
    target: &Target,
    calibration: &Calibration,
) -> miette::Result<Plan> {
    let coupling = Coupling::of(graph)?;
    let statistics = calibration.statistics(graph, &coupling)?;
    Ok(similarity::plan(graph, &coupling, &statistics, settings, target)?)
}

/// Carries out `plan`.
pub fn apply(graph: &Graph, plan: &Plan) -> miette::Result<Graph> {
    Ok(surgery::apply(graph, plan)?)
}

/// Parameters, MACs and prunable channels of `graph`.
pub fn size(graph: &Graph) -> miette::Result<Size> {
    Ok(Size::of(graph, &Coupling::of(graph)?)?)
}

/// An error where `target` is not met by `graph`.
pub fn must_meet(graph: &Graph, target: &Target) -> miette::Result<()> {
    if target.met(size(graph)?) {
        return Ok(());
    }
    let what = "the budget cannot be met: every layer is down to the channels it has to keep";
    Err(Error::failed(what, "keep more, or allow narrower layers with a smaller `--min-channels` or `--multiple`"))
}
