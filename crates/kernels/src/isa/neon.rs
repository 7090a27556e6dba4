//! NEON, which every AArch64 CPU has: nothing to detect.

use std::arch::aarch64::*;

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Lane-wise operations that are one intrinsic each.
macro_rules! intrinsics {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: NEON is part of AArch64.
            unsafe { $intrinsic($($arg),*) }
        }
    )*};
}

impl Simd for Neon {
    const LANES: usize = 4;
    const TILE: usize = 12;
    type V = float32x4_t;

    intrinsics! {
        add(a, b) = vaddq_f32;
        sub(a, b) = vsubq_f32;
        mul(a, b) = vmulq_f32;
        div(a, b) = vdivq_f32;
        max(a, b) = vmaxq_f32;
        min(a, b) = vminq_f32;
    }

    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        assert!(from.len() >= 4);
        // SAFETY: four floats are there to read.
        unsafe { vld1q_f32(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: float32x4_t, to: &mut [f32]) {
        assert!(to.len() >= 4);
        // SAFETY: four floats are there to write.
        unsafe { vst1q_f32(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> float32x4_t {
        let mut lanes = [0.0; 4];
        lanes.iter_mut().zip(from).for_each(|(lane, x)| *lane = *x);
        self.load(&lanes)
    }

    #[inline(always)]
    fn store_part(self, v: float32x4_t, to: &mut [f32]) {
        let mut lanes = [0.0; 4];
        self.store(v, &mut lanes);
        to.iter_mut().zip(lanes).for_each(|(to, lane)| *to = lane);
    }

    #[inline(always)]
    fn select_gt(self, a: float32x4_t, b: float32x4_t, x: float32x4_t, y: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vbslq_f32(vcgtq_f32(a, b), x, y) }
    }

    #[inline(always)]
    fn exp2_shifted(self, t: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe {
            let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(t));
            vreinterpretq_f32_u32(vaddq_u32(exponent, vdupq_n_u32(1.0f32.to_bits())))
        }
    }
}
