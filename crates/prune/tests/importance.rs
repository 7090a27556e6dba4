//! Stage 1: who goes first, how far, and what stays whatever the scores say.

mod common;

use common::{Builder, LOOSE, difference, outputs, recipes, target};
use graph::{Act, Graph, NodeId, Op};
use proptest::prelude::*;
use prune::{
    Aggregate, Budget, Coupling, Criterion, Fill, Importance, Limits, Multiple, Sensitivity, Size, Stop, importance,
    surgery,
};

fn set_gammas(graph: &mut Graph, norm: NodeId, gammas: &[f32]) {
    if let Op::BatchNorm(bn) = &mut graph.nodes[norm].op {
        bn.gamma.copy_from_slice(gammas);
    }
}

/// Two residual convolutions with given gammas, and a third with its own; returns the first convolution and the third.
fn residual(gammas: [&[f32]; 3]) -> (Graph, NodeId, NodeId) {
    let mut b = Builder::new(2);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let norm = b.norm(first);
    set_gammas(&mut b.graph, norm, gammas[0]);
    let second = b.conv(norm, 4, 3, 1, 1, false);
    let inner = b.norm(second);
    set_gammas(&mut b.graph, inner, gammas[1]);
    let add = b.push("add", Op::Add, vec![norm, inner]);
    let third = b.conv(add, 3, 1, 1, 1, false);
    let last = b.norm(third);
    set_gammas(&mut b.graph, last, gammas[2]);
    b.act(last, Act::Silu);
    b.finish(true);
    (b.graph, first, third)
}

const GAMMAS: [&[f32]; 3] = [&[0.1, -0.9, 0.3, 0.5], &[0.8, 0.1, -0.2, 0.5], &[0.35, 2.0, 0.9]];

#[test]
fn aggregates_are_what_they_say() {
    let (graph, first, third) = residual(GAMMAS);
    let coupling = Coupling::of(&graph).unwrap();
    for (aggregate, expected) in [
        (Aggregate::Max, [0.8, 0.9, 0.3, 0.5]),
        (Aggregate::Mean, [0.45, 0.5, 0.25, 0.5]),
        (Aggregate::Sum, [0.9, 1.0, 0.5, 1.0]),
    ] {
        let settings = Importance { aggregate, ..Importance::default() };
        let scores = importance::scores(&graph, &coupling, &settings, &Sensitivity::default()).unwrap();
        for (&class, expected) in coupling.channels(first).iter().zip(expected) {
            assert!((scores[class] - expected).abs() < 1e-6, "{aggregate:?}: {} is not {expected}", scores[class]);
        }
        assert!((scores[coupling.channels(third)[0]] - 0.35).abs() < 1e-6);
        assert!(scores[coupling.channels(0)[0]].is_infinite(), "the image is pinned");
    }
}

#[test]
fn the_order_is_global_and_the_rate_is_met() {
    let (graph, first, third) = residual(GAMMAS);
    let coupling = Coupling::of(&graph).unwrap();
    let settings = Importance { limits: LOOSE, ..Importance::default() };
    // 4 * 2 + 3 prunable channels: a rate of 0.4 leaves at most 7, and the three weakest classes hold 2, 1 and 2.
    let plan = importance::plan(&graph, &coupling, &settings, &target(&graph, &coupling, 0.4)).unwrap();
    let name = |id: NodeId| graph.nodes[id].name.clone();
    let order: Vec<_> = plan.removals.iter().map(|r| r.members[0].clone()).collect();
    assert_eq!(order, [(name(first), 2), (name(third), 0), (name(first), 3)]);
    assert_eq!((plan.stop, plan.after.channels), (Stop::Met, 6));
    let text = plan.to_string();
    assert!(text.contains("parameters") && text.contains(&name(third)), "{text}");
}

