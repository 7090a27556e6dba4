//! Multi-head attention over the positions of a map, and its gradient.
//!
//! A task is one head of one area of one image; an area is as good as an image of its own. Nothing of the size H * W x H * W is ever held: a few rows of the scores at a time are made,
//! and made anew for the gradient.

use graph::Attention;
use rayon::prelude::*;

use crate::act::exp;
use crate::isa::{Isa, Kernel, Simd};
use crate::vectors::{for_vectors, load, store};
use crate::{Layout, View, ViewMut};

/// `y` (N, H, W, heads * value) = for each head the values of x (N, H, W, heads * (2 key + value)), mixed by the softmax of
/// queries times keys; see [`graph::Attention`].
pub fn attention_forward(attention: &Attention, x: View, y: ViewMut) {
    check(attention, x.layout, y.layout);
    let x = View { layout: x.layout.areas(attention.areas), ..x };
    let mut y = ViewMut { layout: y.layout.areas(attention.areas), ..y };
    let isa = Isa::current();
    let tasks = tasks(attention, x.layout);
    let parts: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|&(image, head)| isa.run(Forward { attention, x: Part::of(attention, x.image(image), head) }))
        .collect();
    for (&(image, head), part) in tasks.iter().zip(&parts) {
        scatter(part, attention.value, &mut y, image, head * attention.value, false);
    }
}

/// The gradient of [`attention_forward`] by x; dx is overwritten or added to.
pub fn attention_backward(attention: &Attention, x: View, dy: View, dx: ViewMut, accumulate: bool) {
    check(attention, x.layout, dy.layout);
    x.layout.assert_same_shape(dx.layout);
    let x = View { layout: x.layout.areas(attention.areas), ..x };
    let dy = View { layout: dy.layout.areas(attention.areas), ..dy };
    let mut dx = ViewMut { layout: dx.layout.areas(attention.areas), ..dx };
    let isa = Isa::current();
    let tasks = tasks(attention, x.layout);
    let parts: Vec<[Vec<f32>; 3]> = tasks
        .par_iter()
        .map(|&(image, head)| {
            let dy = gather(dy.image(image), head * attention.value, attention.value);
            isa.run(Backward { attention, x: Part::of(attention, x.image(image), head), dy })
        })
        .collect();
    for (&(image, head), part) in tasks.iter().zip(&parts) {
        let widths = [attention.key, attention.key, attention.value];
        for ((part, start), width) in part.iter().zip(attention.starts(head)).zip(widths) {
            scatter(part, width, &mut dx, image, start, accumulate);
        }
    }
}

fn check(a: &Attention, x: Layout, y: Layout) {
    assert_eq!(x.c, a.heads * a.head_channels(), "channels {a:?} reads");
    Layout { c: a.heads * a.value, ..x }.assert_same_shape(y);
}

/// (image, head) of every task.
fn tasks(a: &Attention, x: Layout) -> Vec<(usize, usize)> {
    (0..x.n).flat_map(|image| (0..a.heads).map(move |head| (image, head))).collect()
}

/// Channels `start..start + len` of a map, dense (pixels, len).
fn gather(x: View, start: usize, len: usize) -> Vec<f32> {
    (0..x.layout.pixels()).flat_map(|p| x.pixel(p)[start..start + len].iter().copied()).collect()
}

/// Writes, or adds, a dense `part` (pixels, len) to the channels from `start` of one image.
fn scatter(part: &[f32], len: usize, to: &mut ViewMut, image: usize, start: usize, accumulate: bool) {
    let first = image * to.layout.h * to.layout.w;
    for (p, from) in part.chunks_exact(len).enumerate() {
        let to = &mut to.pixel(first + p)[start..start + len];
        if accumulate {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        } else {
            to.copy_from_slice(from);
        }
    }
}

/// (rows, columns) as (columns, rows).
fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}

/// What one head reads of one image, each (pixels, channels), dense.
struct Part {
    /// Times the scale.
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Part {
    fn of(a: &Attention, x: View, head: usize) -> Self {
        let [q, k, v] = a.starts(head);
        let scale = a.scale() as f32;
        let mut queries = gather(x, q, a.key);
        queries.iter_mut().for_each(|q| *q *= scale);
        Self { queries, keys: gather(x, k, a.key), values: gather(x, v, a.value) }
    }

    fn pixels(&self, a: &Attention) -> usize {
        self.keys.len() / a.key
    }
}

/// Gives the mixed values, (pixels, value).
struct Forward<'a> {
    attention: &'a Attention,
    x: Part,
}

impl Kernel for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let Attention { key, value, .. } = *self.attention;
        let pixels = self.x.pixels(self.attention);
        let keys = transposed(&self.x.keys, key);
        let mut y = vec![0.0; pixels * value];
        let mut shares = vec![0.0; pixels];
        for (query, y) in self.x.queries.chunks_exact(key).zip(y.chunks_exact_mut(value)) {
            let total = weigh(s, query, &keys, &mut shares);
            add_mix(s, &shares, &self.x.values, y);
            y.iter_mut().for_each(|y| *y /= total);
        }
        y
    }
}

