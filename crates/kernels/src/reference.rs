//! Every kernel once more, slowly: dense maps of `f64`, loops that follow the definition, nothing clever. Tests only.

use graph::{Act, Attention};

use crate::{ConvShape, Pool, View, ViewMut};

/// A dense map (N, H, W, C) of `f64`.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub data: Vec<f64>,
}

impl Map {
    /// All zeros.
    pub fn zeros(n: usize, h: usize, w: usize, c: usize) -> Self {
        Self { n, h, w, c, data: vec![0.0; n * h * w * c] }
    }

    /// A map of the same shape, each value from its position.
    fn like(&self, f: impl FnMut(usize) -> f64) -> Self {
        Self { data: (0..self.data.len()).map(f).collect(), ..*self }
    }

    /// What a view shows.
    pub fn read(x: View) -> Self {
        let l = x.layout;
        let data = (0..l.pixels()).flat_map(|p| x.pixel(p)).map(|v| f64::from(*v)).collect();
        Self { n: l.n, h: l.h, w: l.w, c: l.c, data }
    }

    /// Writes, or adds, this map to a view of the same shape.
    pub fn write(&self, mut y: ViewMut, accumulate: bool) {
        let l = y.layout;
        assert_eq!((self.n, self.h, self.w, self.c), (l.n, l.h, l.w, l.c));
        for p in 0..l.pixels() {
            for (to, from) in y.pixel(p).iter_mut().zip(&self.data[p * self.c..]) {
                *to = if accumulate { (f64::from(*to) + from) as f32 } else { *from as f32 };
            }
        }
    }

    fn index(&self, n: usize, y: usize, x: usize, c: usize) -> usize {
        ((n * self.h + y) * self.w + x) * self.c + c
    }

    /// Position of `(y, x)` counted from the padding's corner, where it lies inside the map.
    fn padded(&self, n: usize, y: usize, x: usize, pad: [usize; 2], c: usize) -> Option<usize> {
        let (y, x) = (y.checked_sub(pad[0])?, x.checked_sub(pad[1])?);
        (y < self.h && x < self.w).then(|| self.index(n, y, x, c))
    }
}

/// Calls `f(x index, w index, y index)` for every multiplication of the convolution; both gradients run over the same set.
fn for_each_product(s: &ConvShape, x: &Map, y: &Map, mut f: impl FnMut(usize, usize, usize)) {
    let (ci, co) = (s.ci / s.groups, s.co / s.groups);
    for n in 0..y.n {
        for (oy, ox) in (0..y.h).flat_map(|oy| (0..y.w).map(move |ox| (oy, ox))) {
            for (o, i) in (0..s.co).flat_map(|o| (0..ci).map(move |i| (o, i))) {
                for (ky, kx) in (0..s.kernel[0]).flat_map(|ky| (0..s.kernel[1]).map(move |kx| (ky, kx))) {
                    let (iy, ix) = (oy * s.stride[0] + ky, ox * s.stride[1] + kx);
                    if let Some(at) = x.padded(n, iy, ix, s.pad, o / co * ci + i) {
                        f(at, ((o * ci + i) * s.kernel[0] + ky) * s.kernel[1] + kx, y.index(n, oy, ox, o));
                    }
                }
            }
        }
    }
}

/// See [`crate::conv_forward`], without an activation.
pub fn conv_forward(s: &ConvShape, x: &Map, w: &[f64], bias: Option<&[f64]>, out: (usize, usize)) -> Map {
    let mut y = Map::zeros(x.n, out.0, out.1, s.co);
    if let Some(bias) = bias {
        y.data.chunks_exact_mut(s.co).for_each(|p| p.copy_from_slice(bias));
    }
    let shape = Map { data: Vec::new(), ..y };
    for_each_product(s, x, &shape, |i, k, o| y.data[o] += x.data[i] * w[k]);
    y
}

/// See [`crate::conv_backward_input`]; `x` gives the shape.
pub fn conv_backward_input(s: &ConvShape, dy: &Map, w: &[f64], x: &Map) -> Map {
    let mut dx = Map::zeros(x.n, x.h, x.w, x.c);
    for_each_product(s, x, dy, |i, k, o| dx.data[i] += dy.data[o] * w[k]);
    dx
}

/// See [`crate::conv_backward_weight`].
pub fn conv_backward_weight(s: &ConvShape, x: &Map, dy: &Map) -> Vec<f64> {
    let mut dw = vec![0.0; s.co * (s.ci / s.groups) * s.kernel[0] * s.kernel[1]];
    for_each_product(s, x, dy, |i, k, o| dw[k] += dy.data[o] * x.data[i]);
    dw
}

/// Sum over pixels: the bias gradient.
pub fn sum(dy: &Map) -> Vec<f64> {
    let mut db = vec![0.0; dy.c];
    dy.data.iter().enumerate().for_each(|(i, v)| db[i % dy.c] += v);
    db
}