#[test]
fn limits_outrank_scores() {
    let (graph, first, third) = residual([&[0.0; 4], &[0.0; 4], &[1.0; 3]]);
    let coupling = Coupling::of(&graph).unwrap();
    let kept = |limits: Limits| {
        let settings = Importance { limits, ..Importance::default() };
        let plan = importance::plan(&graph, &coupling, &settings, &target(&graph, &coupling, 0.99)).unwrap();
        assert_eq!(plan.stop, Stop::Limits);
        assert!(plan.to_string().contains("NOT met"));
        let slim = surgery::apply(&graph, &plan).unwrap();
        let count = |node: NodeId| slim.shapes(slim.meta.imgsz).unwrap()[node].c;
        (count(first), count(third))
    };
    assert_eq!(kept(LOOSE), (1, 1));
    assert_eq!(kept(Limits { min_channels: 2, ..LOOSE }), (2, 2));
    assert_eq!(kept(Limits { floor: 0.7, ..LOOSE }), (3, 3));
    assert_eq!(kept(Limits { multiple: Multiple::Of(2), ..LOOSE }), (2, 2));
    assert_eq!(kept(Limits::default()), (4, 3), "layers below the minimum stay whole");
}

#[test]
fn a_convolution_without_batch_norm_scores_by_its_filter_and_that_is_said() {
    let mut b = Builder::new(2);
    let first = b.conv(0, 4, 1, 1, 1, true);
    b.act(first, Act::Relu);
    b.finish(true);
    if let Op::Conv(conv) = &mut b.graph.nodes[first].op {
        conv.weight.data[3..6].copy_from_slice(&[3.0, 0.0, -4.0]);
    }
    let coupling = Coupling::of(&b.graph).unwrap();
    let settings = Importance { limits: LOOSE, ..Importance::default() };
    let scores = importance::scores(&b.graph, &coupling, &settings, &Sensitivity::default()).unwrap();
    assert!((scores[coupling.channels(first)[1]] - 5.0).abs() < 1e-6);
    let plan = importance::plan(&b.graph, &coupling, &settings, &target(&b.graph, &coupling, 0.3)).unwrap();
    assert!(plan.notes[0].contains(&b.graph.nodes[first].name), "{:?}", plan.notes);
}

/// A gamma tells how far a channel swings, not who listens: the reader of channel 0 ignores it, however large it is.
#[test]
fn the_output_error_sees_what_gamma_cannot() {
    let mut b = Builder::new(2);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let norm = b.norm(first);
    set_gammas(&mut b.graph, norm, &[2.0, 0.5, 0.5, 0.1]);
    let act = b.act(norm, Act::Silu);
    let reader = b.conv(act, 3, 1, 1, 1, false);
    b.finish(true);
    if let Op::Conv(conv) = &mut b.graph.nodes[reader].op {
        conv.weight.data = [[0.0, 1.0, 0.2, 1.0]; 3].concat();
    }
    let coupling = Coupling::of(&b.graph).unwrap();
    let order = |criterion| {
        let settings = Importance { criterion, ..Importance::default() };
        let scores = importance::scores(&b.graph, &coupling, &settings, &Sensitivity::default()).unwrap();
        let mut order = [0, 1, 2, 3];
        order.sort_by(|&a, &b| scores[coupling.channels(first)[a]].total_cmp(&scores[coupling.channels(first)[b]]));
        order
    };
    assert_eq!(order(Criterion::BnScale)[3], 0);
    assert_eq!(order(Criterion::OutputError)[0], 0);
    assert_eq!(order(Criterion::OutputError)[3], 1);
}

/// A network whose first convolution has these filters.
fn filters(weights: [[f32; 3]; 3]) -> (Graph, NodeId, Coupling) {
    let mut b = Builder::new(2);
    let first = b.conv(0, 3, 1, 1, 1, true);
    b.finish(true);
    if let Op::Conv(conv) = &mut b.graph.nodes[first].op {
        conv.weight.data = weights.concat();
    }
    let coupling = Coupling::of(&b.graph).unwrap();
    (b.graph, first, coupling)
}

/// Of three filters on a line the middle one has the smallest summed distance.
#[test]
fn fpgm_removes_the_filter_nearest_the_others() {
    let (graph, first, coupling) = filters([[1.0; 3], [9.0; 3], [4.0; 3]]);
    let weakest = |criterion| {
        let settings = Importance { criterion, ..Importance::default() };
        let scores = importance::scores(&graph, &coupling, &settings, &Sensitivity::default()).unwrap();
        (0..3).min_by(|&a, &b| scores[coupling.channels(first)[a]].total_cmp(&scores[coupling.channels(first)[b]]))
    };
    assert_eq!(weakest(Criterion::Fpgm), Some(2));
    assert_eq!(weakest(Criterion::L1Filter), Some(0));
}

