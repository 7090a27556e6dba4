//! Kernels that do little with each float: activations of their own, copies, sums, upsampling.

use std::marker::PhantomData;

use graph::Act;
use rayon::prelude::*;

use crate::act::{Curve, with_curve};
use crate::isa::{Isa, Kernel, Simd};
use crate::vectors::{for_vectors, load, rows_per_band, store};
use crate::{Layout, View, ViewMut};

/// `y = act(x)`, maps of one shape.
pub fn act_forward(act: Act, x: View, y: ViewMut) {
    let isa = Isa::current();
    x.layout.assert_same_shape(y.layout);
    let rows = rows_per_band(y.layout);
    y.bands(rows).into_par_iter().for_each(|band| {
        let x = x.rows(band.image, band.row, band.view.layout.h);
        with_curve!(act, C => isa.run(Forward::<C> { x, y: band.view, curve: PhantomData }));
    });
}

struct Forward<'a, C> {
    x: View<'a>,
    y: ViewMut<'a>,
    curve: PhantomData<C>,
}

impl<C: Curve> Kernel for Forward<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        [self.x.layout, self.y.layout] = Layout::joined([self.x.layout, self.y.layout]);
        for p in 0..self.x.layout.pixels() {
            let (x, y) = (self.x.pixel(p), self.y.pixel(p));
            for_vectors!(S, x.len(), |c| {
                store(s, C::value(s, load(s, x, c)), y, c);
            });
        }
    }
}

/// `dx = dy * act'(x)` where x is what [`act_forward`] read; dx is overwritten or added to.
pub fn act_backward(act: Act, x: View, dy: View, dx: ViewMut, accumulate: bool) {
    let isa = Isa::current();
    x.layout.assert_same_shape(dx.layout);
    dy.layout.assert_same_shape(dx.layout);
    let rows = rows_per_band(dx.layout);
    dx.bands(rows).into_par_iter().for_each(|band| {
        let [x, dy] = [x, dy].map(|m| m.rows(band.image, band.row, band.view.layout.h));
        with_curve!(act, C => isa.run(Backward::<C> { x, dy, dx: band.view, accumulate, curve: PhantomData }));
    });
}

struct Backward<'a, C> {
    x: View<'a>,
    dy: View<'a>,
    dx: ViewMut<'a>,
    accumulate: bool,
    curve: PhantomData<C>,
}

impl<C: Curve> Kernel for Backward<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let maps = [self.x.layout, self.dy.layout, self.dx.layout];
        [self.x.layout, self.dy.layout, self.dx.layout] = Layout::joined(maps);
        for p in 0..self.x.layout.pixels() {
            let (x, dy, dx) = (self.x.pixel(p), self.dy.pixel(p), self.dx.pixel(p));
            for_vectors!(S, x.len(), |c| {
                let old = if self.accumulate { load(s, dx, c) } else { s.splat(0.0) };
                let slope = C::slope(s, load(s, x, c));
                store(s, s.fma(load(s, dy, c), slope, old), dx, c);
            });
        }
    }
}

/// `y = x` or `y += x`, maps of one shape.
pub fn copy(x: View, y: ViewMut, accumulate: bool) {
    x.layout.assert_same_shape(y.layout);
    let rows = rows_per_band(y.layout);
    y.bands(rows).into_par_iter().for_each(|mut band| {
        let mut x = x.rows(band.image, band.row, band.view.layout.h);
        [x.layout, band.view.layout] = Layout::joined([x.layout, band.view.layout]);
        for p in 0..x.layout.pixels() {
            let (x, y) = (x.pixel(p), band.view.pixel(p));
            if accumulate {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
            } else {
                y.copy_from_slice(x);
            }
        }
    });
}

/// `y = a + b`, maps of one shape.
pub fn add(a: View, b: View, y: ViewMut) {
    a.layout.assert_same_shape(y.layout);
    b.layout.assert_same_shape(y.layout);
    let rows = rows_per_band(y.layout);
    y.bands(rows).into_par_iter().for_each(|mut band| {
        let [mut a, mut b] = [a, b].map(|m| m.rows(band.image, band.row, band.view.layout.h));
        [a.layout, b.layout, band.view.layout] = Layout::joined([a.layout, b.layout, band.view.layout]);
        for p in 0..a.layout.pixels() {
            band.view.pixel(p).iter_mut().zip(a.pixel(p)).zip(b.pixel(p)).for_each(|((y, a), b)| *y = a + b);
        }
    });
}

/// Nearest neighbour: every pixel of x (N, H, W, C) becomes `factor` x `factor` pixels of y.
pub fn upsample_forward(factor: usize, x: View, y: ViewMut) {
    let l = x.layout;
    l.upsampled(factor).assert_same_shape(y.layout);
    y.bands(factor).into_par_iter().for_each(|mut band| {
        let x = x.rows(band.image, band.row / factor, 1);
        for p in 0..band.view.layout.pixels() {
            band.view.pixel(p).copy_from_slice(x.pixel(p % (l.w * factor) / factor));
        }
    });
}

/// The gradient of [`upsample_forward`]: the sum over each pixel's copies; dx is overwritten or added to.
pub fn upsample_backward(factor: usize, dy: View, dx: ViewMut, accumulate: bool) {
    let l = dx.layout;
    l.upsampled(factor).assert_same_shape(dy.layout);
    dx.bands(1).into_par_iter().for_each(|mut band| {
        let dy = dy.rows(band.image, band.row * factor, factor);
        for x in 0..l.w {
            let to = band.view.pixel(x);
            if !accumulate {
                to.fill(0.0);
            }
            for (r, c) in (0..factor).flat_map(|r| (0..factor).map(move |c| (r, c))) {
                let from = dy.pixel((r * l.w + x) * factor + c);
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
    });
}
