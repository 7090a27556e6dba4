//! The loop around the tiles that the forward pass and the input gradient share.

use std::cell::RefCell;

use graph::Act;
use rayon::prelude::*;

use super::depthwise;
use super::panels::Panels;
use super::source::{Source, Window, source, with_scratch};
use super::tile::{Pixel, Product, Run, Start};
use super::winograd::outputs::Winograd;
use crate::isa::{Isa, Kernel, Simd};
use crate::map::Band;
use crate::{View, ViewMut, act};

/// Depth worked through before moving on to other pixels: its weights stay in the first cache levels meanwhile.
pub(crate) const DEPTH: usize = 384;
/// Floats of source a task copies and keeps in the second cache level (192 KiB).
const SOURCE: usize = 48 << 10;
/// Pixels a task should have, so that its weights are worth fetching.
const PIXELS: usize = 96;

/// Weights as the inner loops read them.
#[derive(Clone, Debug)]
pub(crate) enum Weights {
    Dense(Panels),
    /// Transformed, (frequency, input channel) by output channels: of a single phase, kernel 3x3 and stride 1.
    Winograd(Panels),
    /// (taps, channels).
    Depthwise(Vec<f32>),
}

/// A set of output positions on a regular grid, all computed with the same taps.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub window: Window,
    pub weights: Weights,
    /// The first position in the destination, row and column.
    pub first: [usize; 2],
}

/// A convolution whose destination is made of interleaved phases: one for the forward pass, stride x stride for the
/// gradient of the input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass<'a> {
    pub isa: Isa,
    pub phases: &'a [Phase],
    /// Destination rows and columns from one position of a phase to the next.
    pub step: [usize; 2],
    pub start: Start<'a>,
    pub act: Act,
}

/// Rows a task should have: source of `floats_per_row` fits the cache, all threads get work, weights are used enough.
pub(crate) fn rows_per_task(images: usize, [h, w]: [usize; 2], floats_per_row: usize) -> usize {
    let fitting = SOURCE / floats_per_row.max(1);
    let busy = (images * h).div_ceil(4 * rayon::current_num_threads()).max(PIXELS.div_ceil(2 * w.max(1)));
    let rows = fitting.max(PIXELS.div_ceil(w.max(1))).min(busy).clamp(1, h.max(1));
    // Bands of about the same height.
    h.max(1).div_ceil(h.max(1).div_ceil(rows))
}

impl Pass<'_> {
    /// Runs all phases over all of `to`, in parallel.
    pub fn run(&self, from: View, to: ViewMut) {
        if let [Phase { window, weights: Weights::Winograd(weights), .. }] = self.phases {
            let Self { isa, start, act, .. } = *self;
            return Winograd { isa, weights, origin: window.origin, start, act }.run(from, to);
        }
        let l = to.layout;
        let floats = from.layout.w * from.layout.c * self.phases.iter().map(|p| p.window.stride[0]).max().unwrap_or(1);
        let grid = [l.h.div_ceil(self.step[0]), l.w.div_ceil(self.step[1])];
        let rows = rows_per_task(l.n, grid, floats) * self.step[0];
        to.bands(rows).into_par_iter().for_each(|mut band| {
            for phase in self.phases {
                self.band(phase, from.image(band.image), &mut band);
            }
            if self.act != Act::Identity {
                act::apply(self.isa, self.act, band.view);
            }
        });
    }

    /// One phase of one band: lays out the source, then runs the tiles.
    fn band(&self, phase: &Phase, from: View, band: &mut Band) {
        let l = band.view.layout;
        let grid = [0, 1].map(|axis| [l.h, l.w][axis].saturating_sub(phase.first[axis]).div_ceil(self.step[axis]));
        if grid.contains(&0) {
            return;
        }
        let step = [self.step[0] * l.w * l.pitch, self.step[1] * l.pitch];
        let first = (phase.first[0] * l.w + phase.first[1]) * l.pitch;
        if phase.window.kernel.contains(&0) {
            // No tap of the kernel gets here: a stride beyond its size.
            if let Start::Zero = self.start {
                let row = |y: usize| (0..grid[1]).map(move |x| first + y * step[0] + x * step[1]);
                (0..grid[0]).flat_map(row).for_each(|at| band.view.data[at..][..l.c].fill(0.0));
            }
            return;
        }
        let window = &phase.window;
        let size = [0, 1].map(|axis| window.span(axis, grid[axis]));
        let down = (band.row / self.step[0] * window.stride[0]) as isize;
        let origin = [window.origin[0] + down, window.origin[1]];
        with_scratch(size[0] * size[1] * from.layout.c, |scratch| {
            let source = source(from, origin, size, scratch);
            let raster = Raster {
                width: grid[1],
                from: [window.stride[0] * source.row, window.stride[1] * source.pixel],
                to: step,
                first,
            };
            let (start, channels, to) = (self.start, from.layout.c, &mut *band.view.data);
            with_pixels(raster, grid[0], |pixels| match &phase.weights {
                Weights::Dense(panels) => {
                    let runs = runs(window.kernel, &source, channels);
                    self.isa.run(Products { panels, runs: &runs, start, source: source.data, pixels, to });
                }
                Weights::Depthwise(filters) => {
                    let taps = depthwise::tap_offsets(window.kernel, &source);
                    let (source, taps) = (source.data, &taps);
                    self.isa.run(depthwise::Products { taps, filters, channels, start, source, pixels, to });
                }
                Weights::Winograd(_) => unreachable!("a phase of its own"),
            });
        });
    }
}

