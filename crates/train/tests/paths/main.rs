//! The golden training steps on every path there is: each instruction set of this machine, Winograd and direct convolution,
//! and a plain executor in f64. They must tell one story: the losses of ten steps and the weights after them.

mod slow;
mod task;

use graph::Graph;
use kernels::{Isa, directly};
use slow::Slow;
use task::{Apart, Task};
use testkit::Pixels;
use train::Gradients;
use train::net::{BnUpdate, HeadMap, TrainNet};

/// A way to compute a training step.
trait Path {
    fn graph(&mut self) -> &mut Graph;
    fn forward(&mut self, images: &[u8], n: usize) -> Vec<HeadMap>;
    fn backward(&mut self, map_gradients: &[Vec<f32>], gradients: &mut Gradients);
}

impl Path for TrainNet {
    fn graph(&mut self) -> &mut Graph {
        &mut self.graph
    }

    fn forward(&mut self, images: &[u8], n: usize) -> Vec<HeadMap> {
        TrainNet::forward(self, images, n, BnUpdate::Momentum).unwrap()
    }

    fn backward(&mut self, map_gradients: &[Vec<f32>], gradients: &mut Gradients) {
        TrainNet::backward(self, map_gradients, gradients);
    }
}

/// A detector of `golden/`, its weights, and the rate its steps are taken with.
type Detector = (&'static str, &'static str, Pixels, f32);

const YOLOV5N: Detector = ("yolov5n", "yolov5n/yolov5n.pt", Pixels::Planar, 1e-3);
/// At the recorded rate of 1e-3 points change their objects in most steps, whatever computes them; at 1e-5 that is rare.
const YOLOV8N: Detector = ("yolov8n", "yolov8n/yolov8n-rail.pt", Pixels::Interleaved, 1e-5);
const YOLO11N: Detector = ("yolo11n", "yolo11n/yolo11n-ball.pt", Pixels::Interleaved, 1e-5);

/// Steps the goldens record.
const STEPS: usize = 10;

/// How far paths may part. What comes before the first update of the weights and right after it tells the kernels apart: f32
/// leaves 2e-6 in these losses on small images, and 1e-4 in the worst gradient. From there on training itself drives paths
/// apart: where a pool's winner, a box's nearest edge or a point's object changes, a step of rounding becomes one of 1e-4. Each
/// path is to be within 2e-3 of the recorded losses, so two are within twice that.
const LIMIT: Apart = Apart { first_losses: 5e-6, gradients: 3e-4, losses: 4e-3, weights: 5e-2, statistics: 2e-3 };

/// Every instruction set, and the widest without Winograd, against the widest.
fn instruction_sets_agree(task: &Task) {
    let widest = task.fast(STEPS);
    task.apart(&directly(|| task.fast(STEPS)), &widest).within(LIMIT, "direct");
    for isa in Isa::available().into_iter().skip(1) {
        task.apart(&isa.scope(|| task.fast(STEPS)), &widest).within(LIMIT, isa.name());
    }
}

fn the_slow_path_agrees(task: &Task) {
    let slow = task.run(Slow::new(task.graph.clone(), task.batch.size), STEPS);
    task.apart(&task.fast(STEPS), &slow).within(LIMIT, "slow");
}

#[test]
fn yolov5n_trains_alike_on_every_instruction_set() {
    let Some(task) = Task::open(YOLOV5N) else { return };
    instruction_sets_agree(&task);
}

#[test]
fn yolov8n_trains_alike_on_every_instruction_set() {
    let Some(task) = Task::open(YOLOV8N) else { return };
    instruction_sets_agree(&task.small(2));
}

#[test]
fn yolov5n_trains_alike_on_the_slow_path() {
    let Some(task) = Task::open(YOLOV5N) else { return };
    the_slow_path_agrees(&task.small(5));
}

#[test]
fn yolov8n_trains_alike_on_the_slow_path() {
    let Some(task) = Task::open(YOLOV8N) else { return };
    the_slow_path_agrees(&task.small(5));
}

#[test]
fn yolo11n_trains_alike_on_the_slow_path() {
    let Some(task) = Task::open(YOLO11N) else { return };
    the_slow_path_agrees(&task.small(5));
}
