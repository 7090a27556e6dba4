//! Instruction sets: what the machine has, found out at run time, and one vector type that every kernel is written in.

mod baseline;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

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
    /// 4 lanes, 32 registers; every AArch64 CPU has it.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain Rust, 4 lanes: slow, and there on every CPU.
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
        #[cfg(target_arch = "aarch64")]
        found.push(Self::Neon);
        found.push(Self::Baseline);
        found
    }

    /// `avx512`, `avx2`, `neon` or `baseline`.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            Self::Baseline => "baseline",
        }
    }

    /// What kernels called from this thread run on: the widest available, unless inside [`Isa::scope`].
    pub fn current() -> Self {
        CHOSEN.get().unwrap_or_else(|| {
            let widest = Self::available()[0];
            CHOSEN.set(Some(widest));
            widest
        })
    }

    /// Calls `f` with kernels called from this thread running on `self`: how instruction sets are compared, and how
    /// one machine repeats what another computes.
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
            #[cfg(target_arch = "aarch64")]
            Self::Neon => 4,
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
            #[cfg(target_arch = "aarch64")]
            Self::Neon => kernel.run(neon::Neon),
            Self::Baseline => kernel.run(baseline::Baseline),
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
