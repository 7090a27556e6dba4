//! The weight gradient: the forward pass transposed, so that for each frequency outer products are summed over tiles.

use std::ops::Range;

use super::transform::{FREQUENCIES, FilterGradient, INPUTS, Input, OUTPUTS, OutputGradient, Patch, square};
use super::{LINE, cut, tile_step, tiles_at_a_time, whole};
use crate::conv::source::with_scratch;
use crate::conv::tile::{Outer, RowOfPixels, Run};
use crate::isa::{Isa, Kernel, Simd};
use crate::{ConvShape, View};

/// Tiles a part should have, so that it is worth going through all frequencies' sums.
const TILES: usize = 72;

/// Rows of tiles of all images together, and how many parts they may be cut into.
pub(crate) fn rows_of_tiles(dy: View) -> (usize, usize) {
    let l = dy.layout;
    let rows = l.n * l.h.div_ceil(OUTPUTS);
    (rows, (rows * l.w.div_ceil(OUTPUTS)).div_ceil(TILES))
}

/// Sums over some [`rows_of_tiles`], for `dy` of at most two vectors of channels: (taps, I, `width`), where `width` is the
/// number of channels rounded up to whole vectors.
pub(crate) fn sums(isa: Isa, shape: &ConvShape, x: View, dy: View, rows: Range<usize>, width: usize) -> Vec<f32> {
    let steps = [whole(isa, shape.ci), width].map(tile_step);
    let across = dy.layout.w.div_ceil(OUTPUTS);
    let tiles = tiles_at_a_time(steps[0] + steps[1]).min(rows.len() * across);
    let frequencies = FREQUENCIES * shape.ci * width;
    let mut sums = vec![0.0; shape.taps() * shape.ci * width];
    with_scratch(LINE + frequencies + tiles * (steps[0] + steps[1]), |scratch| {
        let [frequencies, inputs, gradients] = cut(scratch, [frequencies, tiles * steps[0], tiles * steps[1]]);
        let origin = shape.origin();
        let sums = &mut sums[..];
        isa.run(Part { origin, x, dy, rows, across, tiles, width, inputs, gradients, frequencies, sums });
    });
    sums
}

/// What one call of [`sums`] works on.
struct Part<'a> {
    /// Input row and column of the first output's first tap.
    origin: [isize; 2],
    x: View<'a>,
    dy: View<'a>,
    rows: Range<usize>,
    /// Tiles in a row.
    across: usize,
    /// Tiles worked through at a time.
    tiles: usize,
    width: usize,
    inputs: &'a mut [f32],
    gradients: &'a mut [f32],
    /// (frequency, I, width).
    frequencies: &'a mut [f32],
    /// (taps, I, width).
    sums: &'a mut [f32],
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.frequencies.fill(0.0);
        let (from, to) = (self.rows.start * self.across, self.rows.end * self.across);
        for first in (from..to).step_by(self.tiles) {
            let count = self.tiles.min(to - first);
            self.transform(s, first, count);
            self.add(s, count);
        }
        self.finish(s);
    }
}

impl Part<'_> {
    /// Tiles `first..first + count` into `inputs` and `gradients`.
    #[inline(always)]
    fn transform<S: Simd>(&mut self, s: S, first: usize, count: usize) {
        let down = self.dy.layout.h.div_ceil(OUTPUTS);
        let channels = self.x.layout.c.next_multiple_of(S::LANES);
        let steps = [channels, self.width].map(tile_step);
        let (mut half_input, mut half_gradient) = ([[s.splat(0.0); INPUTS]; INPUTS], [[s.splat(0.0); OUTPUTS]; INPUTS]);
        let inputs = self.inputs.chunks_exact_mut(steps[0]);
        for (t, (input, gradient)) in inputs.zip(self.gradients.chunks_exact_mut(steps[1])).take(count).enumerate() {
            let (row, column) = ((first + t) / self.across, (first + t) % self.across);
            let (image, at) = (row / down, [row % down * OUTPUTS, column * OUTPUTS].map(|at| at as isize));
            let origin = [0, 1].map(|axis| at[axis] + self.origin[axis]);
            let x = Patch::new(self.x.image(image), origin, INPUTS);
            x.transform::<S, Input, INPUTS, INPUTS>(s, &mut half_input, channels, input);
            let dy = Patch::new(self.dy.image(image), at, OUTPUTS);
            dy.transform::<S, OutputGradient, OUTPUTS, INPUTS>(s, &mut half_gradient, self.width, gradient);
        }
    }

    /// Adds the products of the first `count` tiles to all frequencies.
    #[inline(always)]
    fn add<S: Simd>(&mut self, s: S, count: usize) {
        let (ci, width) = (self.x.layout.c, self.width);
        let channels = ci.next_multiple_of(S::LANES);
        let rows = [RowOfPixels { from: 0, count }];
        for (f, sums) in self.frequencies.chunks_exact_mut(ci * width).enumerate() {
            let (source, gradient) = (&self.inputs[f * channels..], &self.gradients[f * width..]);
            let outer =
                Outer { source, rows: &rows, step: tile_step(channels), gradient, width, pitch: tile_step(width) };
            outer.apply(s, Run { offset: 0, len: ci }, sums);
        }
    }

    /// Transforms the sums of all frequencies back to taps.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S) {
        let size = self.x.layout.c * self.width;
        for at in (0..size).step_by(S::LANES) {
            let mut frequencies = [[s.splat(0.0); INPUTS]; INPUTS];
            for (i, row) in frequencies.iter_mut().enumerate() {
                for (j, v) in row.iter_mut().enumerate() {
                    *v = s.load(&self.frequencies[(i * INPUTS + j) * size + at..]);
                }
            }
            for (i, row) in square::<S, FilterGradient, INPUTS, 3>(s, frequencies).into_iter().enumerate() {
                for (j, v) in row.into_iter().enumerate() {
                    s.store(v, &mut self.sums[(i * 3 + j) * size + at..]);
                }
            }
        }
    }
}
