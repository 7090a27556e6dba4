//! The training loop: dense fine-tuning, sparse training and healing are this loop with different recipes.

use std::path::Path;
use std::time::{Duration, Instant};

use data::{Augment, Dataset, Loader, LoaderConfig, Mode};
use eval::NmsConfig;
use eval::coco::MapResult;
use graph::format::{LoadOptions, load, save};
use graph::{Graph, Head};
use prune::{Coupling, prunable_gammas};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Progress, Snapshot};
use crate::ema::{Ema, EmaConfig};
use crate::evaluate::{evaluate, fit, raw};
use crate::loss::{Criterion, Distill};
use crate::metrics_csv::{Results, Row};
use crate::net::{BnUpdate, Infer, TrainNet};
use crate::optim::{OptimConfig, OptimKind, Optimizer};
use crate::schedule::{Pace, Schedule, ScheduleConfig};
use crate::sparse::{GammaHistogram, SparseConfig, Sparsifier};
use crate::watch::{BatchReport, EpochReport, Watch};
use crate::{Error, Gradients, Result};

/// How to train. The defaults are for fine-tuning, of a detector just cut above all: YOLOv5's recipe but for [`OptimKind::Muon`]
/// at a rate of 0.001, biases that warm up from 0 like everything else, boxes that count four times as much, and last epochs
/// without mosaics (docs/results).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    pub epochs: usize,
    /// Images a step.
    pub batch: usize,
    /// Side of the square images, pixels.
    pub imgsz: usize,
    pub seed: u64,
    /// Gradients are added up over about this many images before the optimiser steps.
    pub nominal_batch: usize,
    pub optimizer: OptimConfig,
    pub schedule: ScheduleConfig,
    pub augment: Augment,
    /// The last epochs, but never more than two in five, in which images are no longer put together to mosaics: the detector
    /// ends on images as it will be given them (Ge et al., "YOLOX", 2021; the name is Ultralytics').
    pub close_mosaic: usize,
    pub ema: EmaConfig,
    /// Threads that decode and augment.
    pub workers: usize,
    /// Drives the scales of BatchNorm towards zero.
    pub sparse: Option<SparseConfig>,
    /// Weight of the distillation loss where a teacher is given; 0 turns it off.
    pub distill: f32,
    /// What boxes count in losses of heads with anchors, in units of YOLOv5's gain; see [`Criterion::tuned`].
    pub boxes: f32,
    /// How far an object's sides may be from an anchor's for the anchor to learn it, as a factor; YOLOv5's has the same name.
    pub anchor_t: f32,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 25,
            batch: 16,
            imgsz: 640,
            seed: 0,
            nominal_batch: 64,
            optimizer: OptimConfig { kind: OptimKind::muon(), ..OptimConfig::default() },
            schedule: ScheduleConfig { lr0: 0.001, warmup_bias_lr: 0.0, ..ScheduleConfig::default() },
            augment: Augment::default(),
            close_mosaic: 10,
            ema: EmaConfig::default(),
            workers: 2,
            sparse: None,
            distill: 0.0,
            boxes: 4.0,
            anchor_t: 3.0,
        }
    }
}

