//! Loops over the channels of a pixel, a vector at a time.

use crate::Layout;
use crate::isa::Simd;

/// Consecutive channels, at most a vector.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    pub start: usize,
    pub len: usize,
}

impl Lanes {
    /// As many channels, of a slice that starts with them.
    #[inline(always)]
    pub fn at_zero(self) -> Self {
        Self { start: 0, ..self }
    }
}

/// Runs the body for consecutive [`Lanes`] of `0..$len`: whole vectors, then what is left.
///
/// A macro, since a closure called from two places need not be inlined, and would then lose the instruction set; and so
/// that the compiler sees where `len` is that of a whole vector.
macro_rules! for_vectors {
    ($s:ident, $len:expr, |$lanes:ident| $body:block) => {{
        let (len, mut start) = ($len, 0);
        while len - start >= $s::LANES {
            let $lanes = $crate::vectors::Lanes { start, len: $s::LANES };
            $body
            start += $s::LANES;
        }
        if start < len {
            let $lanes = $crate::vectors::Lanes { start, len: len - start };
            $body
        }
    }};
}
pub(crate) use for_vectors;

/// The channels `c` of `from`, zeros in the lanes beyond.
#[inline(always)]
pub(crate) fn load<S: Simd>(s: S, from: &[f32], c: Lanes) -> S::V {
    let from = &from[c.start..][..c.len];
    if c.len == S::LANES { s.load(from) } else { s.load_part(from) }
}

/// Writes the channels `c` of `to`.
#[inline(always)]
pub(crate) fn store<S: Simd>(s: S, v: S::V, to: &mut [f32], c: Lanes) {
    let to = &mut to[c.start..][..c.len];
    if c.len == S::LANES { s.store(v, to) } else { s.store_part(v, to) }
}

/// Rows a task of a kernel should have that does little with each float: enough to outweigh its start.
pub(crate) fn rows_per_band(y: Layout) -> usize {
    (1usize << 14).div_ceil((y.w * y.c).max(1))
}
