//! `compress`: dense fine-tuning, sparse training, rounds of cutting and healing, each stage measured and resumable.
//!
//! The run's folder holds a detector and its figures for every stage under `stages/`. A stage whose figures are there is
//! done; a killed run goes on with the first that is not.

pub mod cut;
mod drop;
mod goal;
mod methods;
mod outcome;
mod pictures;
mod ready;
mod recipe;
mod round;
mod sizes;

use std::path::{Path, PathBuf};

use data::Dataset;
use eval::coco::{ClassResult, MapResult};
use graph::format::{LoadOptions, load, save};
use graph::{Family, Graph, cost};
use prune::{Budget, Plan};
use serde::{Deserialize, Serialize};
use train::sparse::GammaHistogram;
use train::{Task, Teacher, TrainConfig, Trained};

use self::cut::{Calibration, Outcome};
use self::outcome::Targets;
use self::round::{Cutter, Round};
use crate::exit::Error;
use crate::report::{Accuracy, Left, SizeTrial, StageRow, Summary, Trials};
use crate::runs;
use crate::score::Judge;
use crate::speed::{Speed, side_by_side};
use crate::training::{Bars, Counter};
use crate::{splits, ui};

pub use drop::search;
pub use goal::{Goal, size_of};
pub use methods::{LONGER, METHODS, Method};
pub use outcome::stage_table;
pub use recipe::Recipe;
pub use sizes::{best_size, left, with_images_of};

/// Turns that the detectors of all stages take on the stopwatch, and runs a turn.
const TURNS: [usize; 2] = [9, 3];

/// mAP50-95 of a stage.
fn standing(stage: Option<&Stage>) -> f64 {
    stage.map_or(f64::NAN, |stage| stage.row.map50_95)
}

/// A run of a recipe in a folder.
pub struct Pipeline<'a> {
    pub recipe: &'a Recipe,
    pub dataset: &'a Dataset,
    pub out: &'a Path,
    family: Family,
    /// Height and width in pixels of the images that detectors are trained, cut and measured on.
    imgsz: usize,
    /// The images cuts look at.
    calibration: Calibration<'a>,
    /// The splits stages are measured on.
    judges: Vec<Judge<'a>>,
}

/// What healing goes by, beside the labels.
#[derive(Clone, Copy)]
struct Healing<'a> {
    /// The detector it follows.
    dense: &'a Graph,
    /// mAP50-95 of what it starts from, where that is worth keeping.
    standing: Option<f64>,
}

/// One stage, as its JSON file holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stage {
    row: StageRow,
    /// Precision and recall at IoU 0.5 on the validation split, by class: (name, [(recall, precision)]).
    curves: Vec<(String, Vec<[f64; 2]>)>,
}

impl<'a> Pipeline<'a> {
    /// Readies a run that compresses a detector of `family`.
    ///
    /// # Errors
    /// The dataset has no validation split.
    pub fn new(recipe: &'a Recipe, dataset: &'a Dataset, out: &'a Path, family: Family) -> miette::Result<Self> {
        Self::of_size(recipe, dataset, out, family, recipe.dense.imgsz)
    }

    fn of_size(
        recipe: &'a Recipe,
        dataset: &'a Dataset,
        out: &'a Path,
        family: Family,
        imgsz: usize,
    ) -> miette::Result<Self> {
        let judge = |split| Judge::new(dataset, split, imgsz, family);
        let mut judges = vec![judge("val")?];
        // Many datasets keep the labels of theirs back.
        if splits::labelled(dataset, "test").is_ok() {
            judges.push(judge("test")?);
        }
        let calibration = Calibration::new(dataset, imgsz, recipe.calibration_images, recipe.seed);
        Ok(Self { recipe, dataset, out, family, imgsz, calibration, judges })
    }

    /// The same run on images of `imgsz`.
    fn at(&self, imgsz: usize) -> miette::Result<Self> {
        Self::of_size(self.recipe, self.dataset, self.out, self.family, imgsz)
    }

