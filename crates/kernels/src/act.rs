//! Activations on vectors: value and derivative, with an exponential of our own, since libm's would take most of the time.

use std::marker::PhantomData;

use graph::Act;

use crate::isa::{Isa, Kernel, Simd};
use crate::vectors::{for_vectors, load, store};
use crate::{Layout, ViewMut};

/// An activation known at compile time, so that loops over maps contain no branch on it.
pub(crate) trait Curve {
    fn value<S: Simd>(s: S, x: S::V) -> S::V;
    /// The derivative at `x`; at a corner, that of the left side, as PyTorch has it.
    fn slope<S: Simd>(s: S, x: S::V) -> S::V;
}

/// Evaluates `$body` with the type `$curve` standing for the activation `$act`.
macro_rules! with_curve {
    ($act:expr, $curve:ident => $body:expr) => {
        match $act {
            graph::Act::Identity => with_curve!(@ Identity, $curve, $body),
            graph::Act::Silu => with_curve!(@ Silu, $curve, $body),
            graph::Act::Leaky => with_curve!(@ Leaky, $curve, $body),
            graph::Act::Mish => with_curve!(@ Mish, $curve, $body),
            graph::Act::Relu => with_curve!(@ Relu, $curve, $body),
            graph::Act::Relu6 => with_curve!(@ Relu6, $curve, $body),
            graph::Act::Sigmoid => with_curve!(@ Sigmoid, $curve, $body),
        }
    };
    (@ $name:ident, $curve:ident, $body:expr) => {{
        type $curve = $crate::act::$name;
        $body
    }};
}
pub(crate) use with_curve;

/// Two factors of `e^(sign x)`, `sign` 1 or -1, to about 1e-7 relative: 0 below -88.03, infinity above 88.37, NaN stays NaN.
///
/// `e^x = 2^n e^r` with n whole and |r| <= ln 2 / 2, where the best polynomial of degree 6 that begins with 1 + r is 4e-9 off.
#[inline(always)]
fn exp_factors<S: Simd>(s: S, x: S::V, sign: f32) -> [S::V; 2] {
    /// 1.5 * 2^23: adding it rounds to a whole number and leaves that number in the low mantissa bits.
    const SHIFT: f32 = 12_582_912.0;
    /// The leading bits of ln 2, few enough that `n` times them is exact, and the rest.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 2^-127 and 2^128 come out of the exponent bits as 0 and infinity.
    const LOWEST: f32 = -127.0 * std::f32::consts::LN_2;
    const HIGHEST: f32 = 128.0 * std::f32::consts::LN_2;
    /// Of r^6 down to r^0.
    const SERIES: [f32; 7] = [0.001_381_459_9, 0.008_368_717_5, 0.041_668_39, 0.166_665_21, 0.499_999_94, 1.0, 1.0];
    // The second operand wins where either is NaN.
    let ends = if sign > 0.0 { [LOWEST, HIGHEST] } else { [-HIGHEST, -LOWEST] };
    let x = s.min(s.splat(ends[1]), s.max(s.splat(ends[0]), x));
    let shifted = s.fma(x, s.splat(sign * std::f32::consts::LOG2_E), s.splat(SHIFT));
    let n = s.sub(shifted, s.splat(SHIFT));
    // `sign r`, whose odd powers change their sign with it.
    let r = s.fma(n, s.splat(-sign * LN2_LOW), s.fma(n, s.splat(-sign * LN2_HIGH), x));
    let mut series = s.splat(SERIES[0]);
    for (power, term) in (0..SERIES.len() - 1).rev().zip(&SERIES[1..]) {
        series = s.fma(series, r, s.splat(if power % 2 == 1 { sign * term } else { *term }));
    }
    [series, s.exp2_shifted(shifted)]
}

/// `e^x`, as exact as [`exp_factors`].
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let [series, power] = exp_factors(s, x, 1.0);
    s.mul(series, power)
}

/// `1 + e^-x`.
#[inline(always)]
fn one_and_exp_of_minus<S: Simd>(s: S, x: S::V) -> S::V {
    let [series, power] = exp_factors(s, x, -1.0);
    s.fma(series, power, s.splat(1.0))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(s.splat(1.0), one_and_exp_of_minus(s, x))
}

pub(crate) struct Identity;
pub(crate) struct Silu;
pub(crate) struct Leaky;
pub(crate) struct Mish;
pub(crate) struct Relu;
pub(crate) struct Relu6;
pub(crate) struct Sigmoid;

impl Curve for Identity {
    #[inline(always)]
    fn value<S: Simd>(_: S, x: S::V) -> S::V {
        x
    }

    #[inline(always)]
    fn slope<S: Simd>(s: S, _: S::V) -> S::V {
        s.splat(1.0)
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        s.div(x, one_and_exp_of_minus(s, x))
    }

