//! Batch normalisation, activations, pooling, upsampling, sums and copies against the reference.

mod common;

use common::{Buffer, assert_close, differences, dot, gaps, noise, plus, values, wide};
use graph::Act;
use kernels::reference::{self, Map};
use kernels::{BnAct, Isa, Pool};
use proptest::prelude::*;

const ACTS: [Act; 7] = [Act::Identity, Act::Silu, Act::Leaky, Act::Mish, Act::Relu, Act::Relu6, Act::Sigmoid];
const EPS: f64 = 1e-3;

type Shape = [usize; 4];

fn on_every_isa(mut check: impl FnMut()) {
    Isa::available().into_iter().for_each(|isa| isa.scope(&mut check));
}

fn shape() -> impl Strategy<Value = Shape> {
    (1usize..3, 1usize..14, 1usize..14, prop_oneof![1usize..10, 10usize..80]).prop_map(|(n, h, w, c)| [n, h, w, c])
}

struct Norm {
    mean: Vec<f32>,
    inv_std: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
}

impl Norm {
    fn of(x: &Buffer, seed: u64) -> Self {
        let stats = kernels::batch_stats(x.view());
        let inv_std = stats.var.iter().map(|v| (1.0 / (f64::from(*v) + EPS).sqrt()) as f32).collect();
        let c = x.layout.c;
        Self { mean: stats.mean, inv_std, gamma: values(seed + 5, c), beta: values(seed + 6, c) }
    }

    fn bn(&self, act: Act) -> BnAct<'_> {
        BnAct { mean: &self.mean, inv_std: &self.inv_std, gamma: &self.gamma, beta: &self.beta, act }
    }
}

