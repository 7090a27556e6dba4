//! Convolutions 3x3 of stride 1 with fewer multiplications, against the reference, on every instruction set.

mod common;

use common::{Buffer, Gaps, gaps, plus, values, wide};
use graph::Act;
use kernels::reference::{self, Map};
use kernels::{ConvShape, Epilogue, Isa, Packed, directly};
use proptest::prelude::*;

/// A convolution of enough channels for the tiles, on maps that need not be whole tiles.
#[derive(Clone, Debug)]
struct Case {
    shape: ConvShape,
    n: usize,
    h: usize,
    w: usize,
    gaps: [Gaps; 2],
    seed: u64,
}

impl Case {
    fn x(&self) -> Buffer {
        Buffer::noise(self.seed, [self.n, self.h, self.w, self.shape.ci], self.gaps[0])
    }

    fn y(&self) -> Buffer {
        let (oh, ow) = self.shape.output(self.x().layout);
        Buffer::noise(self.seed + 1, [self.n, oh, ow, self.shape.co], self.gaps[1])
    }

    fn weights(&self) -> Vec<f32> {
        values(self.seed + 2, self.shape.co * self.shape.ci / self.shape.groups * 9)
    }
}

prop_compose! {
    fn case()(
        channels in (8usize..50, 8usize..50),
        groups in prop_oneof![4 => Just(1usize), 1 => Just(2)],
        pad in prop_oneof![3 => Just([1, 1]), 1 => [0usize..4, 0usize..4]],
        size in (1usize..4, 0usize..14, 0usize..14),
        gaps in [gaps(), gaps()],
        seed in 0u64..1000,
    ) -> Case {
        let shape = ConvShape { ci: channels.0 * groups, co: channels.1 * groups, kernel: [3, 3], stride: [1, 1], pad, groups };
        // A single pixel where the padding allows.
        let [h, w] = [(size.1, pad[0]), (size.2, pad[1])].map(|(more, pad)| more + 3usize.saturating_sub(2 * pad).max(1));
        Case { shape, n: size.0, h, w, gaps, seed }
    }
}

/// The largest error of sums of so many products of values in -2..2, twice what 300 cases showed (1e-4 after 64 channels).
/// In proportion to the number of products: the sum and its error are both random walks. The direct form stays below half
/// of it.
fn bound(terms: usize) -> f64 {
    1.5e-6 * terms as f64
}

fn assert_within(got: &[f64], expected: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= bound, "{what}: {g} instead of {e} at {i}, more than {bound:e} off");
    }
}

fn check(c: &Case) {
    let (mut x, mut y, w) = (c.x(), c.y(), c.weights());
    let (given, dy) = (x.clone(), y.clone());
    let out = (y.layout.h, y.layout.w);
    let terms = c.shape.ci / c.shape.groups * 9;

    let bias = values(c.seed + 3, c.shape.co);
    let packed = Packed::new(&c.shape, &w);
    for (bias, act) in [(None, Act::Identity), (Some(&bias[..]), Act::Silu)] {
        let mut expected = reference::conv_forward(&c.shape, &x.map(), &wide(&w), bias.map(wide).as_deref(), out);
        expected.data.iter_mut().for_each(|v| *v = reference::value(act, *v));
        kernels::conv_forward(&c.shape, x.view(), &packed, Epilogue { bias, act }, y.view_mut());
        y.assert_gaps();
        assert_within(&y.map().data, &expected.data, bound(terms), "forward");
    }

    let terms = c.shape.co / c.shape.groups * 9;
    let expected = reference::conv_backward_input(&c.shape, &dy.map(), &wide(&w), &x.map());
    let both: Map = plus(&x.map(), &expected);
    kernels::conv_backward_input(&c.shape, dy.view(), &w, x.view_mut(), true);
    x.assert_gaps();
    assert_within(&x.map().data, &both.data, bound(terms), "added to dx");
    kernels::conv_backward_input(&c.shape, dy.view(), &w, x.view_mut(), false);
    x.assert_gaps();
    assert_within(&x.map().data, &expected.data, bound(terms), "dx");

    let expected = reference::conv_backward_weight(&c.shape, &given.map(), &dy.map());
    let mut dw = w.clone();
    kernels::conv_backward_weight(&c.shape, given.view(), dy.view(), &mut dw);
    let sums: Vec<f64> = expected.iter().zip(&w).map(|(e, w)| e + f64::from(*w)).collect();
    // Even a single pixel is transformed back and forth.
    assert_within(&wide(&dw), &sums, bound(dy.layout.pixels() + 8), "dw");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn tiles_equal_the_reference(c in case()) {
        Isa::available().into_iter().for_each(|isa| isa.scope(|| check(&c)));
    }
}

/// Channels beyond the depth that is worked through at a time.
#[test]
fn many_channels_equal_the_reference() {
    for (ci, co) in [(390, 16), (16, 400)] {
        let shape = ConvShape { ci, co, kernel: [3, 3], stride: [1, 1], pad: [1, 1], groups: 1 };
        check(&Case { shape, n: 1, h: 5, w: 6, gaps: [(0, 0), (3, 1)], seed: 11 });
    }
}

/// Inside [`directly`] the sums are formed in another order, so other bits come out; and the same ones again outside.
#[test]
fn the_direct_form_can_be_asked_for() {
    let shape = ConvShape { ci: 24, co: 24, kernel: [3, 3], stride: [1, 1], pad: [1, 1], groups: 1 };
    let c = Case { shape, n: 1, h: 12, w: 12, gaps: [(0, 0); 2], seed: 3 };
    let run = || {
        let (mut x, mut y, w) = (c.x(), c.y(), c.weights());
        let (given, mut dw) = (y.clone(), w.clone());
        let nothing = Epilogue { bias: None, act: Act::Identity };
        kernels::conv_forward(&shape, x.view(), &Packed::new(&shape, &w), nothing, y.view_mut());
        kernels::conv_backward_weight(&shape, x.view(), given.view(), &mut dw);
        kernels::conv_backward_input(&shape, given.view(), &w, x.view_mut(), false);
        [y.data, x.data, dw]
    };
    let (tiles, direct) = (run(), directly(run));
    for i in 0..3 {
        assert_ne!(tiles[i], direct[i]);
    }
    assert_eq!(tiles, run());
}
