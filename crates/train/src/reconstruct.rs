//! Reconstruction: convolution by convolution, from the image to the head, the pruned detector's weights are refitted so that
//! its maps come closest to the dense detector's, on unlabelled images (see `prune::refit`).
//!
//! Both detectors run side by side, node by node, over all images at once. A refitted convolution's output is computed anew
//! before anything reads it, so each layer makes up for what the layers before it could not.

use std::collections::BTreeMap;
use std::ops::Range;

use graph::{Act, Graph, NodeId, Op, Shape};
use kernels::{BnAct, ConvShape, Epilogue, Layout, Packed, View, ViewMut};
use prune::{Normal, refit};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::Result;
use crate::calibrate::Images;
use crate::net::{Kind, conv_shape, load_images, run_plain};

/// Positions sampled for each feature of a convolution (a tap of an input channel), and at least.
const SAMPLES: [usize; 2] = [30, 32768];

/// One image in this many only judges what the others fit.
const HELD_OUT: usize = 4;

/// A convolution that was refitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Refitted {
    pub node: String,
    /// Share of the held-out error that is left.
    pub left: f64,
    pub ridge: f64,
}

/// What is to be made alike, on which images.
pub struct Reconstruction<'a> {
    /// The detector `slim` was cut from.
    pub dense: &'a Graph,
    pub slim: &'a Graph,
    /// For every node the channels of `dense` that `slim` still has, in its order.
    pub kept: &'a [Vec<usize>],
    pub images: &'a Images,
    /// (H, W) of the images.
    pub imgsz: [usize; 2],
    pub seed: u64,
    /// How much the loss minds an error at each position (N, H, W) of each convolution's output, in any unit. Where a
    /// convolution is missing all positions count alike.
    pub focus: &'a BTreeMap<NodeId, Vec<f32>>,
}

impl Reconstruction<'_> {
    /// `slim` with refitted weights, and what was done to it. `done` is called after every node.
    ///
    /// # Errors
    /// A graph does not fit the images' size.
    pub fn run(&self, mut done: impl FnMut(usize)) -> Result<(Graph, Vec<Refitted>)> {
        let mut slim = self.slim.clone();
        let mut refitted = vec![];
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut theirs = Maps::new(self.dense, self.images, self.imgsz)?;
        let mut ours = Maps::new(&slim, self.images, self.imgsz)?;
        for id in 0..slim.nodes.len() {
            theirs.compute(self.dense, id);
            ours.compute(&slim, id);
            if matches!(&slim.nodes[id].op, Op::Conv(conv) if conv.groups == 1)
                && let Some(change) = self.change(&slim, id, &theirs, &ours, &mut rng)
            {
                refitted.push(Refitted { node: slim.nodes[id].name.clone(), left: change.left, ridge: change.ridge });
                apply(&mut slim, id, &change.change);
                ours.compute(&slim, id);
            }
            theirs.drop_read(id);
            ours.drop_read(id);
            done(id + 1);
        }
        Ok((slim, refitted))
    }

    fn change(
        &self,
        slim: &Graph,
        id: NodeId,
        theirs: &Maps,
        ours: &Maps,
        rng: &mut ChaCha8Rng,
    ) -> Option<prune::Refit> {
        let missing = missing(self.dense, slim, id, &self.kept[id], theirs, ours);
        if missing.data.iter().all(|&v| v == 0.0) {
            return None;
        }
        let n = self.images.n;
        let held_out = n / HELD_OUT;
        // Too few images to spare one: nothing would tell a good change from a bad one.
        if held_out == 0 {
            return None;
        }
        let Op::Conv(conv) = &slim.nodes[id].op else { return None };
        let features = conv.weight.shape[1..].iter().product::<usize>() + 1;
        let x = ours.of(slim.nodes[id].inputs[0]);
        let focus = self.focus.get(&id);
        let mut normal = |images: Range<usize>| {
            let plane = missing.layout.h * missing.layout.w;
            let places = images.start * plane..images.end * plane;
            let count = SAMPLES[1].max(SAMPLES[0] * features).min(places.len()).next_multiple_of(ROW);
            sums(conv, x, missing.view(), &sample(places, focus.map(Vec::as_slice), count, rng))
        };
        let fit = normal(0..n - held_out);
        let check = normal(n - held_out..n);
        let weights = match norm_after(slim, id).map(|norm| &slim.nodes[norm].op) {
            Some(Op::BatchNorm(bn)) => bn.scale_shift().0.into_iter().map(|s| f64::from(s).powi(2)).collect(),
            _ => vec![1.0; conv.out_channels()],
        };
        refit(&fit, &check, &weights)
    }
}

