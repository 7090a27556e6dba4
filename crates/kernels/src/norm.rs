//! Batch normalisation fused with the activation after it: statistics, forward, and the training-mode gradient.

use std::marker::PhantomData;
use std::ops::Range;

use graph::Act;
use rayon::prelude::*;

use crate::act::{Curve, with_curve};
use crate::isa::{Isa, Kernel, Simd};
use crate::vectors::{for_vectors, load, rows_per_band, store};
use crate::{Layout, View, ViewMut};

/// Per-channel statistics of a map over images, rows and columns.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchStats {
    pub mean: Vec<f32>,
    /// Biased: divided by the number of pixels.
    pub var: Vec<f32>,
}

/// `y = act(gamma * (x - mean) * inv_std + beta)`, all of one value per channel.
#[derive(Clone, Copy, Debug)]
pub struct BnAct<'a> {
    pub mean: &'a [f32],
    /// `1 / sqrt(var + eps)`.
    pub inv_std: &'a [f32],
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub act: Act,
}

impl BnAct<'_> {
    /// gamma * inv_std.
    fn scale(&self) -> Vec<f32> {
        self.gamma.iter().zip(self.inv_std).map(|(g, i)| g * i).collect()
    }

    fn check(&self, channels: usize) {
        let lens = [self.mean.len(), self.inv_std.len(), self.gamma.len(), self.beta.len()];
        assert_eq!(lens, [channels; 4], "batch norm of {channels} channels");
    }
}

/// Pixels whose sum is kept in `f32`. Statistics of near constant channels pass their error on, enlarged, through all layers
/// after them: with 1,024 pixels YOLOv8n's raw maps were off by 1e-4, with 32 by 4e-6, as the rest of `f32` leaves them.
const BLOCK: usize = 32;

/// Sums two values per channel over all pixels, of which `together` are added up side by side. `sum` adds up a range of pixels in
/// `f32`; ranges are short, depend on the shape and the vectors' width alone, and are added up in order in `f64`: accurate, and
/// the same for any number of threads.
fn sums(
    pixels: usize,
    channels: usize,
    together: usize,
    sum: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) -> [Vec<f64>; 2] {
    let wide = together * channels;
    let each = together * ((1 << 15) / wide.max(1)).clamp(2 * BLOCK, 1024);
    let add = |totals: &mut [f64], part: &[f32]| totals.iter_mut().zip(part).for_each(|(t, p)| *t += f64::from(*p));
    let parts: Vec<Vec<f64>> = (0..pixels.div_ceil(each))
        .into_par_iter()
        .map(|i| {
            let (mut totals, mut block) = (vec![0.0; 2 * wide], vec![0.0; 2 * wide]);
            let end = ((i + 1) * each).min(pixels);
            for start in (i * each..end).step_by(together * BLOCK) {
                block.fill(0.0);
                let (first, second) = block.split_at_mut(wide);
                sum(start..(start + together * BLOCK).min(end), first, second);
                add(&mut totals, &block);
            }
            totals
        })
        .collect();
    let mut totals = vec![0.0; 2 * wide];
    parts.iter().for_each(|part| totals.iter_mut().zip(part).for_each(|(t, p)| *t += p));
    let second = totals.split_off(wide);
    [totals, second].map(|totals| of_one(&totals, channels))
}

/// Sums of one pixel's channels from those of several pixels side by side.
fn of_one(totals: &[f64], channels: usize) -> Vec<f64> {
    let mut one = vec![0.0; channels];
    totals.chunks(channels.max(1)).for_each(|totals| one.iter_mut().zip(totals).for_each(|(one, t)| *one += t));
    one
}

/// Sums parts, each of two values per channel.
fn add_up(parts: &[Vec<f32>], channels: usize) -> [Vec<f64>; 2] {
    let mut totals = [vec![0.0; channels], vec![0.0; channels]];
    for part in parts {
        for (totals, part) in totals.iter_mut().zip(part.chunks_exact(channels)) {
            totals.iter_mut().zip(part).for_each(|(t, p)| *t += f64::from(*p));
        }
    }
    totals
}

/// Mean and biased variance of every channel of x (N, H, W, C).
///
/// One reading of the map: sums of `x - shift` and its square, where `shift` is near the mean, so that nothing cancels.
pub fn batch_stats(x: View) -> BatchStats {
    let (isa, pixels, channels) = (Isa::current(), x.layout.pixels(), x.layout.c);
    let samples = pixels.min(16);
    let mut shift = vec![0.0; channels];
    for i in 0..samples {
        let pixel = x.pixel(i * pixels / samples);
        shift.iter_mut().zip(pixel).for_each(|(s, x)| *s += x / samples as f32);
    }
    let together = Layout::together([x.layout], isa.lanes());
    let wide = shift.repeat(together);
    let [first, second] = sums(pixels, channels, together, |range, first, second| {
        isa.run(Moments { x, range, together, shift: &wide, first, second });
    });
    let count = pixels.max(1) as f64;
    let mean = first.iter().zip(&shift).map(|(f, s)| (f64::from(*s) + f / count) as f32).collect();
    let var = first.iter().zip(&second).map(|(f, q)| (q / count - (f / count).powi(2)).max(0.0) as f32).collect();
    BatchStats { mean, var }
}