/// Corners of the piecewise activations: a value within rounding of one may fall on either side.
fn near_corner(act: Act, z: f64) -> bool {
    let corners: &[f64] = match act {
        Act::Relu | Act::Leaky => &[0.0],
        Act::Relu6 => &[0.0, 6.0],
        _ => &[],
    };
    corners.iter().any(|c| (z - c).abs() < 1e-4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn batch_norm(s in shape(), g in [gaps(), gaps(), gaps()], seed in 0u64..1000) {
        on_every_isa(|| {
        let x = Buffer::noise(seed, s, g[0]);
        let (mean, var) = reference::batch_stats(&x.map());
        let stats = kernels::batch_stats(x.view());
        // Sums over a few pixels are f32 before they are added up in f64: tens of roundings of 6e-8.
        assert_close(&wide(&stats.mean), &mean, 4e-6);
        assert_close(&wide(&stats.var), &var, 4e-6);

        let norm = Norm::of(&x, seed);
        let (gamma, beta) = (wide(&norm.gamma), wide(&norm.beta));
        for act in ACTS {
            let mut y = Buffer::noise(seed + 1, s, g[1]);
            kernels::bn_act_forward(x.view(), &norm.bn(act), y.view_mut());
            y.assert_close(&reference::bn_act_forward(&x.map(), &gamma, &beta, EPS, act), 2e-5);

            let before = reference::bn_act_forward(&x.map(), &gamma, &beta, EPS, Act::Identity);
            if before.data.iter().any(|z| near_corner(act, *z)) {
                continue;
            }
            let dy = Buffer::noise(seed + 2, s, g[2]);
            let (mut dgamma, mut dbeta) = (vec![1.0; s[3]], vec![2.0; s[3]]);
            kernels::bn_act_backward(x.view(), dy.view(), &norm.bn(act), y.view_mut(), &mut dgamma, &mut dbeta);
            let (dx, dg, db) = reference::bn_act_backward(&x.map(), &dy.map(), &gamma, &beta, EPS, act);
            y.assert_close(&dx, 2e-4);
            assert_close(&wide(&dgamma), &dg.iter().map(|v| v + 1.0).collect::<Vec<_>>(), 2e-4);
            assert_close(&wide(&dbeta), &db.iter().map(|v| v + 2.0).collect::<Vec<_>>(), 2e-4);
        }
        });
    }

    #[test]
    fn activations(s in shape(), g in [gaps(), gaps(), gaps()], seed in 0u64..1000, scale in prop_oneof![Just(1.0f32), Just(8.0)]) {
        on_every_isa(|| {
        let mut x = Buffer::noise(seed, s, g[0]);
        for p in 0..x.layout.pixels() {
            x.view_mut().pixel(p).iter_mut().for_each(|v| *v *= scale);
        }
        let dy = Buffer::noise(seed + 1, s, g[1]);
        for act in ACTS {
            let mut y = Buffer::noise(seed + 2, s, g[2]);
            let before = y.map();
            kernels::act_backward(act, x.view(), dy.view(), y.view_mut(), true);
            let dx = Map { data: x.map().data.iter().zip(dy.map().data).map(|(x, d)| d * reference::slope(act, *x)).collect(), ..x.map() };
            y.assert_close(&plus(&before, &dx), 1e-6);
            kernels::act_backward(act, x.view(), dy.view(), y.view_mut(), false);
            y.assert_close(&dx, 1e-6);
            kernels::act_forward(act, x.view(), y.view_mut());
            y.assert_close(&Map { data: x.map().data.iter().map(|x| reference::value(act, *x)).collect(), ..x.map() }, 1e-6);
        }
        });
    }

    #[test]
    fn max_pool(s in shape(), g in [gaps(), gaps(), gaps()], seed in 0u64..1000, kernel in 1usize..6, stride in 1usize..4, same in any::<bool>()) {
        on_every_isa(|| {
        let pad = if same { [(kernel - 1) / 2, kernel / 2] } else { [0, kernel - 1] };
        let pool = Pool { kernel, stride, pad };
        let [n, h, w, c] = s;
        let out = |size: usize| (size + pad[0] + pad[1] - kernel) / stride + 1;
        let mut x = Buffer::noise(seed, s, g[0]);
        // Few distinct values: ties in almost every window.
        for p in 0..x.layout.pixels() {
            x.view_mut().pixel(p).iter_mut().for_each(|v| *v = v.round());
        }
        let mut y = Buffer::noise(seed + 1, [n, out(h), out(w), c], g[1]);
        let dy = y.clone();
        kernels::max_pool_forward(pool, x.view(), y.view_mut());
        y.assert_close(&reference::max_pool_forward(pool, &x.map(), (out(h), out(w))), 0.0);
        let mut dx = Buffer::noise(seed + 2, s, g[2]);
        let expected = plus(&dx.map(), &reference::max_pool_backward(pool, &x.map(), &dy.map()));
        kernels::max_pool_backward(pool, x.view(), dy.view(), dx.view_mut());
        dx.assert_close(&expected, 1e-5);
        });
    }

    #[test]
    fn upsample(s in shape(), g in [gaps(), gaps()], seed in 0u64..1000, factor in 1usize..4) {
        on_every_isa(|| {
        let mut x = Buffer::noise(seed, s, g[0]);
        let mut y = Buffer::noise(seed + 1, [s[0], s[1] * factor, s[2] * factor, s[3]], g[1]);
        let (before, dx) = (x.map(), reference::upsample_backward(factor, &y.map(), &x.map()));
        let dy = y.clone();
        kernels::upsample_forward(factor, x.view(), y.view_mut());
        y.assert_close(&reference::upsample_forward(factor, &x.map()), 0.0);
        kernels::upsample_backward(factor, dy.view(), x.view_mut(), true);
        x.assert_close(&plus(&before, &dx), 1e-5);
        kernels::upsample_backward(factor, dy.view(), x.view_mut(), false);
        x.assert_close(&dx, 1e-5);
        });
    }

    #[test]
    fn shuffle(s in shape(), g in [gaps(), gaps()], seed in 0u64..1000, factor in 1usize..4) {
        on_every_isa(|| {
        let mut x = Buffer::noise(seed, [s[0], s[1], s[2], s[3] * factor * factor], g[0]);
        let mut y = Buffer::noise(seed + 1, [s[0], s[1] * factor, s[2] * factor, s[3]], g[1]);
        let (before, dx) = (x.map(), reference::shuffle_backward(factor, &y.map(), &x.map()));
        let dy = y.clone();
        kernels::shuffle_forward(factor, x.view(), y.view_mut());
        y.assert_close(&reference::shuffle_forward(factor, &x.map()), 0.0);
        kernels::shuffle_backward(factor, dy.view(), x.view_mut(), true);
        x.assert_close(&plus(&before, &dx), 1e-6);
        kernels::shuffle_backward(factor, dy.view(), x.view_mut(), false);
        x.assert_close(&dx, 0.0);
        });
    }

    #[test]
    fn copy_and_add(s in shape(), g in [gaps(), gaps(), gaps()], seed in 0u64..1000) {
        on_every_isa(|| {
        let (a, b) = (Buffer::noise(seed, s, g[0]), Buffer::noise(seed + 1, s, g[1]));
        let mut y = Buffer::noise(seed + 2, s, g[2]);
        let sum = plus(&y.map(), &a.map());
        kernels::copy(a.view(), y.view_mut(), true);
        y.assert_close(&sum, 1e-6);
        kernels::copy(a.view(), y.view_mut(), false);
        y.assert_close(&a.map(), 0.0);
        kernels::add(a.view(), b.view(), y.view_mut());
        y.assert_close(&plus(&a.map(), &b.map()), 1e-6);
        });
    }
}

/// A channel far from zero and nearly constant: naive sums of squares lose its variance entirely.
#[test]
fn variance_survives_a_large_mean() {
    let mut x = Buffer::noise(3, [2, 40, 40, 5], (3, 2));
    for p in 0..x.layout.pixels() {
        x.view_mut().pixel(p).iter_mut().for_each(|v| *v = 1000.0 + *v * 1e-2);
    }
    let (mean, var) = reference::batch_stats(&x.map());
    let stats = kernels::batch_stats(x.view());
    assert_close(&wide(&stats.mean), &mean, 1e-7);
    for (got, expected) in wide(&stats.var).iter().zip(&var) {
        assert!((got / expected - 1.0).abs() < 1e-4, "variance {got} instead of {expected}");
    }
}

/// Letterbox bars and even backgrounds: equal terms round the same way each time, so long sums drift.
#[test]
fn statistics_survive_flat_areas() {
    let mut x = Buffer::noise(4, [4, 64, 64, 16], (0, 0));
    for p in (0..x.layout.pixels()).filter(|p| p % 64 > 3) {
        x.view_mut().pixel(p).iter_mut().enumerate().for_each(|(c, v)| *v = 0.7 + 0.013 * c as f32);
    }
    let (mean, var) = reference::batch_stats(&x.map());
    let stats = kernels::batch_stats(x.view());
    for (c, (mean, var)) in mean.iter().zip(&var).enumerate() {
        let shift = (f64::from(stats.mean[c]) - mean).abs() / var.sqrt();
        let growth = (f64::from(stats.var[c]) / var - 1.0).abs();
        assert!(shift < 4e-6 && growth < 2e-5, "channel {c}: mean off by {shift} deviations, variance by {growth}");
    }
}

/// The ends of the range: no NaN, no overflow, exact limits.
#[test]
fn activations_at_the_extremes() {
    let x =
        Buffer { data: vec![-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30], layout: kernels::Layout::dense(1, 1, 7, 1) };
    let dy = Buffer { data: vec![1.0; 7], layout: x.layout };
    for act in ACTS {
        let mut y = dy.clone();
        kernels::act_forward(act, x.view(), y.view_mut());
        let relative = y.data.iter().zip(&x.data).map(|(y, x)| (f64::from(*y), reference::value(act, f64::from(*x))));
        relative.for_each(|(y, e)| assert!((y - e).abs() <= 1e-6 * e.abs().max(1e-6), "{act:?}: {y} instead of {e}"));
        kernels::act_backward(act, x.view(), dy.view(), y.view_mut(), false);
        let expected: Vec<f64> = x
            .data
            .iter()
            .map(|x| if *x < -20.0 { tail(act) } else { reference::slope(act, f64::from(x.min(30.0))) })
            .collect();
        assert_close(&wide(&y.data), &expected, 1e-6);
    }
}

/// The slope far below zero.
fn tail(act: Act) -> f64 {
    match act {
        Act::Identity => 1.0,
        Act::Leaky => 0.1,
        _ => 0.0,
    }
}

/// The reference gradients of batch norm and of every activation against central differences.
#[test]
fn reference_gradients_are_derivatives() {
    let x = Buffer::noise(11, [2, 3, 3, 2], (0, 0)).map();
    let dy = Buffer::noise(12, [2, 3, 3, 2], (0, 0)).map();
    let (gamma, beta) = ([1.3, -0.7], [0.2, 0.4]);
    for act in ACTS {
        let (dx, dgamma, dbeta) = reference::bn_act_backward(&x, &dy, &gamma, &beta, EPS, act);
        let loss = |x: &Map, g: &[f64], b: &[f64]| dot(&reference::bn_act_forward(x, g, b, EPS, act).data, &dy.data);
        let by_x = differences(&x.data, 1e-5, |d| loss(&Map { data: d.to_vec(), ..x.clone() }, &gamma, &beta));
        assert_close(&dx.data, &by_x, 1e-7);
        assert_close(&dgamma, &differences(&gamma, 1e-5, |g| loss(&x, g, &beta)), 1e-7);
        assert_close(&dbeta, &differences(&beta, 1e-5, |b| loss(&x, &gamma, b)), 1e-7);
    }
    assert!(noise(1, 0) != noise(1, 1));
}
