//! Loops over the channels of a pixel, a vector at a time.

use crate::Layout;
use crate::isa::Simd;

/// Runs the body for consecutive ranges of `0..$len`: whole vectors, then what is left.
///
/// A macro, since a closure called from two places need not be inlined, and would then lose the instruction set.
macro_rules! for_vectors {
    ($s:ident, $len:expr, |$range:ident| $body:block) => {{
        let (len, mut at) = ($len, 0);
        while at + $s::LANES <= len {
            let $range = at..at + $s::LANES;
            $body
            at += $s::LANES;
        }
        if at < len {
            let $range = at..len;
            $body
        }
    }};
}
pub(crate) use for_vectors;

/// A whole vector, or fewer floats and zeros.
#[inline(always)]
pub(crate) fn load<S: Simd>(s: S, from: &[f32]) -> S::V {
    if from.len() >= S::LANES { s.load(from) } else { s.load_part(from) }
}

/// A whole vector, or as many lanes as there is room for.
#[inline(always)]
pub(crate) fn store<S: Simd>(s: S, v: S::V, to: &mut [f32]) {
    if to.len() >= S::LANES { s.store(v, to) } else { s.store_part(v, to) }
}

/// Rows a task of a kernel should have that does little with each float: enough to outweigh its start.
pub(crate) fn rows_per_band(y: Layout) -> usize {
    (1usize << 14).div_ceil((y.w * y.c).max(1))
}