/// Mean and biased variance of each channel.
pub fn batch_stats(x: &Map) -> (Vec<f64>, Vec<f64>) {
    let count = (x.n * x.h * x.w) as f64;
    let mean: Vec<f64> = sum(x).iter().map(|s| s / count).collect();
    let var = sum(&x.like(|i| (x.data[i] - mean[i % x.c]).powi(2))).iter().map(|s| s / count).collect();
    (mean, var)
}

/// Batch normalisation with the batch's own statistics, then the activation.
pub fn bn_act_forward(x: &Map, gamma: &[f64], beta: &[f64], eps: f64, act: Act) -> Map {
    let (mean, var) = batch_stats(x);
    x.like(|i| {
        let c = i % x.c;
        value(act, gamma[c] * (x.data[i] - mean[c]) / (var[c] + eps).sqrt() + beta[c])
    })
}

/// Gradients `(dx, dgamma, dbeta)` of [`bn_act_forward`] (Ioffe and Szegedy 2015, section 3).
pub fn bn_act_backward(
    x: &Map,
    dy: &Map,
    gamma: &[f64],
    beta: &[f64],
    eps: f64,
    act: Act,
) -> (Map, Vec<f64>, Vec<f64>) {
    let (mean, var) = batch_stats(x);
    let count = (x.n * x.h * x.w) as f64;
    let inv: Vec<f64> = var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    let hat = x.like(|i| (x.data[i] - mean[i % x.c]) * inv[i % x.c]);
    let dz = x.like(|i| dy.data[i] * slope(act, gamma[i % x.c] * hat.data[i] + beta[i % x.c]));
    let dbeta = sum(&dz);
    let dgamma = sum(&x.like(|i| dz.data[i] * hat.data[i]));
    let dx = x.like(|i| {
        let c = i % x.c;
        gamma[c] * inv[c] * (dz.data[i] - (dbeta[c] + hat.data[i] * dgamma[c]) / count)
    });
    (dx, dgamma, dbeta)
}

