//! The executor against the slow reference, and its gradients against finite differences, on a graph that has every
//! trap of planning: nested concats, slices in concats, a map read by several steps, one map twice in a concat.

use graph::reference::{self, Map};
use graph::{Act, Attention, BatchNorm, Conv, Family, Graph, MaxPool, Meta, NodeId, Op, Shape, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use train::Gradients;
use train::net::{BnUpdate, Infer, TrainNet};

struct Build {
    graph: Graph,
    rng: ChaCha8Rng,
}

impl Build {
    fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.rng.random_range(-scale..scale)).collect()
    }

    fn conv(&mut self, from: NodeId, [i, o]: [usize; 2], k: usize, stride: usize, groups: usize) -> NodeId {
        let scale = 1.5 / ((i / groups * k * k) as f32).sqrt();
        let weight = Tensor::new([o, i / groups, k, k], self.values(o * i / groups * k * k, scale));
        let conv = Conv { weight, bias: None, stride: [stride; 2], pad: [k / 2; 2], groups };
        let name = format!("n{}", self.graph.nodes.len());
        self.graph.push(name, Op::Conv(conv), vec![from])
    }

    fn block(&mut self, from: NodeId, io: [usize; 2], k: usize, stride: usize, groups: usize, act: Act) -> NodeId {
        let conv = self.conv(from, io, k, stride, groups);
        let c = io[1];
        let mut bn = BatchNorm::identity(c, 1e-3, 0.03);
        bn.gamma = self.values(c, 0.5).iter().map(|v| 1.0 + v).collect();
        bn.beta = self.values(c, 0.5);
        bn.mean = self.values(c, 0.5);
        bn.var = self.values(c, 0.5).iter().map(|v| 1.0 + v).collect();
        let bn = self.push(Op::BatchNorm(bn), vec![conv]);
        self.push(Op::Act(act), vec![bn])
    }

    fn push(&mut self, op: Op, inputs: Vec<NodeId>) -> NodeId {
        let name = format!("n{}", self.graph.nodes.len());
        self.graph.push(name, op, inputs)
    }
}

/// With corners (leaky ReLU, ReLU6, overlapping pools), as detectors have, or smooth, so that differences are derivatives.
#[derive(Clone, Copy, PartialEq)]
enum Corners {
    Sharp,
    None,
}

fn graph(corners: Corners) -> Graph {
    let sharp = corners == Corners::Sharp;
    let act = |act| if sharp { act } else { Act::Silu };

    let meta = Meta { family: Family::Other, names: vec![], imgsz: [16, 16] };
    let mut b = Build { graph: Graph::new(meta, 3), rng: ChaCha8Rng::seed_from_u64(7) };
    let stem = b.block(0, [3, 10], 3, 2, 1, Act::Silu);
    // C2f: halves of a map, a residual bottleneck on one, everything joined again.
    let left = b.push(Op::Slice { start: 0, len: 5 }, vec![stem]);
    let right = b.push(Op::Slice { start: 5, len: 5 }, vec![stem]);
    let inner = b.block(right, [5, 5], 3, 1, 1, act(Act::Leaky));
    let sum = b.push(Op::Add, vec![right, inner]);
    let c2f = b.push(Op::Concat, vec![left, right, sum]);
    let dw = b.block(c2f, [15, 15], 3, 1, 15, act(Act::Relu6));
    // Attention over a map of 3 heads, whose values are read a second time, as YOLO11 does.
    let qkv = b.conv(dw, [15, 24], 1, 1, 1);
    let attended = b.push(Op::Attention(Attention { heads: 3, key: 3, value: 2, areas: 2 }), vec![qkv]);
    let values = (0..3).map(|h| b.push(Op::Slice { start: 8 * h + 6, len: 2 }, vec![qkv])).collect();
    let values = b.push(Op::Concat, values);
    let place = b.block(values, [6, 6], 3, 1, 6, Act::Identity);
    let attended = b.push(Op::Add, vec![attended, place]);
    let mixed = b.block(attended, [6, 6], 1, 1, 1, Act::Mish);
    // SPPF: pools that read what lies in the same concat.
    let (kernel, pad) = if sharp { (3, [1, 1]) } else { (1, [0, 0]) };
    let pool = Op::MaxPool(MaxPool { kernel, stride: 1, pad });
    let p1 = b.push(pool.clone(), vec![mixed]);
    let p2 = b.push(pool, vec![p1]);
    let sppf = b.push(Op::Concat, vec![mixed, p1, p2]);
    let nested = b.push(Op::Concat, vec![sppf, mixed, c2f, c2f]);
    let down = b.block(nested, [54, 9], 3, 2, 1, Act::Silu);
    let up = b.push(Op::Upsample { factor: 2 }, vec![down]);
    // A transposed convolution, the map it makes read twice.
    let phases = b.conv(down, [9, 12], 1, 1, 1);
    let shuffled = b.push(Op::PixelShuffle { factor: 2 }, vec![phases]);
    let again = b.block(shuffled, [3, 3], 3, 1, 1, Act::Silu);
    let neck = b.push(Op::Concat, vec![up, nested, shuffled, again]);
    let act = b.conv(neck, [69, 7], 1, 1, 1);
    let act = b.push(Op::Act(Act::Silu), vec![act]);
    let out = b.conv(act, [7, 4], 3, 1, 1);
    if let Op::Conv(c) = &mut b.graph.nodes[out].op {
        c.bias = Some(vec![0.1, -0.2, 0.3, 0.0]);
    }
    b.graph.validate().unwrap();
    b.graph
}