    /// The detector everything starts from: `model`, which has a head for the dataset's classes, fine-tuned, or read where that is done.
    pub fn dense(&self, model: &Graph) -> miette::Result<Graph> {
        let folder = self.out.join("stages");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
        self.first(&mut vec![], model)
    }

    fn first(&self, rows: &mut Vec<Stage>, model: &Graph) -> miette::Result<Graph> {
        let recipe = self.recipe;
        self.stage(rows, "dense", || match recipe.dense.epochs {
            0 => Ok(model.for_inference().into_owned()),
            _ => Ok(self.train("dense", model, &recipe.dense, None)?.best),
        })
    }

    /// Runs what has not been run yet on `model`, as [`Pipeline::dense`] takes it, and writes the outcome: slim detector, ONNX, summary.json, report.html.
    pub fn run(&self, model: &Graph) -> miette::Result<Summary> {
        for folder in ["stages", "plans"] {
            let folder = self.out.join(folder);
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
        }
        let mut rows = vec![];
        let dense = self.first(&mut rows, model)?;
        let (imgsz, sizes) = self.size_of_slim(&dense)?;
        match imgsz == self.imgsz {
            true => self.compress(&dense, rows, sizes),
            false => self.at(imgsz)?.compress(&dense, rows, sizes),
        }
    }

    /// Everything that comes after dense training, on images of one size: `rows` holds the stages there are, `sizes` what other
    /// sizes came to.
    fn compress(&self, dense: &Graph, mut rows: Vec<Stage>, sizes: Vec<SizeTrial>) -> miette::Result<Summary> {
        let whole = &with_images_of(dense, self.imgsz);
        let mut recipe = self.recipe.clone();
        let trials = recipe.max_drop.map(|drop| self.largest_cut(whole, drop, &rows)).transpose()?;
        recipe.budget.macs = trials.as_ref().map(|(macs, _)| *macs).or(recipe.budget.macs);
        let (goal, speed) = self.goal(&recipe.budget, dense, whole)?;
        recipe.round_by(speed.as_ref());
        let recipe = &recipe;
        let sparse = match recipe.sparse.epochs {
            0 => whole.clone(),
            _ => self.stage(&mut rows, "sparse", || {
                self.sparse(whole, &goal.target.before_similarity(goal.size(whole)?, recipe.similarity_share))
            })?,
        };
        let mut cutter = Cutter { pipeline: self, recipe, dense: whole, goal, speed, rows };
        let mut slim = sparse;
        for round in Round::all(recipe.rounds) {
            slim = cutter.run(round, &slim)?;
        }
        let Cutter { goal, speed, mut rows, .. } = cutter;
        self.time(&mut rows)?;
        let targets = goal.outcome(&slim)?;
        let targets = Targets { rows: targets, speed, trials: trials.map(|(_, trials)| trials), sizes };
        self.finish(dense, &slim, rows, targets)
    }

    /// What `budget`, of which shares are of `dense`, asks of what is cut from `whole`, which is meant for images of the run's
    /// size; and the times of that, where the budget is of time.
    fn goal(&self, budget: &Budget, dense: &Graph, whole: &Graph) -> miette::Result<(Goal, Option<Speed>)> {
        let (goal, mut speeds) = Goal::timed(budget, dense, whole, |graph| Speed::kept(graph, self.out))?;
        Ok((goal, speeds.pop()))
    }

    /// The size of images that the slim detector is to have, and what all sizes came to where there are several.
    fn size_of_slim(&self, dense: &Graph) -> miette::Result<(usize, Vec<SizeTrial>)> {
        let sizes = self.recipe.sizes();
        if let [only] = sizes[..] {
            return Ok((only, vec![]));
        }
        let file = self.out.join("sizes.json");
        let known = if file.is_file() { runs::read_json(&file)? } else { vec![] };
        let cut = |imgsz| self.at(imgsz)?.left(dense);
        best_size(&sizes, self.recipe.heal.epochs > 0, known, cut, |trials| runs::write_json(&file, &trials))
    }

