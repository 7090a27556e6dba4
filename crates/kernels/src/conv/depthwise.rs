//! Depthwise convolution: one filter a channel, so vectors run along channels and nothing is summed across them.

use rayon::prelude::*;

use super::source::{Source, Window, source, with_scratch};
use super::tile::{Pixel, Start, range};
use crate::isa::{Isa, Kernel, Simd};
use crate::vectors::{for_vectors, load, store};
use crate::{ConvShape, View};

/// Filters as (taps, channels), of the taps named, in that order; `w` is (C, 1, KH, KW).
pub(crate) fn filters(w: &[f32], all: usize, taps: &[usize]) -> Vec<f32> {
    taps.iter().flat_map(|tap| w.iter().skip(*tap).step_by(all)).copied().collect()
}

/// How far each tap lies from a pixel's start, row by row.
pub(crate) fn tap_offsets(kernel: [usize; 2], source: &Source) -> Vec<usize> {
    (0..kernel[0]).flat_map(|y| (0..kernel[1]).map(move |x| y * source.row + x * source.pixel)).collect()
}

/// `destination[pixel] = start + sum over taps of source[pixel + tap] * filter` for all pixels.
pub(crate) struct Products<'a> {
    pub taps: &'a [usize],
    /// (taps, channels).
    pub filters: &'a [f32],
    pub channels: usize,
    pub start: Start<'a>,
    pub source: &'a [f32],
    pub pixels: &'a [Pixel],
    pub to: &'a mut [f32],
}

impl Products<'_> {
    /// `P` pixels at a time share each load of the filter.
    #[inline(always)]
    fn apply<S: Simd, const P: usize>(&mut self, s: S, pixels: &[Pixel; P]) {
        let reach = self.taps.iter().max().unwrap_or(&0) + self.channels;
        assert!(pixels.iter().all(|p| p.from + reach <= self.source.len()));
        assert!(self.taps.len() * self.channels <= self.filters.len());
        for_vectors!(S, self.channels, |c| {
            let mut sums = [s.splat(0.0); P];
            for (sum, pixel) in sums.iter_mut().zip(pixels) {
                match self.start {
                    Start::Zero => {}
                    Start::Bias(bias) => *sum = load(s, bias, c),
                    Start::Destination => *sum = load(s, &self.to[pixel.to..], c),
                }
            }
            for (t, tap) in self.taps.iter().enumerate() {
                // SAFETY: `t` is below the number of taps and `c` ends at most at `channels` (asserted above).
                let filter = load(s, unsafe { range(self.filters, t * self.channels + c.start, c.len) }, c.at_zero());
                for (sum, pixel) in sums.iter_mut().zip(pixels) {
                    // SAFETY: `tap + the end of `c` <= reach`, which lies within the source for every pixel (asserted above).
                    let x = load(s, unsafe { range(self.source, pixel.from + tap + c.start, c.len) }, c.at_zero());
                    *sum = s.fma(x, filter, *sum);
                }
            }
            for (sum, pixel) in sums.into_iter().zip(pixels) {
                store(s, sum, &mut self.to[pixel.to..], c);
            }
        });
    }

    /// The same for four neighbours under a `K`xK kernel whose taps are `pixel` and `row` apart, pixels `STRIDE` taps: inputs
    /// that several of them read are loaded once.
    #[inline(always)]
    fn apply_neighbours<S: Simd, const K: usize, const STRIDE: usize>(
        &mut self,
        s: S,
        pixels: &[Pixel; 4],
        Steps { row, pixel, .. }: Steps,
    ) {
        let from = pixels[0].from;
        assert!(from + (K - 1) * row + (3 * STRIDE + K - 1) * pixel + self.channels <= self.source.len());
        assert!(K * K * self.channels <= self.filters.len());
        for_vectors!(S, self.channels, |c| {
            let mut sums = [s.splat(0.0); 4];
            for (sum, pixel) in sums.iter_mut().zip(pixels) {
                match self.start {
                    Start::Zero => {}
                    Start::Bias(bias) => *sum = load(s, bias, c),
                    Start::Destination => *sum = load(s, &self.to[pixel.to..], c),
                }
            }
            for y in 0..K {
                let mut filters = [s.splat(0.0); K];
                for (x, filter) in filters.iter_mut().enumerate() {
                    // SAFETY: K * K filters of `channels` each (asserted above).
                    let w = unsafe { range(self.filters, (K * y + x) * self.channels + c.start, c.len) };
                    *filter = load(s, w, c.at_zero());
                }
                for i in 0..3 * STRIDE + K {
                    // SAFETY: `y < K`, `i < 3 * STRIDE + K`, `c` ends at most at `channels`: in the source (asserted above).
                    let x = unsafe { range(self.source, from + y * row + i * pixel + c.start, c.len) };
                    let input = load(s, x, c.at_zero());
                    for (p, sum) in sums.iter_mut().enumerate() {
                        if i >= p * STRIDE && i - p * STRIDE < K {
                            *sum = s.fma(input, filters[i - p * STRIDE], *sum);
                        }
                    }
                }
            }
            for (sum, pixel) in sums.into_iter().zip(pixels) {
                store(s, sum, &mut self.to[pixel.to..], c);
            }
        });
    }

    /// How the taps lie, if they are those of a `K`xK kernel.
    fn steps(&self, k: usize) -> Option<Steps> {
        if self.taps.len() != k * k {
            return None;
        }
        let (pixel, row) = (self.taps[1], self.taps[k]);
        let regular = self.taps.iter().copied().eq((0..k * k).map(|i| i / k * row + i % k * pixel));
        regular.then_some(Steps { kernel: k, row, pixel })
    }
}