/// Rows of positions at even distances; pairs are from a row to the next and from a position to the next, in floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Raster {
    /// Positions a row.
    width: usize,
    from: [usize; 2],
    to: [usize; 2],
    /// The first position in the destination.
    first: usize,
}

thread_local! {
    /// The last raster of this thread and the rows of it that are written out.
    static RASTER: RefCell<(Raster, Vec<Pixel>)> = RefCell::default();
}

/// Lends the positions of the first `rows` rows, written out one after the other. They stay written for the next call, which is
/// the next band of the same map, as a rule.
///
/// `f` must not call this again, nor wait for other rayon tasks: a task stolen meanwhile would.
fn with_pixels<R>(raster: Raster, rows: usize, f: impl FnOnce(&[Pixel]) -> R) -> R {
    RASTER.with_borrow_mut(|(kept, pixels)| {
        if *kept != raster {
            *kept = raster;
            pixels.clear();
        }
        let Raster { width, from, to, first } = raster;
        for y in pixels.len() / width..rows {
            let pixel = |x| Pixel { from: y * from[0] + x * from[1], to: first + y * to[0] + x * to[1] };
            pixels.extend((0..width).map(pixel));
        }
        f(&pixels[..rows * width])
    })
}

/// What one position reads, in the order of the weights' depth; neighbours in memory as one run.
fn runs(kernel: [usize; 2], source: &Source, channels: usize) -> Vec<Run> {
    if source.pixel == channels {
        return (0..kernel[0]).map(|y| Run { offset: y * source.row, len: kernel[1] * channels }).collect();
    }
    let taps = (0..kernel[0]).flat_map(|y| (0..kernel[1]).map(move |x| y * source.row + x * source.pixel));
    taps.map(|offset| Run { offset, len: channels }).collect()
}

/// Cuts runs into stretches of about [`DEPTH`] floats in all.
fn stretches(runs: &[Run]) -> Vec<Vec<Run>> {
    let total: usize = runs.iter().map(|r| r.len).sum();
    let each = total.div_ceil(total.div_ceil(DEPTH).max(1));
    let mut cut = vec![Vec::new()];
    let mut room = each;
    for run in runs {
        let (mut offset, mut left) = (run.offset, run.len);
        while left > 0 {
            if room == 0 {
                cut.push(Vec::new());
                room = each;
            }
            let len = left.min(room);
            cut.last_mut().expect("there is one from the start").push(Run { offset, len });
            (offset, left, room) = (offset + len, left - len, room - len);
        }
    }
    cut
}

/// All products of one phase of one band of a dense convolution.
struct Products<'a> {
    panels: &'a Panels,
    runs: &'a [Run],
    start: Start<'a>,
    source: &'a [f32],
    pixels: &'a [Pixel],
    to: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let stretches = stretches(self.runs);
        let mut depth = 0;
        for (i, runs) in stretches.iter().enumerate() {
            let end = depth + runs.iter().map(|r| r.len).sum::<usize>();
            let start = if i == 0 { self.start } else { Start::Destination };
            for b in 0..self.panels.blocks() {
                let panel = self.panels.block(b, depth, end);
                let to = &mut self.to[panel.first_column..];
                Product::new(runs, panel, start).apply(s, self.source, self.pixels, to);
            }
            depth = end;
        }
    }
}
