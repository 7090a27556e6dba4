//! Exporting a detector to ONNX, never without running the result and comparing it with our own forward pass.

use std::path::Path;

use graph::format::onnx::{ExportOptions, export};
use graph::format::write_whole;
use graph::{Extra, Graph, Head};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::Session;
use train::evaluate::raw;
use train::net::Infer;

/// How far a value of the exported file may be from ours: pixels for boxes, absolute for probabilities. Both sides are
/// f32, and a box side is the square of what the network says, times an anchor of hundreds of pixels.
const TOLERANCE: f32 = 0.02;

/// Writes `graph` to `path` if the embedded runtime computes from the file what our executor computes from the graph;
/// returns the largest difference found on an image of noise.
///
/// # Errors
/// The graph is no detector, the outputs differ, or the file cannot be written.
pub fn export_verified(graph: &Graph, path: &Path, options: &ExportOptions) -> miette::Result<f32> {
    let bytes = export(graph, options)?;
    let mut session = Session::from_bytes(path, bytes.clone(), rayon::current_num_threads())?;
    let [h, w] = options.imgsz;
    let n = if options.dynamic_batch { 2 } else { options.batch };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let pixels: Vec<u8> = (0..n * h * w * 3).map(|_| rng.random()).collect();
    let maps = Infer::new(graph, options.imgsz)?.run(&pixels, n)?;
    let (head, _) = graph.head()?;
    let predictions = eval::decode(head, &raw(&maps));
    let columns = predictions.columns();
    let mut expected = vec![];
    for image in 0..n {
        let rows = predictions.image(image);
        match head {
            // One column a box.
            Head::Dfl(_) => expected.extend((0..columns).flat_map(|k| rows.iter().skip(k).step_by(columns).copied())),
            Head::Anchor(_) | Head::Yolox(_) => expected.extend_from_slice(rows),
        }
    }
    if let (Some(Extra::Masks { .. }), Some(map)) = (head.extra(), maps.last()) {
        let plane = map.h * map.w;
        let channel = |i: usize, c: usize| map.data[i * plane * map.c..].iter().skip(c).step_by(map.c).take(plane);
        expected.extend((0..n).flat_map(|i| (0..map.c).flat_map(move |c| channel(i, c).copied())));
    }
    let difference = session.verify(&planar(&pixels, n), [n, 3, h, w], &expected, TOLERANCE)?;
    write_whole(path, &bytes)?;
    Ok(difference)
}

/// Median milliseconds of one image through the embedded runtime.
pub fn latency(graph: &Graph, imgsz: usize, runs: usize) -> miette::Result<f64> {
    let bytes = export(graph, &ExportOptions { imgsz: [imgsz; 2], batch: 1, dynamic_batch: false })?;
    let mut session = Session::from_bytes(Path::new("(export)"), bytes, rayon::current_num_threads())?;
    Ok(median(session.latency([1, 3, imgsz, imgsz], 3, runs)?))
}

/// The middle of `times`.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Bytes (N, H, W, 3) to floats 0..1 (N, 3, H, W).
pub fn planar(pixels: &[u8], n: usize) -> Vec<f32> {
    let plane = pixels.len() / n.max(1) / 3;
    let channel = |i: usize, c: usize| pixels[i * plane * 3..(i + 1) * plane * 3].iter().skip(c).step_by(3);
    (0..n).flat_map(|i| (0..3).flat_map(move |c| channel(i, c))).map(|&b| f32::from(b) / 255.0).collect()
}