struct Moments<'a> {
    x: View<'a>,
    range: Range<usize>,
    /// Pixels side by side, for each of which there are `shift` and sums.
    together: usize,
    shift: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Moments<'_> {
    /// `P` times `count` pixels from `at` on, so that each sum is fetched and put back once for all of them.
    #[inline(always)]
    fn add<S: Simd, const P: usize>(&mut self, s: S, at: usize, count: usize) {
        let pixels: [&[f32]; P] = std::array::from_fn(|i| self.x.stretch(at + i * count, count));
        for_vectors!(S, pixels[0].len(), |c| {
            let shift = load(s, self.shift, c);
            let (mut first, mut second) = (load(s, self.first, c), load(s, self.second, c));
            for pixel in pixels {
                let d = s.sub(load(s, pixel, c), shift);
                first = s.add(first, d);
                second = s.fma(d, d, second);
            }
            store(s, first, self.first, c);
            store(s, second, self.second, c);
        });
    }
}

impl Kernel for Moments<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut at = self.range.start;
        while at + 4 * self.together <= self.range.end {
            self.add::<S, 4>(s, at, self.together);
            at += 4 * self.together;
        }
        while at < self.range.end {
            let count = self.together.min(self.range.end - at);
            self.add::<S, 1>(s, at, count);
            at += count;
        }
    }
}

/// `y = act(gamma * (x - mean) * inv_std + beta)`, maps of one shape.
pub fn bn_act_forward(x: View, bn: &BnAct, y: ViewMut) {
    let isa = Isa::current();
    x.layout.assert_same_shape(y.layout);
    bn.check(x.layout.c);
    let together = Layout::together([x.layout, y.layout], isa.lanes());
    let wide = Wide::new(bn, together);
    let rows = rows_per_band(y.layout);
    y.bands(rows).into_par_iter().for_each(|band| {
        let x = x.rows(band.image, band.row, band.view.layout.h);
        with_curve!(bn.act, C => isa.run(Forward::<C> { x, bn: &wide, y: band.view, curve: PhantomData }));
    });
}

/// A BatchNorm's values for several pixels side by side.
struct Wide {
    /// Pixels.
    together: usize,
    mean: Vec<f32>,
    scale: Vec<f32>,
    beta: Vec<f32>,
}

impl Wide {
    fn new(bn: &BnAct, together: usize) -> Self {
        let [mean, scale, beta] = [bn.mean, &bn.scale(), bn.beta].map(|values| values.repeat(together));
        Self { together, mean, scale, beta }
    }
}

struct Forward<'a, C> {
    x: View<'a>,
    bn: &'a Wide,
    y: ViewMut<'a>,
    curve: PhantomData<C>,
}

impl<C: Curve> Kernel for Forward<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let pixels = self.x.layout.pixels();
        for p in (0..pixels).step_by(self.bn.together) {
            let count = self.bn.together.min(pixels - p);
            let (x, y) = (self.x.stretch(p, count), self.y.stretch(p, count));
            let [mean, scale, beta] = [&self.bn.mean, &self.bn.scale, &self.bn.beta].map(|of| &of[..x.len()]);
            for_vectors!(S, x.len(), |c| {
                let d = s.sub(load(s, x, c), load(s, mean, c));
                let z = s.fma(d, load(s, scale, c), load(s, beta, c));
                store(s, C::value(s, z), y, c);
            });
        }
    }
}

