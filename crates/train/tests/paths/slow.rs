//! A second training executor: node by node over whole maps in f64, on the reference kernels. Plans nothing, shares nothing.

use graph::{BatchNorm, Conv, Graph, MaxPool, Op};
use kernels::reference::{self as slow, Map};
use kernels::{ConvShape, Pool};
use rayon::prelude::*;
use train::Gradients;
use train::net::HeadMap;

use crate::Path;

/// The graph and, after a forward pass, every node's map.
pub struct Slow {
    pub graph: Graph,
    imgsz: usize,
    maps: Vec<Map>,
}

impl Slow {
    pub fn new(graph: Graph, imgsz: usize) -> Self {
        Self { graph, imgsz, maps: vec![] }
    }

    /// The nodes whose maps the head reads.
    fn outputs(&self) -> &[usize] {
        self.graph.head().expect("a detector").1
    }
}

impl Path for Slow {
    fn graph(&mut self) -> &mut Graph {
        &mut self.graph
    }

    fn forward(&mut self, images: &[u8], n: usize) -> Vec<HeadMap> {
        let shapes = self.graph.shapes([self.imgsz; 2]).unwrap();
        self.maps.clear();
        for (node, shape) in self.graph.nodes.iter_mut().zip(&shapes) {
            let inputs: Vec<&Map> = node.inputs.iter().map(|&i| &self.maps[i]).collect();
            let out = (shape.h, shape.w);
            let map = match &node.op {
                Op::Input { channels } => {
                    let data = images.iter().map(|&b| f64::from(f32::from(b) / 255.0)).collect();
                    Map { n, h: out.0, w: out.1, c: *channels, data }
                }
                Op::Head(_) => Map::zeros(n, 0, 0, 0),
                op => forward(op, &inputs, out),
            };
            if let Op::BatchNorm(bn) = &mut node.op {
                let (mean, var) = slow::batch_stats(inputs[0]);
                update_running(bn, &mean, &var, n * out.0 * out.1);
            }
            self.maps.push(map);
        }
        let head = |&id: &usize| {
            let m = &self.maps[id];
            HeadMap { n: m.n, h: m.h, w: m.w, c: m.c, data: m.data.iter().map(|&v| v as f32).collect() }
        };
        self.outputs().iter().map(head).collect()
    }

