//! What must hold of stage 2 (METHOD.md, 5).

mod common;

use common::{Builder, LOOSE, calibrate, difference, duplicate, outputs, recipes, target};
use graph::reference::{Map, forward};
use graph::{Act, BatchNorm, Graph, NodeId, Op, cost};
use proptest::prelude::*;
use prune::{
    ChannelStats, Compensation, Coupling, Criterion, Importance, Limits, Mode, Multiple, Plan, Similarity, Statistics,
    Stop, importance, similarity, surgery,
};

const BOTH: [Mode; 2] = [Mode::Pairwise, Mode::Span];

fn settings(mode: Mode) -> Similarity {
    Similarity { mode, threshold: 0.0, limits: LOOSE, ..Similarity::default() }
}

fn images(b: &mut Builder, count: usize) -> Vec<Map> {
    (0..count).map(|_| b.image()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn surgery_equals_masking_at_the_predicted_cost(recipe in recipes(12), rate in 0.05..0.9_f64, span: bool) {
        let mut b = recipe.build();
        let coupling = Coupling::of(&b.graph).unwrap();
        let images = images(&mut b, 4);
        let statistics = calibrate(&b.graph, &coupling, &images);
        let target = target(&b.graph, &coupling, rate);
        let settings = settings(BOTH[usize::from(span)]);
        let plan = similarity::plan(&b.graph, &coupling, &statistics, &settings, &target).unwrap();
        let slim = surgery::apply(&b.graph, &plan).unwrap();
        let masked = surgery::mask(&b.graph, &plan).unwrap();
        let image = b.image();
        let error = difference(&outputs(&slim, &image), &outputs(&masked, &image));
        prop_assert!(error < 1e-9, "outputs differ by {error}");
        let counted = cost::total(&slim, slim.meta.imgsz).unwrap();
        prop_assert_eq!((plan.after.params, plan.after.macs), (counted.params, counted.macs));
    }

    /// One class is made a copy of another of its set: stage 2 finds it, and no output moves.
    #[test]
    fn a_duplicate_goes_without_a_trace(recipe in recipes(10), span: bool) {
        let mut b = recipe.build();
        let coupling = Coupling::of(&b.graph).unwrap();
        let twins = coupling.sets.iter().find_map(|set| {
            let mut free = set.classes.iter().filter(|&&class| coupling.classes[class].pinned.is_none());
            Some((*free.next()?, *free.next()?))
        });
        let Some((original, copy)) = twins else { return Ok(()) };
        duplicate(&mut b.graph, &coupling, original, copy);
        let images = images(&mut b, 4);
        let statistics = calibrate(&b.graph, &coupling, &images);
        if !alike(&coupling, &statistics, original, copy) {
            return Ok(());
        }
        let target = one_less(&b.graph, &coupling);
        let settings = Similarity { threshold: 0.99, ridge: 1e-9, ..settings(BOTH[usize::from(span)]) };
        let plan = similarity::plan(&b.graph, &coupling, &statistics, &settings, &target).unwrap();
        prop_assert_eq!(plan.removals.len(), 1);
        prop_assert!(plan.removals[0].score < 1e-4, "loss {}", plan.removals[0].score);
        // Which class goes is the search's choice (there may be other redundant ones); the twin must fold as well.
        let twin = similarity::replace(&b.graph, &coupling, &statistics, &settings, &[copy]).unwrap();
        // Measured on the images it was found on: a channel that never fired there may fire elsewhere.
        for (error, variance) in twin.compensations.iter().flat_map(|c| residuals(&b.graph, &images, c)) {
            prop_assert!(error <= 1e-7 * variance + 1e-11, "a fit leaves {error} of {variance}");
        }
        // Where more is redundant than the twin, `span` may stand in with other channels and a constant, which zero padding
        // does not show at the border (METHOD.md, 2).
        let rows = || twin.compensations.iter().flat_map(|c| &c.rows);
        if rows().all(|row| row.constant.abs() < 1e-6) {
            let slim = surgery::apply(&b.graph, &twin).unwrap();
            let error = difference(&outputs(&slim, &images[0]), &outputs(&b.graph, &images[0]));
            prop_assert!(error < 1e-4, "outputs moved by {error}");
        }
    }

    #[test]
    fn span_never_reconstructs_worse_than_pairwise(recipe in recipes(10), pick in any::<prop::sample::Index>(), many in 1..6_usize) {
        let mut b = recipe.build();
        let coupling = Coupling::of(&b.graph).unwrap();
        let images = images(&mut b, 4);
        let statistics = calibrate(&b.graph, &coupling, &images);
        let free: Vec<usize> = coupling.sets.iter().flat_map(|set| set.classes.iter().skip(1).copied())
            .filter(|&class| coupling.classes[class].pinned.is_none()).collect();
        if free.is_empty() {
            return Ok(());
        }
        let removed: Vec<usize> = (0..many).map(|k| free[(pick.index(free.len()) + 3 * k) % free.len()]).collect();
        let plans = BOTH.map(|mode| similarity::replace(&b.graph, &coupling, &statistics, &settings(mode), &removed).unwrap());
        for (pair, span) in plans[0].compensations.iter().zip(&plans[1].compensations) {
            let (pair, span) = (residuals(&b.graph, &images, pair), residuals(&b.graph, &images, span));
            for ((pair, span), variance) in pair.iter().zip(&span).map(|(p, s)| ((p.0, s.0), p.1)) {
                // A constant channel has no variance to compare with: what is left of it is the square of a few f32 roundings.
                prop_assert!(span <= pair + 1e-4 * variance + 1e-13, "span leaves {span}, pairwise {pair} of {variance}");
            }
        }
    }
}

/// True where two classes carry the same values in every tensor. A slice across a concat may show one part of one class
/// and another part of the other.
fn alike(coupling: &Coupling, statistics: &Statistics, a: usize, b: usize) -> bool {
    statistics.by_node.iter().all(|(&node, stats)| {
        let places =
            |class| coupling.channels(node).iter().enumerate().filter(move |&(_, &c)| c == class).map(|(i, _)| i);
        let at = |i: usize, j: usize| stats.cov[i * stats.mean.len() + j];
        places(a).zip(places(b)).all(|(i, j)| at(i, i) == at(j, j) && at(i, i) == at(i, j))
    })
}

/// (mean squared error, variance) of every row of a compensation, measured on the maps themselves.
fn residuals(graph: &Graph, images: &[Map], compensation: &Compensation) -> Vec<(f64, f64)> {
    let node = graph.nodes.iter().position(|n| n.name == compensation.tensor).unwrap();
    let runs: Vec<Map> = images.iter().map(|image| forward(graph, image).unwrap().swap_remove(node)).collect();
    let rows = compensation.rows.iter().map(|row| {
        let (mut count, mut error, mut sum, mut squares) = (0.0, 0.0, 0.0, 0.0);
        for map in &runs {
            for (place, &x) in map.channel(row.channel).iter().enumerate() {
                let explained: f64 = row.stand_ins.iter().map(|&(j, a)| f64::from(a) * map.channel(j)[place]).sum();
                error += (x - explained - f64::from(row.constant)).powi(2);
                (count, sum, squares) = (count + 1.0, sum + x, squares + x * x);
            }
        }
        (error / count, squares / count - (sum / count).powi(2))
    });
    rows.collect()
}

/// A block of eight channels behind an identity activation, of which channel 5 is `a x_2 + b`, read by one convolution.
fn affine_twin(a: f32, b: f32, kernel: usize, pad: usize) -> (Builder, NodeId) {
    let mut builder = Builder::new(3);
    let conv = builder.conv(0, 8, 3, 1, 1, false);
    let norm = builder.norm(conv);
    let block = builder.act(norm, Act::Identity);
    let reader = builder.conv(block, 4, kernel, 1, 1, false);
    if let Op::Conv(conv) = &mut builder.graph.nodes[reader].op {
        conv.pad = [pad; 2];
    }
    let end = builder.norm(reader);
    builder.act(end, Act::Silu);
    builder.finish(false);
    if let Op::Conv(conv) = &mut builder.graph.nodes[conv].op {
        conv.weight.data.copy_within(2 * 27..3 * 27, 5 * 27);
    }
    if let Op::BatchNorm(BatchNorm { gamma, beta, mean, var, .. }) = &mut builder.graph.nodes[norm].op {
        (mean[5], var[5]) = (mean[2], var[2]);
        (gamma[5], beta[5]) = (a * gamma[2], a * beta[2] + b);
    }
    (builder, end)
}

fn one_less(graph: &Graph, coupling: &Coupling) -> prune::Target {
    let mut target = target(graph, coupling, 0.5);
    target.channels = Some(target.reference.channels - 1);
    target
}

#[test]
fn an_affine_twin_is_found_and_folded() {
    for mode in BOTH {
        for (a, b, kernel, pad) in [(-1.7, 0.4, 1, 0), (0.6, -0.3, 3, 0), (2.0, 0.5, 3, 1)] {
            let case = format!("{mode:?}, {a} x + {b}, kernel {kernel}, pad {pad}");
            let (mut builder, end) = affine_twin(a, b, kernel, pad);
            let images = images(&mut builder, 4);
            let graph = &builder.graph;
            let coupling = Coupling::of(graph).unwrap();
            let statistics = calibrate(graph, &coupling, &images);
            let settings = Similarity { threshold: 0.999, ridge: 1e-9, ..settings(mode) };
            let plan = similarity::plan(graph, &coupling, &statistics, &settings, &one_less(graph, &coupling)).unwrap();
            assert!(plan.removals.len() == 1 && [2, 5].contains(&plan.removals[0].members[0].1), "{case}: {plan}");
            let run = |graph: &Graph| forward(graph, &images[0]).unwrap().swap_remove(end);
            let (before, after) = (run(graph), run(&surgery::apply(graph, &plan).unwrap()));
            for c in 0..before.shape.c {
                let moved: Vec<f64> = before.channel(c).iter().zip(after.channel(c)).map(|(x, y)| y - x).collect();
                let mean = moved.iter().sum::<f64>() / moved.len() as f64;
                assert!(mean.abs() < 1e-4, "{case}: channel {c} moved by {mean} on average");
                let most = moved.iter().map(|v| v.abs()).fold(0.0, f64::max);
                assert!(pad == 1 || most < 1e-4, "{case}: channel {c} moved by {most}");
            }
        }
    }
}

/// The search's bookkeeping is exact: the losses it adds up are the share of the reader's output variance that surgery
/// really loses, for a 1x1 reader on the calibration images.
#[test]
fn summed_losses_are_the_measured_loss() {
    for mode in BOTH {
        let mut b = Builder::new(5);
        let block = b.block(0, 12, 3);
        let reader = b.conv(block, 7, 1, 1, 1, false);
        let end = b.norm(reader);
        b.act(end, Act::Silu);
        b.finish(false);
        let images = images(&mut b, 6);
        let coupling = Coupling::of(&b.graph).unwrap();
        let statistics = calibrate(&b.graph, &coupling, &images);
        let channels: Vec<usize> = [3, 8, 0, 5].iter().map(|&c| coupling.channels(block)[c]).collect();
        let channels = if mode == Mode::Span { &channels[..] } else { &channels[..1] };
        let plan = similarity::replace(&b.graph, &coupling, &statistics, &settings(mode), channels).unwrap();
        let predicted: f64 = plan.removals.iter().map(|r| f64::from(r.score)).sum();
        let slim = surgery::apply(&b.graph, &plan).unwrap();
        let measured = lost_share(&b.graph, &slim, end, &images);
        let tolerance = if mode == Mode::Span { 0.01 } else { 1.0 };
        assert!(
            (predicted - measured).abs() < tolerance * measured,
            "{mode:?}: predicted {predicted}, measured {measured}"
        );
    }
}

/// A block that a convolution of nine taps reads, and what images tell of it.
struct Taps {
    b: Builder,
    block: NodeId,
    reader: NodeId,
    images: Vec<Map>,
    coupling: Coupling,
    statistics: Statistics,
}

impl Taps {
    fn new() -> Self {
        let mut b = Builder::new(9);
        let block = b.block(0, 6, 3);
        let reader = b.conv(block, 4, 3, 1, 1, false);
        b.finish(false);
        let images = images(&mut b, 6);
        let coupling = Coupling::of(&b.graph).unwrap();
        let statistics = calibrate(&b.graph, &coupling, &images);
        Self { b, block, reader, images, coupling, statistics }
    }
}

/// Taps that read neighbouring pixels stand in for one another: what the search adds up, block by block, is what least squares over
/// all that is still read loses, found here in one go from the covariance.
#[test]
fn taps_stand_in_together() {
    let Taps { b, block, reader, images, coupling, mut statistics } = Taps::new();
    let stats = of_taps(&b.graph, reader, &images);
    let sensitivity: Vec<f64> = (0..4).map(|o| 1.0 + o as f64).collect();
    statistics.sensitivity.outputs.insert(reader, sensitivity.clone());
    statistics.by_reader.insert(reader, stats.clone());
    let removed = [4, 1, 3];
    let classes: Vec<usize> = removed.iter().map(|&c| coupling.channels(block)[c]).collect();
    let plan = similarity::replace(&b.graph, &coupling, &statistics, &settings(Mode::Span), &classes).unwrap();
    let found: f64 = plan.removals.iter().map(|r| f64::from(r.score)).sum();

    // The ridge that stage 2 puts on the diagonal belongs to the covariance.
    let f = stats.mean.len();
    let at = |i: usize, j: usize| stats.cov[i * f + j] * if i == j { 1.0 + 1e-4 } else { 1.0 };
    let gone: Vec<usize> = removed.iter().flat_map(|&c| 9 * c..9 * c + 9).collect();
    let kept: Vec<usize> = (0..f).filter(|i| !gone.contains(i)).collect();
    let left = residual(&gone, &kept, at);
    let Op::Conv(conv) = &b.graph.nodes[reader].op else { panic!("a convolution") };
    let expected: f64 = (0..4)
        .map(|o| {
            let w: Vec<f64> = gone.iter().map(|&i| f64::from(conv.weight.outer(o)[i])).collect();
            let quadratic =
                |(i, wi): (usize, &f64)| wi * w.iter().enumerate().map(|(j, wj)| left[i][j] * wj).sum::<f64>();
            sensitivity[o] * w.iter().enumerate().map(quadratic).sum::<f64>()
        })
        .sum();
    assert!((found - expected).abs() < 1e-3 * expected, "{found} for {expected}");

    // Apart, each tap has to make do with the others of its own place.
    statistics.by_reader.clear();
    let apart = similarity::replace(&b.graph, &coupling, &statistics, &settings(Mode::Span), &classes).unwrap();
    let apart: f64 = apart.removals.iter().map(|r| f64::from(r.score)).sum();
    assert!(found < 0.9 * apart, "{found} together, {apart} apart");
}

/// Covariance of all that `reader`, of 3x3 taps at stride 1 with a border of 1, reads at a place.
fn of_taps(graph: &Graph, reader: usize, images: &[Map]) -> ChannelStats {
    let node = graph.nodes[reader].inputs[0];
    let runs: Vec<Map> = images.iter().map(|image| forward(graph, image).unwrap().swap_remove(node)).collect();
    let (c, h, w) = (runs[0].shape.c, runs[0].shape.h, runs[0].shape.w);
    let (mut count, mut sums, mut products) = (0, vec![0.0; 9 * c], vec![0.0; 81 * c * c]);
    for (map, place) in runs.iter().flat_map(|map| (0..h * w).map(move |place| (map, place))) {
        let read = |feature: usize| {
            let (row, column) =
                ((place / w + feature % 9 / 3).wrapping_sub(1), (place % w + feature % 3).wrapping_sub(1));
            if row < h && column < w { map.channel(feature / 9)[row * w + column] } else { 0.0 }
        };
        let all: Vec<f64> = (0..9 * c).map(read).collect();
        count += 1;
        for i in 0..9 * c {
            sums[i] += all[i];
            (0..9 * c).for_each(|j| products[i * 9 * c + j] += all[i] * all[j]);
        }
    }
    ChannelStats::from_sums(count, &sums, &products)
}

/// Covariance of what least squares on the `kept` leaves of the `gone`: by eliminating the kept one after the other.
fn residual(gone: &[usize], kept: &[usize], at: impl Fn(usize, usize) -> f64) -> Vec<Vec<f64>> {
    let all: Vec<usize> = kept.iter().chain(gone).copied().collect();
    let mut s: Vec<Vec<f64>> = all.iter().map(|&i| all.iter().map(|&j| at(i, j)).collect()).collect();
    for k in 0..kept.len() {
        let pivot = s[k].clone();
        for row in s.iter_mut().skip(k + 1) {
            let by = row[k] / pivot[k];
            row.iter_mut().zip(&pivot).for_each(|(v, p)| *v -= by * p);
        }
    }
    s[kept.len()..].iter().map(|row| row[kept.len()..].to_vec()).collect()
}

/// Squared difference of a node's output in two graphs, as a share of its variance in the first.
fn lost_share(dense: &Graph, slim: &Graph, node: NodeId, images: &[Map]) -> f64 {
    let (mut error, mut variance) = (0.0, 0.0);
    let run = |graph: &Graph, image: &Map| forward(graph, image).unwrap().swap_remove(node);
    let pairs: Vec<(Map, Map)> = images.iter().map(|image| (run(dense, image), run(slim, image))).collect();
    for c in 0..pairs[0].0.shape.c {
        let values: Vec<f64> = pairs.iter().flat_map(|(x, _)| x.channel(c).iter().copied()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        variance += values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        error += pairs
            .iter()
            .flat_map(|(x, y)| x.channel(c).iter().zip(y.channel(c)))
            .map(|(x, y)| (x - y).powi(2))
            .sum::<f64>();
    }
    error / variance
}

fn small_detector() -> (Graph, Coupling, Statistics) {
    let mut b = Builder::new(21);
    let stem = b.block(0, 16, 3);
    let inner = b.block(stem, 16, 3);
    let add = b.push("add", Op::Add, vec![stem, inner]);
    let cat = b.push("concat", Op::Concat, vec![add, inner]);
    b.block(cat, 24, 1);
    b.finish(true);
    let images = images(&mut b, 6);
    let coupling = Coupling::of(&b.graph).unwrap();
    let statistics = calibrate(&b.graph, &coupling, &images);
    (b.graph, coupling, statistics)
}

#[test]
fn pairwise_keeps_to_its_threshold() {
    let (graph, coupling, statistics) = small_detector();
    let target = target(&graph, &coupling, 0.9);
    let mut before = usize::MAX;
    for threshold in [0.2, 0.5, 0.8, 1.0] {
        let settings = Similarity { threshold, ..settings(Mode::Pairwise) };
        let plan = similarity::plan(&graph, &coupling, &statistics, &settings, &target).unwrap();
        assert!(plan.removals.len() <= before, "a higher threshold removed more");
        before = plan.removals.len();
        for compensation in &plan.compensations {
            let node = graph.nodes.iter().position(|n| n.name == compensation.tensor).unwrap();
            let stats = &statistics.by_node[&node];
            let at = |i: usize, j: usize| stats.cov[i * stats.mean.len() + j];
            for row in &compensation.rows {
                let (j, _) = row.stand_ins[0];
                let rho2 = at(row.channel, j).powi(2) / (at(row.channel, row.channel) * at(j, j));
                assert!(rho2 >= threshold, "rho^2 {rho2} under {threshold}");
            }
        }
    }
    assert_eq!(before, 0, "nothing is exactly similar in a random network");
}

#[test]
fn running_out_of_similar_channels_is_said() {
    let (graph, coupling, statistics) = small_detector();
    let target = target(&graph, &coupling, 0.9);
    let stop =
        |settings: &Similarity| similarity::plan(&graph, &coupling, &statistics, settings, &target).unwrap().stop;
    assert_eq!(stop(&Similarity { threshold: 1.0, ..settings(Mode::Pairwise) }), Stop::Threshold);
    assert_eq!(stop(&Similarity { limits: Limits { min_channels: 8, ..LOOSE }, ..settings(Mode::Span) }), Stop::Limits);
    assert_eq!(stop(&settings(Mode::Span)), Stop::Met);
}

#[test]
fn channel_multiples_hold_in_stage_two() {
    let (graph, coupling, statistics) = small_detector();
    let limits = Limits { multiple: Multiple::Of(4), ..LOOSE };
    for (mode, threshold) in [(Mode::Pairwise, 0.0), (Mode::Pairwise, 0.3), (Mode::Span, 0.0)] {
        let settings = Similarity { threshold, limits, ..settings(mode) };
        let target = target(&graph, &coupling, 0.4);
        let plan = similarity::plan(&graph, &coupling, &statistics, &settings, &target).unwrap();
        assert!(plan.layers.iter().all(|layer| layer.after % 4 == 0), "{plan}");
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (graph, coupling, statistics) = small_detector();
    let target = target(&graph, &coupling, 0.3);
    let plan = |statistics: &Statistics, settings: &Similarity| -> Result<Plan, String> {
        similarity::plan(&graph, &coupling, statistics, settings, &target).map_err(|e| e.to_string())
    };
    let good = settings(Mode::Span);
    let missing = plan(&Statistics::default(), &good).unwrap_err();
    assert!(missing.contains("there are none"), "{missing}");
    let reader = |node: &NodeId| coupling.readers(*node)[0];
    let outputs = |reader: NodeId| coupling.channels(reader).len();
    let mut minded = statistics.clone();
    minded.sensitivity.outputs = statistics.by_node.keys().map(reader).map(|r| (r, vec![1.0; outputs(r)])).collect();
    plan(&minded, &good).unwrap();
    minded.sensitivity.outputs.values_mut().next().unwrap().push(1.0);
    let long = plan(&minded, &good).unwrap_err();
    assert!(long.contains("sensitivities for"), "{long}");
    minded.sensitivity.outputs.values_mut().for_each(|minds| minds.fill(f64::NAN));
    minded.sensitivity.outputs.values_mut().next().unwrap().pop();
    let error = similarity::plan(&graph, &coupling, &minded, &good, &target).unwrap_err();
    assert!(error.to_string().starts_with("the gradient at `"), "{error}");
    let by_error = Importance { criterion: Criterion::OutputError, ..Importance::default() };
    let first = importance::plan_with(&graph, &coupling, &by_error, &minded.sensitivity, &target).unwrap_err();
    assert!(first.to_string().starts_with("the gradient at `"), "{first}");
    // Where maps are damaged the first is named, whatever else is.
    minded.by_node.values_mut().for_each(|stats| stats.cov[0] = f64::NAN);
    let error = similarity::plan(&graph, &coupling, &minded, &good, &target).unwrap_err();
    let map = &graph.nodes[*minded.by_node.keys().next().unwrap()].name;
    assert_eq!(error.to_string(), format!("the map of `{map}` holds values that are not finite"));
    assert!(miette::Diagnostic::help(&error).unwrap().to_string().contains("weights are damaged"));
    let bad = plan(&statistics, &Similarity { threshold: 1.5, ..good }).unwrap_err();
    assert!(bad.contains("threshold"), "{bad}");
    for ridge in [0.0, 1.0, f64::NAN] {
        let bad = plan(&statistics, &Similarity { ridge, ..good }).unwrap_err();
        assert!(bad.contains("ridge"), "{bad}");
    }
    let spoilt = |spoil: &dyn Fn(&mut ChannelStats)| {
        let mut statistics = statistics.clone();
        statistics.by_node.values_mut().for_each(spoil);
        plan(&statistics, &good).unwrap_err()
    };
    assert!(spoilt(&|stats| stats.count = 0).contains("no sample"));
    assert!(spoilt(&|stats| stats.mean.truncate(3)).contains("3 means"));
    assert!(spoilt(&|stats| stats.cov.truncate(3)).contains("3 covariances"));
    let pinned = similarity::replace(&graph, &coupling, &statistics, &good, &[0]).unwrap_err().to_string();
    assert!(pinned.contains("image"), "{pinned}");
}

#[test]
fn too_few_samples_are_pointed_out() {
    let (graph, coupling, mut statistics) = small_detector();
    let target = target(&graph, &coupling, 0.3);
    let notes = |mode, statistics: &Statistics| {
        similarity::plan(&graph, &coupling, statistics, &settings(mode), &target).unwrap().notes
    };
    assert!(notes(Mode::Span, &statistics).is_empty());
    let stats = statistics.by_node.values_mut().next().unwrap();
    stats.count = 9 * stats.mean.len() as u64;
    assert!(notes(Mode::Span, &statistics)[0].contains("more images"));
    assert!(notes(Mode::Pairwise, &statistics).is_empty());
}

/// Two convolutions read a block, one of them through a concat; their losses add up, and one that ignores it loses nothing.
#[test]
fn a_loss_is_summed_over_all_that_listen() {
    let mut b = Builder::new(17);
    let block = b.block(0, 6, 3);
    let other = b.block(0, 3, 3);
    let both = b.push("concat", Op::Concat, vec![other, block]);
    let readers = [b.conv(block, 4, 1, 1, 1, true), b.conv(both, 4, 1, 1, 1, true)];
    b.finish(false);
    let images = images(&mut b, 4);
    let coupling = Coupling::of(&b.graph).unwrap();
    assert!(prune::observed(&b.graph, &coupling).iter().all(|&node| node >= block), "the image has to stay");
    let class = coupling.channels(block)[2];
    let score = |mode: Mode, deaf: &[NodeId]| {
        let mut graph = b.graph.clone();
        for &reader in deaf {
            if let Op::Conv(conv) = &mut graph.nodes[reader].op {
                conv.weight.data.fill(0.0);
            }
        }
        let statistics = calibrate(&graph, &coupling, &images);
        let plan = similarity::replace(&graph, &coupling, &statistics, &settings(mode), &[class]).unwrap();
        f64::from(plan.removals[0].score)
    };
    for mode in BOTH {
        let [first, second] = [score(mode, &readers[1..]), score(mode, &readers[..1])];
        assert!(first > 0.0 && second > 0.0 && score(mode, &readers) == 0.0, "{mode:?}: {first} {second}");
        let together = score(mode, &[]);
        assert!((together - first - second).abs() < 1e-6 * together, "{mode:?}: {together} for {first} and {second}");
    }
}

#[test]
fn a_layer_alone_is_never_emptied() {
    let (graph, coupling, statistics) = small_detector();
    for set in 0..coupling.sets.len() {
        let classes = &coupling.sets[set].classes;
        if coupling.classes[classes[0]].pinned.is_some() {
            continue;
        }
        let plan = similarity::plan_set(&graph, &coupling, &statistics, &settings(Mode::Span), set, 99).unwrap();
        assert_eq!(plan.removals.len(), classes.len() - 1);
    }
}

/// One channel stands in for another wherever it is read: taps have no say in that.
#[test]
fn pairs_do_not_look_at_taps() {
    let Taps { b, reader, images, coupling, mut statistics, .. } = Taps::new();
    let target = one_less(&b.graph, &coupling);
    let plan = |statistics: &Statistics| {
        similarity::plan(&b.graph, &coupling, statistics, &settings(Mode::Pairwise), &target).unwrap()
    };
    let without = plan(&statistics);
    statistics.by_reader.insert(reader, of_taps(&b.graph, reader, &images));
    assert_eq!(plan(&statistics), without);
}