impl TrainConfig {
    /// YOLOv5's optimiser, rates and gains.
    pub fn yolov5() -> Self {
        Self {
            optimizer: OptimConfig::default(),
            schedule: ScheduleConfig::default(),
            boxes: 1.0,
            anchor_t: 4.0,
            ..Self::default()
        }
    }

    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// One is not in its range, or not a number.
    pub fn check(&self) -> Result<()> {
        let (above, least) = (|v: f32| v > 0.0 && v.is_finite(), |v: f32| v >= 0.0 && v.is_finite());
        let share = |v: f32| (0.0..1.0).contains(&v);
        const POSITIVE: &str = "above 0";
        const NOT_NEGATIVE: &str = "at least 0";
        const SHARE: &str = "at least 0 and below 1";
        let Self { optimizer, schedule, .. } = self;
        let (spectral, beta2, eps) = match optimizer.kind {
            OptimKind::Sgd { .. } => (1.0, 0.0, 1.0),
            OptimKind::AdamW { beta2, eps } => (1.0, beta2, eps),
            OptimKind::Muon { spectral, beta2, eps } => (spectral, beta2, eps),
        };
        let settings = [
            ("batch", self.batch as f32, self.batch > 0, POSITIVE),
            ("imgsz", self.imgsz as f32, self.imgsz > 0, POSITIVE),
            ("nominal_batch", self.nominal_batch as f32, self.nominal_batch > 0, POSITIVE),
            ("workers", self.workers as f32, self.workers > 0, POSITIVE),
            ("distill", self.distill, least(self.distill), NOT_NEGATIVE),
            ("boxes", self.boxes, above(self.boxes), POSITIVE),
            ("anchor_t", self.anchor_t, self.anchor_t >= 1.0 && self.anchor_t.is_finite(), "at least 1"),
            ("weight_decay", optimizer.weight_decay, least(optimizer.weight_decay), NOT_NEGATIVE),
            ("spectral", spectral, above(spectral), POSITIVE),
            ("beta2", beta2, share(beta2), SHARE),
            ("eps", eps, above(eps), POSITIVE),
            ("lr0", schedule.lr0, above(schedule.lr0), POSITIVE),
            ("lrf", schedule.lrf, least(schedule.lrf), NOT_NEGATIVE),
            ("momentum", schedule.momentum, share(schedule.momentum), SHARE),
            ("warmup_momentum", schedule.warmup_momentum, share(schedule.warmup_momentum), SHARE),
            ("warmup_epochs", schedule.warmup_epochs, least(schedule.warmup_epochs), NOT_NEGATIVE),
            ("warmup_bias_lr", schedule.warmup_bias_lr, least(schedule.warmup_bias_lr), NOT_NEGATIVE),
            ("decay", self.ema.decay as f32, (0.0..1.0).contains(&self.ema.decay), SHARE),
            ("tau", self.ema.tau as f32, self.ema.tau > 0.0 && self.ema.tau.is_finite(), POSITIVE),
        ];
        match settings.into_iter().find(|(_, _, good, _)| !good) {
            Some((name, value, _, range)) => Err(Error::Setting { name, value: f64::from(value), range }),
            None => Ok(()),
        }
    }

    /// The same, and refuses sparse training of `start` on `images` images that cannot get where it shall.
    ///
    /// # Errors
    /// See [`TrainConfig::check`] and [`Sparsifier::new`].
    pub fn check_for(&self, start: &Graph, images: usize) -> Result<()> {
        self.check()?;
        if let Some(sparse) = &self.sparse {
            let schedule = schedule(self, &Progress::default(), images.div_ceil(self.batch));
            Sparsifier::new(sparse.clone(), start, prunable_gammas(&Coupling::of(start)?), schedule.travel())?;
        }
        Ok(())
    }

    /// First of the epochs without mosaics, from 0.
    fn closing(&self) -> usize {
        self.epochs - self.close_mosaic.min(self.epochs * 2 / 5)
    }
}

/// What a training run works on.
pub struct Task<'a> {
    pub start: &'a Graph,
    pub dataset: &'a Dataset,
    /// Whose maps are imitated where [`TrainConfig::distill`] is above 0.
    pub teacher: Option<Teacher<'a>>,
    /// mAP50-95 of `start` on `val`, where that is worth keeping: a run that loses most of it goes back to `start` and goes on more
    /// slowly.
    pub standing: Option<f64>,
    /// Folder of the run; it exists.
    pub out: &'a Path,
    /// Go on from the checkpoint in `out`, if there is one.
    pub resume: bool,
}

/// A detector to be imitated.
#[derive(Clone, Copy)]
pub struct Teacher<'a> {
    /// Of the same head, of any width.
    pub graph: &'a Graph,
    /// The dataset's labels are what it found in the images. Of those only where boxes end is learnt: its probabilities tell better than a
    /// yes or no whether something is there, and what, above all where it is not sure.
    pub labels: bool,
}

/// What a training run leaves.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The averaged weights after the last epoch.
    pub last: Graph,
    /// The averaged weights of the epoch with the best [`fitness`].
    pub best: Graph,
    /// One histogram an epoch, where sparse training was asked for.
    pub gammas: Vec<GammaHistogram>,
}

/// Share of [`Task::standing`] below which a run has lost what it started with. Healing that ends well keeps 0.42 of it at the height of
/// its rate, at least (docs/results); where the rate is too high for a detector, nothing is left after a few epochs more.
const LOST: f64 = 0.4;

/// What the learning rate is multiplied with then ...
const SLOWER: f32 = 0.25;

/// ... and how often at most.
const RETREATS: usize = 3;

/// What the best epoch is chosen by: `0.1 * mAP50 + 0.9 * mAP50-95`, as YOLOv5 does.
pub fn fitness(map: &MapResult) -> f64 {
    0.1 * map.map50 + 0.9 * map.map50_95
}

/// NMS as mAP is measured with: confidence 0.001, IoU 0.6.
pub fn val_nms() -> NmsConfig {
    NmsConfig { conf: 0.001, iou: 0.6, ..NmsConfig::default() }
}