    fn backward(&mut self, map_gradients: &[Vec<f32>], gradients: &mut Gradients) {
        let mut flow: Vec<Option<Map>> = vec![None; self.maps.len()];
        for (&id, gradient) in self.outputs().iter().zip(map_gradients) {
            arrive(&mut flow[id], Map { data: wide(gradient), ..self.maps[id].clone() });
        }
        for (id, node) in self.graph.nodes.iter().enumerate().rev() {
            let Some(dy) = flow[id].take() else { continue };
            let inputs: Vec<&Map> = node.inputs.iter().map(|&i| &self.maps[i]).collect();
            let (into, weights) = backward(&node.op, &inputs, &dy);
            for (&input, dx) in node.inputs.iter().zip(into) {
                arrive(&mut flow[input], dx);
            }
            for (sum, gained) in gradients.by_node[id].iter_mut().zip(weights) {
                sum.iter_mut().zip(gained).for_each(|(s, g)| *s += g as f32);
            }
        }
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Adds what one reader of a map sends back to what others sent.
fn arrive(at: &mut Option<Map>, dx: Map) {
    match at {
        Some(sum) => sum.data.iter_mut().zip(&dx.data).for_each(|(s, d)| *s += d),
        None => *at = Some(dx),
    }
}

fn shape(conv: &Conv) -> ConvShape {
    let (ci, co) = (conv.in_channels(), conv.out_channels());
    ConvShape { ci, co, kernel: conv.kernel(), stride: conv.stride, pad: conv.pad, groups: conv.groups }
}

fn pool(p: &MaxPool) -> Pool {
    Pool { kernel: p.kernel, stride: p.stride, pad: p.pad }
}

/// The images of a batch apart, so that convolutions of several run at a time.
fn images(x: &Map) -> Vec<Map> {
    let each = x.h * x.w * x.c;
    x.data.chunks_exact(each).map(|data| Map { n: 1, data: data.to_vec(), ..*x }).collect()
}

fn batch(images: Vec<Map>) -> Map {
    let (n, &Map { h, w, c, .. }) = (images.len(), &images[0]);
    Map { n, h, w, c, data: images.into_iter().flat_map(|m| m.data).collect() }
}

/// A map of the shape of `x` with `c` channels, each pixel filled by `f` from its number.
fn by_pixel(x: &Map, c: usize, f: impl Fn(usize, &mut Vec<f64>)) -> Map {
    let mut data = Vec::with_capacity(x.n * x.h * x.w * c);
    (0..x.n * x.h * x.w).for_each(|p| f(p, &mut data));
    Map { c, data, ..*x }
}

fn forward(op: &Op, inputs: &[&Map], out: (usize, usize)) -> Map {
    let x = inputs[0];
    match op {
        Op::Conv(conv) => {
            let (shape, w, bias) = (shape(conv), wide(&conv.weight.data), conv.bias.as_deref().map(wide));
            let one = |x: &Map| slow::conv_forward(&shape, x, &w, bias.as_deref(), out);
            batch(images(x).par_iter().map(one).collect())
        }
        Op::BatchNorm(bn) => {
            let identity = graph::Act::Identity;
            slow::bn_act_forward(x, &wide(&bn.gamma), &wide(&bn.beta), f64::from(bn.eps), identity)
        }
        Op::Act(act) => Map { data: x.data.iter().map(|&v| slow::value(*act, v)).collect(), ..*x },
        Op::Concat => by_pixel(x, inputs.iter().map(|m| m.c).sum(), |p, to| {
            inputs.iter().for_each(|m| to.extend(&m.data[p * m.c..][..m.c]));
        }),
        Op::Add => {
            let sum = |i: usize| inputs.iter().map(|m| m.data[i]).sum();
            Map { data: (0..x.data.len()).map(sum).collect(), ..*x }
        }
        Op::Upsample { factor } => slow::upsample_forward(*factor, x),
        Op::PixelShuffle { factor } => slow::shuffle_forward(*factor, x),
        Op::MaxPool(p) => slow::max_pool_forward(pool(p), x, out),
        Op::Slice { start, len } => by_pixel(x, *len, |p, to| to.extend(&x.data[p * x.c + start..][..*len])),
        Op::Attention(a) => slow::attention_forward(a, x),
        Op::Input { .. } | Op::Head(_) => unreachable!("computes nothing"),
    }
}

/// The gradients of an operator's inputs and of its weights, in the order of [`Op::trainable`].
fn backward(op: &Op, inputs: &[&Map], dy: &Map) -> (Vec<Map>, Vec<Vec<f64>>) {
    let Some(&x) = inputs.first() else { return (vec![], vec![]) };
    let alone = |dx: Map| (vec![dx], vec![]);
    match op {
        Op::Conv(conv) => {
            let (shape, w) = (shape(conv), wide(&conv.weight.data));
            let one = |(x, dy): (&Map, &Map)| {
                (slow::conv_backward_input(&shape, dy, &w, x), slow::conv_backward_weight(&shape, x, dy))
            };
            let (dx, dw): (Vec<Map>, Vec<Vec<f64>>) = images(x).par_iter().zip(images(dy).par_iter()).map(one).unzip();
            let dw = (0..w.len()).map(|i| dw.iter().map(|one| one[i]).sum()).collect();
            let weights = if conv.bias.is_some() { vec![dw, slow::sum(dy)] } else { vec![dw] };
            (vec![batch(dx)], weights)
        }
        Op::BatchNorm(bn) => {
            let (gamma, beta, eps) = (wide(&bn.gamma), wide(&bn.beta), f64::from(bn.eps));
            let (dx, dgamma, dbeta) = slow::bn_act_backward(x, dy, &gamma, &beta, eps, graph::Act::Identity);
            (vec![dx], vec![dgamma, dbeta])
        }
        Op::Act(act) => {
            let slope = |(x, d): (&f64, &f64)| d * slow::slope(*act, *x);
            alone(Map { data: x.data.iter().zip(&dy.data).map(slope).collect(), ..*x })
        }
        Op::Concat => {
            let mut first = 0;
            let part = |m: &&Map| {
                let start = first;
                first += m.c;
                by_pixel(m, m.c, |p, to| to.extend(&dy.data[p * dy.c + start..][..m.c]))
            };
            (inputs.iter().map(part).collect(), vec![])
        }
        Op::Add => (vec![dy.clone(); inputs.len()], vec![]),
        Op::Upsample { factor } => alone(slow::upsample_backward(*factor, dy, x)),
        Op::PixelShuffle { factor } => alone(slow::shuffle_backward(*factor, dy, x)),
        Op::MaxPool(p) => alone(slow::max_pool_backward(pool(p), x, dy)),
        Op::Slice { start, len } => {
            let mut dx = Map::zeros(x.n, x.h, x.w, x.c);
            for (dx, dy) in dx.data.chunks_exact_mut(x.c).zip(dy.data.chunks_exact(*len)) {
                dx[*start..start + len].copy_from_slice(dy);
            }
            alone(dx)
        }
        Op::Attention(a) => alone(slow::attention_backward(a, x, dy)),
        Op::Input { .. } | Op::Head(_) => unreachable!("no gradient reaches it"),
    }
}

/// PyTorch's rule: the biased variance normalises, the unbiased one is kept.
fn update_running(bn: &mut BatchNorm, mean: &[f64], var: &[f64], count: usize) {
    let (momentum, unbias) = (f64::from(bn.momentum), count as f64 / (count - 1) as f64);
    let moved = |old: f32, new: f64| ((1.0 - momentum) * f64::from(old) + momentum * new) as f32;
    for c in 0..mean.len() {
        bn.mean[c] = moved(bn.mean[c], mean[c]);
        bn.var[c] = moved(bn.var[c], unbias * var[c]);
    }
}
