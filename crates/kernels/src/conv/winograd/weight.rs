//! The weight gradient: the forward pass transposed, so that for each frequency outer products are summed over tiles.

use std::ops::Range;

use super::transform::{FREQUENCIES, FilterGradient, INPUTS, Input, OUTPUTS, OutputGradient, Patch, square};
use super::{LINE, cut, tile_step, tiles_at_a_time, whole};
use crate::conv::source::with_scratch;
use crate::conv::tile::{Outer, RowOfPixels, Run};
use crate::isa::{Isa, Kernel, Simd};
use crate::{ConvShape, View};

/// Blocks of output channels that share the transformed inputs, as long as their sums stay in the second cache level.
pub(crate) const BLOCKS: usize = 2;
/// Tiles a part should have, so that it is worth going through all frequencies' sums.
const TILES: usize = 72;

/// Rows of tiles of all images together, and how many parts they may be cut into.
pub(crate) fn rows_of_tiles(dy: View) -> (usize, usize) {
    let l = dy.layout;
    let rows = l.n * l.h.div_ceil(OUTPUTS);
    (rows, (rows * l.w.div_ceil(OUTPUTS)).div_ceil(TILES))
}

/// Sums over some [`rows_of_tiles`], for each block of at most two vectors of channels of `dy`: (taps, I, width), where
/// width is the number of channels rounded up to whole vectors.
pub(crate) fn sums(isa: Isa, shape: &ConvShape, x: View, dy: View, rows: Range<usize>) -> Vec<Vec<f32>> {
    let (ci, co, lanes) = (shape.ci, whole(isa, dy.layout.c), isa.lanes());
    let steps = [whole(isa, ci), co].map(tile_step);
    let across = dy.layout.w.div_ceil(OUTPUTS);
    let tiles = tiles_at_a_time(steps[0] + steps[1]).min(rows.len() * across);
    let widths = (0..co).step_by(2 * lanes).map(|first| (co - first).min(2 * lanes));
    let mut sums: Vec<Vec<f32>> = widths.map(|width| vec![0.0; shape.taps() * ci * width]).collect();
    let frequencies = FREQUENCIES * ci * co;
    with_scratch(LINE + frequencies + tiles * (steps[0] + steps[1]), |scratch| {
        let [frequencies, inputs, gradients] = cut(scratch, [frequencies, tiles * steps[0], tiles * steps[1]]);
        let origin = shape.origin();
        let sums = &mut sums[..];
        isa.run(Part { origin, x, dy, rows, across, tiles, inputs, gradients, frequencies, sums });
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
    inputs: &'a mut [f32],
    gradients: &'a mut [f32],
    /// (block, frequency, I, width).
    frequencies: &'a mut [f32],
    /// (taps, I, width) of each block.
    sums: &'a mut [Vec<f32>],
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
        let columns = self.dy.layout.c.next_multiple_of(S::LANES);
        let steps = [channels, columns].map(tile_step);
        let (mut half_input, mut half_gradient) = ([[s.splat(0.0); INPUTS]; INPUTS], [[s.splat(0.0); OUTPUTS]; INPUTS]);
        let inputs = self.inputs.chunks_exact_mut(steps[0]);
        for (t, (input, gradient)) in inputs.zip(self.gradients.chunks_exact_mut(steps[1])).take(count).enumerate() {
            let (row, column) = ((first + t) / self.across, (first + t) % self.across);
            let (image, at) = (row / down, [row % down * OUTPUTS, column * OUTPUTS].map(|at| at as isize));
            let origin = [0, 1].map(|axis| at[axis] + self.origin[axis]);
            let x = Patch::new(self.x.image(image), origin, INPUTS);
            x.transform::<S, Input, INPUTS, INPUTS>(s, &mut half_input, channels, input);
            let dy = Patch::new(self.dy.image(image), at, OUTPUTS);
            dy.transform::<S, OutputGradient, OUTPUTS, INPUTS>(s, &mut half_gradient, columns, gradient);
        }
    }

    /// Adds the products of the first `count` tiles to all frequencies.
    #[inline(always)]
    fn add<S: Simd>(&mut self, s: S, count: usize) {
        let [channels, columns] = [&self.x, &self.dy].map(|map| map.layout.c.next_multiple_of(S::LANES));
        let rows = [RowOfPixels { from: 0, count }];
        let run = Run { offset: 0, len: self.x.layout.c };
        for f in 0..FREQUENCIES {
            let (source, step, pitch) = (&self.inputs[f * channels..], tile_step(channels), tile_step(columns));
            for first in (0..columns).step_by(2 * S::LANES) {
                let width = (columns - first).min(2 * S::LANES);
                let sums = &mut self.frequencies[(FREQUENCIES * first + f * width) * run.len..][..run.len * width];
                let gradient = &self.gradients[f * columns + first..];
                Outer { source, rows: &rows, step, gradient, width, pitch }.apply(s, run, sums);
            }
        }
    }

    /// Transforms the sums of all frequencies back to taps.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S) {
        let mut rest = &*self.frequencies;
        for sums in self.sums.iter_mut() {
            let size = sums.len() / 9;
            let (block, after) = rest.split_at(FREQUENCIES * size);
            rest = after;
            for at in (0..size).step_by(S::LANES) {
                let mut frequencies = [[s.splat(0.0); INPUTS]; INPUTS];
                for (i, row) in frequencies.iter_mut().enumerate() {
                    for (j, v) in row.iter_mut().enumerate() {
                        *v = s.load(&block[(i * INPUTS + j) * size + at..]);
                    }
                }
                for (i, row) in square::<S, FilterGradient, INPUTS, 3>(s, frequencies).into_iter().enumerate() {
                    for (j, v) in row.into_iter().enumerate() {
                        s.store(v, &mut sums[(i * 3 + j) * size + at..]);
                    }
                }
            }
        }
    }
}
