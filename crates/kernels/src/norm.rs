//! Batch normalisation fused with the activation after it: statistics, forward, and the training-mode gradient.

use std::marker::PhantomData;
use std::ops::Range;

use graph::Act;
use rayon::prelude::*;

use crate::act::{Curve, with_curve};
use crate::isa::{Isa, Kernel, Simd};
use crate::map::Band;
use crate::vectors::{Lanes, for_vectors, load, rows_per_band, store};
use crate::{View, ViewMut};

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

/// Sums two values per channel over all pixels. `sum` adds up a range of pixels in `f32`; ranges are short, depend on the
/// shape alone, and are added up in order in `f64`: accurate, and the same for any number of threads.
fn sums(pixels: usize, channels: usize, sum: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync) -> [Vec<f64>; 2] {
    let each = ((1 << 15) / channels.max(1)).clamp(2 * BLOCK, 1024);
    let add = |totals: &mut [f64], part: &[f32]| totals.iter_mut().zip(part).for_each(|(t, p)| *t += f64::from(*p));
    let parts: Vec<Vec<f64>> = (0..pixels.div_ceil(each))
        .into_par_iter()
        .map(|i| {
            let (mut totals, mut block) = (vec![0.0; 2 * channels], vec![0.0; 2 * channels]);
            let end = ((i + 1) * each).min(pixels);
            for start in (i * each..end).step_by(BLOCK) {
                block.fill(0.0);
                let (first, second) = block.split_at_mut(channels);
                sum(start..(start + BLOCK).min(end), first, second);
                add(&mut totals, &block);
            }
            totals
        })
        .collect();
    let mut totals = vec![0.0; 2 * channels];
    parts.iter().for_each(|part| totals.iter_mut().zip(part).for_each(|(t, p)| *t += p));
    let second = totals.split_off(channels);
    [totals, second]
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
    let [first, second] = sums(pixels, channels, |range, first, second| {
        isa.run(Moments { x, range, shift: &shift, first, second });
    });
    let count = pixels.max(1) as f64;
    let mean = first.iter().zip(&shift).map(|(f, s)| (f64::from(*s) + f / count) as f32).collect();
    let var = first.iter().zip(&second).map(|(f, q)| (q / count - (f / count).powi(2)).max(0.0) as f32).collect();
    BatchStats { mean, var }
}

struct Moments<'a> {
    x: View<'a>,
    range: Range<usize>,
    shift: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Moments<'_> {
    /// `P` pixels from `at` on, so that each sum is fetched and put back once for all of them.
    #[inline(always)]
    fn add<S: Simd, const P: usize>(&mut self, s: S, at: usize) {
        let pixels: [&[f32]; P] = std::array::from_fn(|i| self.x.pixel(at + i));
        for_vectors!(S, self.shift.len(), |c| {
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
        while at + 4 <= self.range.end {
            self.add::<S, 4>(s, at);
            at += 4;
        }
        while at < self.range.end {
            self.add::<S, 1>(s, at);
            at += 1;
        }
    }
}

/// `y = act(gamma * (x - mean) * inv_std + beta)`, maps of one shape.
pub fn bn_act_forward(x: View, bn: &BnAct, y: ViewMut) {
    let isa = Isa::current();
    x.layout.assert_same_shape(y.layout);
    bn.check(x.layout.c);
    let scale = bn.scale();
    let rows = rows_per_band(y.layout);
    y.bands(rows).into_par_iter().for_each(|band| {
        let x = x.rows(band.image, band.row, band.view.layout.h);
        with_curve!(bn.act, C => isa.run(Forward::<C> { x, bn, scale: &scale, y: band.view, curve: PhantomData }));
    });
}

struct Forward<'a, C> {
    x: View<'a>,
    bn: &'a BnAct<'a>,
    scale: &'a [f32],
    y: ViewMut<'a>,
    curve: PhantomData<C>,
}

