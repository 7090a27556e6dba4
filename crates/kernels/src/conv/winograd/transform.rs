//! The minimal filtering transforms of four outputs of a row of three taps, and what applies them to both axes of a tile.
//!
//! Toom-Cook at the points 0, ±5/8, ±3/2 and infinity: the products of all matrix entries are exact in binary, and with
//! points so close to 1 the error of a convolution is about twice that of summing directly, where the usual 0, ±1, ±2
//! lose four times as much.

use super::super::tile::range;
use crate::View;
use crate::isa::Simd;
use crate::vectors::{for_vectors, load};

/// Outputs of a tile, along each axis.
pub(crate) const OUTPUTS: usize = 4;
/// Inputs of a tile, and numbers it is transformed into, along each axis.
pub(crate) const INPUTS: usize = 6;
/// Products of a tile and a channel pair: one in each of so many matrices.
pub(crate) const FREQUENCIES: usize = INPUTS * INPUTS;

const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
/// What Lagrange interpolation divides by at 0, at ±A and at ±B.
const AT_ZERO: f32 = 1.0 / (A2 * B2);
const AT_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const AT_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

/// A matrix of the method, to be multiplied with a vector.
pub(crate) trait Transform<const FROM: usize, const TO: usize> {
    fn apply<S: Simd>(s: S, x: [S::V; FROM]) -> [S::V; TO];
}

/// `factor * x + y`.
#[inline(always)]
fn scaled<S: Simd>(s: S, factor: f32, x: S::V, y: S::V) -> S::V {
    s.fma(s.splat(factor), x, y)
}

/// B^T of Lavin and Gray (2016): six inputs to frequencies.
pub(crate) struct Input;

impl Transform<INPUTS, INPUTS> for Input {
    #[inline(always)]
    fn apply<S: Simd>(s: S, x: [S::V; 6]) -> [S::V; 6] {
        let (even_a, odd_a) = (scaled(s, -B2, x[2], x[4]), scaled(s, -B2, x[1], x[3]));
        let (even_b, odd_b) = (scaled(s, -A2, x[2], x[4]), scaled(s, -A2, x[1], x[3]));
        [
            scaled(s, A2 * B2, x[0], scaled(s, -(A2 + B2), x[2], x[4])),
            scaled(s, A, odd_a, even_a),
            scaled(s, -A, odd_a, even_a),
            scaled(s, B, odd_b, even_b),
            scaled(s, -B, odd_b, even_b),
            scaled(s, A2 * B2, x[1], scaled(s, -(A2 + B2), x[3], x[5])),
        ]
    }
}

/// G: three taps to frequencies.
pub(crate) struct Filter;

impl Transform<3, INPUTS> for Filter {
    #[inline(always)]
    fn apply<S: Simd>(s: S, x: [S::V; 3]) -> [S::V; 6] {
        let even_a = s.mul(s.splat(AT_A), scaled(s, A2, x[2], x[0]));
        let even_b = s.mul(s.splat(AT_B), scaled(s, B2, x[2], x[0]));
        [
            s.mul(s.splat(AT_ZERO), x[0]),
            scaled(s, AT_A * A, x[1], even_a),
            scaled(s, -AT_A * A, x[1], even_a),
            scaled(s, AT_B * B, x[1], even_b),
            scaled(s, -AT_B * B, x[1], even_b),
            x[2],
        ]
    }
}

/// A^T: frequencies to four outputs.
pub(crate) struct Output;

impl Transform<INPUTS, OUTPUTS> for Output {
    #[inline(always)]
    fn apply<S: Simd>(s: S, x: [S::V; 6]) -> [S::V; 4] {
        let (even_a, odd_a) = (s.add(x[1], x[2]), s.sub(x[1], x[2]));
        let (even_b, odd_b) = (s.add(x[3], x[4]), s.sub(x[3], x[4]));
        [
            s.add(x[0], s.add(even_a, even_b)),
            scaled(s, A, odd_a, s.mul(s.splat(B), odd_b)),
            scaled(s, A2, even_a, s.mul(s.splat(B2), even_b)),
            scaled(s, A2 * A, odd_a, scaled(s, B2 * B, odd_b, x[5])),
        ]
    }
}

/// A: the gradient of four outputs to that of frequencies.
pub(crate) struct OutputGradient;

impl Transform<OUTPUTS, INPUTS> for OutputGradient {
    #[inline(always)]
    fn apply<S: Simd>(s: S, x: [S::V; 4]) -> [S::V; 6] {
        let (even_a, odd_a) = (scaled(s, A2, x[2], x[0]), scaled(s, A2, x[3], x[1]));
        let (even_b, odd_b) = (scaled(s, B2, x[2], x[0]), scaled(s, B2, x[3], x[1]));
        [
            x[0],
            scaled(s, A, odd_a, even_a),
            scaled(s, -A, odd_a, even_a),
            scaled(s, B, odd_b, even_b),
            scaled(s, -B, odd_b, even_b),
            x[3],
        ]
    }
}

/// G^T: the gradient of frequencies to that of three taps.
pub(crate) struct FilterGradient;