/// Trains `task.start` on the dataset's `train` split, evaluating on `val` after every epoch.
///
/// Writes `results.csv`, `weights/last.safetensors`, `weights/best.safetensors` and `weights/resume.safetensors` into
/// `task.out`, each whole or not at all, after every epoch. The same task, configuration and number of threads give the
/// same weights, whether or not the run was killed and resumed in between.
///
/// # Errors
/// Head and dataset disagree about classes, an image cannot be read, a file cannot be written, the loss diverges or the
/// gammas do not respond to sparse training.
pub fn train(task: &Task, config: &TrainConfig, watch: &mut dyn Watch) -> Result<Trained> {
    Run::new(task, config)?.run(watch)
}

/// A run under way.
struct Run<'a> {
    task: &'a Task<'a>,
    config: &'a TrainConfig,
    /// As it is trained, with all its branches.
    head: Head,
    criterion: Criterion,
    /// What of it labels teach.
    lesson: Criterion,
    loader: Loader,
    /// Without mosaics, for the last epochs.
    closing: Loader,
    schedule: Schedule,
    net: TrainNet,
    optimizer: Optimizer,
    ema: Ema,
    sparsifier: Option<Sparsifier>,
    teacher: Option<(Infer, Distill)>,
    results: Results,
    progress: Progress,
}

impl<'a> Run<'a> {
    fn new(task: &'a Task<'a>, config: &'a TrainConfig) -> Result<Self> {
        config.check()?;
        let first = task.start.for_training();
        let (head, _) = first.head()?;
        if head.classes() != task.dataset.names.len() {
            let (model, data) = (head.classes(), task.dataset.names.len());
            return Err(Error::Mismatch {
                what: format!("the head has {model} classes, the dataset {data}"),
                help: "fit the head to the dataset's classes first".into(),
            });
        }
        let criterion = Criterion::of(head, config.imgsz)?.tuned(config.boxes, config.anchor_t);
        let teacher = task.teacher.filter(|_| config.distill > 0.0);
        let lesson = match teacher {
            Some(Teacher { labels: true, .. }) => criterion.clone().boxes_alone(),
            _ => criterion.clone(),
        };
        let loader_config = LoaderConfig {
            size: config.imgsz as u32,
            batch: config.batch,
            mode: Mode::Train(config.augment),
            threads: config.workers,
            seed: config.seed,
            ..LoaderConfig::default()
        };
        let loader = Loader::new(&task.dataset.split("train")?.items, loader_config)?;
        let closing = loader.with_mode(Mode::Train(Augment { mosaic: 0.0, ..config.augment }))?;
        let resumed = match task.out.join(RESUME) {
            file if task.resume && file.is_file() => Some(Checkpoint::load(&file)?),
            _ => None,
        };
        let start = resumed.as_ref().map_or(&*first, |c| &c.model);
        let fresh = Progress::default();
        let schedule = schedule(config, resumed.as_ref().map_or(&fresh, |c| &c.progress), loader.batches());
        let mut optimizer = optimizer(config, &schedule, start);
        let mut sparsifier = match &config.sparse {
            Some(sparse) => {
                let sites = prunable_gammas(&Coupling::of(&first)?);
                Some(Sparsifier::new(sparse.clone(), &first, sites, schedule.travel())?)
            }
            None => None,
        };
        let mut net = TrainNet::new(start.clone(), [config.imgsz; 2])?;
        let csv = task.out.join("results.csv");
        let (ema, progress, results) = match resumed {
            Some(c) => {
                optimizer.load_state(c.optimizer)?;
                if let (Some(s), Some(state)) = (&mut sparsifier, &c.progress.sparse) {
                    s.resume(state.clone());
                }
                let results = Results::resume(csv, criterion.parts(), c.progress.epochs)?;
                (Ema::resume(config.ema, c.ema, c.progress.updates), c.progress, results)
            }
            None => (Ema::new(config.ema, &first), Progress::default(), Results::new(csv, criterion.parts())),
        };
        let teacher = match teacher {
            Some(teacher) => {
                let distill = Distill { weight: config.distill, gains: criterion.clone() };
                // What a teacher tells everywhere, and so steadily, may train everything.
                net.joint = true;
                Some((Infer::new(&teacher.graph.for_inference(), [config.imgsz; 2])?, distill))
            }
            None => None,
        };
        Ok(Self {
            task,
            config,
            head: head.clone(),
            criterion,
            lesson,
            loader,
            closing,
            schedule,
            net,
            optimizer,
            ema,
            sparsifier,
            teacher,
            results,
            progress,
        })
    }

