//! Attention against its slow reference, and the reference's gradient against finite differences.

mod common;

use common::{Buffer, assert_close, differences, dot, gaps, plus};
use graph::Attention;
use kernels::reference::{self, Map};
use kernels::{Isa, Layout};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_reference(
        [n, h, w] in [1usize..3, 1usize..8, 1usize..8],
        [heads, key, value] in [1usize..4, 1usize..20, 1usize..20],
        areas in 1usize..4,
        g in [gaps(), gaps(), gaps()],
        seed in 0u64..1000,
    ) {
        let (h, a) = (h * areas, Attention { heads, key, value, areas });
        for isa in Isa::available() {
            isa.scope(|| {
                let x = Buffer::noise(seed, [n, h, w, heads * (2 * key + value)], g[0]);
                let mut y = Buffer::noise(seed + 1, [n, h, w, heads * value], g[1]);
                let dy = y.clone();
                kernels::attention_forward(&a, x.view(), y.view_mut());
                y.assert_close(&reference::attention_forward(&a, &x.map()), 1e-5);

                let mut dx = Buffer::noise(seed + 2, [n, h, w, x.layout.c], g[2]);
                let (before, expected) = (dx.map(), reference::attention_backward(&a, &x.map(), &dy.map()));
                kernels::attention_backward(&a, x.view(), dy.view(), dx.view_mut(), true);
                dx.assert_close(&plus(&before, &expected), 2e-5);
                kernels::attention_backward(&a, x.view(), dy.view(), dx.view_mut(), false);
                dx.assert_close(&expected, 2e-5);
            });
        }
    }
}

#[test]
fn reference_gradient_is_a_derivative() {
    let a = Attention { heads: 2, key: 3, value: 2, areas: 1 };
    let x = Buffer::noise(5, [2, 2, 3, 16], (0, 0)).map();
    let dy = Buffer::noise(6, [2, 2, 3, 4], (0, 0)).map();
    let dx = reference::attention_backward(&a, &x, &dy);
    let by_x = differences(&x.data, 1e-5, |d| {
        dot(&reference::attention_forward(&a, &Map { data: d.to_vec(), ..x.clone() }).data, &dy.data)
    });
    assert_close(&dx.data, &by_x, 1e-8);
    assert!(dx.data.iter().all(|d| d.abs() > 1e-9), "every channel takes part");
}

/// Scores far beyond what an exponential can hold: each position attends to one other, and its value arrives whole.
#[test]
fn large_scores_do_not_overflow() {
    let a = Attention { heads: 1, key: 1, value: 1, areas: 1 };
    let x = Buffer { data: vec![1e4, -1e4, 3.0, 1e4, 0.0, 5.0, -1e4, 1e4, 7.0], layout: Layout::dense(1, 1, 3, 3) };
    let mut y = Buffer { data: vec![0.0; 3], layout: Layout::dense(1, 1, 3, 1) };
    kernels::attention_forward(&a, x.view(), y.view_mut());
    assert_eq!(y.data, [7.0, 7.0, 3.0]);
    let mut dx = x.clone();
    kernels::attention_backward(&a, x.view(), y.view(), dx.view_mut(), false);
    assert!(dx.data.iter().all(|d| d.is_finite()), "{:?}", dx.data);
}