/// The activation's value.
pub fn value(act: Act, x: f64) -> f64 {
    match act {
        Act::Identity => x,
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::Leaky => x.max(0.1 * x),
        Act::Mish => x * x.exp().ln_1p().tanh(),
        Act::Relu => x.max(0.0),
        Act::Relu6 => x.clamp(0.0, 6.0),
        Act::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// The activation's derivative; 0 at the corners of ReLU and ReLU6, 0.1 at that of leaky ReLU, as PyTorch has it.
pub fn slope(act: Act, x: f64) -> f64 {
    let s = 1.0 / (1.0 + (-x).exp());
    match act {
        Act::Identity => 1.0,
        Act::Silu => s * (1.0 + x * (1.0 - s)),
        Act::Leaky => [0.1, 1.0][usize::from(x > 0.0)],
        Act::Mish => {
            let t = x.exp().ln_1p().tanh();
            t + x * s * (1.0 - t * t)
        }
        Act::Relu => f64::from(u8::from(x > 0.0)),
        Act::Relu6 => f64::from(u8::from(x > 0.0 && x < 6.0)),
        Act::Sigmoid => s * (1.0 - s),
    }
}

/// For every output position, the index of the input that wins: the first of the largest in row-major window order.
fn winners(pool: Pool, x: &Map, out: (usize, usize)) -> Vec<usize> {
    let pad = [pool.pad[0]; 2];
    let mut best = Vec::new();
    for n in 0..x.n {
        for (oy, ox) in (0..out.0).flat_map(|oy| (0..out.1).map(move |ox| (oy, ox))) {
            for c in 0..x.c {
                let window = (0..pool.kernel * pool.kernel).filter_map(|k| {
                    let (ky, kx) = (k / pool.kernel, k % pool.kernel);
                    x.padded(n, oy * pool.stride + ky, ox * pool.stride + kx, pad, c)
                });
                best.push(window.reduce(|a, b| if x.data[b] > x.data[a] { b } else { a }).expect("an empty window"));
            }
        }
    }
    best
}

/// See [`crate::max_pool_forward`].
pub fn max_pool_forward(pool: Pool, x: &Map, out: (usize, usize)) -> Map {
    let data = winners(pool, x, out).iter().map(|i| x.data[*i]).collect();
    Map { n: x.n, h: out.0, w: out.1, c: x.c, data }
}

/// See [`crate::max_pool_backward`].
pub fn max_pool_backward(pool: Pool, x: &Map, dy: &Map) -> Map {
    let mut dx = x.like(|_| 0.0);
    winners(pool, x, (dy.h, dy.w)).iter().zip(&dy.data).for_each(|(i, d)| dx.data[*i] += d);
    dx
}

/// See [`crate::upsample_forward`].
pub fn upsample_forward(factor: usize, x: &Map) -> Map {
    let mut y = Map::zeros(x.n, x.h * factor, x.w * factor, x.c);
    for i in 0..y.data.len() {
        y.data[i] = x.data[upsample_source(factor, x, &y, i)];
    }
    y
}

/// See [`crate::upsample_backward`]; `x` gives the shape.
pub fn upsample_backward(factor: usize, dy: &Map, x: &Map) -> Map {
    let mut dx = x.like(|_| 0.0);
    for i in 0..dy.data.len() {
        dx.data[upsample_source(factor, x, dy, i)] += dy.data[i];
    }
    dx
}

fn upsample_source(factor: usize, x: &Map, y: &Map, i: usize) -> usize {
    let (p, c) = (i / y.c, i % y.c);
    let (row, column) = (p / y.w, p % y.w);
    x.index(row / y.h, row % y.h / factor, column / factor, c)
}

/// See [`crate::shuffle_forward`].
pub fn shuffle_forward(factor: usize, x: &Map) -> Map {
    let mut y = Map::zeros(x.n, x.h * factor, x.w * factor, x.c / (factor * factor));
    for i in 0..y.data.len() {
        y.data[i] = x.data[shuffle_source(factor, x, &y, i)];
    }
    y
}

/// See [`crate::shuffle_backward`]; `x` gives the shape.
pub fn shuffle_backward(factor: usize, dy: &Map, x: &Map) -> Map {
    let mut dx = x.like(|_| 0.0);
    for i in 0..dy.data.len() {
        dx.data[shuffle_source(factor, x, dy, i)] += dy.data[i];
    }
    dx
}

fn shuffle_source(factor: usize, x: &Map, y: &Map, i: usize) -> usize {
    let (p, c) = (i / y.c, i % y.c);
    let (image, row, column) = (p / y.w / y.h, p / y.w % y.h, p % y.w);
    let channel = c * factor * factor + row % factor * factor + column % factor;
    x.index(image, row / factor, column / factor, channel)
}

/// The softmax p_ij (positions x positions) of one head of image `n`.
fn shares(a: &Attention, x: &Map, n: usize, head: usize) -> Vec<f64> {
    let positions = x.h * x.w;
    let [q, k, _] = a.starts(head);
    let at = |p: usize, c: usize| x.data[(n * positions + p) * x.c + c];
    let mut all = Vec::with_capacity(positions * positions);
    for i in 0..positions {
        let score = |j| (0..a.key).map(|c| at(i, q + c) * at(j, k + c)).sum::<f64>() / (a.key as f64).sqrt();
        let scores: Vec<f64> = (0..positions).map(score).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        all.extend(scores.iter().map(|s| (s - top).exp() / total));
    }
    all
}

/// Every area of every image as an image of its own.
fn apart(x: &Map, areas: usize) -> Map {
    Map { n: x.n * areas, h: 1, w: x.h * x.w / areas, ..x.clone() }
}

/// The areas of the images of `x` as images again.
fn together(x: &Map, y: Map) -> Map {
    Map { n: x.n, h: x.h, w: x.w, ..y }
}

/// See [`crate::attention_forward`].
pub fn attention_forward(a: &Attention, x: &Map) -> Map {
    if a.areas > 1 {
        let whole = Attention { areas: 1, ..*a };
        return together(x, attention_forward(&whole, &apart(x, a.areas)));
    }
    let positions = x.h * x.w;
    let mut y = Map::zeros(x.n, x.h, x.w, a.heads * a.value);
    for (n, head) in (0..x.n).flat_map(|n| (0..a.heads).map(move |head| (n, head))) {
        let (p, v) = (shares(a, x, n, head), a.starts(head)[2]);
        for (i, j) in (0..positions).flat_map(|i| (0..positions).map(move |j| (i, j))) {
            for c in 0..a.value {
                let to = (n * positions + i) * y.c + head * a.value + c;
                y.data[to] += p[i * positions + j] * x.data[(n * positions + j) * x.c + v + c];
            }
        }
    }
    y
}

/// See [`crate::attention_backward`].
pub fn attention_backward(a: &Attention, x: &Map, dy: &Map) -> Map {
    if a.areas > 1 {
        let whole = Attention { areas: 1, ..*a };
        return together(x, attention_backward(&whole, &apart(x, a.areas), &apart(dy, a.areas)));
    }
    let positions = x.h * x.w;
    let mut dx = x.like(|_| 0.0);
    for (n, head) in (0..x.n).flat_map(|n| (0..a.heads).map(move |head| (n, head))) {
        let (p, [q, k, v]) = (shares(a, x, n, head), a.starts(head));
        let at = |pixel: usize, c: usize| (n * positions + pixel) * x.c + c;
        let dy_at = |i: usize, c: usize| dy.data[(n * positions + i) * dy.c + head * a.value + c];
        for i in 0..positions {
            let p = &p[i * positions..][..positions];
            let dp = |j: usize| (0..a.value).map(|c| dy_at(i, c) * x.data[at(j, v + c)]).sum::<f64>();
            let dp: Vec<f64> = (0..positions).map(dp).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
            for j in 0..positions {
                let ds = p[j] * (dp[j] - mean) / (a.key as f64).sqrt();
                for c in 0..a.key {
                    dx.data[at(i, q + c)] += ds * x.data[at(j, k + c)];
                    dx.data[at(j, k + c)] += ds * x.data[at(i, q + c)];
                }
                for c in 0..a.value {
                    dx.data[at(j, v + c)] += p[j] * dy_at(i, c);
                }
            }
        }
    }
    dx
}
