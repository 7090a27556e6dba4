//! What commands share that train or judge: fitting a detector to a dataset, warnings about it, and bars for a training under way.

use data::Dataset;
use graph::{Family, Graph};
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use train::watch::{BatchReport, EpochReport, Watch};

use crate::ui;

/// Share of an epoch spent waiting for data that is worth telling: more `workers` would help.
const WAITED: f64 = 0.1;

/// Classes that are told by name.
const NAMED: usize = 5;

/// `graph` with a head for the classes of `dataset`, set up for images of `imgsz` pixels.
pub fn fit(graph: &Graph, dataset: &Dataset, imgsz: usize, seed: u64) -> miette::Result<Graph> {
    let mut start = graph.clone();
    start.meta.imgsz = [imgsz; 2];
    Ok(train::fit_classes(&start, &dataset.names, &mut ChaCha8Rng::seed_from_u64(seed))?)
}

/// Says where the head of `fitted` has other classes than that of `graph`.
pub fn tell_head(graph: &Graph, fitted: &Graph) {
    let names = &fitted.meta.names;
    if graph.meta.names != *names {
        ui::note(format_args!("The head now finds {}", ui::listed(names, NAMED)));
    }
}

/// Says how many images of `splits`, which are those that are used, are listed and not there, and how many boxes are left out.
pub fn tell_left_out(dataset: &Dataset, splits: &[&str]) {
    let mut used: Vec<&str> = splits.iter().map(|name| dataset.answering(name)).collect();
    used.dedup();
    for (name, split) in used.iter().filter_map(|&name| Some((name, dataset.splits.get(name)?))) {
        if let Some((missing, first)) = split.missing() {
            let listed = split.items.len() + missing;
            ui::warn(format_args!(
                "{missing} of {listed} images of `{name}` are missing, such as `{first}`; `prunella data check` lists them"
            ));
        }
        let skipped = split.skipped();
        if skipped > 0 {
            ui::warn(format_args!("{skipped} boxes of `{name}` are skipped; `prunella data check` lists them"));
        }
    }
}

/// Says where another split stands in for the one called `name`.
pub fn tell_split(dataset: &Dataset, name: &str) {
    let (data, other) = (dataset.path.display(), dataset.answering(name));
    match other {
        _ if other == name => {}
        "train" => ui::warn(format_args!(
            "`{data}` has no split `{name}`: mAP is measured on `train`, on the very images that are learnt from"
        )),
        _ => ui::warn(format_args!("`{data}` has no split `{name}`: mAP is measured on `{other}`")),
    }
}

/// Says where a detector is not trained by its authors' own loss.
pub fn tell_loss(graph: &Graph) {
    if graph.meta.family == Family::Darknet {
        ui::note("Darknet's detectors are trained with YOLOv5's loss, each object in the cell of its centre");
    }
}

/// A bar an epoch, a line after it.
#[derive(Default)]
pub struct Bars {
    /// What the training is for, such as `heal`; stands before the epoch.
    pub stage: String,
    bar: Option<ProgressBar>,
    /// Time spent waiting for batches, and training in all, this epoch.
    waited: f64,
}

impl Bars {
    /// Bars for `stage`.
    pub fn new(stage: &str) -> Self {
        Self { stage: stage.into(), ..Self::default() }
    }
}

/// A bar for an evaluation alone.
#[derive(Default)]
pub struct Counter {
    bar: Option<ProgressBar>,
}

impl Watch for Counter {
    fn images(&mut self, task: &str, done: usize, total: usize) {
        let bar = self.bar.get_or_insert_with(|| ui::bar(task, total, "images"));
        bar.set_position(done as u64);
        if done == total {
            bar.finish_and_clear();
        }
    }
}

fn losses(parts: &[(&'static str, f64)]) -> String {
    parts.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ")
}

impl Watch for Bars {
    fn batch(&mut self, r: &BatchReport) {
        let bar = self.bar.get_or_insert_with(|| {
            ui::bar(&format!("{} {}/{}", self.stage, r.epoch + 1, r.epochs), r.batches, "batches")
        });
        self.waited += r.waited.as_secs_f64();
        bar.set_message(losses(r.losses));
        bar.set_position(r.batch as u64 + 1);
    }

    fn images(&mut self, _task: &str, done: usize, total: usize) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("evaluating {done}/{total}"));
        }
    }

    fn epoch(&mut self, r: &EpochReport) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let waited = std::mem::take(&mut self.waited);
        let slow = waited > WAITED * r.seconds;
        let waited = if slow { format!(" ({waited:.1} s waiting for data)") } else { String::new() };
        ui::note(format_args!(
            "{:>12} {:>3}/{}  {}  mAP50 {:.4}  mAP50-95 {:.4}  {:.1} s{waited}",
            self.stage,
            r.epoch + 1,
            r.epochs,
            losses(r.losses),
            r.map50,
            r.map50_95,
            r.seconds,
        ));
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.println(format!("{:>12} {text}", self.stage)),
            _ => ui::note(format_args!("{:>12} {text}", self.stage)),
        }
    }
}
