//! What must hold of stage 1 and of surgery on random networks (METHOD.md, 5).

mod common;

use common::{Builder, LOOSE, difference, outputs, recipes, silence, target};
use graph::reference::forward;
use graph::{Act, Graph, MaxPool, NodeId, Op, cost};
use proptest::prelude::*;
use prune::{Coupling, Criterion, Importance, Plan, importance, surgery};

fn random(seed: u64) -> Importance {
    Importance { criterion: Criterion::Random { seed }, limits: LOOSE, ..Importance::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn an_empty_plan_changes_no_bit(recipe in recipes(14)) {
        let graph = recipe.build().graph;
        let plan = Plan::empty(&graph).unwrap();
        prop_assert_eq!(&surgery::apply(&graph, &plan).unwrap(), &graph);
        prop_assert_eq!(&surgery::mask(&graph, &plan).unwrap(), &graph);
    }

    #[test]
    fn surgery_equals_masking(recipe in recipes(14), rate in 0.05..0.95_f64) {
        let mut b = recipe.build();
        let coupling = Coupling::of(&b.graph).unwrap();
        let target = target(&b.graph, &coupling, rate);
        let plan = importance::plan(&b.graph, &coupling, &random(recipe.seed), &target).unwrap();
        let image = b.image();
        for plan in [plan.clone(), plan.uncompensated()] {
            let slim = surgery::apply(&b.graph, &plan).unwrap();
            let masked = surgery::mask(&b.graph, &plan).unwrap();
            let error = difference(&outputs(&slim, &image), &outputs(&masked, &image));
            prop_assert!(error < 1e-9, "outputs differ by {error}");
        }
    }

    #[test]
    fn the_predicted_cost_is_the_counted_cost(recipe in recipes(14), rate in 0.05..0.95_f64) {
        let graph = recipe.build().graph;
        let coupling = Coupling::of(&graph).unwrap();
        let plan = importance::plan(&graph, &coupling, &random(recipe.seed), &target(&graph, &coupling, rate)).unwrap();
        let slim = surgery::apply(&graph, &plan).unwrap();
        let counted = cost::total(&slim, slim.meta.imgsz).unwrap();
        prop_assert_eq!((plan.after.params, plan.after.macs), (counted.params, counted.macs));
    }

    #[test]
    fn a_plan_survives_json(recipe in recipes(8)) {
        let graph = recipe.build().graph;
        let coupling = Coupling::of(&graph).unwrap();
        let plan = importance::plan(&graph, &coupling, &random(1), &target(&graph, &coupling, 0.5)).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    /// Every class of a random half is silenced, and all of them removed: with 1x1 readers nothing may move.
    #[test]
    fn silent_classes_fold_away_exactly_at_pointwise_readers(recipe in recipes(14)) {
        let mut b = recipe.build();
        pointwise(&mut b.graph);
        let coupling = Coupling::of(&b.graph).unwrap();
        let silent = silence_some(&mut b.graph, &coupling);
        let plan = removing(&b.graph, &coupling, silent);
        let slim = surgery::apply(&b.graph, &plan).unwrap();
        let image = b.image();
        let error = difference(&outputs(&slim, &image), &outputs(&b.graph, &image));
        prop_assert!(error < 2e-4, "outputs moved by {error}");
    }
}

/// Replaces every convolution by its middle tap, so that nothing sees padding.
fn pointwise(graph: &mut Graph) {
    for node in &mut graph.nodes {
        let Op::Conv(conv) = &mut node.op else { continue };
        if conv.kernel() == [3, 3] {
            let [o, i] = [conv.weight.shape[0], conv.weight.shape[1]];
            let middle = conv.weight.data.chunks(9).map(|taps| taps[4]).collect();
            conv.weight = graph::Tensor::new([o, i, 1, 1], middle);
            conv.pad = [0, 0];
        }
    }
}

/// Silences every second class whose members all have a BatchNorm; returns how many.
fn silence_some(graph: &mut Graph, coupling: &Coupling) -> usize {
    let bare = |class: &prune::Class| class.members.iter().any(|s| coupling.norm_after(graph, s.node).is_none());
    let free: Vec<usize> = (0..coupling.classes.len())
        .filter(|&id| coupling.classes[id].pinned.is_none() && !bare(&coupling.classes[id]))
        .collect();
    let mut silenced = 0;
    for set in &coupling.sets {
        // One class of every set stays.
        for class in set.classes.iter().skip(1).step_by(2).filter(|class| free.contains(class)) {
            silence(graph, coupling, *class);
            silenced += 1;
        }
    }
    silenced
}

/// The plan that removes the `count` least important classes and nothing else.
fn removing(graph: &Graph, coupling: &Coupling, count: usize) -> Plan {
    let settings = Importance { limits: LOOSE, ..Importance::default() };
    let scores = importance::scores(graph, coupling, &settings, &prune::Sensitivity::default()).unwrap();
    let removed = (0..scores.len()).filter(|&class| scores[class] == 0.0).collect::<Vec<_>>();
    assert_eq!(removed.len(), count);
    let mut target = target(graph, coupling, 0.5);
    let members: usize = removed.iter().map(|&class| coupling.classes[class].members.len()).sum();
    target.channels = Some(target.reference.channels - members as u64);
    let plan = importance::plan(graph, coupling, &settings, &target).unwrap();
    assert_eq!(plan.removals.len(), count);
    plan
}

/// A block whose channels 1 and 3 have gamma 0, read by a 3x3 convolution; returns that reader's last node.
fn silent_before_3x3(bias: bool, norm: bool, pad: usize) -> (Builder, NodeId) {
    let mut b = Builder::new(7);
    let first = b.block(0, 6, 3);
    let mut reader = b.conv(first, 4, 3, 1, 1, bias);
    if let Op::Conv(conv) = &mut b.graph.nodes[reader].op {
        conv.pad = [pad; 2];
    }
    if norm {
        reader = b.norm(reader);
    }
    b.act(reader, Act::Silu);
    b.finish(false);
    let coupling = Coupling::of(&b.graph).unwrap();
    for channel in [1, 3] {
        let class = coupling.channels(first)[channel];
        silence(&mut b.graph, &coupling, class);
    }
    (b, reader)
}

/// A bias cannot follow the border: it is the spatial mean that has to stay, and all of the interior moves by the same
/// (small) amount. Without padding there is no border and nothing moves.
#[test]
fn a_silent_channel_folds_into_the_bias_of_a_3x3_reader() {
    for (bias, norm) in [(false, true), (true, true), (true, false), (false, false)] {
        for pad in [0, 1] {
            let (mut b, reader) = silent_before_3x3(bias, norm, pad);
            let coupling = Coupling::of(&b.graph).unwrap();
            let plan = removing(&b.graph, &coupling, 2);
            let slim = surgery::apply(&b.graph, &plan).unwrap();
            let image = b.image();
            let before = forward(&b.graph, &image).unwrap().swap_remove(reader);
            let after = forward(&slim, &image).unwrap().swap_remove(reader);
            for c in 0..before.shape.c {
                let case = format!("bias {bias}, norm {norm}, pad {pad}, channel {c}");
                let moved: Vec<f64> = before.channel(c).iter().zip(after.channel(c)).map(|(x, y)| y - x).collect();
                let mean = moved.iter().sum::<f64>() / moved.len() as f64;
                assert!(mean.abs() < 1e-6, "{case}: moved by {mean} on average");
                let inner = interior(&moved, before.shape.h, before.shape.w);
                let spread = inner.iter().map(|v| (v - inner[0]).abs()).fold(0.0, f64::max);
                assert!(spread < 1e-6, "{case}: the interior changed shape by {spread}");
                if pad == 0 {
                    let most = moved.iter().map(|v| v.abs()).fold(0.0, f64::max);
                    assert!(most < 1e-6, "{case}: moved by {most} at one place");
                }
            }
        }
    }
}

fn interior(map: &[f64], h: usize, w: usize) -> Vec<f64> {
    (1..h - 1).flat_map(|y| (1..w - 1).map(move |x| map[y * w + x])).collect()
}

/// Folding matters: the same removal without constants moves the output by much more.
#[test]
fn a_bare_mask_is_worse_than_folding() {
    let (mut b, reader) = silent_before_3x3(false, true, 1);
    let coupling = Coupling::of(&b.graph).unwrap();
    let plan = removing(&b.graph, &coupling, 2);
    let image = b.image();
    let run = |graph: &Graph| vec![forward(graph, &image).unwrap().swap_remove(reader)];
    let dense = run(&b.graph);
    let folded = difference(&dense, &run(&surgery::mask(&b.graph, &plan).unwrap()));
    let bare = difference(&dense, &run(&surgery::mask(&b.graph, &plan.uncompensated()).unwrap()));
    assert!(folded < 0.8 * bare, "folded {folded}, bare {bare}");
}

/// Behind a padded depthwise convolution a silent channel is no longer flat; its mean is what the 1x1 reader is given.
#[test]
fn a_silent_channel_keeps_the_mean_behind_a_depthwise_convolution() {
    for stride in [1, 2] {
        let mut b = Builder::new(11);
        let first = b.block(0, 6, 3);
        let depthwise = b.conv(first, 6, 3, stride, 6, true);
        let act = b.act(depthwise, Act::Silu);
        let pooled = b.push("pool", Op::MaxPool(MaxPool { kernel: 3, stride: 1, pad: [1, 1] }), vec![act]);
        let up = b.push("up", Op::Upsample { factor: 2 }, vec![pooled]);
        let both = b.push("add", Op::Add, vec![up, up]);
        let reader = b.conv(both, 4, 1, 1, 1, false);
        b.finish(false);
        let coupling = Coupling::of(&b.graph).unwrap();
        silence(&mut b.graph, &coupling, coupling.channels(first)[2]);
        let slim = surgery::apply(&b.graph, &removing(&b.graph, &coupling, 1)).unwrap();
        let image = b.image();
        let before = forward(&b.graph, &image).unwrap().swap_remove(reader);
        let after = forward(&slim, &image).unwrap().swap_remove(reader);
        let mut moved_at_the_border = 0.0_f64;
        for c in 0..before.shape.c {
            let moved: Vec<f64> = before.channel(c).iter().zip(after.channel(c)).map(|(x, y)| y - x).collect();
            let mean = moved.iter().sum::<f64>() / moved.len() as f64;
            assert!(mean.abs() < 1e-6, "stride {stride}, channel {c}: moved by {mean} on average");
            moved_at_the_border = moved_at_the_border.max(moved[0].abs());
        }
        assert!(moved_at_the_border > 1e-4, "the case has no border to speak of");
    }
}

/// A branch that ends in a convolution with a bias, or in one that a BatchNorm follows: masked it adds nothing either.
#[test]
fn a_branch_that_goes_adds_nothing_where_it_is_masked() {
    for norm in [false, true] {
        let mut b = Builder::new(13);
        let stream = b.block(0, 6, 3);
        let inner = b.block(stream, 4, 1);
        let mut end = b.conv(inner, 6, 1, 1, 1, true);
        if norm {
            end = b.norm(end);
        }
        let sum = b.push("add", Op::Add, vec![stream, end]);
        b.finish(false);
        let shortcuts = vec![prune::Shortcut { score: 0.0, add: b.graph.nodes[sum].name.clone() }];
        let plan = Plan { shortcuts, ..Plan::empty(&b.graph).unwrap() };
        let [slim, masked] = [surgery::apply, surgery::mask].map(|of| of(&b.graph, &plan).unwrap());
        let image = b.image();
        assert!(slim.nodes.len() < b.graph.nodes.len());
        assert!(difference(&outputs(&slim, &image), &outputs(&masked, &image)) < 1e-9, "norm {norm}");
    }
}

/// What is left after two plans, told of the network before the first.
#[test]
fn what_two_plans_leave_is_told_of_the_network_before_both() {
    let mut b = Builder::new(19);
    let stream = b.block(0, 6, 3);
    let inner = b.block(stream, 4, 1);
    let end = b.conv(inner, 6, 1, 1, 1, true);
    let sum = b.push("add", Op::Add, vec![stream, end]);
    b.block(sum, 8, 1);
    b.finish(false);
    let shortcuts = vec![prune::Shortcut { score: 0.0, add: b.graph.nodes[sum].name.clone() }];
    let first = Plan { shortcuts, ..Plan::empty(&b.graph).unwrap() };
    let by_rate = |graph: &Graph, rate: f64| {
        let coupling = Coupling::of(graph).unwrap();
        importance::plan(graph, &coupling, &random(3), &target(graph, &coupling, rate)).unwrap()
    };
    let (mut graph, mut kept) = (b.graph.clone(), surgery::Kept::all(&b.graph).unwrap());
    for plan in [Some(first), None, None] {
        let plan = plan.unwrap_or_else(|| by_rate(&graph, 0.3));
        kept = kept.then(&surgery::kept(&graph, &plan).unwrap());
        graph = surgery::apply(&graph, &plan.uncompensated()).unwrap();
        // A convolution's weights, where nothing is made up for, are those of the channels that are left.
        for (id, (&origin, left)) in kept.nodes.iter().zip(&kept.channels).enumerate() {
            assert_eq!(graph.nodes[id].name, b.graph.nodes[origin].name);
            let (Op::BatchNorm(slim), Op::BatchNorm(dense)) = (&graph.nodes[id].op, &b.graph.nodes[origin].op) else {
                continue;
            };
            assert_eq!(slim.gamma, left.iter().map(|&c| dense.gamma[c]).collect::<Vec<_>>());
        }
    }
    assert!(kept.channels.iter().any(|left| left.iter().enumerate().any(|(at, &c)| at != c)), "something has gone");
}
