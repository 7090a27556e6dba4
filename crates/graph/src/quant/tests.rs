//! Which maps become bytes, and that what is wrong is refused.

use super::*;
use crate::build::Yolov5;
use crate::{Act, AnchorHead, AnchorLevel, BatchNorm, BoxDecode, Family, Head, MaxPool, Meta, Tensor};

/// Convolutions, a rectifier, pooling, a concat of both, and a head that reads f32.
fn small() -> Graph {
    let meta = Meta { family: Family::Other, names: vec!["a".into()], imgsz: [8, 8] };
    let mut graph = Graph::new(meta, 3);
    let mut seed = 0u32;
    let mut conv = |o: usize, i: usize, k: usize| {
        let data = (0..o * i * k * k).map(|n| ((n as u32 + seed) as f32 * 0.618).fract() - 0.5).collect();
        seed += 7;
        let weight = Tensor::new([o, i, k, k], data);
        Op::Conv(Conv { weight, bias: Some(vec![0.25; o]), stride: [1, 1], pad: [k / 2; 2], groups: 1 })
    };
    let (first, second, third, last) = (conv(4, 3, 3), conv(4, 4, 1), conv(4, 8, 3), conv(6, 4, 1));
    let a = graph.push("a", first, vec![0]);
    let silu = graph.push("silu", Op::Act(Act::Silu), vec![a]);
    let b = graph.push("b", second, vec![silu]);
    let relu = graph.push("relu", Op::Act(Act::Relu), vec![b]);
    let pool = graph.push("pool", Op::MaxPool(MaxPool { kernel: 3, stride: 1, pad: [1, 1] }), vec![silu]);
    let both = graph.push("both", Op::Concat, vec![pool, relu]);
    let c = graph.push("c", third, vec![both]);
    let d = graph.push("d", last, vec![c]);
    let level = AnchorLevel { stride: 1, anchors: vec![[5.0, 9.0]], decode: BoxDecode::V5 };
    graph.push("head", Op::Head(Head::Anchor(AnchorHead { classes: 1, levels: vec![level] })), vec![d]);
    graph.validate().unwrap();
    graph
}

fn maps(graph: &Graph) -> Vec<Option<Affine>> {
    let affine = |first: NodeId| Affine { scale: 0.01 * (first + 1) as f32, zero: 8 * first as u8 };
    sites(graph).into_iter().map(|site| site.map(affine)).collect()
}

#[test]
fn maps_that_only_move_share_their_scale_and_the_head_reads_f32() {
    // images, a, silu, b, relu, pool, both, c, d, head: `b` is clipped by `relu`, whose bytes are those of the concat.
    let expected = [Some(0), Some(1), Some(2), None, Some(2), Some(2), Some(2), Some(7), None, None];
    assert_eq!(sites(&small()), expected);
}

#[test]
fn folding_leaves_no_batch_norm_and_changes_nothing() {
    let names = vec!["a".into()];
    let mut graph = Yolov5 { names, imgsz: 64, width: 0.125, depth: 0.33, seed: 3 }.build().unwrap();
    // One that stands alone: behind the first concat.
    let concat = graph.nodes.iter().position(|n| n.op == Op::Concat).unwrap();
    let channels = graph.shapes([64, 64]).unwrap()[concat].c;
    let mut alone = BatchNorm::identity(channels, 1e-3, 0.03);
    alone.gamma[0] = 1.5;
    alone.beta[1] = -0.5;
    let mut nodes = graph.nodes.split_off(concat + 1);
    graph.push("alone", Op::BatchNorm(alone), vec![concat]);
    for node in &mut nodes {
        node.inputs.iter_mut().for_each(|i| *i += usize::from(*i >= concat));
    }
    graph.nodes.extend(nodes);
    graph.validate().unwrap();

    let (flat, place) = folded(&graph);
    flat.validate().unwrap();
    assert!(flat.nodes.iter().all(|n| match &n.op {
        Op::BatchNorm(_) => false,
        Op::Conv(conv) => conv.bias.is_some(),
        _ => true,
    }));
    let image = crate::reference::Map {
        shape: crate::Shape { c: 3, h: 64, w: 64 },
        data: (0..3 * 64 * 64).map(|i| (f64::from(i) * 0.618).fract()).collect(),
    };
    let (before, after) =
        (crate::reference::forward(&graph, &image).unwrap(), crate::reference::forward(&flat, &image).unwrap());
    for &id in graph.head().unwrap().1 {
        let worst =
            before[id].data.iter().zip(&after[place[id]].data).map(|(a, b)| (a - b).abs()).fold(0.0, testkit::larger);
        assert!(worst < 1e-4, "{worst}");
    }
}

#[test]
fn a_bias_fits_32_bits_however_small_the_weights() {
    let mut graph = small();
    if let Op::Conv(conv) = &mut graph.nodes[1].op {
        conv.weight.data[..27].fill(1e-9);
        conv.weight.data[27..54].fill(0.0);
        conv.bias = Some(vec![3.0, -2.0, 0.0, 1.0]);
    }
    let maps = maps(&graph);
    let quantized = Quantized::new(graph, maps).unwrap();
    let conv = quantized.conv(1).unwrap().unwrap();
    let bias = conv.bias.unwrap();
    for (o, exact) in [3.0, -2.0, 0.0, 1.0].into_iter().enumerate() {
        let back = bias[o] as f32 * conv.bias_scales[o];
        assert!((back - exact).abs() <= 0.5 * conv.bias_scales[o] + 1e-6, "{o}: {back}");
    }
    // What is clipped keeps a whole bias, what only the head reads an f32 one.
    assert!(quantized.conv(3).unwrap().unwrap().bias.is_some());
    assert!(quantized.conv(8).unwrap().unwrap().bias.is_none());
}

#[test]
fn what_does_not_fit_is_refused() {
    let graph = small();
    let maps = maps(&graph);
    let refused = |graph: &Graph, maps: &[Option<Affine>], what: &str| {
        let error = Quantized::new(graph.clone(), maps.to_vec()).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    };
    let mut missing = maps.clone();
    missing[2] = None;
    refused(&graph, &missing, "in node `silu`");
    let mut unlike = maps.clone();
    unlike[5] = Some(Affine { scale: 1.0, zero: 0 });
    refused(&graph, &unlike, "in node `pool`");
    refused(&graph, &maps[..4], "in node `relu`");
    let mut odd = graph.clone();
    if let Op::Conv(conv) = &mut odd.nodes[3].op {
        conv.weight.data[5] = f32::NAN;
    }
    refused(&odd, &maps, "`weight` holds NaN at index 5");
    if let Op::Conv(conv) = &mut odd.nodes[3].op {
        conv.bias = None;
    }
    refused(&odd, &maps, "before BatchNorm is folded");
}
