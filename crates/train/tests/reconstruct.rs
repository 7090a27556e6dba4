//! Reconstruction brings a pruned detector's maps back towards the dense one's, and leaves what is equal alone.

use std::collections::BTreeMap;

use graph::{Act, BatchNorm, Conv, Family, Graph, Meta, NodeId, Op, Tensor};
use prune::surgery::Kept;
use prune::{
    Budget, Coupling, Criterion, Importance, Limits, Multiple, Plan, Sensitivity, Shortcut, Size, importance, surgery,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use train::calibrate::Images;
use train::net::Infer;
use train::reconstruct::{Reconstructed, Reconstruction};

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
    static UNKNOWN: Sensitivity = Sensitivity { outputs: BTreeMap::new(), gates: BTreeMap::new() };
    Reconstruction { dense, slim, kept, images, imgsz: [side; 2], seed: 0, focus: &ALIKE, sensitivity: &UNKNOWN }
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
    let Reconstructed { graph: better, refitted, .. } = job.run(|_| {}).expect("runs");
    assert_eq!(refitted.len(), 1, "the convolution before the cut computes what it did: {refitted:?}");
    let run = |g: &Graph| Infer::new(g, [16, 16]).expect("fits").run(&on.data, on.n).expect("runs").remove(0).data;
    let (dense, slim, better) = (run(&dense), run(&slim), run(&better));
    let worst = |a: &[f32]| a.iter().zip(&dense).map(|(a, b)| (a - b).abs()).fold(0.0, testkit::larger);
    assert!(worst(&slim) > 0.5 && worst(&better) < 5e-3, "{} before, {} after", worst(&slim), worst(&better));
}

