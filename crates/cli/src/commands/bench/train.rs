//! `bench train`: milliseconds a training step, on made-up images or over an epoch of real ones.

use std::time::Instant;

use ::train::evaluate::raw;
use ::train::loss::Criterion;
use ::train::net::{BnUpdate, Isa, Spent, TrainNet};
use ::train::optim::Optimizer;
use ::train::schedule::{Schedule, ScheduleConfig};
use ::train::{Error as TrainError, Gradients};
use data::{Augment, Loader, LoaderConfig, Mode, Target};
use graph::Graph;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::median;
use serde::Serialize;

use super::WARMUP;
use crate::args::BenchTrain;
use crate::commands::train::recipe;
use crate::detector::image_size;
use crate::exit::Exit;
use crate::splits;
use crate::training::{fit, tell_left_out};
use crate::ui::{self, Column, Table};

/// Objects in each made-up image.
const OBJECTS: usize = 8;

/// What `bench train --json` prints. Times are medians over the steps, in milliseconds.
#[derive(Serialize)]
struct Steps {
    model: String,
    imgsz: usize,
    batch: usize,
    steps: usize,
    threads: usize,
    /// Instruction set.
    kernels: &'static str,
    ms_per_step: f64,
    /// Over the whole epoch with `--data`, loader included; else from the median step.
    images_per_s: f64,
    /// Spent waiting for the loader over the whole epoch; none for made-up images.
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ms: Option<f64>,
    /// Highest resident memory of this process, megabytes of 10^6 bytes; none where the system does not tell.
    peak_rss_mb: Option<f64>,
    parts: Parts,
    /// The same by kind of work: means over all steps.
    work: Vec<Work>,
}

/// Time spent in one kind of kernels.
#[derive(Clone, Serialize)]
struct Work {
    name: &'static str,
    ms: f64,
    /// Two operations a multiply-accumulate.
    #[serde(skip_serializing_if = "Option::is_none")]
    gflops: Option<f64>,
}

/// Where the time of a step goes, milliseconds.
#[derive(Clone, Copy, Default, Serialize)]
struct Parts {
    forward: f64,
    loss: f64,
    backward: f64,
    optimiser: f64,
}

impl Parts {
    fn sum(&self) -> f64 {
        self.forward + self.loss + self.backward + self.optimiser
    }
}

/// What was timed.
struct Timed {
    steps: Vec<Parts>,
    spent: Vec<Spent>,
    images_per_s: Option<f64>,
    waited_ms: Option<f64>,
}

/// Runs the command.
pub fn run(args: &BenchTrain) -> miette::Result<Exit> {
    let graph = args.model.load_to_train()?;
    let imgsz = image_size(&graph, Some(args.imgsz))?;
    let step = |graph: &Graph| Step::new(graph, imgsz, args);
    let timed = match &args.data {
        Some(path) => {
            let dataset = data::open(path, &args.form.options())?;
            tell_left_out(&dataset, &["train"]);
            real_epoch(step(&fit(&graph, &dataset, imgsz, 0)?)?, &dataset, imgsz, args.batch)?
        }
        None => made_up(step(&graph)?, imgsz, args.batch, args.steps)?,
    };
    let middle = |value: fn(&Parts) -> f64| median(timed.steps.iter().map(value).collect());
    let ms_per_step = middle(Parts::sum);
    let result = Steps {
        model: args.model.model.display().to_string(),
        imgsz,
        batch: args.batch,
        steps: timed.steps.len(),
        threads: rayon::current_num_threads(),
        kernels: Isa::current().name(),
        ms_per_step,
        images_per_s: timed.images_per_s.unwrap_or(args.batch as f64 * 1e3 / ms_per_step),
        waited_ms: timed.waited_ms,
        peak_rss_mb: peak_rss_mb(),
        parts: Parts {
            forward: middle(|p| p.forward),
            loss: middle(|p| p.loss),
            backward: middle(|p| p.backward),
            optimiser: middle(|p| p.optimiser),
        },
        work: timed.spent.iter().map(|s| Work::of(s, timed.steps.len())).collect(),
    };
    if args.json {
        ui::print_json(&result);
    } else {
        ui::print(result.table());
    }
    Ok(Exit::Done)
}

impl Work {
    /// `spent` in `steps` steps.
    fn of(spent: &Spent, steps: usize) -> Self {
        let gflops = (spent.macs > 0).then(|| 2e-9 * spent.macs as f64 / spent.seconds);
        Self { name: spent.work.name(), ms: spent.seconds * 1e3 / steps as f64, gflops }
    }
}

