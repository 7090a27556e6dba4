//! The weight gradient of a dense convolution: sums of outer products over pixels.

use std::ops::Range;

use rayon::prelude::*;

use super::source::{Window, copy_padded, with_scratch};
use super::tile::{Outer, RowOfPixels, Run};
use super::winograd;
use crate::isa::{Isa, Kernel, Simd};
use crate::{ConvShape, View};

/// Pixels worked through at a time: their gradients stay in the first cache level while all rows of the sum pass by.
const PIXELS: usize = 128;
/// Independent parts the work is cut into. Fixed, so that the sums' order does not depend on the number of threads.
const PARTS: usize = 16;

/// Adds to `dw` (O, I, KH, KW) the gradient of one group.
pub(crate) fn backward_weight(isa: Isa, shape: &ConvShape, x: View, dy: View, dw: &mut [f32]) {
    let [kh, kw] = shape.kernel;
    let depth = kh * kw * shape.ci;
    let width = 2 * isa.lanes();
    let blocks = shape.co.div_ceil(width);
    let by_tiles = winograd::fits(shape);
    // Rows of all images in about equal parts, none of them tiny.
    let (rows, most) = if by_tiles {
        winograd::weight::rows_of_tiles(dy)
    } else {
        (dy.layout.n * dy.layout.h, dy.layout.pixels().div_ceil(2 * PIXELS))
    };
    let parts = (PARTS / blocks).min(most).clamp(1, rows.max(1));
    let together = if by_tiles { winograd::weight::BLOCKS } else { 1 };
    let groups = blocks.div_ceil(together);
    let sums: Vec<Vec<f32>> = (0..parts * groups)
        .into_par_iter()
        .flat_map_iter(|task| {
            let (part, first) = (task / groups, task % groups * together * width);
            let columns = (shape.co - first).min(together * width);
            let width = columns.div_ceil(isa.lanes()) * isa.lanes();
            let dy = dy.channels(first, columns);
            let rows = part * rows / parts..(part + 1) * rows / parts;
            if by_tiles {
                return winograd::weight::sums(isa, shape, x, dy, rows);
            }
            let mut sums = vec![0.0; depth * width];
            let [gradients, copies] = Part::scratch(shape, x, dy, width);
            with_scratch(gradients + copies, |scratch| {
                let (gradient, scratch) = scratch.split_at_mut(gradients);
                isa.run(Part { shape, x, dy, rows, width, gradient, scratch, sums: &mut sums });
            });
            vec![sums]
        })
        .collect();

    /// Filters a task adds up and turns into PyTorch's order; a block holds a multiple of them.
    const FILTERS: usize = 8;
    let taps = kh * kw;
    dw.par_chunks_mut(FILTERS * depth).enumerate().for_each(|(i, dw)| {
        let (block, first) = (i * FILTERS / width, i * FILTERS % width);
        let filters = dw.len() / depth;
        let width = sums[block].len() / depth;
        for tap in 0..taps {
            for c in 0..shape.ci {
                let at = (tap * shape.ci + c) * width + first;
                let mut total = [0.0; FILTERS];
                for part in 0..parts {
                    let from = &sums[part * blocks + block][at..at + filters];
                    total.iter_mut().zip(from).for_each(|(t, f)| *t += f);
                }
                total[..filters].iter().enumerate().for_each(|(o, t)| dw[o * depth + c * taps + tap] += t);
            }
        }
    });
}

/// Some rows of the output, counted through all images, and at most two vectors of its channels.
struct Part<'a> {
    shape: &'a ConvShape,
    x: View<'a>,
    dy: View<'a>,
    rows: Range<usize>,
    /// Channels of `dy`, rounded up to vectors.
    width: usize,
    /// Room for the gradients of some rows, `width` floats a pixel.
    gradient: &'a mut [f32],
    /// Room for copied input rows.
    scratch: &'a mut [f32],
    /// (depth, width).
    sums: &'a mut [f32],
}