/// What the outputs of convolution `id` of `slim` lack of those of `dense`, both less the mean their BatchNorm subtracts.
fn missing(dense: &Graph, slim: &Graph, id: NodeId, kept: &[usize], theirs: &Maps, ours: &Maps) -> Map {
    let mean = |graph: &Graph| match norm_after(graph, id).map(|norm| &graph.nodes[norm].op) {
        Some(Op::BatchNorm(bn)) => Some(bn.mean.clone()),
        _ => None,
    };
    let (y, z) = (ours.of(id), theirs.of(id));
    let shift: Vec<f32> = match (mean(slim), mean(dense)) {
        (Some(own), Some(other)) => own.iter().zip(kept).map(|(own, &k)| own - other[k]).collect(),
        _ => vec![0.0; kept.len()],
    };
    let mut map = Map::new(Layout::dense(y.layout.n, y.layout.h, y.layout.w, kept.len()));
    map.data.par_chunks_mut(kept.len()).enumerate().for_each(|(p, to)| {
        let (y, z) = (y.pixel(p), z.pixel(p));
        for (c, to) in to.iter_mut().enumerate() {
            *to = z[kept[c]] - y[c] + shift[c];
        }
    });
    map
}

/// Share of the samples drawn where errors matter. Uniform sampling fits the background, which is most of an image.
const FOCUSED: f64 = 0.9;

/// `count` of `places`, with replacement, most of them where `focus` says that errors matter.
fn sample(places: Range<usize>, focus: Option<&[f32]>, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut total = 0.0;
    let heights: Vec<f64> = match focus {
        Some(focus) => places
            .clone()
            .map(|p| {
                total += f64::from(focus[p]);
                total
            })
            .collect(),
        None => vec![],
    };
    let anywhere = if total > 0.0 { ((1.0 - FOCUSED) * count as f64) as usize } else { count };
    let draw = |i: usize| {
        if i < anywhere {
            return rng.random_range(places.clone());
        }
        let height = rng.random_range(0.0..total);
        places.start + heights.partition_point(|&h| h <= height).min(heights.len() - 1)
    };
    (0..count).map(draw).collect()
}

/// Pixels in a row of the made-up map the samples are multiplied as.
const ROW: usize = 64;

/// Sums over `positions` (pixels of `missing`) of the products of what `conv` reads there of `x`, and 1, with each other and
/// with what is missing there.
fn sums(conv: &graph::Conv, x: View, missing: View, positions: &[usize]) -> Normal {
    let [kh, kw] = conv.kernel();
    let ci = conv.weight.shape[1];
    let features = ci * kh * kw + 1;
    let outputs = missing.layout.c;
    let (h, w) = (missing.layout.h, missing.layout.w);
    let mut a = vec![0.0f32; positions.len() * features];
    let mut r = vec![0.0f32; positions.len() * outputs];
    a.par_chunks_mut(features).zip(r.par_chunks_mut(outputs)).zip(positions).for_each(|((a, r), &at)| {
        let (image, y, xo) = (at / (h * w), at / w % h, at % w);
        for ky in 0..kh {
            for kx in 0..kw {
                let row = (y * conv.stride[0] + ky).wrapping_sub(conv.pad[0]);
                let column = (xo * conv.stride[1] + kx).wrapping_sub(conv.pad[1]);
                if row < x.layout.h && column < x.layout.w {
                    let pixel = x.pixel((image * x.layout.h + row) * x.layout.w + column);
                    pixel.iter().enumerate().for_each(|(i, v)| a[(i * kh + ky) * kw + kx] = *v);
                }
            }
        }
        a[features - 1] = 1.0;
        r.copy_from_slice(missing.pixel(at));
    });
    let layout = |c: usize| Layout::dense(1, positions.len() / ROW, ROW, c);
    let (a, r) = (View::new(&a, layout(features)), View::new(&r, layout(outputs)));
    // A'B is the weight gradient of a 1x1 convolution that reads A where the gradient is B.
    let product = |b: View| {
        let one = ConvShape::pointwise(features, b.layout.c);
        let mut sums = vec![0.0f32; features * b.layout.c];
        kernels::conv_backward_weight(&one, a, b, &mut sums);
        sums.into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    let mut squares = vec![0.0; outputs];
    for p in 0..positions.len() {
        squares.iter_mut().zip(r.pixel(p)).for_each(|(sum, v)| *sum += f64::from(*v).powi(2));
    }
    Normal { gram: product(a), cross: product(r), missing: squares }
}

/// Adds `change` (O, features, the last of which is 1) to the weights and whatever bias the convolution has.
fn apply(graph: &mut Graph, id: NodeId, change: &[f64]) {
    let norm = norm_after(graph, id);
    let Op::Conv(conv) = &mut graph.nodes[id].op else { return };
    let taps = conv.weight.len() / conv.out_channels();
    for (filter, change) in conv.weight.data.chunks_mut(taps).zip(change.chunks(taps + 1)) {
        filter.iter_mut().zip(change).for_each(|(w, c)| *w = (f64::from(*w) + c) as f32);
    }
    let shifts = change.chunks(taps + 1).map(|change| change[taps]);
    match (norm, &mut conv.bias) {
        (Some(norm), None) => {
            let Op::BatchNorm(bn) = &mut graph.nodes[norm].op else { return };
            bn.mean.iter_mut().zip(shifts).for_each(|(m, s)| *m = (f64::from(*m) - s) as f32);
        }
        (_, bias) => {
            let bias = bias.get_or_insert_with(|| vec![0.0; change.len() / (taps + 1)]);
            bias.iter_mut().zip(shifts).for_each(|(b, s)| *b = (f64::from(*b) + s) as f32);
        }
    }
}

/// The BatchNorm that alone reads `id`.
fn norm_after(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let mut readers = (0..graph.nodes.len()).filter(|&r| graph.nodes[r].inputs.contains(&id));
    match (readers.next(), readers.next()) {
        (Some(only), None) if matches!(graph.nodes[only].op, Op::BatchNorm(_)) => Some(only),
        _ => None,
    }
}

/// A map of its own.
struct Map {
    layout: Layout,
    data: Vec<f32>,
}

impl Map {
    fn new(layout: Layout) -> Self {
        Self { layout, data: vec![0.0; layout.end()] }
    }

    fn view(&self) -> View<'_> {
        View::new(&self.data, self.layout)
    }
}

