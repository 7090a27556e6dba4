//! Instruction sets: what the machine has, found out at run time, and one vector type that every kernel is written in.

use std::cell::Cell;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 16 lanes, 32 registers, masks.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes, 16 registers, fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every CPU of the target has: SSE2 on x86-64, NEON on AArch64. 4 lanes.
    Baseline,
}

thread_local! {
    static CHOSEN: Cell<Option<Isa>> = const { Cell::new(None) };
}

impl Isa {
    /// All that this machine has, widest first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                found.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self::Avx2);
            }
        }
        found.push(Self::Baseline);
        found
    }

    /// What kernels called from this thread run on: the widest available, unless inside [`Isa::scope`].
    pub(crate) fn current() -> Self {
        CHOSEN.get().unwrap_or_else(|| {
            let widest = Self::available()[0];
            CHOSEN.set(Some(widest));
            widest
        })
    }

    /// Calls `f` with kernels called from this thread running on `self`: how tests and benches compare instruction sets.
    ///
    /// Panics where this machine does not have it.
    pub fn scope<R>(self, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<Isa>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CHOSEN.set(self.0);
            }
        }
        assert!(Self::available().contains(&self), "this machine has no {self:?}");
        let _restore = Restore(CHOSEN.replace(Some(self)));
        f()
    }

    /// Floats a vector.
    pub(crate) fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 8,
            Self::Baseline => 4,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            // SAFETY: `current` and `scope` hand out an instruction set only after detecting it.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { x86::run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::run_avx2(kernel) },
            Self::Baseline => kernel.run(Baseline),
        }
    }
}

/// The largest [`Simd::TILE`].
pub(crate) const MAX_TILE: usize = 12;

/// A loop nest to compile once per instruction set: `run` and all it calls must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;

    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Vectors of `f32`. A value of the implementing type proves that the CPU has the instructions.
pub(crate) trait Simd: Copy {
    const LANES: usize;
    /// Rows of a tile two vectors wide that the registers hold, at most [`MAX_TILE`].
    const TILE: usize;
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    /// The first `LANES` floats; panics where there are fewer.
    fn load(self, from: &[f32]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32]);
    /// All floats of a slice shorter than `LANES`, then zeros.
    fn load_part(self, from: &[f32]) -> Self::V;
    /// As many lanes as the slice has room for.
    fn store_part(self, v: Self::V, to: &mut [f32]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the CPU fuses.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Lane by lane `x` where `a > b`, else `y`.
    fn select_gt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// `2^n` for whole `n` in -126..=127, given as `n + 1.5 * 2^23`: its low mantissa bits are then `n` itself.
    fn exp2_shifted(self, t: Self::V) -> Self::V;
}

/// Four lanes in plain Rust; the compiler turns them into SSE2 or NEON.
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
    const TILE: usize = if cfg!(target_arch = "aarch64") { 12 } else { 6 };
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
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, Simd};

    #[derive(Clone, Copy)]
    pub struct Avx512(());

    #[derive(Clone, Copy)]
    pub struct Avx2(());

    /// Safety: the CPU must have AVX-512F.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }

    /// Safety: the CPU must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }

    /// Lane-wise operations that are one intrinsic each.
    macro_rules! intrinsics {
        ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
            #[inline(always)]
            fn $name(self, $($arg: Self::V),*) -> Self::V {
                // SAFETY: only `run_avx512` and `run_avx2` make a `self`, so the CPU has the instruction.
                unsafe { $intrinsic($($arg),*) }
            }
        )*};
    }

    impl Simd for Avx512 {
        const LANES: usize = 16;
        const TILE: usize = 12;
        type V = __m512;

        intrinsics! {
            add(a, b) = _mm512_add_ps;
            sub(a, b) = _mm512_sub_ps;
            mul(a, b) = _mm512_mul_ps;
            div(a, b) = _mm512_div_ps;
            fma(a, b, c) = _mm512_fmadd_ps;
            max(a, b) = _mm512_max_ps;
            min(a, b) = _mm512_min_ps;
        }

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: the CPU has AVX-512F, as above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        fn load(self, from: &[f32]) -> __m512 {
            assert!(from.len() >= 16);
            // SAFETY: sixteen floats are there to read.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, v: __m512, to: &mut [f32]) {
            assert!(to.len() >= 16);
            // SAFETY: sixteen floats are there to write.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }

        #[inline(always)]
        fn load_part(self, from: &[f32]) -> __m512 {
            // SAFETY: masked-off lanes are not read; the mask has a bit for each float of the slice, at most sixteen.
            unsafe { _mm512_maskz_loadu_ps(mask16(from.len()), from.as_ptr()) }
        }

        #[inline(always)]
        fn store_part(self, v: __m512, to: &mut [f32]) {
            // SAFETY: masked-off lanes are not written; the mask is as in `load_part`.
            unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask16(to.len()), v) }
        }

        #[inline(always)]
        fn select_gt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
            // SAFETY: the CPU has AVX-512F, as above.
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x) }
        }

        #[inline(always)]
        fn exp2_shifted(self, t: __m512) -> __m512 {
            // SAFETY: the CPU has AVX-512F, as above.
            unsafe {
                let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
                _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_castps_si512(_mm512_set1_ps(1.0))))
            }
        }
    }

    /// The lowest `len` bits, all sixteen from there on.
    #[inline(always)]
    fn mask16(len: usize) -> __mmask16 {
        ((1u32 << len.min(16)) - 1) as __mmask16
    }

    impl Simd for Avx2 {
        const LANES: usize = 8;
        const TILE: usize = 6;
        type V = __m256;

        intrinsics! {
            add(a, b) = _mm256_add_ps;
            sub(a, b) = _mm256_sub_ps;
            mul(a, b) = _mm256_mul_ps;
            div(a, b) = _mm256_div_ps;
            fma(a, b, c) = _mm256_fmadd_ps;
            max(a, b) = _mm256_max_ps;
            min(a, b) = _mm256_min_ps;
        }

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            // SAFETY: the CPU has AVX2, as above.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        fn load(self, from: &[f32]) -> __m256 {
            assert!(from.len() >= 8);
            // SAFETY: eight floats are there to read.
            unsafe { _mm256_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, v: __m256, to: &mut [f32]) {
            assert!(to.len() >= 8);
            // SAFETY: eight floats are there to write.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
        }

        #[inline(always)]
        fn load_part(self, from: &[f32]) -> __m256 {
            // SAFETY: masked-off lanes are not read; the mask has a lane for each float of the slice, at most eight.
            unsafe { _mm256_maskload_ps(from.as_ptr(), mask8(from.len())) }
        }

        #[inline(always)]
        fn store_part(self, v: __m256, to: &mut [f32]) {
            // SAFETY: masked-off lanes are not written; the mask is as in `load_part`.
            unsafe { _mm256_maskstore_ps(to.as_mut_ptr(), mask8(to.len()), v) }
        }

        #[inline(always)]
        fn select_gt(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
            // SAFETY: the CPU has AVX2, as above.
            unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) }
        }

        #[inline(always)]
        fn exp2_shifted(self, t: __m256) -> __m256 {
            // SAFETY: the CPU has AVX2, as above.
            unsafe {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
                _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_castps_si256(_mm256_set1_ps(1.0))))
            }
        }
    }

    /// All ones in the lanes below `len`. Safety: the CPU must have AVX2.
    #[inline(always)]
    unsafe fn mask8(len: usize) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(len.min(8) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
    }
}
