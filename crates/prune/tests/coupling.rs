//! One small network per kind of coupling: what is tied to what, and what is pinned.

mod common;

use common::{Builder, IMGSZ};
use graph::{Act, Attention, Graph, MaxPool, NodeId, Op};
use prune::{Class, Coupling, Pin, prunable_gammas};

/// (nodes of the members, nodes of the consumers) of the class of a channel.
fn ties(coupling: &Coupling, node: NodeId, channel: usize) -> (Vec<NodeId>, Vec<NodeId>) {
    let class = class(coupling, node, channel);
    (class.members.iter().map(|s| s.node).collect(), class.consumers.iter().map(|s| s.node).collect())
}

fn class(coupling: &Coupling, node: NodeId, channel: usize) -> &Class {
    &coupling.classes[coupling.channels(node)[channel]]
}

fn of(b: &Builder) -> Coupling {
    Coupling::of(&b.graph).unwrap()
}

#[test]
fn a_chain_ties_nothing() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let norm = b.norm(first);
    let act = b.act(norm, Act::Silu);
    let second = b.conv(act, 5, 1, 1, 1, true);
    let coupling = of(&b);
    assert_eq!(ties(&coupling, act, 2), (vec![first], vec![second]));
    assert_eq!(class(&coupling, act, 2).norms, [prune::Site { node: norm, channel: 2 }]);
    assert_eq!(class(&coupling, 0, 0).pinned, Some(Pin::Image));
    assert_eq!(class(&coupling, second, 0).pinned, Some(Pin::Output(second)));
    assert_eq!(coupling.sets.len(), 3);
    assert_eq!(prunable_gammas(&coupling).len(), 4);
}

#[test]
fn an_addition_ties_both_sides() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let second = b.conv(first, 4, 3, 1, 1, false);
    let third = b.conv(second, 4, 3, 1, 1, false);
    let one = b.push("add", Op::Add, vec![first, second]);
    let two = b.push("add", Op::Add, vec![one, third]);
    let reader = b.conv(two, 2, 1, 1, 1, false);
    let (members, consumers) = ties(&of(&b), two, 3);
    assert_eq!(members, [first, second, third]);
    assert_eq!(consumers, [second, third, reader]);
}

#[test]
fn an_addition_of_three_ties_them_all() {
    let mut b = Builder::new(1);
    let parts = [0; 3].map(|image| b.conv(image, 4, 3, 1, 1, false));
    let sum = b.push("add", Op::Add, parts.to_vec());
    b.conv(sum, 2, 1, 1, 1, false);
    assert_eq!(ties(&of(&b), sum, 3).0, parts);
}

#[test]
fn a_concat_keeps_channels_apart_and_moves_them() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let second = b.conv(0, 3, 3, 1, 1, false);
    let inner = b.push("concat", Op::Concat, vec![second, first]);
    let outer = b.push("concat", Op::Concat, vec![inner, second]);
    let reader = b.conv(outer, 2, 1, 1, 1, false);
    let coupling = of(&b);
    assert_eq!(ties(&coupling, first, 1), (vec![first], vec![reader]));
    let places: Vec<usize> = class(&coupling, second, 2).consumers.iter().map(|s| s.channel).collect();
    assert_eq!(places, [2, 9], "a channel that is concatenated twice is read twice");
}

#[test]
fn a_slice_takes_its_part() {
    // The split of YOLOv8's C2f: the second half goes through a residual block.
    let mut b = Builder::new(1);
    let stem = b.conv(0, 6, 1, 1, 1, false);
    let left = b.push("slice", Op::Slice { start: 0, len: 3 }, vec![stem]);
    let right = b.push("slice", Op::Slice { start: 3, len: 3 }, vec![stem]);
    let block = b.conv(right, 3, 3, 1, 1, false);
    let sum = b.push("add", Op::Add, vec![right, block]);
    let all = b.push("concat", Op::Concat, vec![left, right, sum]);
    let reader = b.conv(all, 2, 1, 1, 1, false);
    let coupling = of(&b);
    assert_eq!(ties(&coupling, stem, 1), (vec![stem], vec![reader]));
    assert_eq!(ties(&coupling, stem, 4), (vec![stem, block], vec![block, reader, reader]));
    assert_eq!(coupling.sets_of(stem).len(), 2, "the halves are counted apart");
}

#[test]
fn a_depthwise_convolution_passes_channels_on() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let depthwise = b.conv(first, 4, 3, 2, 4, false);
    let norm = b.norm(depthwise);
    let reader = b.conv(norm, 2, 1, 1, 1, false);
    let coupling = of(&b);
    assert_eq!(ties(&coupling, norm, 1), (vec![first], vec![reader]));
    assert_eq!(class(&coupling, first, 1).depthwise, [prune::Site { node: depthwise, channel: 1 }]);
}

#[test]
fn pools_and_upsampling_are_transparent() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 2, 1, false);
    let pool = b.push("pool", Op::MaxPool(MaxPool { kernel: 5, stride: 1, pad: [2, 2] }), vec![first]);
    let both = b.push("concat", Op::Concat, vec![first, pool]);
    let up = b.push("up", Op::Upsample { factor: 2 }, vec![both]);
    let reader = b.conv(up, 2, 1, 1, 1, false);
    assert_eq!(ties(&of(&b), first, 0), (vec![first], vec![reader, reader]));
}