    fn run(mut self, watch: &mut dyn Watch) -> Result<Trained> {
        let weights = self.task.out.join("weights");
        std::fs::create_dir_all(&weights).map_err(|e| graph::Error::io("create", &weights, e))?;
        let split = self.task.dataset.split("val")?;
        let val_config = LoaderConfig {
            size: self.config.imgsz as u32,
            batch: self.config.batch,
            mode: Mode::Val(fit(self.task.start.meta.family)),
            threads: self.config.workers,
            ..LoaderConfig::default()
        };
        let val = Loader::new(&split.items, val_config)?;
        let classes: Vec<usize> = (0..self.task.dataset.names.len()).collect();

        for epoch in self.progress.epochs..self.config.epochs {
            let started = Instant::now();
            self.criterion.at(epoch, self.config.epochs);
            self.lesson.at(epoch, self.config.epochs);
            let losses = self.epoch(epoch, watch)?;
            let head = self.head.clone();
            let mut infer = Infer::new(self.ema.graph(), [self.config.imgsz; 2])?;
            let mut val_losses = [0.0; 3];
            let map = evaluate(self.task.dataset, &split.items, &val, &classes, watch, |batch| {
                let maps = infer.run(&batch.images, batch.n)?;
                let loss = self.criterion.evaluate(&head, &raw(&maps), &batch.targets)?.value;
                for (sum, (_, part)) in val_losses.iter_mut().zip(loss.parts) {
                    *sum += f64::from(part) / val.batches() as f64;
                }
                Ok::<_, Error>(eval::detect(&head, &raw(&maps), &val_nms()))
            })?;
            self.finish_epoch(epoch, losses, val_losses, &map)?;
            let fallen = self.has_fallen(&map);
            if fallen {
                self.retreat()?;
            }
            self.checkpoint()?;
            watch.epoch(&EpochReport {
                epoch,
                epochs: self.config.epochs,
                losses: &self.named(losses),
                map50: map.map50,
                map50_95: map.map50_95,
                seconds: started.elapsed().as_secs_f64(),
            });
            if fallen {
                let (share, rate) = (100.0 * LOST, SLOWER.recip());
                watch.note(&format!(
                    "less than {share:.0} % of the mAP50-95 it started with is left: back to the start, {rate} times as slowly"
                ));
            }
        }
        let best = load(&weights.join(BEST), &LoadOptions::default())?;
        Ok(Trained { last: self.ema.graph().for_inference().into_owned(), best, gammas: self.progress.gammas })
    }

    /// One pass over the training images; returns the mean of every part of the loss.
    fn epoch(&mut self, epoch: usize, watch: &mut dyn Watch) -> Result<[f64; 3]> {
        let head = self.head.clone();
        let batches = self.loader.batches();
        let mut gradients = Gradients::zeros(&self.net.graph);
        let (mut sums, mut waiting, mut waited) = ([0.0; 3], 0, Duration::ZERO);
        let closes = epoch >= self.config.closing();
        let mut stream = if closes { &self.closing } else { &self.loader }.epoch(epoch as u64);
        let mut index = 0;
        while let Some(batch) = stream.next() {
            let batch = batch?;
            let pace = self.pace(epoch, index);
            let maps = self.net.forward(&batch.images, batch.n, BnUpdate::Momentum)?;
            let mut loss = self.lesson.evaluate(&head, &raw(&maps), &batch.targets)?;
            if let Some((teacher, distill)) = &mut self.teacher {
                let taught = teacher.run(&batch.images, batch.n)?;
                loss.add(&distill.evaluate(&head, &raw(&maps), &raw(&taught))?);
            }
            if !loss.value.total.is_finite() {
                return Err(Error::Diverged { value: loss.value.total, epoch: epoch + 1, batch: index + 1 });
            }
            self.net.backward(&loss.grads, &mut gradients);
            waiting += 1;
            // What is left over at the end of an epoch is stepped too: the next epoch may be another process.
            if waiting >= pace.accumulate || index + 1 == batches {
                self.optimizer.step(&mut self.net.graph, &gradients, pace.rates, pace.momentum);
                if let Some(s) = &mut self.sparsifier
                    && let Some(change) = s.step(&mut self.net.graph, pace.rates.norm)?
                {
                    watch.note(&format!("epoch {}: {change}", epoch + 1));
                }
                self.ema.update(&self.net.graph);
                gradients.clear();
                waiting = 0;
            }
            for (sum, (_, part)) in sums.iter_mut().zip(loss.value.parts) {
                *sum += f64::from(part);
            }
            index += 1;
            let waited_now = stream.waited() - std::mem::replace(&mut waited, stream.waited());
            watch.batch(&BatchReport {
                epoch,
                epochs: self.config.epochs,
                batch: index - 1,
                batches,
                images: batch.n,
                losses: &self.named(sums.map(|s| s / index as f64)),
                waited: waited_now,
            });
        }
        Ok(sums.map(|s| s / batches as f64))
    }

