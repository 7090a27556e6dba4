//! The forward pass and the input gradient: tiles of a map to tiles of another.

use graph::Act;
use rayon::prelude::*;

use super::transform::{FREQUENCIES, INPUTS, Input, OUTPUTS, Output, Patch, Transform};
use super::{LINE, cut, tile_step, tiles_at_a_time, whole};
use crate::conv::panels::Panels;
use crate::conv::pass::DEPTH;
use crate::conv::source::with_scratch;
use crate::conv::tile::{Pixel, Product, Run, Start};
use crate::isa::{Isa, Kernel, Simd};
use crate::map::Band;
use crate::vectors::{for_vectors, load, store};
use crate::{View, ViewMut, act};

/// A convolution of transformed weights, (frequency, input channel) by output channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Winograd<'a> {
    pub isa: Isa,
    pub weights: &'a Panels,
    /// Source row and column of output (0, 0)'s first tap; negative inside the padding.
    pub origin: [isize; 2],
    pub start: Start<'a>,
    pub act: Act,
}

impl Winograd<'_> {
    /// Runs over all of `to`, in parallel.
    pub fn run(&self, from: View, to: ViewMut) {
        let (l, threads) = (to.layout, rayon::current_num_threads());
        let steps = [from.layout.c, l.c].map(|c| tile_step(whole(self.isa, c)));
        let across = l.w.div_ceil(OUTPUTS);
        let most = tiles_at_a_time(steps[0] + steps[1]);
        let mut rows_of_tiles = to.bands(OUTPUTS);
        // Enough tiles to fetch the weights for, unless threads would have nothing to do.
        let count = rows_of_tiles.len();
        let rows = count.div_ceil(4 * threads).max(most.div_ceil(across.max(1))).min(count.div_ceil(threads)).max(1);
        rows_of_tiles.par_chunks_mut(rows).for_each(|bands| {
            let tiles = most.min(bands.len() * across);
            with_scratch(LINE + tiles * (steps[0] + steps[1]), |scratch| {
                let [inputs, products] = cut(scratch, steps.map(|step| tiles * step));
                self.isa.run(Task { winograd: self, from, bands, across, tiles, steps, inputs, products });
            });
            if self.act != Act::Identity {
                bands.iter_mut().for_each(|band| act::apply(self.isa, self.act, band.view.reborrow()));
            }
        });
    }
}

/// Some rows of tiles.
struct Task<'a, 'b> {
    winograd: &'a Winograd<'a>,
    from: View<'a>,
    /// One row of tiles each.
    bands: &'a mut [Band<'b>],
    /// Tiles in a row.
    across: usize,
    /// Tiles worked through at a time.
    tiles: usize,
    /// Floats from a tile to the next in `inputs` and in `products`.
    steps: [usize; 2],
    inputs: &'a mut [f32],
    products: &'a mut [f32],
}

impl Kernel for Task<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let all = self.bands.len() * self.across;
        let pixels: Vec<Pixel> =
            (0..self.tiles).map(|t| Pixel { from: t * self.steps[0], to: t * self.steps[1] }).collect();
        let mut half = [[s.splat(0.0); INPUTS]; OUTPUTS];
        for first in (0..all).step_by(self.tiles) {
            let count = self.tiles.min(all - first);
            self.transform(s, first, count);
            self.multiply(s, &pixels[..count]);
            for t in 0..count {
                self.store(s, &mut half, first + t, t);
            }
        }
    }
}

impl Task<'_, '_> {
    /// Tiles `first..first + count` into `inputs`.
    #[inline(always)]
    fn transform<S: Simd>(&mut self, s: S, first: usize, count: usize) {
        let step = self.from.layout.c.next_multiple_of(S::LANES);
        let mut half = [[s.splat(0.0); INPUTS]; INPUTS];
        for (t, to) in self.inputs.chunks_exact_mut(self.steps[0]).take(count).enumerate() {
            let (band, column) = (&self.bands[(first + t) / self.across], (first + t) % self.across);
            let down = self.winograd.origin[0] + band.row as isize;
            let along = self.winograd.origin[1] + (column * OUTPUTS) as isize;
            let patch = Patch::new(self.from.image(band.image), [down, along], INPUTS);
            patch.transform::<S, Input, INPUTS, INPUTS>(s, &mut half, step, to);
        }
    }

    /// All frequencies' products of the tiles at hand.
    #[inline(always)]
    fn multiply<S: Simd>(&mut self, s: S, tiles: &[Pixel]) {
        let weights = self.winograd.weights;
        let depth = weights.depth / FREQUENCIES;
        let each = depth.div_ceil(depth.div_ceil(DEPTH));
        let steps = [depth, weights.columns].map(|c| c.next_multiple_of(S::LANES));
        for f in 0..FREQUENCIES {
            let inputs = &self.inputs[f * steps[0]..];
            for from in (0..depth).step_by(each) {
                let to = (from + each).min(depth);
                let runs = [Run { offset: from, len: to - from }];
                let start = if from == 0 { Start::Zero } else { Start::Destination };
                for b in 0..weights.blocks() {
                    let panel = weights.block(b, f * depth + from, f * depth + to);
                    let products = &mut self.products[f * steps[1] + panel.first_column..];
                    Product::new(&runs, panel, start).apply(s, inputs, tiles, products);
                }
            }
        }
    }

    /// Transforms products `t` back to tile `tile`; `half` is as in [`Patch::transform`].
    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, half: &mut [[S::V; INPUTS]; OUTPUTS], tile: usize, t: usize) {
        let band = &mut self.bands[tile / self.across];
        let l = band.view.layout;
        let left = tile % self.across * OUTPUTS;
        let (rows, columns) = (l.h.min(OUTPUTS), (l.w - left).min(OUTPUTS));
        let step = l.c.next_multiple_of(S::LANES);
        let products = &self.products[t * self.steps[1]..][..FREQUENCIES * step];
        let zero = s.splat(0.0);
        for_vectors!(S, l.c, |c| {
            for j in 0..INPUTS {
                let mut column = [zero; INPUTS];
                for (i, v) in column.iter_mut().enumerate() {
                    *v = s.load(&products[(i * INPUTS + j) * step + c.start..]);
                }
                let column = Output::apply(s, column);
                for (half, v) in half.iter_mut().zip(column) {
                    half[j] = v;
                }
            }
            let bias = if let Start::Bias(bias) = self.winograd.start { load(s, bias, c) } else { zero };
            for (i, half) in half.iter().enumerate().take(rows) {
                let row = Output::apply(s, *half);
                for (j, v) in row.into_iter().enumerate().take(columns) {
                    let to = &mut band.view.data[(i * l.w + left + j) * l.pitch..];
                    let start = if let Start::Destination = self.winograd.start { load(s, to, c) } else { bias };
                    store(s, s.add(v, start), to, c);
                }
            }
        });
    }
}
