//! Reconstruction brings a pruned detector's maps back towards the dense one's, and leaves what is equal alone.

use std::collections::BTreeMap;

use graph::Graph;
use graph::build::Yolov5;
use prune::{Budget, Coupling, Criterion, Importance, Plan, Size, importance, surgery};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use train::calibrate::{Images, reestimate_batch_norm};
use train::net::Infer;
use train::reconstruct::Reconstruction;

const SIZE: usize = 64;

/// Images of coloured squares on noise.
fn images(seed: u64, n: usize) -> Images {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut data = vec![0; n * SIZE * SIZE * 3];
    for image in data.chunks_mut(SIZE * SIZE * 3) {
        image.iter_mut().for_each(|v| *v = rng.random_range(90..130));
        for _ in 0..6 {
            let (x, y, side) = (rng.random_range(0..40), rng.random_range(0..40), rng.random_range(6..24));
            let colour: [u8; 3] = rng.random();
            for place in (0..side * side).map(|i| (y + i / side) * SIZE + x + i % side) {
                image[place * 3..][..3].copy_from_slice(&colour);
            }
        }
    }
    Images { data, n }
}

/// A detector with random weights whose BatchNorm statistics are those of such images.
fn detector() -> Graph {
    let names = vec!["a".into(), "b".into()];
    let graph = Yolov5 { names, imgsz: SIZE, width: 0.25, depth: 0.33, seed: 1 }.build().expect("a detector");
    let batch = Ok::<_, graph::Error>(images(7, 16));
    reestimate_batch_norm(&graph, [SIZE; 2], std::iter::once(batch)).expect("statistics")
}

/// Mean squared difference of the maps that enter the head.
fn difference(a: &Graph, b: &Graph, on: &Images) -> f64 {
    let run = |g: &Graph| Infer::new(g, [SIZE; 2]).expect("fits").run(&on.data, on.n).expect("runs");
    let (a, b) = (run(a), run(b));
    let squares = a.iter().zip(&b).flat_map(|(a, b)| a.data.iter().zip(&b.data)).map(|(x, y)| f64::from(x - y).powi(2));
    let squares: Vec<f64> = squares.collect();
    squares.iter().sum::<f64>() / squares.len() as f64
}

fn plan(dense: &Graph, rate: f64) -> Plan {
    let coupling = Coupling::of(dense).expect("coupled");
    let budget = Budget { rate: Some(rate), ..Budget::default() };
    let target = budget.target(Size::of(dense, &coupling).expect("a size")).expect("a target");
    let settings = Importance { criterion: Criterion::Random { seed: 3 }, ..Importance::default() };
    importance::plan(dense, &coupling, &settings, &target).expect("a plan")
}

#[test]
fn what_is_equal_is_left_alone() {
    let dense = detector();
    let kept = surgery::kept(&dense, &Plan::empty(&dense).expect("a plan")).expect("all");
    let on = images(1, 8);
    let job = Reconstruction {
        dense: &dense,
        slim: &dense,
        kept: &kept,
        images: &on,
        imgsz: [SIZE; 2],
        seed: 0,
        focus: &BTreeMap::new(),
    };
    let (same, refitted) = job.run(|_| {}).expect("runs");
    assert_eq!(same, dense);
    assert!(refitted.is_empty(), "{refitted:?}");
}

#[test]
fn maps_come_back_on_images_it_has_not_seen() {
    let dense = detector();
    let plan = plan(&dense, 0.3);
    let slim = surgery::apply(&dense, &plan).expect("cut");
    let kept = surgery::kept(&dense, &plan).expect("channels");
    let (on, fresh) = (images(1, 32), images(2, 16));
    let job = Reconstruction {
        dense: &dense,
        slim: &slim,
        kept: &kept,
        images: &on,
        imgsz: [SIZE; 2],
        seed: 0,
        focus: &BTreeMap::new(),
    };
    let mut nodes = 0;
    let (better, refitted) = job.run(|done| nodes = done).expect("runs");
    let (before, after) = (difference(&dense, &slim, &fresh), difference(&dense, &better, &fresh));
    assert!(after < 0.5 * before, "{before} before, {after} after");
    assert_eq!(nodes, dense.nodes.len());
    assert!(refitted.len() > 30 && refitted.iter().all(|r| r.left < 1.0), "{refitted:?}");
    let (again, _) = job.run(|_| {}).expect("runs");
    assert_eq!(again, better, "the same seed gives the same weights");
}

#[test]
fn focus_fits_the_places_it_names() {
    let dense = detector();
    let plan = plan(&dense, 0.5);
    let slim = surgery::apply(&dense, &plan).expect("cut");
    let kept = surgery::kept(&dense, &plan).expect("channels");
    let on = images(1, 32);
    // Only the left half of every map matters.
    let shapes = dense.shapes([SIZE; 2]).expect("shapes");
    let left = |s: &graph::Shape| {
        let w = s.w;
        (0..on.n * s.h * w).map(|p| if p % w < w.div_ceil(2) { 1.0 } else { 0.0 }).collect::<Vec<f32>>()
    };
    let focus = shapes.iter().map(left).enumerate().collect();
    let run = |focus: &BTreeMap<usize, Vec<f32>>| {
        let job =
            Reconstruction { dense: &dense, slim: &slim, kept: &kept, images: &on, imgsz: [SIZE; 2], seed: 0, focus };
        job.run(|_| {}).expect("runs").0
    };
    let (focused, plain) = (run(&focus), run(&BTreeMap::new()));
    let error = |g: &Graph| {
        let maps = |g: &Graph| Infer::new(g, [SIZE; 2]).expect("fits").run(&on.data, on.n).expect("runs");
        let (a, b) = (maps(&dense), maps(g));
        let inside = |m: &train::net::HeadMap, i: usize| i / m.c % m.w < m.w / 2;
        let squares = a.iter().zip(&b).flat_map(|(a, b)| {
            (0..a.data.len()).filter(|&i| inside(a, i)).map(|i| f64::from(a.data[i] - b.data[i]).powi(2))
        });
        squares.sum::<f64>()
    };
    assert!(error(&focused) < error(&plain), "{} focused, {} plain", error(&focused), error(&plain));
}
