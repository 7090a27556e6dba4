//! Convolutions of few outputs: neighbours of a row become the channels of one pixel, so that vectors are full.
//!
//! Where nothing lies between pixels, `count` neighbours of O channels are one pixel of `count * O` in memory. A convolution to
//! that has the kernel once for each of them, every copy `stride` further right and zeros elsewhere: a kernel 6x6 of stride 2
//! to six channels fills six lanes for 6 columns a pixel, or twelve for 8 columns a pair.

use crate::isa::Isa;
use crate::{ConvShape, Layout};

/// A convolution whose outputs are worked on side by side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbours {
    count: usize,
    /// The convolution.
    single: ConvShape,
    /// One output of this is `count` of the convolution's.
    pub shape: ConvShape,
}

impl Neighbours {
    /// Those worth working on together; none where a pixel's outputs fill the vectors, or kernels overlap too little.
    pub fn of(isa: Isa, shape: &ConvShape) -> Option<Self> {
        let sides = [1, 2, 4, 8].map(|count| {
            let kernel = [shape.kernel[0], shape.kernel[1] + (count - 1) * shape.stride[1]];
            let stride = [shape.stride[0], count * shape.stride[1]];
            Self { count, single: *shape, shape: ConvShape { co: count * shape.co, kernel, stride, ..*shape } }
        });
        // Multiplications of vectors that `count` stands for, in parts that every count divides.
        let price = |side: &Self| side.shape.kernel[1] * side.shape.co.div_ceil(isa.lanes()) * 8 / side.count;
        let best = sides.into_iter().min_by_key(price)?;
        // Not for a gain that laying out weights and sources takes back.
        (shape.groups == 1 && 8 * price(&best) <= 7 * price(&sides[0])).then_some(best)
    }

    /// The outputs (N, OH, OW, O) as those of [`Self::shape`]; none where something lies between them or they do not divide.
    pub fn side_by_side(&self, y: Layout) -> Option<Layout> {
        let c = self.count * y.c;
        (y.pitch == y.c && y.w.is_multiple_of(self.count)).then_some(Layout { w: y.w / self.count, c, pitch: c, ..y })
    }

    /// Weights of [`Self::shape`] from those of the convolution, (O, I, KH, KW) both.
    pub fn weights(&self, w: &[f32]) -> Vec<f32> {
        let columns = self.single.kernel[1];
        let mut wide = vec![0.0; self.shape.weights()];
        self.rows(|from, to| wide[to..][..columns].copy_from_slice(&w[from..][..columns]));
        wide
    }

    /// Adds to `dw` what a gradient of the weights of [`Self::shape`] says of it.
    pub fn add(&self, wide: &[f32], dw: &mut [f32]) {
        let columns = self.single.kernel[1];
        self.rows(|at, from| {
            dw[at..][..columns].iter_mut().zip(&wide[from..][..columns]).for_each(|(d, w)| *d += w);
        });
    }

    /// Where every kernel row starts in the convolution's weights and, for each neighbour, in those of [`Self::shape`].
    fn rows(&self, mut each: impl FnMut(usize, usize)) {
        let ConvShape { ci, co, kernel, stride, .. } = self.single;
        let rows = co * ci * kernel[0];
        for row in 0..rows {
            for right in 0..self.count {
                each(row * kernel[1], (right * rows + row) * self.shape.kernel[1] + right * stride[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(co: usize, kernel: usize, stride: usize) -> ConvShape {
        ConvShape { ci: 3, co, kernel: [kernel; 2], stride: [stride; 2], pad: [kernel / 2; 2], groups: 1 }
    }

    #[test]
    fn only_half_empty_vectors_are_filled() {
        for isa in Isa::available() {
            let count = |shape| Neighbours::of(isa, &shape).map_or(1, |n| n.count);
            let lanes = isa.lanes();
            assert_eq!(count(shape(lanes / 2, 6, 2)), 2, "8 columns for 2 pixels instead of 12");
            assert_eq!(count(shape(lanes, 6, 2)), 1, "full");
            assert_eq!(count(shape(lanes / 2, 1, 1)), 1, "two kernels that share no column");
            assert_eq!(count(ConvShape { groups: 3, ..shape(3, 3, 1) }), 1, "channel by channel");
        }
    }

    #[test]
    fn rows_go_where_they_came_from() {
        let shape = shape(3, 5, 2);
        let pair = ConvShape { co: 6, kernel: [5, 7], stride: [2, 4], ..shape };
        let neighbours = Neighbours { count: 2, single: shape, shape: pair };
        let w: Vec<f32> = (0..shape.weights()).map(|i| 1.0 + i as f32).collect();
        let wide = neighbours.weights(&w);
        assert_eq!(wide.iter().filter(|w| **w != 0.0).count(), 2 * w.len());
        let mut twice = vec![0.0; w.len()];
        neighbours.add(&wide, &mut twice);
        assert!(twice.iter().zip(&w).all(|(t, w)| *t == 2.0 * w));
    }
}
