//! YOLOv8n and YOLO11n on real weights against their reference: predictions, a first step, ten steps.
//!
//! The reference's recorded steps were taken in f32 on a channels-last batch, for which PyTorch 2.8 computes the statistics of
//! BatchNorm to three digits only: its first loss is 1.7e-4 off and the gradient of the first convolution 2.7 %. So steps are
//! compared with the same reference software on the same weights, images and labels in f64 (`data/trajectory_v8.json`), and
//! the recorded first loss is only checked for its distance from that.
//!
//! How far a comparison can go: points change their object whenever two are aligned almost equally, so runs drift apart
//! whatever computes them. At the recorded learning rate of 1e-3 the reference in f32 is 4e-4 from itself in f64 after 3 steps
//! and 2 % after 9. Ours, with the statistics of BatchNorm off at random by one in the last place, takes YOLOv8n from 27.782,
//! 27.785 or 27.789 after two steps to 26.35 or 26.42 after three (in four runs of thirteen), where f64 has 26.3455: so three
//! of its losses are compared at that rate. At 1e-5 such changes are rare in ten steps.

use std::path::Path;

use data::Target;
use graph::format::{LoadOptions, load};
use graph::{Graph, Op};
use serde_json::Value;
use testkit::{Batch, Pixels};
use train::evaluate::raw;
use train::loss::{Criterion, V8Loss};
use train::net::{BnUpdate, Infer, TrainNet};
use train::optim::{GroupRates, OptimConfig, OptimKind, Optimizer};
use train::{Gradients, net::HeadMap};

struct Golden {
    graph: Graph,
    batch: Batch,
    targets: Vec<Target>,
    /// What the reference recorded.
    recorded: Value,
    /// What it computes in f64.
    exact: Value,
}

impl Golden {
    /// `None` where there is no test material.
    fn open(name: &str, weights: &str) -> Option<Self> {
        let shared = testkit::shared()?;
        let dir = shared.join("golden").join(name);
        let batch = Batch::open(&dir, Pixels::Interleaved);
        let row = |&[image, class, x, y, w, h]: &[f32; 6]| Target {
            image: image as usize,
            class: class as usize,
            bbox: [x, y, w, h],
        };
        let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
        let exact = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/trajectory_v8.json");
        Some(Self {
            graph: load(&shared.join("weights").join(weights), &LoadOptions::default()).unwrap(),
            targets: batch.labels.iter().map(row).collect(),
            batch,
            recorded: json(&dir.join("trajectory.json")),
            exact: json(&exact)[name].clone(),
        })
    }

    /// All probabilities within 1e-4, all box values within 1e-3 pixels but for `loose` of them, which are within 3e-3.
    fn predicts(&self, loose: usize) {
        let maps: Vec<HeadMap> =
            Infer::new(&self.graph, [self.batch.size; 2]).unwrap().run(&self.batch.images, self.batch.n).unwrap();
        let ours = eval::decode(self.graph.head().unwrap().0, &raw(&maps));
        let (points, columns) = (ours.boxes(), ours.columns());
        assert_eq!(self.batch.predictions.len(), self.batch.n * points * columns);
        let (mut worst, mut beyond) = ([0.0_f32; 2], 0);
        for (at, want) in self.batch.predictions.iter().enumerate() {
            let (image, column, point) = (at / points / columns, at / points % columns, at % points);
            let error = (ours.row(image, point)[column] - want).abs();
            let is_box = column < 4;
            let worst = &mut worst[usize::from(!is_box)];
            *worst = worst.max(error);
            beyond += usize::from(is_box && error > 1e-3);
        }
        let [pixels, probability] = worst;
        println!("predictions are off by {pixels} pixels ({beyond} beyond 1e-3), {probability} in probability");
        assert!(pixels <= 3e-3 && beyond <= loose, "{beyond} box values are off, by up to {pixels} pixels");
        assert!(probability <= 1e-4, "off by {probability} in probability");
    }