/// Filters of L1 norm 7, 0 and 2, at distances 5, 2 and the root of 29.
#[test]
fn filters_score_by_their_share_of_the_layers_mean() {
    let (graph, first, coupling) = filters([[3.0, 0.0, -4.0], [0.0; 3], [0.0, -2.0, 0.0]]);
    let far = 29.0_f64.sqrt();
    let mean = (14.0 + 2.0 * far) / 3.0;
    for (criterion, expected) in [
        (Criterion::L1Filter, [7.0 / 3.0, 0.0, 2.0 / 3.0]),
        (Criterion::Fpgm, [5.0 + far, 7.0, 2.0 + far].map(|sum| sum / mean)),
    ] {
        let settings = Importance { criterion, ..Importance::default() };
        let scores = importance::scores(&graph, &coupling, &settings, &Sensitivity::default()).unwrap();
        for (&class, expected) in coupling.channels(first).iter().zip(expected) {
            assert!((scores[class] - expected).abs() < 1e-6, "{criterion:?}: {} for {expected}", scores[class]);
        }
    }
}

/// All weights of two channels that a sum ties together, added up by hand.
#[test]
fn norms_of_groups_count_everything_that_is_tied() {
    let mut b = Builder::new(2);
    let first = b.conv(0, 2, 1, 1, 1, false);
    let norm = b.norm(first);
    let second = b.conv(norm, 2, 1, 1, 1, false);
    let inner = b.norm(second);
    let add = b.push("add", Op::Add, vec![norm, inner]);
    let reader = b.conv(add, 1, 1, 1, 1, true);
    b.finish(true);
    for (conv, weights) in
        [(first, &[1.0, 2.0, 2.0, 0.0, 3.0, 4.0][..]), (second, &[1.0, 2.0, 3.0, 1.0]), (reader, &[2.0, 1.0])]
    {
        if let Op::Conv(conv) = &mut b.graph.nodes[conv].op {
            conv.weight.data.copy_from_slice(weights);
        }
    }
    set_gammas(&mut b.graph, norm, &[1.0, 2.0]);
    set_gammas(&mut b.graph, inner, &[0.5, 1.0]);
    let coupling = Coupling::of(&b.graph).unwrap();
    // Squares: 29.25 and 46.
    for (criterion, expected) in
        [(Criterion::GroupNorm, [29.25 / 37.625, 46.0 / 37.625]), (Criterion::Lamp, [29.25 / 75.25, 1.0])]
    {
        let settings = Importance { criterion, ..Importance::default() };
        let scores = importance::scores(&b.graph, &coupling, &settings, &Sensitivity::default()).unwrap();
        for (&class, expected) in coupling.channels(first).iter().zip(expected) {
            assert!((scores[class] - expected).abs() < 1e-9, "{criterion:?}: {} for {expected}", scores[class]);
        }
    }
}

/// A step of several classes goes when its most important one would.
#[test]
fn a_step_is_as_important_as_its_most_important_class() {
    let (graph, _, third) = residual([&[0.1, 0.9, 2.0, 2.0], &[0.1, 0.9, 2.0, 2.0], &[0.5, 2.0, 2.0]]);
    let coupling = Coupling::of(&graph).unwrap();
    let limits = Limits { multiple: Multiple::Of(2), ..LOOSE };
    let settings = Importance { limits, ..Importance::default() };
    let plan = importance::plan(&graph, &coupling, &settings, &target(&graph, &coupling, 0.05)).unwrap();
    let gone: Vec<_> = plan.removals.iter().map(|r| r.members[0].clone()).collect();
    assert_eq!(gone, [(graph.nodes[third].name.clone(), 0)]);
}

