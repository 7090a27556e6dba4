//! The reference's own predictions and its ten training steps, on the real weights.

use data::Target;
use graph::format::{LoadOptions, load};
use graph::{Graph, Head};
use testkit::{Batch, Pixels, shared};
use train::Gradients;
use train::evaluate::raw;
use train::loss;
use train::net::{BnUpdate, Infer, TrainNet};
use train::optim::{GroupRates, OptimConfig, OptimKind, Optimizer};

fn gradient_norm(graph: &Graph, gradients: &Gradients, name: &str) -> f64 {
    let (node, weight) = name.rsplit_once('.').unwrap();
    let id = graph.nodes.iter().position(|n| n.name == node).unwrap_or_else(|| panic!("no node {node}"));
    let k = graph.nodes[id].op.trainable().iter().position(|(w, _)| *w == weight).unwrap();
    gradients.by_node[id][k].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want.abs(), "{what}: {got}, reference {want}");
}

#[test]
fn yolov5n_predicts_and_trains_as_its_reference() {
    let Some(shared) = shared() else { return };
    let graph = load(&shared.join("weights/yolov5n/yolov5n.pt"), &LoadOptions::default()).unwrap();
    let dir = shared.join("golden/yolov5n");
    let batch = Batch::open(&dir, Pixels::Planar);
    let target = |&[image, class, x, y, w, h]: &[f32; 6]| Target {
        image: image as usize,
        class: class as usize,
        bbox: [x, y, w, h],
    };
    let targets: Vec<Target> = batch.labels.iter().map(target).collect();
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("trajectory.json")).unwrap()).unwrap();
    let Head::Anchor(head) = graph.head().unwrap().0.clone() else { panic!("not an anchor head") };

    let maps = Infer::new(&graph, [batch.size; 2]).unwrap().run(&batch.images, batch.n).unwrap();
    let got = eval::decode(graph.head().unwrap().0, &raw(&maps));
    // Both sides are f32. Against the f64 executor the reference is off by up to 1.0e-3 pixels (image 3, row 5791) and we by
    // up to 2.1e-3 (image 2, row 5749), both on the largest anchors, whose sides are squares of what the network says.
    let columns = 5 + head.classes;
    let rows = batch.predictions.len() / columns / batch.n;
    let mut loose = 0;
    for image in 0..batch.n {
        for row in 0..rows {
            let want = &batch.predictions[(image * rows + row) * columns..][..columns];
            for (k, (g, w)) in got.row(image, row).iter().zip(want).enumerate() {
                let tolerance = if k < 4 { 2.5e-3 } else { 1e-4 };
                assert!((g - w).abs() <= tolerance, "image {image} row {row} column {k}: {g}, reference {w}");
                loose += usize::from((g - w).abs() > 1e-3);
            }
        }
    }
    assert!(loose <= batch.n * rows * 4 / 10_000, "{loose} box values are off by more than 1e-3 pixels");

    let mut net = TrainNet::new(graph, [batch.size; 2]).unwrap();
    let config = loss::v5::V5Loss::default();
    let mut optimizer =
        Optimizer::new(OptimConfig { kind: OptimKind::Sgd { nesterov: false }, weight_decay: 0.0 }, &net.graph);
    let mut gradients = Gradients::zeros(&net.graph);
    for step in golden["steps"].as_array().unwrap() {
        let t = step["step"].as_u64().unwrap();
        let maps = net.forward(&batch.images, batch.n, BnUpdate::Momentum).unwrap();
        let loss::LossOutput { value, grads } = config.evaluate(&head, &raw(&maps), &targets).unwrap();
        gradients.clear();
        net.backward(&grads, &mut gradients);
        let tolerance = if t == 0 { 1e-4 } else { 2e-3 };
        close(&format!("step {t} total"), f64::from(value.total), step["total"].as_f64().unwrap(), tolerance);
        for (name, got) in &value.parts {
            close(&format!("step {t} {name}"), f64::from(*got), step[*name].as_f64().unwrap(), tolerance);
        }
        if t == 0 {
            for (name, want) in golden["gradient_norms_step0"].as_object().unwrap() {
                let got = match name.as_str() {
                    "(all parameters)" => gradients.norm(),
                    name => gradient_norm(&net.graph, &gradients, name),
                };
                close(&format!("gradient norm of {name}"), got, want.as_f64().unwrap(), 1e-3);
            }
        }
        optimizer.step(&mut net.graph, &gradients, GroupRates { weight: 1e-3, norm: 1e-3, bias: 1e-3 }, 0.9);
    }
    let graph::Op::BatchNorm(bn) = &net.graph.nodes.iter().find(|n| n.name == "model.0.bn").unwrap().op else {
        panic!()
    };
    for (c, want) in golden["model.0.bn.running_mean_after"].as_array().unwrap().iter().enumerate() {
        let want = want.as_f64().unwrap();
        assert!((f64::from(bn.mean[c]) - want).abs() < 1e-4, "running mean {c}: {}, reference {want}", bn.mean[c]);
    }
}
