//! `bench infer`: milliseconds an image, in our executor and in the embedded ONNX runtime.

use std::time::Instant;

use ::train::net::Infer;
use graph::format::onnx::{ExportOptions, export};
use runtime::{Session, median};
use serde::Serialize;

use super::WARMUP;
use crate::args::BenchInfer;
use crate::detector::{Detector, image_size};
use crate::exit::Exit;
use crate::files;
use crate::ui::{self, Column, Table};

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

/// Runs the command.
pub fn run(args: &BenchInfer) -> miette::Result<Exit> {
    let threads = rayon::current_num_threads();
    let path = &args.model.model;
    let is_onnx = files::ends_in(path, "onnx");
    let (session, imgsz, own) = if is_onnx {
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
        let bar = ui::bar("Timing", WARMUP + args.runs, "runs");
        for run in 0..WARMUP + args.runs {
            let start = Instant::now();
            infer.run(&images, args.batch)?;
            if run >= WARMUP {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        (Session::from_bytes(path, bytes, threads)?, imgsz, Some(Times::of(times, args.batch)))
    };
    let spinner = ui::spinner("Timing the embedded runtime");
    let times = session.latency([args.batch, 3, imgsz, imgsz], WARMUP, args.runs)?;
    spinner.finish_and_clear();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_by_image() {
        let times = Times::of(vec![8.0, 2.0, 4.0], 2);
        assert_eq!((times.median, times.best, times.worst), (2.0, 1.0, 4.0));
    }
}
