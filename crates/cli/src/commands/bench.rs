//! `bench`: how fast a detector runs and trains here.

use std::time::Instant;

use data::Target;
use graph::format::onnx::{ExportOptions, export};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::Session;
use serde::Serialize;
use train::evaluate::raw;
use train::loss::Criterion;
use train::net::{BnUpdate, Infer, TrainNet};
use train::optim::{OptimConfig, Optimizer};
use train::schedule::{Schedule, ScheduleConfig};
use train::{Error as TrainError, Gradients};

use crate::args::{Bench, BenchInfer, BenchTrain};
use crate::detector::{Detector, image_size};
use crate::exit::Exit;
use crate::onnx::median;
use crate::ui::{self, Column, Table};

/// Runs before the clock starts: they fill caches and the pool of buffers.
const WARMUP: usize = 2;

/// Objects in each image of a training step.
const OBJECTS: usize = 8;

/// Runs the command.
pub fn run(args: &Bench) -> miette::Result<Exit> {
    match args {
        Bench::Infer(args) => infer(args),
        Bench::Train(args) => train_steps(args),
    }
}

/// What `bench infer --json` prints.
#[derive(Serialize)]
struct Latency {
    model: String,
    imgsz: usize,
    batch: usize,
    threads: usize,
    runs: usize,
    /// Milliseconds an image, forward pass only; none where the detector is an ONNX file already.
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<Times>,
    /// The same in the embedded ONNX runtime, decoding included.
    onnx: Times,
}

/// Milliseconds an image over all runs.
#[derive(Clone, Copy, Serialize)]
struct Times {
    median: f64,
    best: f64,
    worst: f64,
}

impl Times {
    /// From milliseconds a run of `batch` images each.
    fn of(runs: Vec<f64>, batch: usize) -> Self {
        let image = |ms: f64| ms / batch as f64;
        let best = runs.iter().copied().fold(f64::INFINITY, f64::min);
        let worst = runs.iter().copied().fold(0.0, f64::max);
        Self { median: image(median(runs)), best: image(best), worst: image(worst) }
    }
}