    /// Pace of a batch, by its index in `epoch`.
    fn pace(&self, epoch: usize, batch: usize) -> Pace {
        let epoch = epoch - self.progress.since();
        self.schedule.at(epoch * self.loader.batches() + batch)
    }

    /// Writes everything an epoch leaves.
    fn finish_epoch(&mut self, epoch: usize, losses: [f64; 3], val_losses: [f64; 3], map: &MapResult) -> Result<()> {
        let weights = self.task.out.join("weights");
        save(self.ema.graph(), &weights.join("last.safetensors"))?;
        let score = fitness(map);
        if epoch == 0 || score > self.progress.best {
            save(self.ema.graph(), &weights.join(BEST))?;
            self.progress.best = score;
        }
        if let Some(s) = &self.sparsifier {
            self.progress.gammas.push(s.histogram(&self.net.graph, epoch));
            self.progress.sparse = Some(s.state().clone());
        }
        let rates = self.pace(epoch, self.loader.batches() - 1).rates;
        let at = |v: f32| f64::from(v);
        let seen: Vec<_> = map.per_class.iter().filter(|c| c.instances > 0).collect();
        let mean = |f: fn(&eval::coco::ClassResult) -> Option<f64>| {
            seen.iter().filter_map(|c| f(c)).sum::<f64>() / seen.len().max(1) as f64
        };
        self.results.push(Row {
            epoch,
            train: losses,
            precision: mean(|c| c.precision),
            recall: mean(|c| c.recall),
            map50: map.map50,
            map50_95: map.map50_95,
            val: val_losses,
            lr: [at(rates.weight), at(rates.norm), at(rates.bias)],
        })?;
        self.progress.epochs = epoch + 1;
        self.progress.updates = self.ema.updates();
        Ok(())
    }

    /// Whether little is left of what `start` was worth, and there is time to try again.
    fn has_fallen(&self, map: &MapResult) -> bool {
        let lost = self.task.standing.is_some_and(|standing| map.map50_95 < LOST * standing);
        let again = self.progress.retreats.len() < RETREATS && self.progress.epochs < self.config.epochs;
        lost && again && self.sparsifier.is_none()
    }

    /// Back to the start, for the epochs that are left at a lower rate.
    fn retreat(&mut self) -> Result<()> {
        let first = self.task.start.for_training();
        self.progress.retreats.push(self.progress.epochs);
        self.progress.updates = 0;
        self.schedule = schedule(self.config, &self.progress, self.loader.batches());
        self.optimizer = optimizer(self.config, &self.schedule, &first);
        self.ema = Ema::new(self.config.ema, &first);
        let joint = self.net.joint;
        self.net = TrainNet::new(first.into_owned(), [self.config.imgsz; 2])?;
        self.net.joint = joint;
        Ok(())
    }

    fn checkpoint(&self) -> Result<()> {
        let (model, ema) = (&self.net.graph, self.ema.graph());
        let snapshot = Snapshot { model, ema, optimizer: &self.optimizer, progress: &self.progress };
        snapshot.save(&self.task.out.join(RESUME))?;
        Ok(())
    }

    fn named(&self, values: [f64; 3]) -> [(&'static str, f64); 3] {
        let names = self.criterion.parts();
        [0, 1, 2].map(|i| (names[i], values[i]))
    }
}

/// The schedule since the last retreat.
fn schedule(config: &TrainConfig, progress: &Progress, batches: usize) -> Schedule {
    let slower = SLOWER.powi(progress.retreats.len() as i32);
    let asked = &config.schedule;
    let rates =
        ScheduleConfig { lr0: slower * asked.lr0, warmup_bias_lr: slower * asked.warmup_bias_lr, ..asked.clone() };
    Schedule::new(&rates, config.epochs - progress.since(), batches, config.batch, config.nominal_batch)
}

fn optimizer(config: &TrainConfig, schedule: &Schedule, graph: &Graph) -> Optimizer {
    let weight_decay = schedule.weight_decay(config.optimizer.weight_decay);
    Optimizer::new(OptimConfig { weight_decay, ..config.optimizer.clone() }, graph)
}

/// The checkpoint within a run's folder.
const RESUME: &str = "weights/resume.safetensors";

/// The best model within a run's `weights`.
const BEST: &str = "best.safetensors";