/// The maps of a graph that something still has to read.
struct Maps {
    shapes: Vec<Shape>,
    n: usize,
    maps: Vec<Option<Map>>,
    /// The last reader of every node.
    last: Vec<NodeId>,
}

impl Maps {
    fn new(graph: &Graph, images: &Images, imgsz: [usize; 2]) -> Result<Self> {
        let shapes = graph.shapes(imgsz)?;
        let mut last: Vec<NodeId> = (0..graph.nodes.len()).collect();
        for (id, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&i| last[i] = id);
        }
        let mut maps: Vec<Option<Map>> = graph.nodes.iter().map(|_| None).collect();
        let mut image = Map::new(Layout::dense(images.n, imgsz[0], imgsz[1], shapes[0].c));
        load_images(&images.data, &mut image.data);
        maps[0] = Some(image);
        Ok(Self { shapes, n: images.n, maps, last })
    }

    fn of(&self, id: NodeId) -> View<'_> {
        match &self.maps[id] {
            Some(map) => map.view(),
            None => unreachable!("node {id} is computed before it is read, and kept until its last reader"),
        }
    }

    /// Runs node `id` in inference mode.
    fn compute(&mut self, graph: &Graph, id: NodeId) {
        let node = &graph.nodes[id];
        let Shape { c, h, w } = self.shapes[id];
        if matches!(node.op, Op::Input { .. } | Op::Head(_)) {
            return;
        }
        let mut map = Map::new(Layout::dense(self.n, h, w, c));
        let x = |k: usize| self.of(node.inputs[k]);
        let y = ViewMut::new(&mut map.data, map.layout);
        match &node.op {
            Op::Conv(conv) => {
                let shape = conv_shape(conv);
                let packed = Packed::new(&shape, &conv.weight.data);
                let epilogue = Epilogue { bias: conv.bias.as_deref(), act: Act::Identity };
                kernels::conv_forward(&shape, x(0), &packed, epilogue, y);
            }
            Op::BatchNorm(bn) => {
                let inv_std: Vec<f32> = bn.var.iter().map(|v| 1.0 / (v + bn.eps).sqrt()).collect();
                let affine =
                    BnAct { mean: &bn.mean, inv_std: &inv_std, gamma: &bn.gamma, beta: &bn.beta, act: Act::Identity };
                kernels::bn_act_forward(x(0), &affine, y);
            }
            Op::Concat => {
                let mut start = 0;
                for k in 0..node.inputs.len() {
                    let from = x(k);
                    let part = map.layout.channels(start, from.layout.c);
                    start += from.layout.c;
                    kernels::copy(from, ViewMut::new(&mut map.data, part), false);
                }
            }
            Op::Slice { start, len } => {
                let from = x(0);
                kernels::copy(View::new(from.data, from.layout.channels(*start, *len)), y, false);
            }
            op => {
                let kind = Kind::plain(op).unwrap_or_else(|| unreachable!("{op:?} computes nothing"));
                run_plain(&kind, node.inputs.len(), &x, y);
            }
        }
        self.maps[id] = Some(map);
    }

    /// Forgets what nothing after `id` reads.
    fn drop_read(&mut self, id: NodeId) {
        for (map, &last) in self.maps.iter_mut().zip(&self.last) {
            if last <= id {
                *map = None;
            }
        }
    }
}