fn infer(args: &BenchInfer) -> miette::Result<Exit> {
    let threads = rayon::current_num_threads();
    let path = &args.model.model;
    let is_onnx = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    let (mut session, imgsz, own) = if is_onnx {
        let detector = Detector::open(path, None, args.imgsz)?;
        (Session::load(path, threads)?, detector.imgsz, None)
    } else {
        let graph = args.model.load()?;
        let imgsz = image_size(&graph, args.imgsz)?;
        let options = ExportOptions { imgsz: [imgsz; 2], batch: args.batch, dynamic_batch: false };
        let bytes = export(&graph, &options)?;
        let mut infer = Infer::new(&graph, [imgsz; 2])?;
        let images = vec![114; args.batch * imgsz * imgsz * 3];
        let mut times = vec![];
        for run in 0..WARMUP + args.runs {
            let start = Instant::now();
            infer.run(&images, args.batch)?;
            if run >= WARMUP {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        (Session::from_bytes(path, bytes, threads)?, imgsz, Some(Times::of(times, args.batch)))
    };
    let times = session.latency([args.batch, 3, imgsz, imgsz], WARMUP, args.runs)?;
    let onnx = Times::of(times, args.batch);
    let model = path.display().to_string();
    let latency = Latency { model, imgsz, batch: args.batch, threads, runs: args.runs, own, onnx };
    if args.json {
        ui::print_json(&latency);
        return Ok(Exit::Done);
    }
    let mut table = Table::new([
        Column::text("ms an image"),
        Column::number("median"),
        Column::number("best"),
        Column::number("worst"),
    ]);
    for (name, times) in [("our executor", own), ("ONNX runtime", Some(onnx))] {
        if let Some(t) = times {
            table.row([name.into(), format!("{:.2}", t.median), format!("{:.2}", t.best), format!("{:.2}", t.worst)]);
        }
    }
    ui::print(format_args!("{table}\n{imgsz}×{imgsz}, batch {}, {threads} threads\n", args.batch));
    Ok(Exit::Done)
}

/// What `bench train --json` prints. Times are medians over the steps, in milliseconds.
#[derive(Serialize)]
struct Steps {
    model: String,
    imgsz: usize,
    batch: usize,
    steps: usize,
    threads: usize,
    ms_per_step: f64,
    images_per_s: f64,
    /// Highest resident memory of this process; none where the system does not tell.
    peak_rss_mb: Option<f64>,
    parts: Parts,
}

/// Where the time of a step goes, milliseconds.
#[derive(Clone, Copy, Default, Serialize)]
struct Parts {
    forward: f64,
    loss: f64,
    backward: f64,
    optimiser: f64,
}

fn train_steps(args: &BenchTrain) -> miette::Result<Exit> {
    let graph = args.model.load()?;
    let imgsz = image_size(&graph, Some(args.imgsz))?;
    let mut steps: Vec<Parts> = vec![];
    let mut step = Step::new(&graph, imgsz, args.batch)?;
    let bar = ui::bar("Training", WARMUP + args.steps, "steps");
    for n in 0..WARMUP + args.steps {
        let parts = step.run()?;
        if n >= WARMUP {
            steps.push(parts);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let middle = |value: fn(&Parts) -> f64| median(steps.iter().map(value).collect());
    let ms_per_step = middle(|p| p.forward + p.loss + p.backward + p.optimiser);
    let result = Steps {
        model: args.model.model.display().to_string(),
        imgsz,
        batch: args.batch,
        steps: args.steps,
        threads: rayon::current_num_threads(),
        ms_per_step,
        images_per_s: args.batch as f64 * 1e3 / ms_per_step,
        peak_rss_mb: peak_rss_mb(),
        parts: Parts {
            forward: middle(|p| p.forward),
            loss: middle(|p| p.loss),
            backward: middle(|p| p.backward),
            optimiser: middle(|p| p.optimiser),
        },
    };
    if args.json {
        ui::print_json(&result);
        return Ok(Exit::Done);
    }
    let mut table = Table::new([Column::text("part"), Column::number("ms")]);
    let parts = result.parts;
    for (name, ms) in
        [("forward", parts.forward), ("loss", parts.loss), ("backward", parts.backward), ("optimiser", parts.optimiser)]
    {
        table.row([name.into(), format!("{ms:.1}")]);
    }
    table.total(["step".into(), format!("{ms_per_step:.1}")]);
    let memory = result.peak_rss_mb.map(|mb| format!(", {mb:.0} MB at most")).unwrap_or_default();
    ui::print(format_args!(
        "{table}\n{imgsz}×{imgsz}, batch {}, {} threads, {:.1} images a second{memory}\n",
        args.batch, result.threads, result.images_per_s
    ));
    Ok(Exit::Done)
}

/// A training step on made-up images and objects, the same every time.
struct Step {
    net: TrainNet,
    head: graph::Head,
    criterion: Criterion,
    optimizer: Optimizer,
    schedule: Schedule,
    gradients: Gradients,
    images: Vec<u8>,
    targets: Vec<Target>,
    batch: usize,
}

impl Step {
    fn new(graph: &graph::Graph, imgsz: usize, batch: usize) -> miette::Result<Self> {
        let (head, _) = graph.head()?;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut images = vec![0; batch * imgsz * imgsz * 3];
        rng.fill_bytes(&mut images);
        let classes = head.classes().max(1);
        let targets = (0..batch * OBJECTS).map(|i| {
            let bbox = [
                rng.random_range(0.2..0.8),
                rng.random_range(0.2..0.8),
                rng.random_range(0.05..0.4),
                rng.random_range(0.05..0.4),
            ];
            Target { image: i / OBJECTS, class: i % classes, bbox }
        });
        Ok(Self {
            targets: targets.collect(),
            criterion: Criterion::of(head, imgsz)?,
            optimizer: Optimizer::new(OptimConfig::default(), graph),
            // Past the warm-up, and with a rate that leaves the weights where they are.
            schedule: Schedule::new(
                &ScheduleConfig { lr0: 1e-6, warmup_epochs: 0.0, ..ScheduleConfig::default() },
                1,
                1,
                batch,
                batch,
            ),
            gradients: Gradients::zeros(graph),
            net: TrainNet::new(graph.clone(), [imgsz; 2])?,
            head: head.clone(),
            images,
            batch,
        })
    }

    fn run(&mut self) -> Result<Parts, TrainError> {
        let mut clock = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            let ms = now.duration_since(clock).as_secs_f64() * 1e3;
            clock = now;
            ms
        };
        let maps = self.net.forward(&self.images, self.batch, BnUpdate::Momentum)?;
        let forward = lap();
        let loss = self.criterion.evaluate(&self.head, &raw(&maps), &self.targets)?;
        let in_loss = lap();
        self.net.backward(&loss.grads, &mut self.gradients);
        let backward = lap();
        let pace = self.schedule.at(0, 0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_by_image() {
        let times = Times::of(vec![8.0, 2.0, 4.0], 2);
        assert_eq!((times.median, times.best, times.worst), (2.0, 1.0, 4.0));
    }
}