    /// What the budget leaves of `dense` on images of the run's size, before healing; nothing where it cannot be met.
    fn left(&self, dense: &Graph) -> miette::Result<Option<Left>> {
        let whole = with_images_of(dense, self.imgsz);
        let (mut goal, speed) = self.goal(&self.recipe.budget, dense, &whole)?;
        let mut recipe = self.recipe.clone();
        recipe.round_by(speed.as_ref());
        let Some(slim) = self.unhealed(&recipe, &whole, &mut goal)? else { return Ok(None) };
        Ok(Some(left(&whole, &slim, &self.judges[0])?))
    }

    /// `dense` cut by `recipe` towards `goal` and reconstructed; nothing where that is out of reach.
    fn unhealed(&self, recipe: &Recipe, dense: &Graph, goal: &mut Goal) -> miette::Result<Option<Graph>> {
        let outcome = recipe.cut().towards(dense, goal, Some(&self.calibration))?;
        if !goal.met(&outcome.slim)? {
            return Ok(None);
        }
        let mended = |cut: Outcome| self.calibration.reconstruct(dense, &cut.plans, &cut.slim);
        Ok(Some(if recipe.reconstruct { mended(outcome)? } else { outcome.slim }))
    }

    /// The share of the multiply-accumulates to keep so that `dense` loses no more than `max_drop` before healing.
    fn largest_cut(&self, dense: &Graph, max_drop: f64, rows: &[Stage]) -> miette::Result<(f64, Trials)> {
        let recipe = self.recipe;
        let file = self.out.join("drop.json");
        let known = if file.is_file() {
            runs::read_json(&file)?
        } else {
            Trials { dense: standing(rows.first()), trials: vec![] }
        };
        let _held = recipe.cut().hold(dense, Some(&self.calibration))?;
        let trial = |macs: f64| {
            let budget = Budget { macs: Some(macs), ..Budget::default() };
            let slim = self.unhealed(recipe, dense, &mut Goal::new(&budget, dense, None)?)?;
            slim.map(|slim| Ok(self.judges[0].score(&slim, &mut Counter::default())?.map50_95)).transpose()
        };
        search(max_drop, known, trial, |trials| runs::write_json(&file, trials))
    }

    /// Sparse training towards the share of channels that stage 1 will remove, judged with fresh statistics: moving
    /// scales leave the running ones behind.
    fn sparse(&self, dense: &Graph, target: &prune::Target) -> miette::Result<Graph> {
        let recipe = self.recipe;
        let config = recipe.sparse_towards(dense, target)?;
        let trained = self.train("sparse", dense, &config, None)?;
        runs::write_json(&self.out.join("gammas.json"), &trained.gammas)?;
        self.calibration.of_all().recalibrate(&trained.last, config.augment, recipe.recalibration_epochs.max(1))
    }

    fn train(
        &self,
        stage: &str,
        start: &Graph,
        config: &TrainConfig,
        healing: Option<Healing>,
    ) -> miette::Result<Trained> {
        let out = self.out.join(stage);
        std::fs::create_dir_all(&out).map_err(|e| Error::io("create", &out, &e))?;
        // A training that was killed is always worth going on with: the whole run is being resumed, or its folder is new.
        let teacher = healing.map(|h| Teacher { graph: h.dense, labels: self.recipe.has_no_labels() });
        let standing = healing.and_then(|h| h.standing);
        let task = Task { start, dataset: self.dataset, teacher, standing, out: &out, resume: true };
        let config = TrainConfig { imgsz: self.imgsz, ..config.clone() };
        Ok(train::train(&task, &config, &mut Bars::new(stage))?)
    }

