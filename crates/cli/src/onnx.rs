//! Exporting a detector to ONNX, never without running the result and comparing it with our own forward pass.

use std::path::Path;

use eval::RawMap;
use graph::format::onnx::{ExportOptions, export};
use graph::format::write_whole;
use graph::reference::{Map, forward};
use graph::{Extra, Graph, Head, Shape};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::Session;
use train::evaluate::raw;
use train::net::Infer;

use crate::exit::Error;
use crate::ui;

/// How far a value of the exported file may be from ours: pixels for boxes, absolute for probabilities. Both sides are
/// f32, and a box side is the square of what the network says, times an anchor of hundreds of pixels.
const TOLERANCE: f32 = 0.02;

/// Where two f32 computations differ by more than [`TOLERANCE`], how many times as far from the exact values as ours the file
/// may be. They round the same sums in another order: over 40 untrained detectors, some with outputs that rounding moves by
/// 200 pixels, the file is 0.14 to 3.1 times as far off as ours. Twice the most.
const FARTHER: f32 = 6.0;

/// Most values of the maps of one image that are computed exactly: 4 GiB of them. At 640 pixels a YOLO26n has a sixth of them.
const MOST_EXACT: usize = 1 << 29;

/// Writes `graph` to `path` if the embedded runtime computes from the file what our executor computes from the graph;
/// returns the largest difference found on an image of noise.
///
/// # Errors
/// The graph is no detector, the outputs differ, or the file cannot be written.
pub fn export_verified(graph: &Graph, path: &Path, options: &ExportOptions) -> miette::Result<f32> {
    let bytes = export(graph, options)?;
    let session = Session::from_bytes(path, bytes.clone(), rayon::current_num_threads())?;
    let n = if options.dynamic_batch { 2 } else { options.batch };
    let difference = verified(&session, graph, options.imgsz, n)?;
    write_whole(path, &bytes)?;
    Ok(difference)
}

/// The largest difference of what `session` and our executor make of `n` images of noise.
///
/// # Errors
/// They differ by more than rounding explains.
fn verified(session: &Session, graph: &Graph, [h, w]: [usize; 2], n: usize) -> miette::Result<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let pixels: Vec<u8> = (0..n * h * w * 3).map(|_| rng.random()).collect();
    let (images, shape) = (planar(&pixels, n), [n, 3, h, w]);
    let maps = Infer::new(graph, [h, w])?.run(&pixels, n)?;
    let ours = outputs(graph, &raw(&maps))?;
    if ours.iter().any(|v| !v.is_finite()) {
        let what = "what the detector computes overflows, so the file cannot be compared with it";
        return Err(Error::failed(
            what,
            "its weights are damaged or diverged; train it again, or take an earlier checkpoint",
        ));
    }
    let refused = match session.verify(&images, shape, &ours, TOLERANCE) {
        Ok(difference) => return Ok(difference),
        Err(refused) => refused,
    };
    // Is the file wrong, or does the detector make much of f32's rounding? The same in f64 tells, all maps at once.
    let values = graph.shapes([h, w])?.iter().fold(0_usize, |sum, s| sum.saturating_add(s.c * s.h * s.w));
    if values > MOST_EXACT {
        return Err(refused.into());
    }
    let exact = exact(graph, &images, shape)?;
    if exact.len() != ours.len() {
        return Err(refused.into());
    }
    let apart = |(a, b): (&f32, &f32)| (a - b).abs();
    let own = ours.iter().zip(&exact).map(apart).fold(0.0, f32::max);
    if session.verify(&images, shape, &exact, FARTHER * own).is_err() {
        return Err(refused.into());
    }
    ui::warn(format_args!(
        "rounding to f32 moves what this detector says of noise by up to {own:.2}, here and in the file; trained detectors \
         are not so sensitive"
    ));
    Ok(session.verify(&images, shape, &ours, f32::INFINITY)?)
}

