//! Budgets in bytes and in milliseconds: what a plan predicts is what is counted on the result, and it is enough.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Builder, LOOSE, calibrate, recipes};
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
