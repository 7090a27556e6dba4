//! Reconstruction brings a pruned detector's maps back towards the dense one's, and leaves what is equal alone.

use std::collections::BTreeMap;

use graph::{Act, Conv, Family, Graph, Meta, NodeId, Op, Tensor};
use prune::surgery::Kept;
use prune::{Budget, Coupling, Criterion, Importance, Limits, Multiple, Plan, Shortcut, Size, importance, surgery};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use train::calibrate::Images;
use train::net::Infer;
use train::reconstruct::Reconstruction;

const SIZE: usize = 128;

/// A trained detector and photographs `skip..skip + n` of the test material; `None` where there is none.
fn material(skip: usize, n: usize) -> Option<(Graph, Images)> {
    let shared = testkit::shared()?;
    let dense = graph::format::load(&shared.join("weights/yolov5n/yolov5n.pt"), &Default::default()).expect("a model");
    let folder = std::fs::read_dir(shared.join("data/coco-val-206/images")).expect("images");
    let mut files: Vec<_> = folder.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    let letterboxed = |file: &std::path::PathBuf| {
        let image = data::picture::decode(file).expect("a picture");
        data::letterbox(&image, SIZE as u32, data::Fit::Letterbox).0
    };
    let data = files[skip..skip + n].iter().flat_map(letterboxed).collect();
    Some((dense, Images { data, n }))
}

/// `slim` brought back to `dense`, on images of `side` pixels whose places all count alike.
fn job<'a>(dense: &'a Graph, slim: &'a Graph, kept: &'a Kept, images: &'a Images, side: usize) -> Reconstruction<'a> {
    static ALIKE: BTreeMap<NodeId, Vec<f32>> = BTreeMap::new();
    Reconstruction { dense, slim, kept, images, imgsz: [side; 2], seed: 0, focus: &ALIKE }
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
    let limits = Limits { multiple: Multiple::ANY, ..Limits::default() };
    let settings = Importance { criterion: Criterion::BnScale, limits, ..Importance::default() };
    importance::plan(dense, &coupling, &settings, &target).expect("a plan")
}

/// The convolution's last two outputs are copies of its first two; a reader hears all four.
fn with_copies() -> Graph {
    let meta = Meta { family: Family::Other, names: vec![], imgsz: [16, 16] };
    let mut graph = Graph::new(meta, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut random = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let filters = random(2 * 27);
    let conv = |weight, pad| Op::Conv(Conv { weight, bias: None, stride: [1, 1], pad: [pad, pad], groups: 1 });
    let first = graph.push("first", conv(Tensor::new([4, 3, 3, 3], [&filters[..], &filters[..]].concat()), 1), vec![0]);
    let act = graph.push("act", Op::Act(Act::Silu), vec![first]);
    graph.push("second", conv(Tensor::new([5, 4, 3, 3], random(5 * 4 * 9)), 1), vec![act]);
    graph
}

#[test]
fn copies_are_made_up_for_to_the_border() {
    let dense = with_copies();
    let coupling = Coupling::of(&dense).expect("coupled");
    let target = Budget { rate: Some(0.5), ..Budget::default() }.target(Size::of(&dense, &coupling).expect("a size"));
    let target = target.expect("a target");
    let limits = Limits::NONE;
    let halved = |seed| {
        let settings = Importance { criterion: Criterion::Random { seed }, limits, ..Importance::default() };
        importance::plan(&dense, &coupling, &settings, &target).expect("a plan").uncompensated()
    };
    let kept = |plan: &Plan| surgery::kept(&dense, plan).expect("channels");
    // One of each pair of copies has to stay.
    let plan = (0..)
        .map(halved)
        .find(|plan| kept(plan).channels[1].iter().map(|c| c % 2).sum::<usize>() == 1)
        .expect("a seed");
    let kept = kept(&plan);
    let slim = surgery::apply(&dense, &plan).expect("cut");
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let on = Images { data: (0..16 * 16 * 16 * 3).map(|_| rng.random()).collect(), n: 16 };
    let job = job(&dense, &slim, &kept, &on, 16);
    let (better, refitted) = job.run(|_| {}).expect("runs");
    assert_eq!(refitted.len(), 1, "the convolution before the cut computes what it did: {refitted:?}");
    let run = |g: &Graph| Infer::new(g, [16, 16]).expect("fits").run(&on.data, on.n).expect("runs").remove(0).data;
    let (dense, slim, better) = (run(&dense), run(&slim), run(&better));
    let worst = |a: &[f32]| a.iter().zip(&dense).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst(&slim) > 0.5 && worst(&better) < 5e-3, "{} before, {} after", worst(&slim), worst(&better));
}