#[test]
fn the_phases_of_a_shuffled_channel_go_together() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 8, 1, 2, 1, true);
    let up = b.push("shuffle", Op::PixelShuffle { factor: 2 }, vec![first]);
    let reader = b.conv(up, 3, 3, 1, 1, false);
    let coupling = of(&b);
    assert_eq!(ties(&coupling, up, 1), (vec![first; 4], vec![reader]));
    let channels: Vec<usize> = class(&coupling, up, 1).members.iter().map(|site| site.channel).collect();
    assert_eq!(channels, [4, 5, 6, 7]);
    assert_eq!(coupling.sets[class(&coupling, up, 1).set].carried, [(first, 4), (up, 1)]);
}

#[test]
fn a_grouped_convolution_pins_both_its_sides() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let grouped = b.conv(first, 6, 3, 1, 2, false);
    b.conv(grouped, 2, 1, 1, 1, false);
    let coupling = of(&b);
    assert_eq!(class(&coupling, first, 0).pinned, Some(Pin::Grouped(grouped)));
    assert_eq!(class(&coupling, grouped, 5).pinned, Some(Pin::Grouped(grouped)));
}

#[test]
fn attention_pins_what_it_reads_and_passes_its_values_on() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let qkv = b.conv(first, 14, 1, 1, 1, false);
    let mixed = b.attention(qkv, Attention { heads: 2, key: 2, value: 3, areas: 1 });
    let reader = b.conv(mixed, 4, 1, 1, 1, false);
    let sum = b.push("add", Op::Add, vec![first, reader]);
    b.conv(sum, 2, 1, 1, 1, false);
    let coupling = of(&b);
    assert!((0..14).all(|c| class(&coupling, qkv, c).pinned == Some(Pin::Attention(mixed))));
    let names = coupling.channels(qkv);
    assert_eq!((names[0], names[8]), (names[2], names[10]), "a query meets the key of its channel");
    assert_eq!(coupling.channels(mixed), [&names[4..7], &names[11..14]].concat(), "values leave as they came");
    assert_eq!(ties(&coupling, mixed, 4), (vec![qkv], vec![reader]));
    assert_eq!(class(&coupling, first, 0).pinned, None, "what qkv reads can be pruned");
    assert_eq!(ties(&coupling, first, 1).0, [first, reader]);
    let reason = class(&coupling, qkv, 0).pinned.map(|pin| pin.reason(&b.graph)).unwrap();
    assert!(reason.contains("attended over"), "{reason}");
}

#[test]
fn what_enters_the_head_is_pinned() {
    let mut b = Builder::new(1);
    b.conv(0, 4, 3, 1, 1, false);
    b.finish(true);
    let coupling = of(&b);
    let head = b.graph.nodes.len() - 1;
    assert_eq!(class(&coupling, head - 1, 0).pinned, Some(Pin::Head(head)));
    let reason = class(&coupling, head - 1, 0).pinned.map(|pin| pin.reason(&b.graph)).unwrap();
    assert!(reason.contains("enters the head"), "{reason}");
}

#[test]
fn a_head_pins_every_map_it_reads_and_their_gammas_are_not_pressed() {
    let mut b = Builder::new(1);
    let first = b.block(0, 4, 3);
    let [boxes, classes] = [(4, "box"), (1, "class")].map(|(channels, name)| {
        let conv = b.conv(first, channels, 1, 1, 1, false);
        (conv, b.push(name, Op::Act(Act::Identity), vec![conv]))
    });
    let norm = b.norm(classes.1);
    let head = Op::Head(graph::Head::Dfl(graph::DflHead::new(1, 1, vec![1])));
    let head = b.push("head", head, vec![boxes.1, norm]);
    let coupling = of(&b);
    for conv in [boxes.0, classes.0] {
        assert_eq!(class(&coupling, conv, 0).pinned, Some(Pin::Head(head)));
    }
    assert_eq!(prunable_gammas(&coupling).iter().map(|site| site.node).collect::<Vec<_>>(), [first - 1; 4]);
}

#[test]
fn a_tensor_nobody_reads_is_pinned_but_does_not_pin_others() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 1, 1, false);
    let unread = b.conv(first, 3, 1, 1, 1, false);
    b.conv(first, 2, 1, 1, 1, false);
    let coupling = of(&b);
    assert_eq!(class(&coupling, unread, 0).pinned, Some(Pin::Output(unread)));
    assert_eq!(class(&coupling, first, 0).pinned, None);
}

#[test]
fn a_graph_that_does_not_fit_is_an_error() {
    let mut b = Builder::new(1);
    let first = b.conv(0, 4, 3, 1, 1, false);
    b.graph.push("broken", Op::Slice { start: 3, len: 2 }, vec![first]);
    assert!(b.graph.shapes(IMGSZ).is_err());
    let message = Coupling::of(&b.graph).unwrap_err().to_string();
    assert!(message.contains("broken"), "{message}");
}

#[test]
fn every_channel_belongs_to_one_set() {
    let graph: Graph = {
        let mut b = Builder::new(1);
        let first = b.block(0, 6, 3);
        let second = b.block(first, 6, 3);
        b.push("add", Op::Add, vec![first, second]);
        b.finish(true);
        b.graph
    };
    let coupling = Coupling::of(&graph).unwrap();
    let mut seen = vec![0; coupling.classes.len()];
    for (id, set) in coupling.sets.iter().enumerate() {
        for &class in &set.classes {
            seen[class] += 1;
            assert_eq!(coupling.classes[class].set, id);
        }
    }
    assert!(seen.iter().all(|&times| times == 1));
}
