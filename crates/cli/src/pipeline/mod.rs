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

pub use drop::{Found, search};
pub use goal::{Goal, size_of};
pub use methods::{LONGER, METHODS, Method};
pub use outcome::stage_table;
pub use recipe::Recipe;
pub use sizes::{best_size, suggest, with_images_of};

/// Turns that the detectors of all stages take on the stopwatch, and runs a turn.
const TURNS: [usize; 2] = [9, 3];

/// Folders of a run: a detector and its figures for every stage, and every cut's plan.
const FOLDERS: [&str; 2] = ["stages", "plans"];

/// mAP50-95 of a stage.
fn standing(stage: Option<&Stage>) -> f64 {
    stage.map_or(f64::NAN, |stage| stage.row.map50_95)
}

/// A run of a recipe in a folder.
pub struct Pipeline<'a> {
    pub recipe: &'a Recipe,
    pub dataset: &'a Dataset,
    pub out: &'a Path,
    /// Folder of the stages and plans: the run's, or one of a trial.
    work: PathBuf,
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

/// What the slim detector is to come down to, and how that was found.
struct Aim {
    /// Height and width of its images in pixels.
    imgsz: usize,
    budget: Budget,
    /// What the budget leaves at each size, where there are several.
    sizes: Vec<SizeTrial>,
    /// The cuts that were tried, where the largest within a drop was looked for.
    trials: Option<Trials>,
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
        Ok(Self { recipe, dataset, out, work: out.into(), family, imgsz, calibration, judges })
    }

    /// The same run on images of `imgsz`.
    fn at(&self, imgsz: usize) -> miette::Result<Self> {
        Self::of_size(self.recipe, self.dataset, self.out, self.family, imgsz)
    }

    /// The same run on images of `imgsz`, in a folder of its own within the run's.
    fn trial(&self, imgsz: usize) -> miette::Result<Self> {
        let work = self.out.join("sizes").join(imgsz.to_string());
        Ok(Self { work, ..self.at(imgsz)? })
    }

    /// Has the folders that stages and plans are written to.
    fn ready(&self) -> miette::Result<()> {
        for folder in FOLDERS {
            let folder = self.work.join(folder);
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
        }
        Ok(())
    }

    /// The detector everything starts from: `model`, which has a head for the dataset's classes, fine-tuned, or read where that is done.
    pub fn dense(&self, model: &Graph) -> miette::Result<Graph> {
        self.ready()?;
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
        self.ready()?;
        let mut rows = vec![];
        let dense = self.first(&mut rows, model)?;
        let standing = standing(rows.first());
        let aim = match self.recipe.max_drop {
            Some(drop) => self.largest_cut(&dense, drop, standing)?,
            None => self.size_of_slim(&dense, standing)?,
        };
        match aim.imgsz == self.imgsz {
            true => self.compress(&dense, rows, aim),
            false => self.at(aim.imgsz)?.compress(&dense, rows, aim),
        }
    }

    /// Everything that comes after dense training, towards `aim` on images of its size: `rows` holds the stages there are.
    fn compress(&self, dense: &Graph, rows: Vec<Stage>, aim: Aim) -> miette::Result<Summary> {
        let whole = &with_images_of(dense, self.imgsz);
        let mut recipe = Recipe { budget: aim.budget, ..self.recipe.clone() };
        let mut cutter = self.cutter(&mut recipe, dense, whole, rows)?;
        let sparse = match self.recipe.sparse.epochs {
            0 => whole.clone(),
            _ => {
                let (goal, share) = (&cutter.goal, cutter.recipe.similarity_share);
                let target = goal.target.before_similarity(goal.size(whole)?, share);
                self.stage(&mut cutter.rows, "sparse", || self.sparse(whole, &target))?
            }
        };
        let mut slim = sparse;
        for round in Round::all(self.recipe.rounds) {
            slim = cutter.run(round, &slim)?;
        }
        let Cutter { goal, speed, mut rows, .. } = cutter;
        self.time(&mut rows)?;
        let targets = goal.outcome(&slim)?;
        let targets = Targets { rows: targets, speed, trials: aim.trials, sizes: aim.sizes };
        self.finish(dense, &slim, rows, targets)
    }

    /// What `budget`, of which shares are of `dense`, asks of what is cut from `whole`, which is meant for images of the run's
    /// size; and the times of that, where the budget is of time.
    fn goal(&self, budget: &Budget, dense: &Graph, whole: &Graph) -> miette::Result<(Goal, Option<Speed>)> {
        let (goal, mut speeds) = Goal::timed(budget, dense, whole, |graph| Speed::kept(graph, self.out))?;
        Ok((goal, speeds.pop()))
    }

    /// What cuts `whole`, which is `dense` for images of the run's size, by `recipe`, which gets what was measured for it.
    fn cutter<'c>(
        &'c self,
        recipe: &'c mut Recipe,
        dense: &Graph,
        whole: &'c Graph,
        rows: Vec<Stage>,
    ) -> miette::Result<Cutter<'c>> {
        let (goal, speed) = self.goal(&recipe.budget, dense, whole)?;
        recipe.round_by(speed.as_ref());
        Ok(Cutter { pipeline: self, recipe, dense: whole, goal, speed, rows })
    }

    /// The recipe's budget at the size of images where it leaves most; `standing` is the mAP50-95 of `dense` at its own.
    fn size_of_slim(&self, dense: &Graph, standing: f64) -> miette::Result<Aim> {
        let sizes = self.recipe.sizes();
        let budget = self.recipe.budget;
        if let [imgsz] = sizes[..] {
            return Ok(Aim { imgsz, budget, sizes: vec![], trials: None });
        }
        let file = self.out.join("sizes.json");
        let known = if file.is_file() { runs::read_json(&file)? } else { vec![] };
        let own = self.imgsz;
        let cut = |imgsz| self.trial(imgsz)?.left(dense, Some(standing).filter(|_| imgsz == own));
        let healed = self.recipe.heal.epochs > 0;
        let (imgsz, sizes) = best_size(&sizes, healed, known, cut, |trials| runs::write_json(&file, &trials))?;
        // Where the run would do what the trial has done, it goes on from there.
        if self.recipe.rounds == 1 && self.recipe.sparse.epochs == 0 {
            self.trial(imgsz)?.adopt()?;
        }
        Ok(Aim { imgsz, budget, sizes, trials: None })
    }

    /// What the budget leaves of `dense` on images of the run's size, before healing; nothing where it cannot be met. `standing`
    /// is the mAP50-95 of `dense` there, where it is known.
    fn left(&self, dense: &Graph, standing: Option<f64>) -> miette::Result<Option<Left>> {
        self.ready()?;
        let whole = with_images_of(dense, self.imgsz);
        let mut recipe = self.recipe.clone();
        let Some(row) = self.cutter(&mut recipe, dense, &whole, vec![])?.unhealed(&whole)? else { return Ok(None) };
        let score = || self.judges[0].score(&whole, &mut Counter::default()).map(|map| map.map50_95);
        let dense = standing.map_or_else(score, Ok)?;
        Ok(Some(Left { params: row.params, macs: row.macs, dense, map50_95: row.map50_95 }))
    }

    /// Makes the stages and plans of this trial the run's.
    fn adopt(&self) -> miette::Result<()> {
        for folder in FOLDERS {
            let (from, to) = (self.work.join(folder), self.out.join(folder));
            // A resumed run has adopted it before.
            let Ok(files) = std::fs::read_dir(&from) else { continue };
            for file in files {
                let file = file.map_err(|e| Error::io("read", &from, &e))?;
                let to = to.join(file.file_name());
                std::fs::rename(file.path(), &to).map_err(|e| Error::io("write", &to, &e))?;
            }
        }
        // Nothing is in it any more; where it stays, it does no harm.
        let _ = std::fs::remove_dir_all(&self.work);
        Ok(())
    }

    /// `dense` cut towards `goal` and reconstructed; nothing where that is out of reach.
    fn unhealed(&self, dense: &Graph, goal: &mut Goal) -> miette::Result<Option<Graph>> {
        let recipe = self.recipe;
        let outcome = recipe.cut().towards(dense, goal, Some(&self.calibration))?;
        if !goal.met(&outcome.slim)? {
            return Ok(None);
        }
        let mended = |cut: Outcome| self.calibration.reconstruct(dense, &cut.plans, &cut.slim);
        Ok(Some(if recipe.reconstruct { mended(outcome)? } else { outcome.slim }))
    }

    /// The largest cut of `dense` that loses no more than `max_drop` of its mAP50-95 `standing` before healing.
    fn largest_cut(&self, dense: &Graph, max_drop: f64, standing: f64) -> miette::Result<Aim> {
        let recipe = self.recipe;
        let file = self.out.join("drop.json");
        let known = if file.is_file() { runs::read_json(&file)? } else { Trials { dense: standing, trials: vec![] } };
        let reference = size_of(dense, None)?;
        let budget = |macs: f64| Budget { macs: Some(macs), ..Budget::default() };
        let at = |imgsz: usize| {
            let (pipeline, whole) = (self.at(imgsz)?, with_images_of(dense, imgsz));
            let held = recipe.cut().hold(&whole, Some(&pipeline.calibration))?;
            Ok(move |macs: f64| {
                let _held = &held;
                let slim = pipeline.unhealed(&whole, &mut Goal::of(&budget(macs), reference, &whole, None)?)?;
                slim.map(|slim| Ok(pipeline.judges[0].score(&slim, &mut Counter::default())?.map50_95)).transpose()
            })
        };
        let (Found { macs, imgsz }, trials) =
            search(&recipe.sizes(), max_drop, known, at, |trials| runs::write_json(&file, trials))?;
        Ok(Aim { imgsz, budget: budget(macs), sizes: vec![], trials: Some(trials) })
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
        if figures.is_file() && file.is_file() {
            rows.push(runs::read_json(&figures)?);
            let loaded = load(&file, &LoadOptions::default());
            return loaded.map_err(|e| Error::failed(e.to_string(), runs::DAMAGED));
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
        self.work.join("stages").join(format!("{name}.safetensors"))
    }

    fn plan(&self, name: &str, make: impl FnOnce() -> miette::Result<Plan>) -> miette::Result<Plan> {
        let file = self.work.join("plans").join(format!("{name}.json"));
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
