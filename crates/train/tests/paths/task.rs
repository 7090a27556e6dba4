//! Ten training steps as the goldens record them, on any path, and how far two of them lie apart.

use data::Target;
use graph::format::{LoadOptions, load};
use graph::{Graph, Op};
use testkit::Batch;
use train::Gradients;
use train::evaluate::raw;
use train::loss::Criterion;
use train::net::TrainNet;
use train::optim::{GroupRates, OptimConfig, OptimKind, Optimizer};

use crate::{Detector, Path};

/// A detector, a batch, and the rate it is trained with.
pub struct Task {
    pub graph: Graph,
    pub batch: Batch,
    pub rate: f32,
}

/// What a path made of a task.
pub struct Told {
    /// Total and parts, step by step.
    pub losses: Vec<[f64; 4]>,
    /// Of the first step.
    gradients: Gradients,
    /// After the last step.
    graph: Graph,
}

/// Largest relative differences between two paths.
#[derive(Clone, Copy, Debug)]
pub struct Apart {
    /// Before the first update of the weights and after it.
    pub first_losses: f64,
    pub losses: f64,
    /// Of the first step: the norm of what differs over the norm, the worst tensor. Where hardly a thousandth of the whole
    /// gradient goes to a tensor, over that thousandth: what little it gets is mostly rounding.
    pub gradients: f64,
    /// The norm of what differs over the way gone from the first weights, over all trainable weights.
    pub weights: f64,
    /// The same of the running means and variances.
    pub statistics: f64,
}

impl Apart {
    /// Panics where any difference is above its limit.
    pub fn within(self, limit: Self, what: &str) {
        println!("{what}: {self:?}");
        let rows = [
            ("the first losses", self.first_losses, limit.first_losses),
            ("the losses", self.losses, limit.losses),
            ("the first gradients", self.gradients, limit.gradients),
            ("the weights", self.weights, limit.weights),
            ("the running statistics", self.statistics, limit.statistics),
        ];
        for (value, apart, limit) in rows {
            assert!(apart <= limit, "{what}: {value} are {apart:.1e} apart, more than {limit:.1e}");
        }
    }
}

impl Task {
    /// `None` where there is no test material.
    pub fn open((name, weights, pixels, rate): Detector) -> Option<Self> {
        let shared = testkit::shared()?;
        let graph = load(&shared.join("weights").join(weights), &LoadOptions::default()).unwrap();
        Some(Self { graph, batch: Batch::open(&shared.join("golden").join(name), pixels), rate })
    }

    /// Two images of every `step`th pixel: slow paths get through them. Labels are shares of the image and stay.
    pub fn small(mut self, step: usize) -> Self {
        self.batch.n = 2;
        self.batch.labels.retain(|label| label[0] < 2.0);
        let (full, size) = (self.batch.size, self.batch.size / step);
        let at = |i: usize| {
            let (image, y, x) = (i / (size * size), i / size % size, i % size);
            ((image * full + y * step) * full + x * step) * 3
        };
        let pixels = (0..self.batch.n * size * size).flat_map(|i| &self.batch.images[at(i)..][..3]).copied();
        self.batch.images = pixels.collect();
        self.batch.size = size;
        self
    }

    pub fn fast(&self, steps: usize) -> Told {
        self.run(TrainNet::new(self.graph.clone(), [self.batch.size; 2]).unwrap(), steps)
    }

    /// The steps the goldens record: SGD with momentum 0.9, no decay.
    pub fn run(&self, mut path: impl Path, steps: usize) -> Told {
        let head = self.graph.head().unwrap().0.clone();
        let target = |&[image, class, x, y, w, h]: &[f32; 6]| Target {
            image: image as usize,
            class: class as usize,
            bbox: [x, y, w, h],
        };
        let targets: Vec<Target> = self.batch.labels.iter().map(target).collect();
        let criterion = Criterion::of(&head, 640).unwrap();
        let config = OptimConfig { kind: OptimKind::Sgd { nesterov: false }, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(config, &self.graph);
        let mut told = Told { losses: vec![], gradients: Gradients::zeros(&self.graph), graph: self.graph.clone() };
        let mut gradients = Gradients::zeros(&self.graph);
        for step in 0..steps {
            let maps = path.forward(&self.batch.images, self.batch.n);
            let loss = criterion.evaluate(&head, &raw(&maps), &targets).unwrap();
            let [a, b, c] = loss.value.parts.map(|(_, part)| f64::from(part));
            told.losses.push([f64::from(loss.value.total), a, b, c]);
            gradients.clear();
            path.backward(&loss.grads, &mut gradients);
            if step == 0 {
                told.gradients = gradients.clone();
            }
            let rates = GroupRates { weight: self.rate, norm: self.rate, bias: self.rate };
            optimizer.step(path.graph(), &gradients, rates, 0.9);
        }
        told.graph = path.graph().clone();
        told
    }

    pub fn apart(&self, a: &Told, b: &Told) -> Apart {
        let loss =
            |(a, b): (&[f64; 4], &[f64; 4])| a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max);
        let losses: Vec<f64> = a.losses.iter().zip(&b.losses).map(loss).collect();
        let least = 1e-3 * b.gradients.norm();
        let tensors = a.gradients.by_node.iter().zip(&b.gradients.by_node).flat_map(|(a, b)| a.iter().zip(b));
        let gradient = |(a, b): (&Vec<f32>, &Vec<f32>)| distance(a, b) / norm(b).max(least);
        let share = |values: fn(&Graph) -> Vec<f32>| {
            let [a, b, start] = [&a.graph, &b.graph, &self.graph].map(values);
            distance(&a, &b) / distance(&b, &start)
        };
        Apart {
            first_losses: losses[0].max(losses[1]),
            losses: losses.into_iter().fold(0.0, f64::max),
            gradients: tensors.map(gradient).fold(0.0, f64::max),
            weights: share(trainable),
            statistics: share(statistics),
        }
    }
}

fn trainable(graph: &Graph) -> Vec<f32> {
    graph.nodes.iter().flat_map(|n| n.op.trainable()).flat_map(|(_, w)| w.to_vec()).collect()
}

fn statistics(graph: &Graph) -> Vec<f32> {
    let of = |op: &Op| match op {
        Op::BatchNorm(bn) => [&bn.mean[..], &bn.var[..]].concat(),
        _ => vec![],
    };
    graph.nodes.iter().flat_map(|n| of(&n.op)).collect()
}

fn norm(a: &[f32]) -> f64 {
    a.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}
