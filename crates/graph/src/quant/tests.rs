//! Which maps become bytes, and that what is wrong is refused.

use super::*;
use crate::build::Yolov5;
use crate::reference::Map;
use crate::{
    Act, AnchorHead, AnchorLevel, Attention, BatchNorm, BoxDecode, Family, Head, MaxPool, Meta, Shape, Tensor,
};

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
fn what_a_leaky_rectifier_next_to_a_depthwise_convolution_reads_stays_f32() {
    let meta = Meta { family: Family::Other, names: vec!["a".into()], imgsz: [8, 8] };
    let mut graph = Graph::new(meta, 3);
    let conv = |o: usize, i: usize, groups: usize| {
        let weight = Tensor::zeros([o, i / groups, 1, 1]);
        Op::Conv(Conv { weight, bias: Some(vec![0.0; o]), stride: [1, 1], pad: [0, 0], groups })
    };
    let mut x = 0;
    for (name, op) in [
        ("before", conv(4, 3, 1)),
        ("leaky1", Op::Act(Act::Leaky)),
        ("depthwise", conv(4, 4, 4)),
        ("leaky2", Op::Act(Act::Leaky)),
        ("beyond", conv(4, 4, 1)),
        ("leaky3", Op::Act(Act::Leaky)),
        ("attention", Op::Attention(Attention { heads: 1, key: 1, value: 2, areas: 1 })),
        ("last", conv(6, 2, 1)),
    ] {
        x = graph.push(name, op, vec![x]);
    }
    let level = AnchorLevel { stride: 1, anchors: vec![[5.0, 9.0]], decode: BoxDecode::V5 };
    graph.push("head", Op::Head(Head::Anchor(AnchorHead { classes: 1, levels: vec![level] })), vec![x]);
    graph.validate().unwrap();
    // `before` is read by a rectifier that the depthwise one reads, `depthwise` is that one itself, `last` is the head's.
    let expected = [Some(0), None, Some(2), None, Some(4), Some(5), Some(6), Some(7), None, None];
    assert_eq!(sites(&graph), expected);
}

/// What a runtime does with bytes: sums of whole numbers, one product with the scales, a table for the sigmoid.
#[test]
fn the_slow_executor_computes_what_whole_numbers_do() {
    let graph = small();
    let quantized = Quantized::new(graph.clone(), maps(&graph)).unwrap();
    let shape = Shape { c: 3, h: 8, w: 8 };
    let image = Map { shape, data: (0..192).map(|i| (f64::from(i) * 0.618).fract()).collect() };
    let found = quantized.forward(&image).unwrap();

    let parts = |id: NodeId| {
        let Affine { scale, zero } = quantized.map(id).unwrap();
        (f64::from(scale), i64::from(zero))
    };
    let bytes = |id: NodeId, values: &[f64]| -> Vec<i64> {
        let (scale, zero) = parts(id);
        values.iter().map(|v| ((v / scale).round_ties_even() as i64 + zero).clamp(0, 255)).collect()
    };
    // The 8x8 maps of convolution `id`, from the bytes of what it reads.
    let sums = |id: NodeId, map: &[i64]| -> Vec<f64> {
        let Op::Conv(conv) = &graph.nodes[id].op else { panic!("node {id} is no convolution") };
        let whole = quantized.conv(id).unwrap().unwrap();
        let (scale, zero) = parts(graph.nodes[id].inputs[0]);
        let ([k, _], inputs) = (conv.kernel(), conv.in_channels());
        let value = |at: usize| {
            let (o, y, x) = (at / 64, at / 8 % 8, at % 8);
            let mut sum = whole.bias.as_ref().map_or(0, |b| i64::from(b[o]));
            for tap in 0..inputs * k * k {
                let (i, row, column) = (tap / (k * k), y + tap / k % k, x + tap % k);
                // What is padded stands for 0.
                if (k / 2..8 + k / 2).contains(&row) && (k / 2..8 + k / 2).contains(&column) {
                    let q = map[(i * 8 + row - k / 2) * 8 + column - k / 2];
                    sum += (q - zero) * i64::from(whole.filters.values[o * inputs * k * k + tap]);
                }
            }
            let left = if whole.bias.is_none() { f64::from(conv.bias.as_ref().unwrap()[o]) } else { 0.0 };
            sum as f64 * scale * f64::from(whole.filters.scales[o]) + left
        };
        (0..conv.out_channels() * 64).map(value).collect()
    };
    let silu = |q: &i64| {
        let (scale, zero) = parts(1);
        let x = (q - zero) as f64 * scale;
        x * (255.0 / (1.0 + (-x).exp())).round_ties_even() / 255.0
    };
    let largest = |map: &[i64], at: usize| -> i64 {
        let (c, y, x) = (at / 64, at / 8 % 8, at % 8);
        let near = |to: usize| to.saturating_sub(1)..=(to + 1).min(7);
        near(y).flat_map(|y| near(x).map(move |x| (c * 8 + y) * 8 + x)).map(|i| map[i]).max().unwrap()
    };

    let images = bytes(0, &image.data);
    let a = bytes(1, &sums(1, &images));
    let gated = bytes(2, &a.iter().map(silu).collect::<Vec<_>>());
    let b = sums(3, &gated);
    let relu = bytes(4, &b.iter().map(|v| v.max(0.0)).collect::<Vec<_>>());
    let pool: Vec<i64> = (0..4 * 64).map(|at| largest(&gated, at)).collect();
    let both = [&pool[..], &relu].concat();
    let c = bytes(7, &sums(7, &both));
    let d = sums(8, &c);
    for (id, expected) in [(0, images), (1, a), (2, gated), (4, relu), (5, pool), (6, both), (7, c)] {
        assert!(bytes(id, &found[id].data) == expected, "`{}`", graph.nodes[id].name);
        // A map that says one thing everywhere would hide a mistake.
        assert!(expected.iter().collect::<std::collections::HashSet<_>>().len() > 8, "`{}`", graph.nodes[id].name);
    }
    for (id, expected) in [(3, b), (8, d)] {
        let worst = found[id].data.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, testkit::larger);
        assert!(worst < 1e-5, "`{}`: {worst}", graph.nodes[id].name);
    }
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
    let image = Map {
        shape: Shape { c: 3, h: 64, w: 64 },
        data: (0..3 * 64 * 64).map(|i| (f64::from(i) * 0.618).fract()).collect(),
    };
    let (before, after) =
        (crate::reference::forward(&graph, &image).unwrap(), crate::reference::forward(&flat, &image).unwrap());
    // Every map, not those of the head alone: what reaches them of an untrained detector's image is all but lost in biases.
    let readers = graph.consumers();
    for (id, node) in graph.nodes.iter().enumerate().filter(|&(id, _)| graph.norm_behind(&readers, id).is_none()) {
        let (a, b) = (&before[id].data, &after[place[id]].data);
        assert_eq!(a.len(), b.len(), "`{}`", node.name);
        let size = a.iter().map(|v| v.abs()).fold(0.0, testkit::larger);
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, testkit::larger);
        assert!(worst <= 1e-5 * size && worst < 1e-4, "`{}`: {worst} of {size}", node.name);
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