/// The gradient of [`bn_act_forward`] where `mean` and `inv_std` are those of `x` itself, so that they depend on it
/// (Ioffe and Szegedy 2015, section 3): dx is overwritten, dgamma and dbeta (C) are added to.
///
/// With `d = x - mean`, `g = dy * act'(gamma d inv_std + beta)` and n pixels:
/// `dbeta = sum g`, `dgamma = inv_std sum g d`, `dx = gamma inv_std (g - dbeta / n - d inv_std dgamma / n)`.
pub fn bn_act_backward(x: View, dy: View, bn: &BnAct, dx: ViewMut, dgamma: &mut [f32], dbeta: &mut [f32]) {
    let isa = Isa::current();
    let (pixels, channels) = (x.layout.pixels(), x.layout.c);
    x.layout.assert_same_shape(dy.layout);
    x.layout.assert_same_shape(dx.layout);
    bn.check(channels);
    assert_eq!([dgamma.len(), dbeta.len()], [channels; 2]);
    let together = Layout::together([x.layout, dy.layout, dx.layout], isa.lanes());
    let wide = Wide::new(bn, together);
    // As in `sums`, bands are short and depend on the shape alone.
    let rows = rows_per_band(dx.layout).min(1024 / dx.layout.w.max(1)).max(1);
    let mut bands = dx.bands(rows);
    let parts: Vec<Vec<f32>> = bands
        .par_iter_mut()
        .map(|band| {
            let (x, dy) = [x, dy].map(|map| map.rows(band.image, band.row, band.view.layout.h)).into();
            let mut part = vec![0.0; 2 * together * channels];
            let (first, second) = part.split_at_mut(together * channels);
            let (act, bn, g) = (bn.act, &wide, band.view.reborrow());
            with_curve!(act, C => isa.run(Gradient::<C> { x, dy, bn, g, first, second, curve: PhantomData }));
            part
        })
        .collect();
    let [by_beta, by_deviation] = add_up(&parts, together * channels).map(|sums| of_one(&sums, channels));
    let scale = &wide.scale[..channels];
    let count = pixels.max(1) as f64;
    let (mut constant, mut slope) = (vec![0.0; channels], vec![0.0; channels]);
    for c in 0..channels {
        let (scale, inv_std) = (f64::from(scale[c]), f64::from(bn.inv_std[c]));
        dbeta[c] += by_beta[c] as f32;
        dgamma[c] += (inv_std * by_deviation[c]) as f32;
        constant[c] = (-scale * by_beta[c] / count) as f32;
        slope[c] = (-scale * inv_std * inv_std * by_deviation[c] / count) as f32;
    }
    let [constant, slope] = [constant, slope].map(|values| values.repeat(together));
    bands.into_par_iter().for_each(|band| {
        let x = x.rows(band.image, band.row, band.view.layout.h);
        isa.run(Backward { x, bn: &wide, constant: &constant, slope: &slope, dx: band.view });
    });
}

/// The first reading of the backward pass: `g`, whose sums the second one needs. It waits where dx will be, as computing
/// the activation's slope again takes longer than reading it back.
struct Gradient<'a, C> {
    x: View<'a>,
    dy: View<'a>,
    bn: &'a Wide,
    g: ViewMut<'a>,
    /// Sums of `g` and of `g d`, of each pixel side by side.
    first: &'a mut [f32],
    second: &'a mut [f32],
    curve: PhantomData<C>,
}

impl<C: Curve> Gradient<'_, C> {
    /// `P` times `count` pixels from `at` on, so that each sum is fetched and put back once for all of them.
    #[inline(always)]
    fn add<S: Simd, const P: usize>(&mut self, s: S, at: usize, count: usize) {
        for_vectors!(S, count * self.x.layout.c, |c| {
            let (mean, scale) = (load(s, &self.bn.mean, c), load(s, &self.bn.scale, c));
            let beta = load(s, &self.bn.beta, c);
            let (mut first, mut second) = (load(s, self.first, c), load(s, self.second, c));
            for at in (0..P).map(|i| at + i * count) {
                let d = s.sub(load(s, self.x.stretch(at, count), c), mean);
                let slope = C::slope(s, s.fma(d, scale, beta));
                let g = s.mul(load(s, self.dy.stretch(at, count), c), slope);
                first = s.add(first, g);
                second = s.fma(g, d, second);
                store(s, g, self.g.stretch(at, count), c);
            }
            store(s, first, self.first, c);
            store(s, second, self.second, c);
        });
    }
}

impl<C: Curve> Kernel for Gradient<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (pixels, together, mut at) = (self.x.layout.pixels(), self.bn.together, 0);
        while at + 4 * together <= pixels {
            self.add::<S, 4>(s, at, together);
            at += 4 * together;
        }
        while at < pixels {
            let count = together.min(pixels - at);
            self.add::<S, 1>(s, at, count);
            at += count;
        }
    }
}

/// The second reading: `dx = scale g + slope d + constant`, `g` being what dx holds.
struct Backward<'a> {
    x: View<'a>,
    bn: &'a Wide,
    /// Of pixels side by side, as in `bn`.
    constant: &'a [f32],
    slope: &'a [f32],
    dx: ViewMut<'a>,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let pixels = self.x.layout.pixels();
        for p in (0..pixels).step_by(self.bn.together) {
            let count = self.bn.together.min(pixels - p);
            let (x, dx) = (self.x.stretch(p, count), self.dx.stretch(p, count));
            let [mean, scale] = [&self.bn.mean, &self.bn.scale].map(|of| &of[..x.len()]);
            let [slope, constant] = [self.slope, self.constant].map(|of| &of[..x.len()]);
            for_vectors!(S, x.len(), |c| {
                let d = s.sub(load(s, x, c), load(s, mean, c));
                let rest = s.fma(d, load(s, slope, c), load(s, constant, c));
                store(s, s.fma(load(s, dx, c), load(s, scale, c), rest), dx, c);
            });
        }
    }
}
