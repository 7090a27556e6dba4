//! Convolutions 3x3 of stride 1 with a quarter of the multiplications (Winograd; Lavin and Gray 2016, F(4x4, 3x3)).
//!
//! A map is cut into tiles of 4x4 outputs. The 6x6 inputs of each are transformed ([`transform`]) into 36 numbers a channel,
//! the frequencies; what was a convolution is then, for each frequency, a product of two matrices, (tiles, input channels)
//! and (input channels, output channels); its 36 results a channel are transformed back into 4x4 outputs. Transforms run
//! along channels, products in the register tiles of the direct form. [`outputs`] is the forward pass and, with the kernel
//! turned round, the gradient of the input; [`weight`] runs the same transposed and gives the gradient of the weights.

pub(super) mod outputs;
mod transform;
pub(super) mod weight;

use std::cell::Cell;

use transform::{FREQUENCIES, Filter, INPUTS, square};

use super::panels::Panels;
use crate::ConvShape;
use crate::isa::{Isa, Kernel, Simd};

/// Input and output channels from which on fewer multiplications outweigh the transforms.
const CHANNELS: usize = 8;

thread_local! {
    static DIRECT: Cell<bool> = const { Cell::new(false) };
}

/// Calls `f` with every convolution called from this thread in its direct form: how tests and benches compare the two.
///
/// Weights packed inside are direct for good.
pub fn directly<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            DIRECT.set(self.0);
        }
    }
    let _restore = Restore(DIRECT.replace(true));
    f()
}

/// Whether a dense convolution takes this way.
pub(super) fn fits(shape: &ConvShape) -> bool {
    let small = shape.ci < CHANNELS || shape.co < CHANNELS;
    shape.kernel == [3, 3] && shape.stride == [1, 1] && shape.groups == 1 && !small && !DIRECT.get()
}

/// Floats from one tile's numbers to the next one's. More than they are, since a power of two would have all tiles compete
/// for a few lines of the caches.
fn tile_step(channels: usize) -> usize {
    FREQUENCIES * channels + 16
}

/// Channels rounded up to whole vectors.
fn whole(isa: Isa, channels: usize) -> usize {
    channels.next_multiple_of(isa.lanes())
}

/// Tiles transformed at a time, `floats` for each: their numbers stay in the second cache level.
fn tiles_at_a_time(floats: usize) -> usize {
    /// 512 KiB.
    const CACHED: usize = 128 << 10;
    /// Rows of the register tiles.
    const ROWS: usize = 12;
    (CACHED / floats / ROWS).clamp(1, 4) * ROWS
}

/// Cuts scratch memory at the first cache line, into pieces of `lens`.
fn cut<const N: usize>(scratch: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    let skip = scratch.as_ptr().align_offset(64).min(LINE - 1);
    let mut rest = &mut scratch[skip..];
    lens.map(|len| {
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(len);
        rest = after;
        piece
    })
}

/// Floats of a cache line: what [`cut`] may need besides the pieces.
const LINE: usize = 16;

/// Weights of the forward pass as (frequency, input channel) by output channels; `w` is (O, I, 3, 3).
pub(super) fn forward(isa: Isa, shape: &ConvShape, w: &[f32]) -> Panels {
    let (ci, taps) = (shape.ci, shape.taps());
    filters(isa, ci, shape.co, |o, c, tap| w[(o * ci + c) * taps + tap])
}

/// Weights of the input gradient as (frequency, output channel) by input channels, the kernel turned round.
pub(super) fn transposed(isa: Isa, shape: &ConvShape, w: &[f32]) -> Panels {
    let (ci, taps) = (shape.ci, shape.taps());
    filters(isa, shape.co, ci, |c, o, tap| w[(o * ci + c) * taps + taps - 1 - tap])
}

/// Transforms the taps `weight(column, row, tap)`.
fn filters(isa: Isa, rows: usize, columns: usize, weight: impl Fn(usize, usize, usize) -> f32 + Sync) -> Panels {
    Panels::new(isa, FREQUENCIES * rows, columns, |first, columns, width, block| {
        let mut taps = [0.0; 9 * MAX_WIDTH];
        for row in 0..rows {
            for (tap, taps) in taps.chunks_exact_mut(width).take(9).enumerate() {
                taps.iter_mut().take(columns).enumerate().for_each(|(i, t)| *t = weight(first + i, row, tap));
            }
            isa.run(Filters { taps: &taps[..9 * width], width, rows, to: &mut block[row * width..] });
        }
    })
}

/// Two vectors of the widest instruction set.
const MAX_WIDTH: usize = 32;

/// Transforms the taps of one row of a block of weights.
struct Filters<'a> {
    /// (taps, width).
    taps: &'a [f32],
    width: usize,
    rows: usize,
    /// Frequency f at `f * rows * width`.
    to: &'a mut [f32],
}

impl Kernel for Filters<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in (0..self.width).step_by(S::LANES) {
            let mut taps = [[s.splat(0.0); 3]; 3];
            for (i, row) in taps.iter_mut().enumerate() {
                for (j, tap) in row.iter_mut().enumerate() {
                    *tap = s.load(&self.taps[(i * 3 + j) * self.width + at..]);
                }
            }
            let frequencies = square::<S, Filter, 3, INPUTS>(s, taps);
            for (i, row) in frequencies.into_iter().enumerate() {
                for (j, v) in row.into_iter().enumerate() {
                    s.store(v, &mut self.to[(i * INPUTS + j) * self.rows * self.width + at..]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dense_3x3_of_stride_1_with_channels_enough() {
        let shape = ConvShape { ci: 64, co: 64, kernel: [3, 3], stride: [1, 1], pad: [1, 1], groups: 1 };
        assert!(fits(&shape));
        assert!(fits(&ConvShape { pad: [0, 2], ..shape }));
        assert!(fits(&ConvShape { ci: CHANNELS, co: CHANNELS + 1, ..shape }));
        assert!(fits(&ConvShape { groups: 2, ..shape }.unit()));
        for other in [
            ConvShape { ci: CHANNELS - 1, ..shape },
            ConvShape { co: CHANNELS - 1, ..shape },
            ConvShape { kernel: [3, 1], ..shape },
            ConvShape { kernel: [5, 5], ..shape },
            ConvShape { stride: [1, 2], ..shape },
            ConvShape { groups: 64, ..shape }.unit(),
            ConvShape { groups: 16, ..shape }.unit(),
        ] {
            assert!(!fits(&other), "{other:?}");
        }
        assert!(!directly(|| fits(&shape)));
        assert!(fits(&shape), "`directly` ends");
    }
}