/// The definition, reader by reader, on a network with channels whose variance is known (gamma squared) and others (1).
#[test]
fn the_output_error_is_its_definition() {
    let mut b = Builder::new(4);
    let bare = b.conv(0, 2, 3, 1, 1, true);
    let conv = b.conv(0, 3, 3, 1, 1, false);
    let norm = b.norm(conv);
    let both = b.push("concat", Op::Concat, vec![norm, bare]);
    let readers = [b.conv(both, 4, 3, 1, 1, false), b.conv(both, 3, 1, 1, 1, true)];
    let behind = b.norm(readers[0]);
    b.finish(true);
    let coupling = Coupling::of(&b.graph).unwrap();
    let settings = Importance { criterion: Criterion::OutputError, ..Importance::default() };
    let (Op::BatchNorm(own), Op::BatchNorm(after)) = (&b.graph.nodes[norm].op, &b.graph.nodes[behind].op) else {
        panic!("two BatchNorms")
    };
    let minds = vec![0.5, 2.0, 3.0, 0.1];
    for minded in [false, true] {
        let outputs = minded.then(|| (readers[0], minds.clone())).into_iter().collect();
        let measured = Sensitivity { outputs, ..Sensitivity::default() };
        let mut expected = [0.0; 5];
        for reader in readers {
            let Op::Conv(conv) = &b.graph.nodes[reader].op else { panic!("a convolution") };
            let taps = conv.kernel()[0].pow(2);
            let counts = |o: usize| match reader == readers[0] {
                true if minded => minds[o],
                true => f64::from(after.gamma[o]).powi(2) / f64::from(after.var[o] + after.eps),
                false => 1.0,
            };
            let heard = |i: usize| {
                let of = |o: usize| {
                    let filter = &conv.weight.outer(o)[i * taps..][..taps];
                    counts(o) * filter.iter().map(|w| f64::from(w * w)).sum::<f64>()
                };
                let variance = if i < 3 { f64::from(own.gamma[i]).powi(2) } else { 1.0 };
                variance * (0..conv.out_channels()).map(of).sum::<f64>()
            };
            let all: f64 = if minded && reader == readers[0] { 1.0 } else { (0..5).map(heard).sum() };
            expected.iter_mut().enumerate().for_each(|(i, sum)| *sum += heard(i) / all);
        }
        let scores = importance::scores(&b.graph, &coupling, &settings, &measured).unwrap();
        for (&class, expected) in coupling.channels(both).iter().zip(expected) {
            assert!((scores[class] - expected).abs() < 1e-5 * expected, "{minded}: {} for {expected}", scores[class]);
        }
    }
}

#[test]
fn nothing_takes_the_place_of_what_shall_not_be_filled() {
    let (graph, ..) = residual(GAMMAS);
    let coupling = Coupling::of(&graph).unwrap();
    let constants = |fill: Fill| {
        let settings = Importance { fill, limits: LOOSE, ..Importance::default() };
        let plan = importance::plan(&graph, &coupling, &settings, &target(&graph, &coupling, 0.3)).unwrap();
        plan.compensations.iter().flat_map(|c| &c.rows).map(|row| row.constant).collect::<Vec<_>>()
    };
    assert!(constants(Fill::Constant).iter().all(|&c| c != 0.0));
    assert!(constants(Fill::Nothing).iter().all(|&c| c == 0.0) && !constants(Fill::Nothing).is_empty());
}

#[test]
fn a_seed_decides_a_random_order() {
    let (graph, ..) = residual(GAMMAS);
    let coupling = Coupling::of(&graph).unwrap();
    let plan = |seed| {
        let settings = Importance { criterion: Criterion::Random { seed }, limits: LOOSE, ..Importance::default() };
        importance::plan(&graph, &coupling, &settings, &target(&graph, &coupling, 0.5)).unwrap()
    };
    assert_eq!(plan(1), plan(1));
    assert!((2..20).any(|seed| plan(seed).removals != plan(1).removals));
}

