//! Which pixels of a layer's map the places take where its readers hear it.

use graph::Op;
use kernels::Layout;
use rayon::prelude::*;

use super::Cut;
use crate::net::conv_shape;

/// A layer's map, and that of what its readers hear.
pub(super) struct Plane {
    /// (H, W) of the map of the filters.
    pub(super) read: [usize; 2],
    /// (H, W) of what readers hear: of that map, or of the one of the depthwise convolution behind.
    pub(super) drawn: [usize; 2],
    /// (row, column) of every tap.
    pub(super) taps: Vec<[usize; 2]>,
    stride: [usize; 2],
    pad: [usize; 2],
}

impl Plane {
    /// That of `cut`, the map of whose filters has `layout`.
    pub(super) fn of(slim: &graph::Graph, cut: &Cut, layout: Layout) -> Self {
        let read = [layout.h, layout.w];
        match (cut.depthwise, &slim.nodes[cut.last()].op) {
            (Some(_), Op::Conv(conv)) => {
                let (h, w) = conv_shape(conv).output(layout);
                let [rows, columns] = conv.kernel();
                let taps = (0..rows * columns).map(|tap| [tap / columns, tap % columns]).collect();
                Self { read, drawn: [h, w], taps, stride: conv.stride, pad: conv.pad }
            }
            _ => Self { read, drawn: read, taps: vec![[0, 0]], stride: [1, 1], pad: [0, 0] },
        }
    }

    /// The pixels that places `at` take.
    pub(super) fn pixels(&self, at: &[usize]) -> Pixels {
        let ([h, w], [rows, columns]) = (self.drawn, self.read);
        let pixel = |&at: &usize, tap: &[usize; 2]| {
            let row = (at / w % h * self.stride[0] + tap[0]).checked_sub(self.pad[0]).filter(|&row| row < rows)?;
            let column = (at % w * self.stride[1] + tap[1]).checked_sub(self.pad[1]).filter(|&c| c < columns)?;
            Some((at / (h * w) * rows + row) * columns + column)
        };
        let pixels = at.iter().flat_map(|at| self.taps.iter().map(move |tap| pixel(at, tap)));
        let (pixels, inside) = pixels.map(|pixel| (pixel.unwrap_or(0), pixel.is_some())).unzip();
        Pixels { pixels, inside }
    }
}

/// Pixels of a map over all images, (S, T) of them.
pub(super) struct Pixels {
    /// The first one stands for those beyond the border.
    pub(super) pixels: Vec<usize>,
    /// False beyond the border.
    pub(super) inside: Vec<bool>,
}

/// Makes the rows of `values` (S T, C = `width`) that are not `inside` nothing.
pub(super) fn bound(inside: &[bool], values: &mut [f32], width: usize) {
    let outside = values.par_chunks_mut(width).zip(inside).filter(|(_, inside)| !**inside);
    outside.for_each(|(row, _)| row.fill(0.0));
}