    /// The detector of a stage: made and measured, or read if that has been done before.
    fn stage(
        &self,
        rows: &mut Vec<Stage>,
        name: &str,
        make: impl FnOnce() -> miette::Result<Graph>,
    ) -> miette::Result<Graph> {
        let file = self.stage_file(name);
        let figures = file.with_extension("json");
        if figures.is_file() {
            rows.push(runs::read_json(&figures)?);
            return Ok(load(&file, &LoadOptions::default())?);
        }
        let graph = make()?;
        save(&graph, &file)?;
        let stage = self.measure(name, &graph, &file)?;
        // Last: where the figures are, the stage is done.
        runs::write_json(&figures, &stage)?;
        let test = stage.row.test.map(|t| format!("  test {:.4} / {:.4}", t.map50, t.map50_95)).unwrap_or_default();
        ui::note(format_args!(
            "{name:>12}  {} parameters  {} MACs  mAP50 / mAP50-95 {:.4} / {:.4}{test}",
            ui::count(stage.row.params),
            ui::count(stage.row.macs),
            stage.row.map50,
            stage.row.map50_95
        ));
        rows.push(stage);
        Ok(graph)
    }

    fn stage_file(&self, name: &str) -> PathBuf {
        self.out.join("stages").join(format!("{name}.safetensors"))
    }

    fn plan(&self, name: &str, make: impl FnOnce() -> miette::Result<Plan>) -> miette::Result<Plan> {
        let file = self.out.join("plans").join(format!("{name}.json"));
        if file.is_file() {
            return runs::read_json(&file);
        }
        let plan = make()?;
        runs::write_json(&file, &plan)?;
        Ok(plan)
    }

    fn measure(&self, name: &str, graph: &Graph, file: &Path) -> miette::Result<Stage> {
        let cost = cost::total(graph, [self.imgsz; 2])?;
        let maps = self
            .judges
            .iter()
            .map(|judge| judge.score(graph, &mut Counter::default()))
            .collect::<miette::Result<Vec<_>>>()?;
        let (map, test) = (&maps[0], maps.get(1));
        let accuracy = |m: &MapResult| Accuracy { map50: m.map50, map50_95: m.map50_95 };
        let row = StageRow {
            stage: name.into(),
            imgsz: self.imgsz,
            params: cost.params,
            macs: cost.macs,
            bytes: std::fs::metadata(file).map_err(|e| Error::io("read", file, &e))?.len(),
            map50: map.map50,
            map50_95: map.map50_95,
            test: test.map(accuracy),
            ms_per_image: None,
        };
        let curve = |c: &ClassResult| (c.name.clone(), c.curve.iter().map(|p| [p.recall, p.precision]).collect());
        Ok(Stage { row, curves: map.per_class.iter().map(curve).collect() })
    }

    /// Times all stages in turns: hours lie between the first and the last, and whatever else the machine did in them would
    /// count. Stages of the same size are one network with other weights, and have one time.
    fn time(&self, rows: &mut [Stage]) -> miette::Result<()> {
        let size = |stage: &Stage| (stage.row.params, stage.row.macs);
        let mut sizes: Vec<(u64, u64)> = vec![];
        let mut graphs = vec![];
        for stage in rows.iter() {
            if !sizes.contains(&size(stage)) {
                sizes.push(size(stage));
                graphs.push(load(&self.stage_file(&stage.row.stage), &LoadOptions::default())?);
            }
        }
        let times = side_by_side(&graphs.iter().collect::<Vec<_>>(), TURNS)?;
        for stage in rows {
            stage.row.ms_per_image = sizes.iter().position(|s| *s == size(stage)).map(|i| times[i]);
        }
        Ok(())
    }

    /// The gamma histograms of sparse training, if there was one.
    fn gammas(&self) -> miette::Result<Vec<GammaHistogram>> {
        let file = self.out.join("gammas.json");
        if file.is_file() { runs::read_json(&file) } else { Ok(vec![]) }
    }
}
