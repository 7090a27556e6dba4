//! Ten steps of training against the losses PyTorch recorded for the same weights, images and labels: executor, loss and
//! optimiser in one.

use std::path::Path;

use data::Target;
use graph::Head;
use graph::format::{LoadOptions, load};
use serde_json::Value;
use train::Gradients;
use train::loss::{Criterion, RawMap, V5Loss, V8Loss};
use train::net::{BnUpdate, TrainNet};
use train::optim::{GroupRates, OptimConfig, OptimKind, Optimizer};

/// Largest relative difference of a loss that float rounding explains: the steps amplify it.
const STEP_TOLERANCE: f64 = 1e-3;

fn check(name: &str, weights: &str, bytes: Bytes) {
    let Some(shared) = testkit::shared() else { return };
    let golden = shared.join("golden").join(name);
    let want: Value = serde_json::from_slice(&std::fs::read(golden.join("trajectory.json")).unwrap()).unwrap();
    let (images, n, size, targets) = batch(&golden.join("batch.safetensors"), bytes);

    let graph = load(&shared.join("weights").join(weights), &LoadOptions::default()).unwrap();
    let head = graph.head().unwrap().0.clone();
    let criterion = match head {
        Head::Anchor(_) => Criterion::V5(V5Loss::default()),
        _ => Criterion::V8(V8Loss::default()),
    };
    let config = OptimConfig { kind: OptimKind::Sgd { nesterov: false }, weight_decay: 0.0 };
    let mut optimizer = Optimizer::new(config, &graph);
    let mut net = TrainNet::new(graph, [size, size]).unwrap();
    let mut gradients = Gradients::zeros(&net.graph);

    for step in 0..10 {
        let maps = net.forward(&images, n, BnUpdate::Momentum).unwrap();
        let raw: Vec<RawMap> = maps.iter().map(|m| RawMap { n: m.n, h: m.h, w: m.w, c: m.c, data: &m.data }).collect();
        let loss = criterion.evaluate(&head, &raw, &targets).unwrap();
        let row = &want["steps"][step];
        let tolerance = if step == 0 { 2e-5 } else { STEP_TOLERANCE };
        for (part, value) in [("total", loss.value.total)].into_iter().chain(loss.value.parts) {
            let want = row[part].as_f64().unwrap();
            let off = (f64::from(value) - want).abs() / want;
            assert!(off < tolerance, "{name}, step {step}: {part} is {value}, not {want} (off by {off:.1e})");
        }
        println!("{name}, step {step}: {} for {}", loss.value.total, row["total"]);
        gradients.clear();
        net.backward(&loss.grads, &mut gradients);
        if step == 0 {
            let want = want["gradient_norms_step0"]["(all parameters)"].as_f64().unwrap();
            let off = (gradients.norm() - want).abs() / want;
            assert!(off < 1e-4, "{name}: the gradient's norm is {}, not {want}", gradients.norm());
        }
        let rates = GroupRates { weight: 1e-3, norm: 1e-3, bias: 1e-3 };
        optimizer.step(&mut net.graph, &gradients, rates, 0.9);
    }
}

/// How the bytes of a batch lie. Its shape says (N, 3, H, W) in either case: one script saved a transposed array.
#[derive(Clone, Copy)]
enum Bytes {
    Planes,
    Pixels,
}

/// Images as (N, H, W, 3), how many, their size, and the targets.
fn batch(path: &Path, bytes: Bytes) -> (Vec<u8>, usize, usize, Vec<Target>) {
    let tensors = testkit::tensors(path);
    let stored = &tensors["images_u8"];
    let [n, _, h, w] = stored.shape[..] else { panic!("images of shape {:?}", stored.shape) };
    let at = |image: usize, pixel: usize, c: usize| match bytes {
        Bytes::Planes => (image * 3 + c) * h * w + pixel,
        Bytes::Pixels => (image * h * w + pixel) * 3 + c,
    };
    let mut images = Vec::with_capacity(stored.data.len());
    for image in 0..n {
        images.extend((0..h * w).flat_map(|p| [0, 1, 2].map(|c| stored.data[at(image, p, c)] as u8)));
    }
    let row = |r: &[f32]| Target { image: r[0] as usize, class: r[1] as usize, bbox: [r[2], r[3], r[4], r[5]] };
    (images, n, h, tensors["labels"].data.chunks_exact(6).map(row).collect())
}

#[test]
fn yolov5n_trains_as_in_pytorch() {
    check("yolov5n", "yolov5n/yolov5n.pt", Bytes::Planes);
}

#[test]
fn yolov8n_trains_as_in_pytorch() {
    check("yolov8n", "yolov8n/yolov8n-rail.pt", Bytes::Pixels);
}