impl Part<'_> {
    /// Output rows worked through at a time.
    fn step(dy: View) -> usize {
        PIXELS.div_ceil(dy.layout.w)
    }

    /// Whether the input can be read where it is: no padding, and a kernel row without gaps.
    fn in_place(shape: &ConvShape, x: View) -> bool {
        shape.pad == [0, 0] && (shape.kernel[1] == 1 || x.layout.pitch == x.layout.c)
    }

    fn window(shape: &ConvShape) -> Window {
        Window { kernel: shape.kernel, stride: shape.stride, origin: shape.origin() }
    }

    /// Floats needed for gradients and copied input rows.
    fn scratch(shape: &ConvShape, x: View, dy: View, width: usize) -> [usize; 2] {
        let (step, window) = (Self::step(dy), Self::window(shape));
        // Where the rows belong to several images, each of them is a strip of its own.
        let strips = step.div_ceil(dy.layout.h) + 1;
        let rows = step * shape.stride[0] + strips * shape.kernel[0];
        let copies = if Self::in_place(shape, x) { 0 } else { rows * window.span(1, dy.layout.w) * x.layout.c };
        [step * dy.layout.w * width, copies]
    }

    /// Lays out the input of some output rows, in place or image after image in `scratch`: where each row's pixels start,
    /// and how many floats were copied.
    fn lay_out(&mut self, output_rows: Range<usize>, row: usize) -> (Vec<RowOfPixels>, usize) {
        let (h, w) = (self.dy.layout.h, self.dy.layout.w);
        let l = self.x.layout;
        let window = Self::window(self.shape);
        let in_place = Self::in_place(self.shape, self.x);
        let (mut rows, mut used, mut at) = (Vec::new(), 0, output_rows.start);
        while at < output_rows.end {
            let (image, y) = (at / h, at % h);
            let count = (h - y).min(output_rows.end - at);
            let top = y * window.stride[0];
            let mut first = l.offset + (image * l.h + top) * row;
            if !in_place {
                let size = [window.span(0, count), window.span(1, w)];
                let origin = [window.origin[0] + top as isize, window.origin[1]];
                first = used;
                used += size[0] * row;
                copy_padded(self.x.image(image), origin, size, &mut self.scratch[first..used]);
            }
            rows.extend((0..count).map(|i| RowOfPixels { from: first + i * window.stride[0] * row, count: w }));
            at += count;
        }
        (rows, used)
    }
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (l, w) = (self.x.layout, self.dy.layout.w);
        let window = Self::window(self.shape);
        let in_place = Self::in_place(self.shape, self.x);
        let (row, pixel) = if in_place { (l.w * l.pitch, l.pitch) } else { (window.span(1, w) * l.c, l.c) };
        let run = window.kernel[1] * l.c;
        let mut start = self.rows.start;
        while start < self.rows.end {
            let end = (start + Self::step(self.dy)).min(self.rows.end);
            gather(s, self.dy, start * w, (end - start) * w, self.width, self.gradient);
            let (rows, used) = self.lay_out(start..end, row);
            let source = if in_place { self.x.data } else { &self.scratch[..used] };
            let step = window.stride[1] * pixel;
            let (gradient, width) = (&*self.gradient, self.width);
            let outer = Outer { source, rows: &rows, step, gradient, width, pitch: width };
            for (y, sums) in self.sums.chunks_exact_mut(run * self.width).enumerate() {
                outer.apply(s, Run { offset: y * row, len: run }, sums);
            }
            start = end;
        }
    }
}

/// Copies pixels `first..first + count` without gaps, zeros up to `width`.
#[inline(always)]
fn gather<S: Simd>(s: S, dy: View, first: usize, count: usize, width: usize, to: &mut [f32]) {
    for (p, to) in to.chunks_exact_mut(width).take(count).enumerate() {
        let from = dy.pixel(first + p);
        for (v, to) in to.chunks_exact_mut(S::LANES).enumerate() {
            let part = &from[(v * S::LANES).min(from.len())..];
            s.store(if part.len() >= S::LANES { s.load(part) } else { s.load_part(part) }, to);
        }
    }
}
