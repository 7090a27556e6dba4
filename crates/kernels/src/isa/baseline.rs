//! Plain Rust, for every CPU.

use super::Simd;

/// Four lanes of plain numbers.
#[derive(Clone, Copy)]
pub(crate) struct Baseline;

#[derive(Clone, Copy)]
#[repr(align(16))]
pub(crate) struct Four([f32; 4]);

impl Baseline {
    #[inline(always)]
    fn zip(self, a: Four, b: Four, f: impl Fn(f32, f32) -> f32) -> Four {
        Four([f(a.0[0], b.0[0]), f(a.0[1], b.0[1]), f(a.0[2], b.0[2]), f(a.0[3], b.0[3])])
    }
}

impl Simd for Baseline {
    const LANES: usize = 4;
    const TILE: usize = 6;
    type V = Four;

    #[inline(always)]
    fn splat(self, x: f32) -> Four {
        Four([x; 4])
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Four {
        Four([from[0], from[1], from[2], from[3]])
    }

    #[inline(always)]
    fn store(self, v: Four, to: &mut [f32]) {
        to[..4].copy_from_slice(&v.0);
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> Four {
        Four(std::array::from_fn(|i| from.get(i).copied().unwrap_or(0.0)))
    }

    #[inline(always)]
    fn store_part(self, v: Four, to: &mut [f32]) {
        to.iter_mut().zip(v.0).for_each(|(to, v)| *to = v);
    }

    #[inline(always)]
    fn add(self, a: Four, b: Four) -> Four {
        self.zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Four, b: Four) -> Four {
        self.zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Four, b: Four) -> Four {
        self.zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Four, b: Four) -> Four {
        self.zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Four, b: Four, c: Four) -> Four {
        // Without the instruction, `mul_add` is a library call.
        let fused = cfg!(target_feature = "fma");
        Four(std::array::from_fn(|i| if fused { a.0[i].mul_add(b.0[i], c.0[i]) } else { a.0[i] * b.0[i] + c.0[i] }))
    }

    #[inline(always)]
    fn max(self, a: Four, b: Four) -> Four {
        self.zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Four, b: Four) -> Four {
        self.zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn select_gt(self, a: Four, b: Four, x: Four, y: Four) -> Four {
        Four(std::array::from_fn(|i| if a.0[i] > b.0[i] { x.0[i] } else { y.0[i] }))
    }

    #[inline(always)]
    fn exp2_shifted(self, t: Four) -> Four {
        Four(t.0.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(1.0f32.to_bits()))))
    }
}
