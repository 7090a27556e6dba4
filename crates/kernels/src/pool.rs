//! Max pooling and its gradient.

use std::ops::Range;

use rayon::prelude::*;

use crate::isa::{Isa, Kernel, Simd};
use crate::vectors::{for_vectors, load, store};
use crate::{Layout, View, ViewMut};

/// Max pooling with square windows; positions outside the map never win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub kernel: usize,
    pub stride: usize,
    /// Before (top and left) and after (bottom and right).
    pub pad: [usize; 2],
}

impl Pool {
    fn check(&self, x: Layout, y: Layout) {
        let out = |size: usize| (size + self.pad[0] + self.pad[1] - self.kernel) / self.stride + 1;
        Layout { h: out(x.h), w: out(x.w), ..x }.assert_same_shape(y);
        let last = |size: usize| (out(size) - 1) * self.stride < size + self.pad[0];
        assert!(self.pad[0] < self.kernel && last(x.h) && last(x.w), "a window of {self:?} lies outside {x:?}");
    }

    /// Rows or columns, out of `size`, that the window of output `i` covers.
    #[inline(always)]
    fn window(&self, i: usize, size: usize) -> Range<usize> {
        let start = i * self.stride;
        start.saturating_sub(self.pad[0])..(start + self.kernel).saturating_sub(self.pad[0]).min(size)
    }
}

/// `y` (N, OH, OW, C) = the largest of each window of x (N, H, W, C).
pub fn max_pool_forward(pool: Pool, x: View, y: ViewMut) {
    let isa = Isa::current();
    pool.check(x.layout, y.layout);
    y.bands(1).into_par_iter().for_each(|band| {
        let rows = pool.window(band.row, x.layout.h);
        isa.run(Forward { pool, x: x.rows(band.image, rows.start, rows.len()), y: band.view });
    });
}

/// One row of outputs; `x` has the rows of its windows.
struct Forward<'a> {
    pool: Pool,
    x: View<'a>,
    y: ViewMut<'a>,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let l = self.x.layout;
        for ox in 0..self.y.layout.w {
            let columns = self.pool.window(ox, l.w);
            let y = self.y.pixel(ox);
            for_vectors!(S, l.c, |c| {
                let mut best = s.splat(f32::NEG_INFINITY);
                for row in 0..l.h {
                    for column in columns.clone() {
                        best = s.max(best, load(s, self.x.pixel(row * l.w + column), c));
                    }
                }
                store(s, best, y, c);
            });
        }
    }
}

/// The gradient of [`max_pool_forward`], added to dx: each window's dy goes to its largest x, of several the first in
/// row-major order, as in PyTorch.
pub fn max_pool_backward(pool: Pool, x: View, dy: View, dx: ViewMut) {
    let isa = Isa::current();
    pool.check(x.layout, dy.layout);
    x.layout.assert_same_shape(dx.layout);
    // Windows overlap, so an image is one task.
    let rows = dx.layout.h;
    dx.bands(rows).into_par_iter().for_each(|band| {
        isa.run(Backward { pool, x: x.image(band.image), dy: dy.image(band.image), dx: band.view });
    });
}

/// One image.
struct Backward<'a> {
    pool: Pool,
    x: View<'a>,
    dy: View<'a>,
    dx: ViewMut<'a>,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (l, out) = (self.x.layout, self.dy.layout);
        // Which pixel of the window wins, channel by channel: a small whole number, kept as a float to compare in vectors.
        let mut winners = vec![0.0; l.c];
        let mut window = Vec::with_capacity(self.pool.kernel.pow(2));
        for (oy, ox) in (0..out.h).flat_map(|oy| (0..out.w).map(move |ox| (oy, ox))) {
            window.clear();
            for row in self.pool.window(oy, l.h) {
                window.extend(self.pool.window(ox, l.w).map(|column| row * l.w + column));
            }
            for_vectors!(S, l.c, |c| {
                let (mut best, mut winner) = (s.splat(f32::NEG_INFINITY), s.splat(0.0));
                for (number, pixel) in window.iter().enumerate() {
                    let x = load(s, self.x.pixel(*pixel), c);
                    winner = s.select_gt(x, best, s.splat(number as f32), winner);
                    best = s.max(best, x);
                }
                store(s, winner, &mut winners, c);
            });
            let dy = self.dy.pixel(oy * out.w + ox);
            for (c, (winner, dy)) in winners.iter().zip(dy).enumerate() {
                self.dx.pixel(window[*winner as usize])[c] += dy;
            }
        }
    }
}