#[test]
fn a_plan_for_another_graph_is_refused() {
    let (graph, first, _) = residual(GAMMAS);
    let coupling = Coupling::of(&graph).unwrap();
    let settings = Importance { limits: LOOSE, ..Importance::default() };
    let plan = importance::plan(&graph, &coupling, &settings, &target(&graph, &coupling, 0.3)).unwrap();
    let slim = surgery::apply(&graph, &plan).unwrap();
    let refused = |plan: &prune::Plan, graph: &Graph| surgery::apply(graph, plan).unwrap_err().to_string();
    assert!(refused(&plan, &slim).contains("does not fit"));
    let mut torn = plan.clone();
    torn.removals.iter_mut().for_each(|r| r.members.truncate(1));
    assert!(refused(&torn, &graph).contains("coupled"));
    let mut beyond = plan.clone();
    beyond.removals[0].members[0].1 = 4;
    assert!(refused(&beyond, &graph).contains("no channel 4"));
    let mut pinned = plan.clone();
    let last = graph.nodes.len() - 2;
    pinned.removals[0].members = vec![(graph.nodes[last].name.clone(), 0)];
    assert!(refused(&pinned, &graph).contains("has to stay"));
    let mut stood_in = plan.clone();
    stood_in.compensations[0].rows[0].stand_ins.push((4, 1.0));
    assert!(refused(&stood_in, &graph).contains("4 channels"));
    let mut unknown = plan.clone();
    unknown.removals[0].members[0].0 = "nowhere".into();
    assert!(refused(&unknown, &graph).contains("nowhere"));
    let mut all = plan.clone();
    all.removals = (0..4)
        .map(|channel| {
            let class = &coupling.classes[coupling.channels(first)[channel]];
            let members = class.members.iter().map(|s| (graph.nodes[s.node].name.clone(), s.channel)).collect();
            prune::Removal { score: 0.0, members }
        })
        .collect();
    assert!(refused(&all, &graph).contains("without channels"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// The budget is met, and not overshot: without the last step it would not be.
    #[test]
    fn removal_stops_exactly_where_the_budget_is_met(
        recipe in recipes(14),
        params in prop::option::of(0.2..1.0_f64),
        macs in 0.2..1.0_f64,
    ) {
        let graph = recipe.build().graph;
        let coupling = Coupling::of(&graph).unwrap();
        let size = Size::of(&graph, &coupling).unwrap();
        let target = Budget { params, macs: Some(macs), ..Budget::default() }.target(size).unwrap();
        let settings = Importance { limits: LOOSE, ..Importance::default() };
        let plan = importance::plan(&graph, &coupling, &settings, &target).unwrap();
        prop_assert_eq!(plan.stop == Stop::Met, target.met(plan.after));
        if let (Stop::Met, Some(last)) = (plan.stop, plan.removals.last()) {
            let mut shorter = plan.clone();
            shorter.removals.pop();
            let names: Vec<&str> = last.members.iter().map(|(node, _)| node.as_str()).collect();
            let slim = surgery::apply(&graph, &shorter).unwrap();
            let size = Size::of(&slim, &Coupling::of(&slim).unwrap()).unwrap();
            prop_assert!(!target.met(size), "{names:?} need not have gone");
        }
    }

    #[test]
    fn every_tensor_keeps_a_multiple_and_is_never_emptied(recipe in recipes(14), multiple in 1..4_usize, rate in 0.3..0.99_f64) {
        let graph = recipe.build().graph;
        let coupling = Coupling::of(&graph).unwrap();
        let settings = Importance { limits: Limits { multiple: Multiple::Of(multiple), ..LOOSE }, ..Importance::default() };
        let plan = importance::plan(&graph, &coupling, &settings, &target(&graph, &coupling, rate)).unwrap();
        let slim = surgery::apply(&graph, &plan).unwrap();
        let (before, after) = (graph.shapes(graph.meta.imgsz).unwrap(), slim.shapes(graph.meta.imgsz).unwrap());
        for (id, set) in coupling.sets.iter().enumerate() {
            for &(node, _) in &set.carried {
                let kept = after[node].c;
                prop_assert!(kept > 0 || before[node].c == 0);
                let alone = coupling.sets_of(node) == [id];
                prop_assert!(!alone || kept == before[node].c || kept % multiple == 0, "{kept} of {multiple}s");
            }
        }
    }
}

#[test]
fn taylor_asks_for_a_measurement_and_follows_it() {
    let (graph, ..) = residual(GAMMAS);
    let coupling = Coupling::of(&graph).unwrap();
    let settings = Importance { criterion: Criterion::Taylor, ..Importance::default() };
    let error = importance::scores(&graph, &coupling, &settings, &Sensitivity::default()).unwrap_err().to_string();
    assert!(error.contains("criterion"), "{error}");
    let norms = (0..graph.nodes.len()).filter(|&id| matches!(graph.nodes[id].op, Op::BatchNorm(_)));
    let gates = norms.map(|id| (id, (0..coupling.channels(id).len()).map(|c| 1.0 + c as f64).collect())).collect();
    let mut measured = Sensitivity { gates, ..Sensitivity::default() };
    let scores = importance::scores(&graph, &coupling, &settings, &measured).unwrap();
    for (class, score) in
        coupling.classes.iter().zip(&scores).filter(|(c, _)| c.pinned.is_none() && !c.norms.is_empty())
    {
        let most = class.norms.iter().map(|site| 1.0 + site.channel as f64).fold(0.0, f64::max);
        assert_eq!(*score, most, "the largest of its members'");
    }
    measured.gates.values_mut().next().unwrap()[0] = f64::NAN;
    assert!(importance::scores(&graph, &coupling, &settings, &measured).unwrap_err().to_string().contains("gradient"));
}

/// With the loss's own word, a reader nobody minds costs nothing, however loud its input.
#[test]
fn a_reader_the_loss_does_not_mind_costs_nothing() {
    let (graph, first, third) = residual(GAMMAS);
    let coupling = Coupling::of(&graph).unwrap();
    let settings = Importance { criterion: Criterion::OutputError, ..Importance::default() };
    let convs = (0..graph.nodes.len()).filter_map(|id| match &graph.nodes[id].op {
        Op::Conv(conv) => Some((id, conv.out_channels())),
        _ => None,
    });
    let readers = |channel: usize| {
        let class = &coupling.classes[coupling.channels(first)[channel]];
        class.consumers.iter().map(|site| site.node).collect::<Vec<_>>()
    };
    let outputs = convs.map(|(id, o)| (id, vec![if readers(0).contains(&id) { 0.0 } else { 1.0 }; o])).collect();
    let measured = Sensitivity { outputs, ..Sensitivity::default() };
    let scores = importance::scores(&graph, &coupling, &settings, &measured).unwrap();
    assert_eq!(scores[coupling.channels(first)[0]], 0.0);
    let class = coupling.channels(third)[0];
    assert_eq!(
        scores[class] > 0.0,
        !readers(0).iter().any(|r| coupling.classes[class].consumers.iter().any(|s| s.node == *r))
    );
}

#[test]
fn a_filter_that_is_a_multiple_of_another_merges_without_loss() {
    let mut b = Builder::new(5);
    let conv = b.conv(0, 4, 3, 1, 1, false);
    let norm = b.norm(conv);
    if let Op::Conv(conv) = &mut b.graph.nodes[conv].op {
        let (first, rest) = conv.weight.data.split_at_mut(3 * 9);
        first.iter_mut().zip(rest).for_each(|(a, b)| *a = 0.1 * *b);
    }
    if let Op::BatchNorm(bn) = &mut b.graph.nodes[norm].op {
        bn.mean[0] = 0.1 * bn.mean[1];
        let gain = |c: usize| bn.gamma[c] / (bn.var[c] + bn.eps).sqrt();
        bn.beta[0] = 0.1 * gain(0) / gain(1) * bn.beta[1];
    }
    let act = b.act(norm, Act::Relu);
    b.conv(act, 2, 3, 1, 1, true);
    b.finish(false);
    let coupling = Coupling::of(&b.graph).unwrap();
    let image = b.image();
    let slim = |fill: Fill| {
        let settings = Importance { criterion: Criterion::L1Filter, limits: LOOSE, fill, ..Importance::default() };
        let plan = importance::plan(&b.graph, &coupling, &settings, &target(&b.graph, &coupling, 0.25)).unwrap();
        assert_eq!(plan.removals.iter().map(|r| r.members[0].1).collect::<Vec<_>>(), [0]);
        surgery::apply(&b.graph, &plan).unwrap()
    };
    let apart = |slim: Graph| difference(&outputs(&slim, &image), &outputs(&b.graph, &image));
    assert!(apart(slim(Fill::Merged)) < 1e-6);
    assert!(apart(slim(Fill::Nothing)) > 1e-3);
}