/// Gives the gradient by queries (pixels, key), keys (pixels, key) and values (pixels, value).
struct Backward<'a> {
    attention: &'a Attention,
    x: Part,
    dy: Vec<f32>,
}

impl Kernel for Backward<'_> {
    type Output = [Vec<f32>; 3];

    /// With p the softmax of scores s, `dp_ij = dy_i . v_j` and `ds_ij = p_ij (dp_ij - sum_k p_ik dp_ik)`.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [Vec<f32>; 3] {
        let Attention { key, value, .. } = *self.attention;
        let pixels = self.x.pixels(self.attention);
        let (keys, values) = (transposed(&self.x.keys, key), transposed(&self.x.values, value));
        let mut dq = vec![0.0; pixels * key];
        let mut dk = vec![0.0; pixels * key];
        let mut dv = vec![0.0; pixels * value];
        // Four queries at a time, so that the gradient of each key and value is fetched and put back once for all of them.
        let (mut shares, mut ds) = (vec![0.0; 4 * pixels], vec![0.0; 4 * pixels]);
        let (mut share, mut slope) = ([0.0; 4], [0.0; 4]);
        for first in (0..pixels).step_by(4) {
            let count = 4.min(pixels - first);
            let queries = &self.x.queries[first * key..][..count * key];
            let dy = &self.dy[first * value..][..count * value];
            for i in 0..count {
                let (shares, ds) = (&mut shares[i * pixels..][..pixels], &mut ds[i * pixels..][..pixels]);
                let total = weigh(s, &queries[i * key..][..key], &keys, shares);
                shares.iter_mut().for_each(|p| *p /= total);
                products(s, &dy[i * value..][..value], &values, ds);
                let mean: f32 = shares.iter().zip(&*ds).map(|(p, d)| p * d).sum();
                ds.iter_mut().zip(&*shares).for_each(|(d, p)| *d = p * (*d - mean));
                add_mix(s, ds, &self.x.keys, &mut dq[(first + i) * key..][..key]);
            }
            for j in 0..pixels {
                for i in 0..count {
                    (share[i], slope[i]) = (shares[i * pixels + j], ds[i * pixels + j]);
                }
                add_mix(s, &slope[..count], queries, &mut dk[j * key..][..key]);
                add_mix(s, &share[..count], dy, &mut dv[j * value..][..value]);
            }
        }
        // The queries were scaled, so dk is right as it is.
        let scale = self.attention.scale() as f32;
        dq.iter_mut().for_each(|d| *d *= scale);
        [dq, dk, dv]
    }
}

/// `e^(query . key_j - the largest)` for every position j, and their sum; `keys` are (key, pixels).
#[inline(always)]
fn weigh<S: Simd>(s: S, query: &[f32], keys: &[f32], weights: &mut [f32]) -> f32 {
    products(s, query, keys, weights);
    let top = s.splat(weights.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    for_vectors!(S, weights.len(), |c| {
        store(s, exp(s, s.sub(load(s, weights, c), top)), weights, c);
    });
    weights.iter().map(|&w| f64::from(w)).sum::<f64>() as f32
}

/// `a . b_j` for every position j; `b` is (channels, pixels).
#[inline(always)]
fn products<S: Simd>(s: S, a: &[f32], b: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    add_mix(s, a, b, out);
}

/// `y += sum_k a_k x_k` where `x` has a row as long as `y` for each `a`; four rows at a time, so that `y` is fetched and put
/// back once for all of them.
#[inline(always)]
fn add_mix<S: Simd>(s: S, a: &[f32], x: &[f32], y: &mut [f32]) {
    let len = y.len();
    let (fours, rows) = (a.chunks_exact(4), x.chunks_exact(4 * len));
    for (a, x) in fours.remainder().iter().zip(rows.remainder().chunks_exact(len)) {
        add_scaled(s, *a, x, y);
    }
    for (a, x) in fours.zip(rows) {
        let a: [S::V; 4] = std::array::from_fn(|k| s.splat(a[k]));
        let x: [&[f32]; 4] = std::array::from_fn(|k| &x[k * len..][..len]);
        for_vectors!(S, len, |c| {
            let mut sum = load(s, y, c);
            for k in 0..4 {
                sum = s.fma(a[k], load(s, x[k], c), sum);
            }
            store(s, sum, y, c);
        });
    }
}

/// `y += a x`.
#[inline(always)]
fn add_scaled<S: Simd>(s: S, a: f32, x: &[f32], y: &mut [f32]) {
    let a = s.splat(a);
    for_vectors!(S, y.len(), |c| {
        store(s, s.fma(a, load(s, x, c), load(s, y, c)), y, c);
    });
}