fn images(n: usize) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut bytes = vec![0; n * 16 * 16 * 3];
    rng.fill_bytes(&mut bytes);
    bytes
}

#[test]
fn inference_agrees_with_the_reference() {
    let graph = graph(Corners::Sharp);
    let mut infer = Infer::new(&graph, [16, 16]).unwrap();
    for n in [2, 1, 3] {
        let bytes = images(n);
        let map = &infer.run(&bytes, n).unwrap()[0];
        for i in 0..n {
            let chw: Vec<f64> = (0..3)
                .flat_map(|c| (0..256).map(move |p| (i * 256 + p) * 3 + c))
                .map(|at| f64::from(bytes[at]) / 255.0)
                .collect();
            let image = Map { shape: Shape { c: 3, h: 16, w: 16 }, data: chw };
            let want = reference::forward(&graph, &image).unwrap().pop().unwrap();
            for c in 0..map.c {
                for p in 0..map.h * map.w {
                    let got = f64::from(map.data[(i * map.h * map.w + p) * map.c + c]);
                    let want = want.channel(c)[p];
                    assert!((got - want).abs() < 1e-4, "image {i} channel {c} pixel {p}: {got} against {want}");
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (n, bytes) = (3, images(3));
    let mut net = TrainNet::new(graph(Corners::None), [16, 16]).unwrap();
    let out = net.forward(&bytes, n, BnUpdate::Momentum).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let pull: Vec<f32> = (0..out[0].data.len()).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut gradients = Gradients::zeros(&net.graph);
    net.backward(std::slice::from_ref(&pull), &mut gradients);

    let loss = |net: &mut TrainNet| -> f64 {
        let maps = net.forward(&bytes, n, BnUpdate::Momentum).unwrap();
        maps[0].data.iter().zip(&pull).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let mut checked = 0;
    for node in 0..net.graph.nodes.len() {
        for k in 0..gradients.by_node[node].len() {
            for _ in 0..3 {
                let at = rng.random_range(0..gradients.by_node[node][k].len());
                let mut probe = |step: f32| {
                    net.graph.nodes[node].op.trainable_mut()[k].1[at] += step;
                    let value = loss(&mut net);
                    net.graph.nodes[node].op.trainable_mut()[k].1[at] -= step;
                    value
                };
                let numeric = (probe(2e-3) - probe(-2e-3)) / 4e-3;
                let got = f64::from(gradients.by_node[node][k][at]);
                let scale = 1.0 + numeric.abs();
                assert!(
                    (got - numeric).abs() < 1e-3 * scale,
                    "{} weight {k}[{at}]: backward {got}, differences {numeric}",
                    net.graph.nodes[node].name
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 45);
}

#[test]
fn two_passes_give_one_result() {
    let bytes = images(2);
    let run = || {
        let mut net = TrainNet::new(graph(Corners::Sharp), [16, 16]).unwrap();
        let mut gradients = Gradients::zeros(&net.graph);
        for _ in 0..2 {
            let maps = net.forward(&bytes, 2, BnUpdate::Momentum).unwrap();
            net.backward(&[maps[0].data.clone()], &mut gradients);
        }
        (gradients, net.graph)
    };
    assert!(run() == run());
}