/// What the file should give back for the maps (N, H, W, C) that enter the head, output after output.
fn outputs(graph: &Graph, maps: &[RawMap]) -> miette::Result<Vec<f32>> {
    let (head, _) = graph.head()?;
    let predictions = eval::decode(head, maps);
    let (columns, n) = (predictions.columns(), maps.first().map_or(0, |m| m.n));
    let mut all = vec![];
    for image in 0..n {
        let rows = predictions.image(image);
        match head {
            // One column a box.
            Head::Dfl(_) => all.extend((0..columns).flat_map(|k| rows.iter().skip(k).step_by(columns).copied())),
            Head::Anchor(_) | Head::Yolox(_) => all.extend_from_slice(rows),
        }
    }
    if let (Some(Extra::Masks { .. }), Some(map)) = (head.extra(), maps.last()) {
        let plane = map.h * map.w;
        let channel = |i: usize, c: usize| map.data[i * plane * map.c..].iter().skip(c).step_by(map.c).take(plane);
        all.extend((0..n).flat_map(|i| (0..map.c).flat_map(move |c| channel(i, c).copied())));
    }
    Ok(all)
}

/// [`outputs`] of `images` (N, C, H, W), the maps computed in f64 by the executor that says what each operator means.
fn exact(graph: &Graph, images: &[f32], [_, c, h, w]: [usize; 4]) -> miette::Result<Vec<f32>> {
    let (_, inputs) = graph.head()?;
    // By map, images one after another.
    let mut data: Vec<Vec<f32>> = vec![vec![]; inputs.len()];
    let mut shapes = vec![];
    for image in images.chunks_exact(c * h * w) {
        let image = Map { shape: Shape { c, h, w }, data: image.iter().map(|&v| f64::from(v)).collect() };
        let maps = forward(graph, &image)?;
        shapes = inputs.iter().map(|&id| maps[id].shape).collect();
        for (&id, data) in inputs.iter().zip(&mut data) {
            let Map { shape: Shape { c, h, w }, data: values } = &maps[id];
            data.extend((0..h * w).flat_map(|p| (0..*c).map(move |k| values[k * h * w + p] as f32)));
        }
    }
    let n = images.len() / (c * h * w);
    let maps: Vec<RawMap> =
        data.iter().zip(&shapes).map(|(data, &Shape { c, h, w })| RawMap { n, h, w, c, data }).collect();
    outputs(graph, &maps)
}

/// Bytes (N, H, W, 3) to floats 0..1 (N, 3, H, W).
pub fn planar(pixels: &[u8], n: usize) -> Vec<f32> {
    let plane = pixels.len() / n.max(1) / 3;
    let channel = |i: usize, c: usize| pixels[i * plane * 3..(i + 1) * plane * 3].iter().skip(c).step_by(3);
    (0..n).flat_map(|i| (0..3).flat_map(move |c| channel(i, c))).map(|&b| f32::from(b) / 255.0).collect()
}

#[cfg(test)]
mod tests {
    use graph::Op;

    use super::*;

    /// A small detector whose branches for boxes say `times` as much.
    fn loud(times: f32) -> Graph {
        let mut graph = testkit::small("yolo26").graph;
        let boxes: Vec<usize> = graph.head().unwrap().1.iter().step_by(2).copied().collect();
        for id in boxes {
            let Op::Conv(conv) = &mut graph.nodes[id].op else { panic!("the head reads no convolution") };
            conv.weight.data.iter_mut().for_each(|w| *w *= times);
        }
        graph
    }

    fn session(graph: &Graph) -> Session {
        let options = ExportOptions { imgsz: [64, 96], batch: 1, dynamic_batch: false };
        Session::from_bytes(Path::new("(export)"), export(graph, &options).unwrap(), 1).unwrap()
    }

    #[test]
    fn what_rounding_explains_is_no_difference() {
        let difference = |times: f32| verified(&session(&loud(times)), &loud(times), [64, 96], 1).unwrap();
        assert!(difference(1.0) < TOLERANCE);
        assert!(difference(1e5) > TOLERANCE, "rounding shows nowhere, so nothing is tested");
    }

    #[test]
    fn what_rounding_does_not_explain_is_refused() {
        for times in [1.0, 1e5] {
            let other = loud(times * 1.001);
            assert!(verified(&session(&other), &loud(times), [64, 96], 1).is_err(), "{times}");
        }
    }
}
