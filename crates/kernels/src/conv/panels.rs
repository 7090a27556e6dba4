//! Weights arranged for the inner loop: blocks of output channels, a vector or two wide, reading one after the other.

use rayon::prelude::*;

use crate::ConvShape;
use crate::isa::Isa;

/// A matrix (depth, columns) cut into blocks of two vectors of columns: `[block][depth][columns of the block]`, the last
/// block padded with zeros to one vector or two. Depth counts (kernel row, kernel column, input channel), columns are
/// output channels.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    data: Vec<f32>,
    /// Floats skipped so that blocks start on a cache line.
    skip: usize,
    pub depth: usize,
    pub columns: usize,
    lanes: usize,
}

/// One block of [`Panels`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel<'a> {
    pub data: &'a [f32],
    pub first_column: usize,
    /// Columns that exist.
    pub columns: usize,
    /// Vectors a row.
    pub vectors: usize,
}

impl Panels {
    /// `fill(first column, columns, width, block)` writes the columns of one zeroed block whose rows are `width` apart.
    pub fn new(isa: Isa, depth: usize, columns: usize, fill: impl Fn(usize, usize, usize, &mut [f32]) + Sync) -> Self {
        let lanes = isa.lanes();
        let mut panels = Self { data: Vec::new(), skip: 0, depth, columns, lanes };
        if depth == 0 {
            return panels;
        }
        let len = depth * columns.div_ceil(lanes) * lanes;
        panels.data = vec![0.0; len + 15];
        panels.skip = panels.data.as_ptr().align_offset(64).min(15);
        let blocks = panels.data[panels.skip..][..len].par_chunks_mut(depth * 2 * lanes);
        blocks.enumerate().with_min_len(1 + (1 << 13) / (depth * 2 * lanes)).for_each(|(b, block)| {
            let first = b * 2 * lanes;
            fill(first, (columns - first).min(2 * lanes), block.len() / depth, block);
        });
        panels
    }

    /// For the forward pass of one group: `w` is its (O, I, KH, KW).
    pub fn forward(isa: Isa, shape: &ConvShape, w: &[f32]) -> Self {
        let (ci, taps) = (shape.ci, shape.kernel[0] * shape.kernel[1]);
        let depth = ci * taps;
        Self::new(isa, depth, shape.co, |first, columns, width, block| {
            let rows: Vec<&[f32]> = (first..first + columns).map(|o| &w[o * depth..][..depth]).collect();
            for c in 0..ci {
                for tap in 0..taps {
                    let to = &mut block[(tap * ci + c) * width..][..columns];
                    to.iter_mut().zip(&rows).for_each(|(to, row)| *to = row[c * taps + tap]);
                }
            }
        })
    }

    /// For the input gradient: output and input channels change places, and of the kernel only `taps`, in this order.
    pub fn transposed(isa: Isa, shape: &ConvShape, w: &[f32], taps: &[usize]) -> Self {
        let all = shape.kernel[0] * shape.kernel[1];
        Self::new(isa, taps.len() * shape.co, shape.ci, |first, columns, width, block| {
            for o in 0..shape.co {
                let row = &w[(o * shape.ci + first) * all..][..columns * all];
                for (t, tap) in taps.iter().enumerate() {
                    let to = &mut block[(t * shape.co + o) * width..][..columns];
                    to.iter_mut().zip(row.chunks_exact(all)).for_each(|(to, from)| *to = from[*tap]);
                }
            }
        })
    }

    pub fn blocks(&self) -> usize {
        self.columns.div_ceil(2 * self.lanes)
    }

    /// Rows `from..to` of block `b`.
    pub fn block(&self, b: usize, from: usize, to: usize) -> Panel<'_> {
        let first_column = b * 2 * self.lanes;
        let columns = (self.columns - first_column).min(2 * self.lanes);
        let vectors = columns.div_ceil(self.lanes);
        let start = self.skip + self.depth * first_column;
        let width = vectors * self.lanes;
        Panel { data: &self.data[start + from * width..start + to * width], first_column, columns, vectors }
    }
}