/// A sum of two branches that start alike, of which the first is left with `kept` of four channels.
fn with_sum(kept: usize, act: Act) -> Graph {
    let meta = Meta { family: Family::Other, names: vec![], imgsz: [16, 16] };
    let mut graph = Graph::new(meta, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    // Two channels cannot say what three outputs of three inputs are, whatever they are made.
    let (starts, ends) = (random(4 * 3), [random(4 * 3), random(4 * 3)]);
    let mut branch = |name: &str, channels: usize, end: &[f32]| {
        let mut push = |what: &str, weight, from| {
            let conv = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 1 };
            graph.push(format!("{name}.{what}"), Op::Conv(conv), vec![from])
        };
        let start = push("start", Tensor::new([channels, 3, 1, 1], starts[..channels * 3].to_vec()), 0);
        let end = end.chunks(4).flat_map(|row| row[..channels].to_vec()).collect();
        push("end", Tensor::new([3, channels, 1, 1], end), start)
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
        let better = job.run(|_| {}).expect("runs").graph;
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

/// A convolution of four channels with BatchNorm and activation, and one that reads them.
fn with_norm(act: Act) -> Graph {
    let meta = Meta { family: Family::Other, names: vec![], imgsz: [16, 16] };
    let mut graph = Graph::new(meta, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(15);
    let mut random = |n: usize, low: f32| (0..n).map(|_| rng.random_range(low..1.0)).collect::<Vec<f32>>();
    let conv = |weight, bias| Op::Conv(Conv { weight, bias, stride: [1, 1], pad: [0, 0], groups: 1 });
    let first = graph.push("first", conv(Tensor::new([4, 3, 1, 1], random(12, -1.0)), None), vec![0]);
    let mut bn = BatchNorm::identity(4, 1e-3, 0.03);
    (bn.gamma, bn.beta, bn.mean, bn.var) = (random(4, 0.3), random(4, -1.0), random(4, -1.0), random(4, 0.1));
    let norm = graph.push("norm", Op::BatchNorm(bn), vec![first]);
    let act = graph.push("act", Op::Act(act), vec![norm]);
    graph.push("second", conv(Tensor::new([2, 4, 1, 1], random(8, -1.0)), Some(random(2, -1.0))), vec![act]);
    graph
}

/// Filters are not what they were, nor are BatchNorm's means: what is heard behind it comes back.
#[test]
fn filters_and_means_that_went_astray_come_back() {
    for act in [Act::Identity, Act::Silu] {
        let dense = with_norm(act);
        let mut slim = dense.clone();
        if let Op::Conv(conv) = &mut slim.nodes[1].op {
            conv.weight.data.iter_mut().enumerate().for_each(|(i, w)| *w += 0.3 * (i % 3) as f32 - 0.4);
        }
        if let Op::BatchNorm(bn) = &mut slim.nodes[2].op {
            bn.mean.iter_mut().enumerate().for_each(|(c, m)| *m += 0.5 - 0.2 * c as f32);
        }
        let (on, kept) = (noise(16), Kept::all(&slim).expect("shapes"));
        let done = job(&dense, &slim, &kept, &on, 16).run(|_| {}).expect("runs");
        assert_eq!(done.refitted[0].node, "first");
        // Nothing is left to be made up for behind it.
        let mut better = slim.clone();
        better.nodes[..3].clone_from_slice(&done.graph.nodes[..3]);
        let run = |g: &Graph| Infer::new(g, [16, 16]).expect("fits").run(&on.data, on.n).expect("runs").remove(0).data;
        let apart = |g: &Graph| run(g).iter().zip(run(&dense)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let (before, after) = (apart(&slim), apart(&better));
        assert!(before > 100.0 && after < 1e-4 * before, "{act:?}: {before} before, {after} after");
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
    let Reconstructed { graph: better, refitted, .. } = job(&dense, &slim, &kept, &on, 16).run(|_| {}).expect("runs");
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
    let same = job.run(|_| {}).expect("runs");
    assert_eq!(same, Reconstructed { graph: dense.clone(), refitted: vec![], recast: vec![] });
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
    assert_eq!(refit(1), Reconstructed { graph: other.clone(), refitted: vec![], recast: vec![] });
    let refitted = refit(2).refitted;
    assert!(refitted.len() == 1 && refitted[0].left < 0.05, "{refitted:?}");
}

/// A layer of eight channels, of which `kept` are there, that one convolution reads, maybe through a depthwise one.
fn with_layer(kept: &[usize], depthwise: bool, seed: u64) -> Graph {
    let meta = Meta { family: Family::Other, names: vec![], imgsz: [16, 16] };
    let mut graph = Graph::new(meta, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut random = |n: usize| (0..n).map(|_| rng.random_range(-2.0..2.0)).collect::<Vec<f32>>();
    let (filters, taps, reader) = (random(8 * 3), random(8 * 9), random(2 * 8));
    let of_kept = |rows: &[f32], width: usize| kept.iter().flat_map(|&c| rows[c * width..][..width].to_vec()).collect();
    let mut push = |name: &str, op: Op, from: NodeId| graph.push(name, op, vec![from]);
    let conv = |shape: [usize; 4], weight, groups| {
        Op::Conv(Conv {
            weight: Tensor::new(shape, weight),
            bias: None,
            stride: [1, 1],
            pad: [shape[2] / 2; 2],
            groups,
        })
    };
    let count = kept.len();
    let layer = push("layer", conv([count, 3, 1, 1], of_kept(&filters, 3), 1), 0);
    let mut heard = push("act", Op::Act(Act::Silu), layer);
    if depthwise {
        let through = push("through", conv([count, 1, 3, 3], of_kept(&taps, 9), count), heard);
        heard = push("through.act", Op::Act(Act::Leaky), through);
    }
    let reader = reader.chunks(8).flat_map(|row| kept.iter().map(|&c| row[c]).collect::<Vec<_>>()).collect();
    push("reader", conv([2, count, 1, 1], reader, 1), heard);
    graph
}

/// The sum of squares that least squares of two of these channels (S, 8) and 1 leaves of the values (S).
fn left_of(values: &[f64], channels: &[f32], pair: [usize; 2]) -> f64 {
    let mut basis: Vec<Vec<f64>> = vec![];
    let column = |c: usize| channels.chunks(8).map(|row| f64::from(row[c])).collect::<Vec<_>>();
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let without = |mut of: Vec<f64>, basis: &[Vec<f64>]| {
        for by in basis {
            let share = product(&of, by) / product(by, by);
            of.iter_mut().zip(by).for_each(|(v, b)| *v -= share * b);
        }
        of
    };
    for next in [vec![1.0; values.len()], column(pair[0]), column(pair[1])] {
        basis.push(without(next, &basis));
    }
    let left = without(values.to_vec(), &basis);
    product(&left, &left)
}

#[test]
fn what_stays_of_a_layer_serves_its_readers_better_than_any_choice_of_it() {
    for depthwise in [false, true] {
        let left = (11..21).map(|seed| left_beside_the_best_pair(depthwise, seed)).sum::<f64>() / 10.0;
        assert!(left < 0.75, "depthwise {depthwise}: {left}");
    }
}

/// What readers lack of a layer recast from the two of its eight channels that serve them best, beside what they lack of those two, on
/// images that neither has seen.
fn left_beside_the_best_pair(depthwise: bool, seed: u64) -> f64 {
    let (on, fresh) = (noise(seed), noise(seed + 100));
    let run =
        |g: &Graph| Infer::new(g, [16, 16]).expect("fits").run(&fresh.data, fresh.n).expect("runs").remove(0).data;
    let dense = with_layer(&[0, 1, 2, 3, 4, 5, 6, 7], depthwise, seed);
    let end = dense.nodes.len() - 1;
    let there = run(&dense);
    let mut heard = dense.clone();
    heard.nodes.truncate(end);
    let channels = run(&heard);
    let left = |pair: [usize; 2]| -> f64 {
        let output = |o: usize| there.chunks(2).map(|row| f64::from(row[o])).collect::<Vec<_>>();
        (0..2).map(|o| left_of(&output(o), &channels, pair)).sum()
    };
    let pairs = (0..64).map(|k| [k / 8, k % 8]).filter(|[a, b]| a < b);
    let (chosen, pair) = pairs.map(|pair| (left(pair), pair)).min_by(|a, b| a.0.total_cmp(&b.0)).expect("pairs");

    let done = reconstructed(&dense, &with_layer(&pair, depthwise, seed), &pair, &on);
    let made: f64 = run(&done.graph).iter().zip(&there).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    made / chosen
}

/// `slim`, which has those channels of [`with_layer`]'s `dense` and all others, after reconstruction.
fn reconstructed(dense: &Graph, slim: &Graph, channels: &[usize], images: &Images) -> Reconstructed {
    let end = dense.nodes.len() - 1;
    let stays = |id: NodeId| match id {
        0 => vec![0, 1, 2],
        id if id == end => vec![0, 1],
        _ => channels.to_vec(),
    };
    let kept = Kept { nodes: (0..=end).collect(), channels: (0..=end).map(stays).collect() };
    job(dense, slim, &kept, images, 16).run(|_| {}).expect("runs")
}

fn noise(seed: u64) -> Images {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Images { data: (0..16 * 16 * 16 * 3).map(|_| rng.random()).collect(), n: 16 }
}

#[test]
fn a_depthwise_convolution_left_with_one_channel_is_recast_by_what_it_reads_and_not_by_itself() {
    let (dense, slim) = (with_layer(&[0, 1, 2, 3, 4, 5, 6, 7], true, 11), with_layer(&[3], true, 11));
    let done = reconstructed(&dense, &slim, &[3], &noise(13));
    assert_eq!(done.recast.iter().map(|r| r.node.as_str()).collect::<Vec<_>>(), ["layer"]);
    assert!(done.refitted.iter().all(|r| r.node != "through"), "{:?}", done.refitted);
}

#[test]
fn a_layer_that_always_says_the_same_is_left_as_it_is() {
    let silent = |kept: &[usize]| {
        let mut graph = with_layer(kept, true, 11);
        if let Op::Conv(conv) = &mut graph.nodes[1].op {
            conv.weight.data.fill(0.0);
        }
        graph
    };
    let done = reconstructed(&silent(&[0, 1, 2, 3, 4, 5, 6, 7]), &silent(&[0, 1]), &[0, 1], &noise(14));
    assert_eq!((done.recast, done.refitted), (vec![], vec![]));
}

#[test]
fn maps_come_back_on_images_it_has_not_seen() {
    let (Some((dense, on)), Some((_, fresh))) = (material(0, 64), material(64, 32)) else { return };
    let plan = plan(&dense, 0.2);
    let slim = surgery::apply(&dense, &plan).expect("cut");
    let kept = surgery::kept(&dense, &plan).expect("channels");
    let job = job(&dense, &slim, &kept, &on, SIZE);
    let mut nodes = 0;
    let Reconstructed { graph: better, refitted, recast } = job.run(|done| nodes = done).expect("runs");
    let (before, after) = (difference(&dense, &slim, &fresh), difference(&dense, &better, &fresh));
    assert!(after < 0.7 * before, "{before} before, {after} after");
    assert_eq!(nodes, dense.nodes.len());
    assert!(refitted.len() > 30 && refitted.iter().all(|r| r.left < 1.0), "{refitted:?}");
    assert!(recast.len() > 10 && recast.iter().all(|r| r.left < 1.0), "{recast:?}");
    assert_eq!(job.run(|_| {}).expect("runs").graph, better, "the same seed gives the same weights");
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
        let job = Reconstruction { focus, ..job(&dense, &slim, &kept, &on, SIZE) };
        job.run(|_| {}).expect("runs").graph
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