impl<C: Curve> Kernel for Forward<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let channels = self.scale.len();
        for p in 0..self.x.layout.pixels() {
            let (x, y) = (self.x.pixel(p), self.y.pixel(p));
            for_vectors!(S, channels, |c| {
                let d = s.sub(load(s, x, c), load(s, self.bn.mean, c));
                let z = s.fma(d, load(s, self.scale, c), load(s, self.bn.beta, c));
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
    let scale = bn.scale();
    let gradient = Gradient { x, dy, bn, scale: &scale };
    let [by_beta, by_deviation] = sums(pixels, channels, |range, first, second| {
        with_curve!(bn.act, C => isa.run(GradientSums::<C> { gradient, range, first, second, curve: PhantomData }));
    });
    let count = pixels.max(1) as f64;
    let (mut constant, mut slope) = (vec![0.0; channels], vec![0.0; channels]);
    for c in 0..channels {
        let (scale, inv_std) = (f64::from(scale[c]), f64::from(bn.inv_std[c]));
        dbeta[c] += by_beta[c] as f32;
        dgamma[c] += (inv_std * by_deviation[c]) as f32;
        constant[c] = (-scale * by_beta[c] / count) as f32;
        slope[c] = (-scale * inv_std * inv_std * by_deviation[c] / count) as f32;
    }
    let rows = rows_per_band(dx.layout);
    dx.bands(rows).into_par_iter().for_each(|band| {
        let (constant, slope) = (&constant, &slope);
        with_curve!(bn.act, C => isa.run(Backward::<C> { gradient, constant, slope, band, curve: PhantomData }));
    });
}

/// What both readings of the backward pass compute anew: cheaper than writing it down in between.
#[derive(Clone, Copy)]
struct Gradient<'a> {
    x: View<'a>,
    dy: View<'a>,
    bn: &'a BnAct<'a>,
    scale: &'a [f32],
}

impl Gradient<'_> {
    /// `d = x - mean` and `g = dy * act'(z)` of some channels of a pixel.
    #[inline(always)]
    fn at<S: Simd, C: Curve>(&self, s: S, x: &[f32], dy: &[f32], c: Lanes) -> (S::V, S::V) {
        let d = s.sub(load(s, x, c), load(s, self.bn.mean, c));
        let z = s.fma(d, load(s, self.scale, c), load(s, self.bn.beta, c));
        (d, s.mul(load(s, dy, c), C::slope(s, z)))
    }
}

struct GradientSums<'a, C> {
    gradient: Gradient<'a>,
    range: Range<usize>,
    first: &'a mut [f32],
    second: &'a mut [f32],
    curve: PhantomData<C>,
}

impl<C: Curve> Kernel for GradientSums<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.gradient.scale.len();
        for p in self.range {
            let (x, dy) = (self.gradient.x.pixel(p), self.gradient.dy.pixel(p));
            for_vectors!(S, channels, |c| {
                let (d, g) = self.gradient.at::<S, C>(s, x, dy, c);
                let (first, second) = (load(s, self.first, c), load(s, self.second, c));
                store(s, s.add(first, g), self.first, c);
                store(s, s.fma(g, d, second), self.second, c);
            });
        }
    }
}

struct Backward<'a, C> {
    gradient: Gradient<'a>,
    constant: &'a [f32],
    slope: &'a [f32],
    band: Band<'a>,
    curve: PhantomData<C>,
}

impl<C: Curve> Kernel for Backward<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (band, channels) = (&mut self.band, self.constant.len());
        let rows = band.view.layout.h;
        let x = self.gradient.x.rows(band.image, band.row, rows);
        let dy = self.gradient.dy.rows(band.image, band.row, rows);
        for p in 0..x.layout.pixels() {
            let (x, dy, dx) = (x.pixel(p), dy.pixel(p), band.view.pixel(p));
            for_vectors!(S, channels, |c| {
                let (d, g) = self.gradient.at::<S, C>(s, x, dy, c);
                let rest = s.fma(d, load(s, self.slope, c), load(s, self.constant, c));
                store(s, s.fma(g, load(s, self.gradient.scale, c), rest), dx, c);
            });
        }
    }
}
