//! Budgets in bytes and in milliseconds: what a plan predicts is what is counted on the result, and it is enough.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Builder, LOOSE, calibrate, difference, outputs, recipes};
use graph::{Act, Graph};
use proptest::prelude::*;
use prune::latency::{Measured, Table, kind};
use prune::{
    Amount, Budget, Coupling, Criterion, Importance, Latency, Plan, Similarity, Size, Stop, importance, similarity,
    surgery,
};

/// Times as a machine might give them: something for starting, something by channel in and out, something by product.
fn times(graph: &Graph, [a, b, c, d]: [f64; 4]) -> Latency {
    let shapes = graph.shapes(graph.meta.imgsz).unwrap();
    let readers = graph.consumers();
    let counts = vec![1, 2, 3, 5, 8, 13, 40];
    let nanos = counts.iter().flat_map(|&i| counts.iter().map(move |&o| (i, o)));
    let nanos = nanos.map(|(i, o)| a + b * i as f64 + c * o as f64 + d * (i * o) as f64).collect();
    let table = Table::try_from(Measured { inputs: counts.clone(), outputs: counts, nanos }).unwrap();
    let kinds = (0..graph.nodes.len()).filter_map(|id| kind(graph, &readers, &shapes, id));
    let tables: BTreeMap<String, Table> = kinds.map(|kind| (kind, table.clone())).collect();
    Latency::fit(tables, graph, 5e6, 1e6).unwrap()
}

fn stage(first: bool, b: &mut Builder, coupling: &Coupling, target: &prune::Target) -> Plan {
    if first {
        let settings = Importance { criterion: Criterion::OutputError, limits: LOOSE, ..Importance::default() };
        return importance::plan(&b.graph, coupling, &settings, target).unwrap();
    }
    let images: Vec<_> = (0..4).map(|_| b.image()).collect();
    let statistics = calibrate(&b.graph, coupling, &images);
    let settings = Similarity { threshold: 0.0, limits: LOOSE, ..Similarity::default() };
    similarity::plan(&b.graph, coupling, &statistics, &settings, target).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn a_plan_meets_its_budget_of_bytes_and_time_as_counted_on_the_result(
        recipe in recipes(12),
        bytes in prop::option::of(0.3..1.0_f64),
        share in 0.4..1.0_f64,
        first: bool,
        slope in prop::array::uniform4(0.1..100.0_f64),
    ) {
        let mut b = recipe.build();
        let latency = Arc::new(times(&b.graph, slope));
        let coupling = Coupling::of(&b.graph).unwrap();
        let size = Size::timed(&b.graph, &coupling, Some(&latency)).unwrap();
        let budget = Budget {
            bytes: bytes.map(|share| Amount::Absolute((share * size.bytes as f64).round())),
            latency: Some(Amount::Share(share)),
            ..Budget::default()
        };
        let target = budget.timed_target(size, Some(Arc::clone(&latency))).unwrap();
        let plan = stage(first, &mut b, &coupling, &target);
        prop_assert_eq!(plan.stop == Stop::Met, target.met(plan.after));
        if plan.stop == Stop::Met {
            prop_assert!(plan.after.nanos as f64 <= share * size.nanos as f64 + 1.0);
        }
        let slim = surgery::apply(&b.graph, &plan).unwrap();
        let counted = Size::timed(&slim, &Coupling::of(&slim).unwrap(), Some(&latency)).unwrap();
        prop_assert_eq!(Size { channels: plan.after.channels, ..counted }, plan.after);
    }
}

fn small() -> Graph {
    let mut b = Builder::new(3);
    let first = b.block(0, 10, 3);
    let second = b.block(first, 20, 1);
    let _ = b.act(second, Act::Relu);
    b.finish(false);
    b.graph
}

#[test]
fn the_measured_network_takes_what_it_took() {
    let graph = small();
    let latency = times(&graph, [7.0, 3.0, 2.0, 0.5]);
    let total = latency.total(&graph).unwrap();
    assert!(total.abs_diff(6_000_000) <= graph.nodes.len() as u64, "{total} ns, rounded node by node");
    let parts = latency.parts(&graph).unwrap();
    assert!(parts.windows(2).all(|w| w[0].1 >= w[1].1) && parts.iter().any(|(kind, _)| kind == "head and start"));
    let again: Latency = serde_json::from_str(&serde_json::to_string(&latency).unwrap()).unwrap();
    assert_eq!(again, latency, "what is stored is what was measured");
}

#[test]
fn two_detectors_tell_what_every_image_costs_from_what_channels_cost() {
    let mut b = Builder::new(3);
    let first = b.block(0, 10, 3);
    b.block(first, 20, 1);
    b.finish(false);
    let (coupling, latency) = (Coupling::of(&b.graph).unwrap(), times(&b.graph, [7.0, 3.0, 2.0, 0.5]));
    let target =
        Budget { macs: Some(0.4), ..Budget::default() }.target(Size::of(&b.graph, &coupling).unwrap()).unwrap();
    let plan = stage(true, &mut b, &coupling, &target);
    let slim = surgery::apply(&b.graph, &plan).unwrap();
    let [whole, left] = [&b.graph, &slim].map(|graph| latency.total(graph).unwrap() as f64);
    let near = |latency: &Latency, graph: &Graph, nanos: f64| {
        let total = latency.total(graph).unwrap() as f64;
        assert!(
            (total - nanos).abs() <= 2.0 * graph.nodes.len() as f64,
            "{total} ns for {nanos}, rounded node by node"
        );
    };
    for nanos in [left, 1.05 * left, 0.95 * left] {
        let corrected = latency.corrected(&b.graph, &slim, nanos).unwrap().expect("faster than the dense one");
        near(&corrected, &slim, nanos);
        near(&corrected, &b.graph, whole);
    }
    // Less than channels alone account for: nothing is left for every image, and the dense detector stays what it was.
    let least = latency.corrected(&b.graph, &slim, 0.01 * left).unwrap().expect("faster than the dense one");
    assert_eq!(least.fixed, 0.0);
    near(&least, &b.graph, whole);
    assert_eq!(latency.corrected(&b.graph, &slim, whole).unwrap(), None, "no faster than the dense one");
}