    /// Takes the steps listed under `steps` and compares every loss within 1e-3, the first within 1e-4.
    fn trains(&self, steps: &str, rate: f32) {
        let head = self.graph.head().unwrap().0.clone();
        let criterion = Criterion::V8(V8Loss::default());
        let config = OptimConfig { kind: OptimKind::Sgd { nesterov: false }, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(config, &self.graph);
        let mut net = TrainNet::new(self.graph.clone(), [self.batch.size; 2]).unwrap();
        let mut gradients = Gradients::zeros(&net.graph);
        for (step, want) in self.exact[steps].as_array().unwrap().iter().enumerate() {
            let maps = net.forward(&self.batch.images, self.batch.n, BnUpdate::Momentum).unwrap();
            let loss = criterion.evaluate(&head, &raw(&maps), &self.targets).unwrap();
            gradients.clear();
            net.backward(&loss.grads, &mut gradients);
            let want: Vec<f64> = want.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            println!("{steps}, step {step}: {} for {}", loss.value.total, want[0]);
            let tolerances = if step == 0 { [1e-4, 2e-4] } else { [1e-3; 2] };
            close(&format!("{steps}, step {step}, total"), loss.value.total, want[0], tolerances[0]);
            for ((part, got), want) in loss.value.parts.iter().zip(&want[1..]) {
                // One point that changes its object, as rounding may have it, moves a part by 1.6e-4.
                close(&format!("{steps}, step {step}, {part}"), *got, *want, tolerances[1]);
            }
            if step == 0 {
                self.first_step(loss.value.total, &net.graph, &gradients);
            }
            optimizer.step(&mut net.graph, &gradients, GroupRates { weight: rate, norm: rate, bias: rate }, 0.9);
        }
        let node = net.graph.nodes.iter().find(|n| n.name == "model.0.bn").unwrap();
        let Op::BatchNorm(bn) = &node.op else { panic!("model.0.bn is a {:?}", node.op) };
        for (got, want) in bn.mean.iter().zip(self.exact["running_mean_after"][steps].as_array().into_iter().flatten())
        {
            let want = want.as_f64().unwrap();
            assert!((f64::from(*got) - want).abs() < 1e-5, "{steps}, running mean {got}, reference {want}");
        }
    }

    fn first_step(&self, total: f32, graph: &Graph, gradients: &Gradients) {
        close("recorded first loss", total, self.recorded["steps"][0]["total"].as_f64().unwrap(), 3e-4);
        for (name, want) in self.exact["gradient_norms"].as_object().unwrap() {
            let got = if name == "(all parameters)" { gradients.norm() } else { norm(graph, gradients, name) };
            println!("gradient norm of {name}: {got} for {want}");
            close(&format!("gradient norm of {name}"), got as f32, want.as_f64().unwrap(), 1e-3);
        }
    }
}

fn norm(graph: &Graph, gradients: &Gradients, name: &str) -> f64 {
    let (node, weight) = name.rsplit_once('.').unwrap();
    let id = graph.nodes.iter().position(|n| n.name == node).unwrap_or_else(|| panic!("no node {node}"));
    let k = graph.nodes[id].op.trainable().iter().position(|(w, _)| *w == weight).unwrap();
    gradients.by_node[id][k].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

fn close(what: &str, got: f32, want: f64, tolerance: f64) {
    assert!((f64::from(got) - want).abs() <= tolerance * want.abs(), "{what}: {got}, reference {want}");
}

#[test]
fn yolov8n_predicts_and_trains_as_its_reference() {
    let Some(golden) = Golden::open("yolov8n", "yolov8n/yolov8n-rail.pt") else { return };
    // Of 33,600 values. Both sides are f32: against f64 the reference is off by up to 1.5e-3 pixels, beyond 1e-3 in 6 values,
    // and in 11 once BatchNorm is folded in, as it is here.
    golden.predicts(50);
    golden.trains("rate 1e-3", 1e-3);
    golden.trains("rate 1e-5", 1e-5);
}

#[test]
fn yolo11n_predicts_and_trains_as_its_reference() {
    let Some(golden) = Golden::open("yolo11n", "yolo11n/yolo11n-ball.pt") else { return };
    golden.predicts(0);
    golden.trains("rate 1e-3", 1e-3);
    golden.trains("rate 1e-5", 1e-5);
}