/// A sum of two branches that start alike, of which the first is left with `kept` of four channels.
fn with_sum(kept: usize, act: Act) -> Graph {
    let meta = Meta { family: Family::Other, names: vec![], imgsz: [16, 16] };
    let mut graph = Graph::new(meta, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let (starts, ends) = (random(4 * 3), [random(4 * 2), random(4 * 2)]);
    let mut branch = |name: &str, channels: usize, end: &[f32]| {
        let mut push = |what: &str, weight, from| {
            let conv = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 1 };
            graph.push(format!("{name}.{what}"), Op::Conv(conv), vec![from])
        };
        let start = push("start", Tensor::new([channels, 3, 1, 1], starts[..channels * 3].to_vec()), 0);
        let end = end.chunks(4).flat_map(|row| row[..channels].to_vec()).collect();
        push("end", Tensor::new([2, channels, 1, 1], end), start)
    };
    let left = branch("left", kept, &ends[0]);
    let right = branch("right", 4, &ends[1]);
    let right = graph.push("act", Op::Act(act), vec![right]);
    graph.push("sum", Op::Add, vec![left, right]);
    graph
}

#[test]
fn what_is_added_last_makes_up_for_what_was_there() {
    for (act, left) in [(Act::Identity, 1e-5), (Act::Leaky, 0.5)] {
        let (dense, slim) = (with_sum(4, act), with_sum(2, act));
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let on = Images { data: (0..16 * 16 * 16 * 3).map(|_| rng.random()).collect(), n: 16 };
        let kept = Kept::all(&slim).expect("shapes");
        let job = job(&dense, &slim, &kept, &on, 16);
        let better = job.run(|_| {}).expect("runs").0;
        // The same with the branch that lost nothing as it was.
        let mut half = better.clone();
        half.nodes[4] = slim.nodes[4].clone();
        let run = |g: &Graph| Infer::new(g, [16, 16]).expect("fits").run(&on.data, on.n).expect("runs").remove(0).data;
        let dense = run(&dense);
        let error = |g: &Graph| run(g).iter().zip(&dense).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let (half, better) = (error(&half), error(&better));
        assert!(half > 1.0 && better < left * half, "{act:?}: {better} of {half}");
    }
}

/// A convolution, a residual branch of two and one that reads their sum, all linear.
fn with_branch() -> Graph {
    let meta = Meta { family: Family::Other, names: vec![], imgsz: [16, 16] };
    let mut graph = Graph::new(meta, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut push = |graph: &mut Graph, name: &str, [from, inputs, outputs]: [usize; 3]| {
        let weight = (0..inputs * outputs).map(|_| rng.random_range(-1.0..1.0)).collect();
        let weight = Tensor::new([outputs, inputs, 1, 1], weight);
        graph.push(name, Op::Conv(Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 1 }), vec![from])
    };
    let stream = push(&mut graph, "stream", [0, 3, 4]);
    let start = push(&mut graph, "branch.start", [stream, 4, 2]);
    let end = push(&mut graph, "branch.end", [start, 2, 4]);
    let sum = graph.push("sum", Op::Add, vec![stream, end]);
    push(&mut graph, "reader", [sum, 4, 5]);
    graph
}

#[test]
fn a_branch_that_is_gone_is_made_up_for_by_what_reads_the_sum() {
    let dense = with_branch();
    let shortcuts = vec![Shortcut { score: 0.0, add: "sum".into() }];
    let plan = Plan { shortcuts, ..Plan::empty(&dense).expect("a plan") };
    let (slim, kept) = (surgery::apply(&dense, &plan).expect("cut"), surgery::kept(&dense, &plan).expect("kept"));
    assert_eq!((&kept.nodes[..], slim.nodes.len()), (&[0, 1, 5][..], 3));
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let on = Images { data: (0..16 * 16 * 16 * 3).map(|_| rng.random()).collect(), n: 16 };
    let (better, refitted) = job(&dense, &slim, &kept, &on, 16).run(|_| {}).expect("runs");
    assert_eq!(refitted.iter().map(|r| r.node.as_str()).collect::<Vec<_>>(), ["reader"]);
    let run = |g: &Graph| Infer::new(g, [16, 16]).expect("fits").run(&on.data, on.n).expect("runs").remove(0).data;
    let dense = run(&dense);
    let error = |g: &Graph| run(g).iter().zip(&dense).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    let (before, after) = (error(&slim), error(&better));
    assert!(before > 1.0 && after < 1e-6 * before, "{before} before, {after} after");
}