impl Transform<INPUTS, 3> for FilterGradient {
    #[inline(always)]
    fn apply<S: Simd>(s: S, x: [S::V; 6]) -> [S::V; 3] {
        let (even_a, odd_a) = (s.add(x[1], x[2]), s.sub(x[1], x[2]));
        let (even_b, odd_b) = (s.add(x[3], x[4]), s.sub(x[3], x[4]));
        [
            scaled(s, AT_ZERO, x[0], scaled(s, AT_A, even_a, s.mul(s.splat(AT_B), even_b))),
            scaled(s, AT_A * A, odd_a, s.mul(s.splat(AT_B * B), odd_b)),
            scaled(s, AT_A * A2, even_a, scaled(s, AT_B * B2, even_b, x[5])),
        ]
    }
}

/// Both axes of a square: columns first, then rows.
#[inline(always)]
pub(crate) fn square<S: Simd, T: Transform<FROM, TO>, const FROM: usize, const TO: usize>(
    s: S,
    x: [[S::V; FROM]; FROM],
) -> [[S::V; TO]; TO] {
    let zero = s.splat(0.0);
    let mut half = [[zero; FROM]; TO];
    for j in 0..FROM {
        let mut column = [zero; FROM];
        for i in 0..FROM {
            column[i] = x[i][j];
        }
        let column = T::apply(s, column);
        for i in 0..TO {
            half[i][j] = column[i];
        }
    }
    let mut whole = [[zero; TO]; TO];
    for i in 0..TO {
        whole[i] = T::apply(s, half[i]);
    }
    whole
}

/// A square of pixels of one image; those outside the image are zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patch<'a> {
    image: View<'a>,
    /// Float of `image` where the first pixel starts; means something only for pixels inside.
    first: isize,
    /// First row and column inside the image, and the first ones after it, counted from the patch's first pixel.
    inside: [[usize; 2]; 2],
}

impl<'a> Patch<'a> {
    /// `size` x `size` pixels from `origin`, row and column.
    pub fn new(image: View<'a>, origin: [isize; 2], size: usize) -> Self {
        let l = image.layout;
        let first = l.offset as isize + (origin[0] * l.w as isize + origin[1]) * l.pitch as isize;
        let cut = |at: isize| at.clamp(0, size as isize) as usize;
        let inside = [0, 1].map(|axis| [cut(-origin[axis]), cut([l.h, l.w][axis] as isize - origin[axis])]);
        Self { image, first, inside }
    }

    /// Transforms all channels into `to`: frequency f's channels start at `f * step`, zeros up to whole vectors. `half` is
    /// room for what lies between the two axes: made here, it would be filled with zeros for every patch.
    #[inline(always)]
    pub fn transform<S: Simd, T: Transform<FROM, TO>, const FROM: usize, const TO: usize>(
        &self,
        s: S,
        half: &mut [[S::V; FROM]; TO],
        step: usize,
        to: &mut [f32],
    ) {
        if self.inside == [[0, FROM]; 2] {
            self.transform_where::<S, T, FROM, TO, true>(s, half, step, to);
        } else {
            self.transform_where::<S, T, FROM, TO, false>(s, half, step, to);
        }
    }

    /// `ALL` pixels are inside, or as many as `inside` says.
    #[inline(always)]
    fn transform_where<S: Simd, T: Transform<FROM, TO>, const FROM: usize, const TO: usize, const ALL: bool>(
        &self,
        s: S,
        half: &mut [[S::V; FROM]; TO],
        step: usize,
        to: &mut [f32],
    ) {
        let l = self.image.layout;
        let zero = s.splat(0.0);
        let [rows_inside, columns_inside] = self.inside;
        assert!(rows_inside[1] <= FROM && columns_inside[1] <= FROM);
        if rows_inside[0] < rows_inside[1] && columns_inside[0] < columns_inside[1] {
            let at = |[y, x]: [usize; 2]| self.first + ((y * l.w + x) * l.pitch) as isize;
            let last = at([rows_inside[1] - 1, columns_inside[1] - 1]) + l.c as isize;
            assert!(at([rows_inside[0], columns_inside[0]]) >= 0 && last as usize <= self.image.data.len());
        }
        for_vectors!(S, l.c, |c| {
            for j in 0..FROM {
                let mut column = [zero; FROM];
                let column_inside = j >= columns_inside[0] && j < columns_inside[1];
                for (i, v) in column.iter_mut().enumerate() {
                    if ALL || column_inside && i >= rows_inside[0] && i < rows_inside[1] {
                        let at = self.first + ((i * l.w + j) * l.pitch + c.start) as isize;
                        // SAFETY: the first and the last pixel inside lie within the data (asserted), and so do the channels
                        // of those between; `c` ends at most at their number.
                        *v = load(s, unsafe { range(self.image.data, at as usize, c.len) }, c.at_zero());
                    }
                }
                let column = T::apply(s, column);
                for (half, v) in half.iter_mut().zip(column) {
                    half[j] = v;
                }
            }
            for (i, half) in half.iter().enumerate() {
                for (j, v) in T::apply(s, *half).into_iter().enumerate() {
                    s.store(v, &mut to[(i * TO + j) * step + c.start..]);
                }
            }
        });
    }
}