/// Floats from a row of taps to the next and from a tap to the next, of a square kernel.
#[derive(Clone, Copy)]
struct Steps {
    kernel: usize,
    row: usize,
    pixel: usize,
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let steps = [3, 5].into_iter().find_map(|k| self.steps(k));
        let (fours, rest) = self.pixels.as_chunks::<4>();
        for pixels in fours {
            let apart = |step: usize| (1..4).all(|i| pixels[i].from == pixels[0].from + i * step);
            match steps {
                Some(steps) if steps.kernel == 3 && apart(steps.pixel) => {
                    self.apply_neighbours::<S, 3, 1>(s, pixels, steps);
                }
                Some(steps) if steps.kernel == 3 && apart(2 * steps.pixel) => {
                    self.apply_neighbours::<S, 3, 2>(s, pixels, steps);
                }
                Some(steps) if steps.kernel == 5 && apart(steps.pixel) => {
                    self.apply_neighbours::<S, 5, 1>(s, pixels, steps);
                }
                Some(steps) if steps.kernel == 5 && apart(2 * steps.pixel) => {
                    self.apply_neighbours::<S, 5, 2>(s, pixels, steps);
                }
                _ => self.apply(s, pixels),
            }
        }
        for pixel in rest {
            self.apply(s, std::array::from_ref(pixel));
        }
    }
}

/// Adds to `dw` (C, 1, KH, KW) the gradient of the filters.
pub(crate) fn backward_weight(isa: Isa, shape: &ConvShape, x: View, dy: View, dw: &mut [f32]) {
    let (l, channels) = (dy.layout, shape.ci);
    let window = Window { kernel: shape.kernel, stride: shape.stride, origin: shape.origin() };
    let columns = window.span(1, l.w);
    let step = (SOURCE / (columns * channels * shape.stride[0]).max(1)).clamp(1, l.h);
    let bands = l.h.div_ceil(step);
    let parts: Vec<Vec<f32>> = (0..l.n * bands)
        .into_par_iter()
        .map(|task| {
            let (image, row) = (task / bands, task % bands * step);
            let count = step.min(l.h - row);
            let size = [window.span(0, count), columns];
            let origin = [window.origin[0] + (row * window.stride[0]) as isize, window.origin[1]];
            let mut sums = vec![0.0; shape.taps() * channels];
            with_scratch(size[0] * size[1] * channels, |scratch| {
                let source = source(x.image(image), origin, size, scratch);
                let taps = tap_offsets(window.kernel, &source);
                let dy = dy.rows(image, row, count);
                isa.run(Gradient { taps: &taps, stride: window.stride, source, dy, sums: &mut sums });
            });
            sums
        })
        .collect();
    for part in &parts {
        for (tap, part) in part.chunks_exact(channels).enumerate() {
            dw.iter_mut().skip(tap).step_by(shape.taps()).zip(part).for_each(|(dw, p)| *dw += p);
        }
    }
}

/// Floats of source a task of the weight gradient looks at (128 KiB); fixed, as it decides in which order sums are formed.
const SOURCE: usize = 32 << 10;

struct Gradient<'a> {
    taps: &'a [usize],
    stride: [usize; 2],
    source: Source<'a>,
    dy: View<'a>,
    /// (taps, channels), added to.
    sums: &'a mut [f32],
}

impl Gradient<'_> {
    /// `T` taps from `tap` on, over one row of pixels.
    #[inline(always)]
    fn row<S: Simd, const T: usize>(&mut self, s: S, y: usize, tap: usize) {
        let (l, source) = (self.dy.layout, self.source);
        let taps: [usize; T] = std::array::from_fn(|t| self.taps[tap + t] + y * self.stride[0] * source.row);
        let step = self.stride[1] * source.pixel;
        let reach = taps.iter().max().unwrap_or(&0) + (l.w - 1) * step + l.c;
        assert!(reach <= source.data.len());
        for_vectors!(S, l.c, |c| {
            let mut sums = [s.splat(0.0); T];
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = load(s, &self.sums[(tap + t) * l.c..], c);
            }
            for x in 0..l.w {
                let d = load(s, self.dy.pixel(y * l.w + x), c);
                for t in 0..T {
                    // SAFETY: `x < w`, `c` ends within the channels: at most `reach`, which lies within the source (asserted).
                    let x = load(s, unsafe { range(source.data, taps[t] + x * step + c.start, c.len) }, c.at_zero());
                    sums[t] = s.fma(x, d, sums[t]);
                }
            }
            for (t, sum) in sums.into_iter().enumerate() {
                store(s, sum, &mut self.sums[(tap + t) * l.c..], c);
            }
        });
    }
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for y in 0..self.dy.layout.h {
            let mut tap = 0;
            while tap < self.taps.len() {
                // As many sums at a time as any instruction set has registers for, and never so few that each waits for the last.
                match self.taps.len() - tap {
                    9 | 18.. => {
                        self.row::<S, 9>(s, y, tap);
                        tap += 9;
                    }
                    8 | 16.. => {
                        self.row::<S, 8>(s, y, tap);
                        tap += 8;
                    }
                    5.. => {
                        self.row::<S, 5>(s, y, tap);
                        tap += 5;
                    }
                    3.. => {
                        self.row::<S, 3>(s, y, tap);
                        tap += 3;
                    }
                    _ => {
                        self.row::<S, 1>(s, y, tap);
                        tap += 1;
                    }
                }
            }
        }
    }
}