impl Steps {
    fn table(&self) -> String {
        let mut table = Table::new([Column::text("part"), Column::number("ms")]);
        let p = self.parts;
        for (name, ms) in
            [("forward", p.forward), ("loss", p.loss), ("backward", p.backward), ("optimiser", p.optimiser)]
        {
            table.row([name.into(), format!("{ms:.1}")]);
        }
        table.total(["step".into(), format!("{:.1}", self.ms_per_step)]);
        let mut work = Table::new([Column::text("work"), Column::number("ms"), Column::number("GFLOP/s")]);
        for w in &self.work {
            work.row([w.name.into(), format!("{:.1}", w.ms), w.gflops.map_or(String::new(), |g| format!("{g:.0}"))]);
        }
        let memory = self.peak_rss_mb.map(|mb| format!(", {mb:.0} MB at most")).unwrap_or_default();
        let waited = self.waited_ms.map(|ms| format!(", {ms:.0} ms waiting for data")).unwrap_or_default();
        format!(
            "{table}\n{work}\n{s}×{s}, batch {}, {} threads, {}, {:.1} images a second{waited}{memory}\n",
            self.batch,
            self.threads,
            self.kernels,
            self.images_per_s,
            s = self.imgsz
        )
    }
}

/// Times `count` steps on one batch of noise and objects, the same every time.
fn made_up(mut step: Step, imgsz: usize, batch: usize, count: usize) -> miette::Result<Timed> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut images = vec![0; batch * imgsz * imgsz * 3];
    rng.fill_bytes(&mut images);
    let classes = step.head.classes().max(1);
    let target = |i: usize| {
        let mut side = |low: f32, high: f32| rng.random_range(low..high);
        let bbox = [side(0.2, 0.8), side(0.2, 0.8), side(0.05, 0.4), side(0.05, 0.4)];
        Target { image: i / OBJECTS, class: i % classes, bbox }
    };
    let targets: Vec<Target> = (0..batch * OBJECTS).map(target).collect();
    let mut steps = vec![];
    let bar = ui::bar("Training", WARMUP + count, "steps");
    for n in 0..WARMUP + count {
        let parts = step.run(&images, batch, &targets)?;
        if n >= WARMUP {
            steps.push(parts);
        } else {
            step.net.spent();
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Timed { steps, spent: step.net.spent(), images_per_s: None, waited_ms: None })
}

/// Times one epoch of the training images, augmented as in training; nothing is decoded beforehand.
fn real_epoch(mut step: Step, dataset: &data::Dataset, imgsz: usize, batch: usize) -> miette::Result<Timed> {
    let items = splits::images(dataset, "train")?;
    let mode = Mode::Train(Augment::default());
    let loader = Loader::new(items, LoaderConfig { size: imgsz as u32, batch, mode, ..LoaderConfig::default() })?;
    let mut steps = vec![];
    let bar = ui::bar("Training", loader.batches(), "steps");
    let start = Instant::now();
    let mut stream = loader.epoch(0);
    for batch in stream.by_ref() {
        let batch = batch?;
        steps.push(step.run(&batch.images, batch.n, &batch.targets)?);
        bar.inc(1);
    }
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let waited_ms = Some(stream.waited().as_secs_f64() * 1e3);
    Ok(Timed { steps, spent: step.net.spent(), images_per_s: Some(items.len() as f64 / seconds), waited_ms })
}

/// Everything one training step needs but its batch.
struct Step {
    net: TrainNet,
    head: graph::Head,
    criterion: Criterion,
    optimizer: Optimizer,
    schedule: Schedule,
    gradients: Gradients,
}

impl Step {
    fn new(graph: &Graph, imgsz: usize, args: &BenchTrain) -> miette::Result<Self> {
        let (head, _) = graph.head()?;
        // Past the warm-up, and with a rate that leaves the weights where they are.
        let schedule = ScheduleConfig { lr0: 1e-6, warmup_epochs: 0.0, ..ScheduleConfig::default() };
        Ok(Self {
            criterion: Criterion::of(head, imgsz)?,
            optimizer: Optimizer::new(recipe(args.optimizer).optimizer, graph),
            schedule: Schedule::new(&schedule, 1, 1, args.batch, args.batch),
            gradients: Gradients::zeros(graph),
            net: TrainNet::new(graph.clone(), [imgsz; 2])?,
            head: head.clone(),
        })
    }

    fn run(&mut self, images: &[u8], n: usize, targets: &[Target]) -> Result<Parts, TrainError> {
        let mut clock = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            let ms = now.duration_since(clock).as_secs_f64() * 1e3;
            clock = now;
            ms
        };
        let maps = self.net.forward(images, n, BnUpdate::Momentum)?;
        let forward = lap();
        let loss = self.criterion.evaluate(&self.head, &raw(&maps), targets)?;
        let in_loss = lap();
        self.net.backward(&loss.grads, &mut self.gradients);
        let backward = lap();
        let pace = self.schedule.at(0);
        self.optimizer.step(&mut self.net.graph, &self.gradients, pace.rates, pace.momentum);
        self.gradients.clear();
        Ok(Parts { forward, loss: in_loss, backward, optimiser: lap() })
    }
}

/// Highest resident memory of this process so far, megabytes of 10^6 bytes.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