#[test]
fn what_is_equal_is_left_alone() {
    let Some((dense, on)) = material(0, 8) else { return };
    let kept = Kept::all(&dense).expect("shapes");
    let job = job(&dense, &dense, &kept, &on, SIZE);
    let (same, refitted) = job.run(|_| {}).expect("runs");
    assert_eq!(same, dense);
    assert!(refitted.is_empty(), "{refitted:?}");
}

#[test]
fn one_image_is_too_few_to_judge_by_and_two_are_not() {
    let dense = with_copies();
    let kept = Kept::all(&dense).expect("shapes");
    let mut other = dense.clone();
    if let Op::Conv(conv) = &mut other.nodes[3].op {
        conv.weight.data[0] += 1.0;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut refit = |n: usize| {
        let on = Images { data: (0..n * 16 * 16 * 3).map(|_| rng.random()).collect(), n };
        job(&dense, &other, &kept, &on, 16).run(|_| {}).expect("runs")
    };
    assert_eq!(refit(1), (other.clone(), vec![]));
    let (_, refitted) = refit(2);
    assert!(refitted.len() == 1 && refitted[0].left < 0.05, "{refitted:?}");
}

#[test]
fn maps_come_back_on_images_it_has_not_seen() {
    let (Some((dense, on)), Some((_, fresh))) = (material(0, 64), material(64, 32)) else { return };
    let plan = plan(&dense, 0.2);
    let slim = surgery::apply(&dense, &plan).expect("cut");
    let kept = surgery::kept(&dense, &plan).expect("channels");
    let job = job(&dense, &slim, &kept, &on, SIZE);
    let mut nodes = 0;
    let (better, refitted) = job.run(|done| nodes = done).expect("runs");
    let (before, after) = (difference(&dense, &slim, &fresh), difference(&dense, &better, &fresh));
    assert!(after < 0.7 * before, "{before} before, {after} after");
    assert_eq!(nodes, dense.nodes.len());
    assert!(refitted.len() > 30 && refitted.iter().all(|r| r.left < 1.0), "{refitted:?}");
    let (again, _) = job.run(|_| {}).expect("runs");
    assert_eq!(again, better, "the same seed gives the same weights");
}

#[test]
fn focus_fits_the_places_it_names() {
    let Some((dense, on)) = material(0, 64) else { return };
    let plan = plan(&dense, 0.3);
    let slim = surgery::apply(&dense, &plan).expect("cut");
    let kept = surgery::kept(&dense, &plan).expect("channels");
    // Only the upper left quarter of every map matters.
    let shapes = dense.shapes([SIZE; 2]).expect("shapes");
    let quarter = |i: usize, h: usize, w: usize| i % w < w.div_ceil(2) && i / w % h < h.div_ceil(2);
    let marked = |s: &graph::Shape| {
        (0..on.n * s.h * s.w).map(|p| f32::from(u8::from(quarter(p, s.h, s.w)))).collect::<Vec<f32>>()
    };
    let focus = shapes.iter().map(marked).enumerate().collect();
    let run = |focus: &BTreeMap<usize, Vec<f32>>| {
        let job =
            Reconstruction { dense: &dense, slim: &slim, kept: &kept, images: &on, imgsz: [SIZE; 2], seed: 0, focus };
        job.run(|_| {}).expect("runs").0
    };
    let (focused, plain) = (run(&focus), run(&BTreeMap::new()));
    let error = |g: &Graph| {
        let maps = |g: &Graph| Infer::new(g, [SIZE; 2]).expect("fits").run(&on.data, on.n).expect("runs");
        let (a, b) = (maps(&dense), maps(g));
        let inside = |m: &train::net::HeadMap, i: usize| quarter(i / m.c, m.h, m.w);
        let squares = a.iter().zip(&b).flat_map(|(a, b)| {
            (0..a.data.len()).filter(|&i| inside(a, i)).map(|i| f64::from(a.data[i] - b.data[i]).powi(2))
        });
        squares.sum::<f64>()
    };
    assert!(error(&focused) < error(&plain), "{} focused, {} plain", error(&focused), error(&plain));
}