#[test]
fn bytes_are_those_of_the_native_file() {
    let graph = small();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.safetensors");
    graph::format::save(&graph, &file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    // safetensors: eight bytes say how long the header is that follows.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let size = Size::of(&graph, &Coupling::of(&graph).unwrap()).unwrap();
    assert_eq!(size.bytes, bytes.len() as u64 - 8 - header);
}

#[test]
fn times_of_another_network_are_refused() {
    let latency = times(&small(), [1.0; 4]);
    let mut b = Builder::new(0);
    b.block(0, 10, 5);
    b.finish(false);
    let error = latency.total(&b.graph).unwrap_err().to_string();
    assert!(error.contains("conv 5x5"), "{error}");
    let damaged = serde_json::to_string(&latency).unwrap().replacen("\"inputs\":[1", "\"inputs\":[99", 1);
    assert!(serde_json::from_str::<Latency>(&damaged).is_err());
}

/// A stem and one residual block of two convolutions for each of `widths`.
fn residual(seed: u64, widths: &[usize]) -> Builder {
    let mut b = Builder::new(seed);
    let mut stream = b.block(0, 5, 3);
    for &width in widths {
        let hidden = b.block(stream, width, 3);
        let out = b.block(hidden, 5, 1);
        stream = b.push("add", graph::Op::Add, vec![stream, out]);
    }
    b.finish(false);
    b
}

fn by_time(b: &mut Builder, share: f64, slope: [f64; 4], shortcuts: bool) -> (Plan, Latency) {
    let latency = times(&b.graph, slope);
    let coupling = Coupling::of(&b.graph).unwrap();
    let size = Size::timed(&b.graph, &coupling, Some(&latency)).unwrap();
    let budget = Budget { latency: Some(Amount::Share(share)), ..Budget::default() };
    let target = budget.timed_target(size, Some(Arc::new(latency.clone()))).unwrap();
    (span(b, &coupling, &target, shortcuts), latency)
}

fn span(b: &mut Builder, coupling: &Coupling, target: &prune::Target, shortcuts: bool) -> Plan {
    b.rng = rand::SeedableRng::seed_from_u64(9);
    let images: Vec<_> = (0..4).map(|_| b.image()).collect();
    let statistics = calibrate(&b.graph, coupling, &images);
    let settings = Similarity { limits: LOOSE, shortcuts, ..Similarity::default() };
    similarity::plan(&b.graph, coupling, &statistics, &settings, target).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn branches_that_go_whole_are_counted_as_they_are(
        seed: u64,
        widths in prop::collection::vec(1..9_usize, 1..5),
        share in 0.2..1.0_f64,
        slope in prop::array::uniform4(0.1..100.0_f64),
    ) {
        let mut b = residual(seed, &widths);
        let (plan, latency) = by_time(&mut b, share, slope, true);
        let slim = surgery::apply(&b.graph, &plan).unwrap();
        let counted = Size::timed(&slim, &Coupling::of(&slim).unwrap(), Some(&latency)).unwrap();
        prop_assert_eq!(counted, plan.after);
        prop_assert_eq!(slim.residual_branches().len(), widths.len() - plan.shortcuts.len());
        let masked = surgery::mask(&b.graph, &plan).unwrap();
        let image = b.image();
        let error = difference(&outputs(&slim, &image), &outputs(&masked, &image));
        prop_assert!(error < 1e-9, "outputs differ by {error}");
    }
}

#[test]
fn where_channels_save_no_time_branches_do() {
    let mut b = residual(1, &[4, 6]);
    let (plan, _) = by_time(&mut b, 0.8, [100.0, 0.0, 0.0, 0.0], true);
    assert_eq!((plan.stop, plan.removals.len(), plan.shortcuts.len()), (Stop::Met, 0, 1), "{plan}");
    let (without, _) = by_time(&mut b, 0.8, [100.0, 0.0, 0.0, 0.0], false);
    assert_eq!((without.stop, without.shortcuts.len()), (Stop::Limits, 0), "{without}");
}

/// Channel by channel or all at once, a branch costs the same.
#[test]
fn a_branch_costs_what_its_channels_cost_one_after_another() {
    let mut b = residual(2, &[4]);
    let at_once = by_time(&mut b, 0.5, [100.0, 0.0, 0.0, 0.0], true).0;
    let coupling = Coupling::of(&b.graph).unwrap();
    let size = Size::of(&b.graph, &coupling).unwrap();
    let target = Budget { macs: Some(1e-9), ..Budget::default() }.target(size).unwrap();
    let slowly = span(&mut b, &coupling, &target, true);
    let add = &at_once.shortcuts[0].add;
    let hidden = &b.graph.nodes[4].name;
    let before: Vec<f32> =
        slowly.removals.iter().filter(|r| r.members.iter().any(|(node, _)| node == hidden)).map(|r| r.score).collect();
    let last = slowly.shortcuts.iter().find(|s| s.add == *add).expect("goes too");
    assert!(!before.is_empty(), "nothing went before it: {slowly}");
    let (sum, whole) = (before.iter().sum::<f32>() + last.score, at_once.shortcuts[0].score);
    assert!((sum - whole).abs() < 1e-4 * whole, "{sum} one by one, {whole} at once");
}
