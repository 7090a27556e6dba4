//! Ten training steps of a YOLOv8 against the losses its reference recorded for the same weights, images and labels.
//!
//! The loss alone equals its published formula to rounding (see `loss.rs`). The reference is Ultralytics 8.4, whose
//! assigner differs from that formula somewhere we do not know: the first step is 1.8e-4 apart, the tenth 1.3e-2.

use std::path::Path;

use data::Target;
use graph::format::{LoadOptions, load};
use serde_json::Value;
use train::Gradients;
use train::loss::{Criterion, RawMap, V8Loss};
use train::net::{BnUpdate, TrainNet};
use train::optim::{GroupRates, OptimConfig, OptimKind, Optimizer};

fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want, "{what}: {got}, reference {want}");
}

#[test]
fn yolov8n_trains_as_its_reference() {
    let Some(shared) = testkit::shared() else { return };
    let golden = shared.join("golden/yolov8n");
    let reference: Value = serde_json::from_slice(&std::fs::read(golden.join("trajectory.json")).unwrap()).unwrap();
    let (images, n, size, targets) = batch(&golden.join("batch.safetensors"));

    let graph = load(&shared.join("weights/yolov8n/yolov8n-rail.pt"), &LoadOptions::default()).unwrap();
    let head = graph.head().unwrap().0.clone();
    let criterion = Criterion::V8(V8Loss::default());
    let config = OptimConfig { kind: OptimKind::Sgd { nesterov: false }, weight_decay: 0.0 };
    let mut optimizer = Optimizer::new(config, &graph);
    let mut net = TrainNet::new(graph, [size, size]).unwrap();
    let mut gradients = Gradients::zeros(&net.graph);

    for (step, want) in reference["steps"].as_array().unwrap().iter().enumerate() {
        let maps = net.forward(&images, n, BnUpdate::Momentum).unwrap();
        let raw: Vec<RawMap> = maps.iter().map(|m| RawMap { n: m.n, h: m.h, w: m.w, c: m.c, data: &m.data }).collect();
        let loss = criterion.evaluate(&head, &raw, &targets).unwrap();
        gradients.clear();
        net.backward(&loss.grads, &mut gradients);
        println!("step {step}: {} for {}", loss.value.total, want["total"]);
        let tolerance = if step == 0 { 1e-3 } else { 0.02 };
        close(&format!("step {step} total"), loss.value.total.into(), want["total"].as_f64().unwrap(), tolerance);
        if step == 0 {
            for (part, got) in loss.value.parts {
                close(part, got.into(), want[part].as_f64().unwrap(), 1e-3);
            }
            let norm = &reference["gradient_norms_step0"]["(all parameters)"];
            close("gradient norm", gradients.norm(), norm.as_f64().unwrap(), 5e-3);
        }
        optimizer.step(&mut net.graph, &gradients, GroupRates { weight: 1e-3, norm: 1e-3, bias: 1e-3 }, 0.9);
    }
}

/// Images as (N, H, W, 3), how many, their size, and the targets. The file's header says (N, 3, H, W), but its bytes are
/// those of pixels: the array was a transposed view when it was saved.
fn batch(path: &Path) -> (Vec<u8>, usize, usize, Vec<Target>) {
    let tensors = testkit::tensors(path);
    let stored = &tensors["images_u8"];
    let [n, _, size, _] = stored.shape[..] else { panic!("images of shape {:?}", stored.shape) };
    let row = |r: &[f32]| Target { image: r[0] as usize, class: r[1] as usize, bbox: [r[2], r[3], r[4], r[5]] };
    let targets = tensors["labels"].data.chunks_exact(6).map(row).collect();
    (stored.data.iter().map(|&v| v as u8).collect(), n, size, targets)
}