    /// `g (1 + x (1 - g))`, g the sigmoid; `1 - g = g e^-x` keeps its digits where g is near 1. Below -80, where the slope
    /// is 0 to float precision, x stops before e^-x overflows.
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V) -> S::V {
        let (one, x) = (s.splat(1.0), s.max(s.splat(-80.0), x));
        let e = exp(s, s.sub(s.splat(0.0), x));
        let g = s.div(one, s.add(one, e));
        s.mul(g, s.fma(x, s.mul(g, e), one))
    }
}

impl Curve for Leaky {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        s.max(s.mul(s.splat(0.1), x), x)
    }

    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V) -> S::V {
        s.select_gt(x, s.splat(0.0), s.splat(1.0), s.splat(0.1))
    }
}

/// tanh(ln(1 + e)) = n / (n + 2) with n = e (e + 2), e = e^x; beyond 20 it is 1 to float precision, so x stops there
/// before e can overflow.
impl Curve for Mish {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        let e = exp(s, s.min(s.splat(20.0), x));
        let n = s.mul(e, s.add(e, s.splat(2.0)));
        s.mul(x, s.div(n, s.add(n, s.splat(2.0))))
    }

    /// `t + x g (1 - t^2)` with t the tanh and g the sigmoid, which is `(n (n + 2) + 4 x e (1 + e)) / (n + 2)^2`.
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V) -> S::V {
        let (two, x) = (s.splat(2.0), s.min(s.splat(20.0), x));
        let e = exp(s, x);
        let n = s.mul(e, s.add(e, two));
        let d = s.div(s.splat(1.0), s.add(n, two));
        let bend = s.mul(s.mul(s.mul(s.splat(4.0), x), s.mul(e, s.add(e, s.splat(1.0)))), s.mul(d, d));
        s.fma(n, d, bend)
    }
}

impl Curve for Relu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        s.max(s.splat(0.0), x)
    }

    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V) -> S::V {
        s.select_gt(x, s.splat(0.0), s.splat(1.0), s.splat(0.0))
    }
}

impl Curve for Relu6 {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        s.min(s.splat(6.0), s.max(s.splat(0.0), x))
    }

    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V) -> S::V {
        let below = s.select_gt(s.splat(6.0), x, s.splat(1.0), s.splat(0.0));
        s.select_gt(x, s.splat(0.0), below, s.splat(0.0))
    }
}

impl Curve for Sigmoid {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        sigmoid(s, x)
    }

    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V) -> S::V {
        let g = sigmoid(s, x);
        s.mul(g, s.sub(s.splat(1.0), g))
    }
}

/// Applies the activation to a map in place.
pub(crate) fn apply(isa: Isa, act: Act, map: ViewMut) {
    with_curve!(act, C => isa.run(InPlace::<C> { map, curve: PhantomData }));
}

struct InPlace<'a, C> {
    map: ViewMut<'a>,
    curve: PhantomData<C>,
}

impl<C: Curve> Kernel for InPlace<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        [self.map.layout] = Layout::joined([self.map.layout]);
        for p in 0..self.map.layout.pixels() {
            let pixel = self.map.pixel(p);
            for_vectors!(S, pixel.len(), |c| {
                store(s, C::value(s, load(s, pixel, c)), pixel, c);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// Value, slope and plain exponential of every point.
    struct Curves<'a, C>(&'a [f32], PhantomData<C>);

    impl<C: Curve> Kernel for Curves<'_, C> {
        type Output = Vec<[f32; 3]>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = Vec::new();
            for x in self.0 {
                let x = s.splat(*x);
                let mut lane = [0.0; 3];
                for (v, to) in [C::value(s, x), C::slope(s, x), exp(s, x)].into_iter().zip(&mut lane) {
                    s.store_part(v, std::slice::from_mut(to));
                }
                out.push(lane);
            }
            out
        }
    }

    #[test]
    fn accurate_to_a_few_units_in_the_last_place() {
        let points: Vec<f32> = (-80_000..=80_000).map(|i| i as f32 * 1e-3 + 1e-4).collect();
        for isa in Isa::available() {
            for act in [Act::Identity, Act::Silu, Act::Leaky, Act::Mish, Act::Relu, Act::Relu6, Act::Sigmoid] {
                let got = with_curve!(act, C => isa.run(Curves::<C>(&points, PhantomData)));
                for (x, [value, slope, exponential]) in points.iter().map(|x| f64::from(*x)).zip(got) {
                    let error = (f64::from(value) / reference::value(act, x) - 1.0).abs();
                    assert!(
                        error < 3e-7 || reference::value(act, x) == 0.0,
                        "{isa:?} {act:?}({x}) = {value}: off by {error:e}"
                    );
                    let error = (f64::from(slope) - reference::slope(act, x)).abs();
                    assert!(error < 2e-7, "{isa:?} {act:?}'({x}) = {slope}: off by {error:e}");
                    let error = (f64::from(exponential) / x.exp() - 1.0).abs();
                    assert!(error < 1e-7, "{isa:?} e^{x} = {exponential}: off by {error:e}");
                }
            }
        }
    }
}
