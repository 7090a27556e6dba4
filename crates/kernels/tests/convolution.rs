//! Convolution in its direct form and its three gradients against the reference, on every instruction set this machine has.

mod common;

use common::{Buffer, Gaps, assert_close, differences, dot, gaps, plus, values, wide};
use graph::Act;
use kernels::reference::{self, Map};
use kernels::{ConvShape, Epilogue, Isa, Packed, directly};
use proptest::prelude::*;

const NOTHING: Epilogue = Epilogue { bias: None, act: Act::Identity };

/// A convolution, the map it runs on and how its maps lie in memory.
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
        let s = &self.shape;
        values(self.seed + 2, s.co * (s.ci / s.groups) * s.kernel[0] * s.kernel[1])
    }
}

prop_compose! {
    fn case()(
        groups in prop_oneof![4 => Just((1, 1, 1)), 2 => (2usize..40).prop_map(|g| (g, 1, 1)), 1 => (2usize..5, 1usize..4, 1usize..4)],
        dense in (1usize..80, 1usize..80),
        kernel in prop_oneof![Just([1, 1]), Just([3, 3]), Just([5, 5]), [1usize..6, 1usize..6]],
        stride in prop_oneof![Just([1, 1]), Just([2, 2]), [1usize..4, 1usize..4]],
        pad in [0usize..3, 0usize..3],
        size in (1usize..3, 0usize..16, 0usize..16),
        gaps in [gaps(), gaps()],
        seed in 0u64..1000,
    ) -> Case {
        let (g, i, o) = groups;
        let (ci, co) = if g == 1 { dense } else { (g * i, g * o) };
        let shape = ConvShape { ci, co, kernel, stride, pad: [pad[0].min(kernel[0] - 1), pad[1].min(kernel[1] - 1)], groups: g };
        let (n, h, w) = (size.0, size.1 + kernel[0], size.2 + kernel[1]);
        Case { shape, n, h, w, gaps, seed }
    }
}

/// Products summed in f32: the error grows with the square root of their number.
fn tolerance(terms: usize) -> f64 {
    3e-6 * (terms as f64).sqrt()
}

fn check_forward(c: &Case) {
    let (x, mut y, w) = (c.x(), c.y(), c.weights());
    let bias = values(c.seed + 3, c.shape.co);
    let out = (y.layout.h, y.layout.w);
    let terms = w.len() / c.shape.co;
    let packed = Packed::new(&c.shape, &w);
    for (bias, act) in [(None, Act::Identity), (Some(&bias[..]), Act::Identity), (Some(&bias[..]), Act::Silu)] {
        let mut expected = reference::conv_forward(&c.shape, &x.map(), &wide(&w), bias.map(wide).as_deref(), out);
        expected.data.iter_mut().for_each(|v| *v = reference::value(act, *v));
        kernels::conv_forward(&c.shape, x.view(), &packed, Epilogue { bias, act }, y.view_mut());
        y.assert_close(&expected, tolerance(terms));
    }
}

fn check_backward(c: &Case) {
    let (mut dx, dy, w) = (c.x(), c.y(), c.weights());
    let x = dx.clone();
    let terms = w.len() / c.shape.ci * c.shape.groups;
    let expected = reference::conv_backward_input(&c.shape, &dy.map(), &wide(&w), &x.map());
    kernels::conv_backward_input(&c.shape, dy.view(), &w, dx.view_mut(), true);
    dx.assert_close(&plus(&x.map(), &expected), tolerance(terms));
    kernels::conv_backward_input(&c.shape, dy.view(), &w, dx.view_mut(), false);
    dx.assert_close(&expected, tolerance(terms));

    let expected = reference::conv_backward_weight(&c.shape, &x.map(), &dy.map());
    let mut dw = w.clone();
    kernels::conv_backward_weight(&c.shape, x.view(), dy.view(), &mut dw);
    let gained: Vec<f64> = wide(&dw).iter().zip(wide(&w)).map(|(a, b)| a - b).collect();
    assert_close(&gained, &expected, tolerance(dy.layout.pixels()));

    let mut db = vec![1.0; c.shape.co];
    kernels::conv_backward_bias(dy.view(), &mut db);
    let gained: Vec<f64> = db.iter().map(|v| f64::from(*v) - 1.0).collect();
    assert_close(&gained, &reference::sum(&dy.map()), tolerance(dy.layout.pixels()));
}

prop_compose! {
    /// Few outputs, whose neighbours are worked on together where nothing lies between them and they divide.
    fn narrow()(
        channels in (1usize..9, 1usize..9),
        kernel in (1usize..7, 2usize..7),
        stride in (1usize..3, 1usize..3),
        size in (1usize..3, 1usize..6, 1usize..5),
        odd in prop_oneof![3 => Just(0), 1 => 1usize..8],
        gaps in (gaps(), Just((0, 0))).prop_map(<[Gaps; 2]>::from),
        seed in 0u64..1000,
    ) -> Case {
        let pad = [kernel.0 / 2, kernel.1 / 2];
        let shape = ConvShape { ci: channels.0, co: channels.1, kernel: kernel.into(), stride: stride.into(), pad, groups: 1 };
        let reads = |outputs: usize, axis: usize| ((outputs - 1) * shape.stride[axis] + shape.kernel[axis]).max(2 * pad[axis] + 1) - 2 * pad[axis];
        Case { shape, n: size.0, h: reads(size.1, 0), w: reads(8 * size.2 + odd, 1), gaps, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn few_outputs_equal_the_reference(c in narrow()) {
        Isa::available().into_iter().for_each(|isa| isa.scope(|| directly(|| { check_forward(&c); check_backward(&c) })));
    }

    #[test]
    fn forward_equals_the_reference(c in case()) {
        Isa::available().into_iter().for_each(|isa| isa.scope(|| directly(|| check_forward(&c))));
    }

    #[test]
    fn gradients_equal_the_reference(c in case()) {
        Isa::available().into_iter().for_each(|isa| isa.scope(|| directly(|| check_backward(&c))));
    }
}

/// The reference gradients against central differences of the reference forward: the formulas themselves.
#[test]
fn reference_gradients_are_derivatives() {
    for (groups, stride, kernel) in [(1, [1, 1], [3, 3]), (1, [2, 1], [2, 3]), (2, [2, 2], [3, 1]), (4, [1, 1], [3, 3])]
    {
        let shape = ConvShape { ci: 4, co: 4, kernel, stride, pad: [kernel[0] / 2, kernel[1] / 2], groups };
        let c = Case { shape, n: 2, h: 4, w: 5, gaps: [(0, 0); 2], seed: 7 };
        let (x, dy, w) = (c.x().map(), c.y().map(), wide(&c.weights()));
        let loss = |x: &Map, w: &[f64]| dot(&reference::conv_forward(&shape, x, w, None, (dy.h, dy.w)).data, &dy.data);
        let by_x = differences(&x.data, 1e-4, |d| loss(&Map { data: d.to_vec(), ..x.clone() }, &w));
        assert_close(&reference::conv_backward_input(&shape, &dy, &w, &x).data, &by_x, 1e-8);
        assert_close(&reference::conv_backward_weight(&shape, &x, &dy), &differences(&w, 1e-4, |w| loss(&x, w)), 1e-8);
    }
}

/// The same bits from one thread and from several: a run can be repeated on any machine of the same kind.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let dense = ConvShape { ci: 24, co: 40, kernel: [3, 3], stride: [1, 1], pad: [1, 1], groups: 1 };
    for shape in [dense, ConvShape { stride: [2, 2], ..dense }, ConvShape { co: 24, groups: 24, ..dense }] {
        let c = Case { shape, n: 3, h: 33, w: 35, gaps: [(0, 0), (1, 3)], seed: 5 };
        let run = |threads: usize, direct: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let all = || {
                let (mut x, mut y, w) = (c.x(), c.y(), c.weights());
                let mut dw = w.clone();
                kernels::conv_backward_weight(&shape, x.view(), y.view(), &mut dw);
                kernels::conv_forward(&shape, x.view(), &Packed::new(&shape, &w), NOTHING, y.view_mut());
                kernels::conv_backward_input(&shape, y.view(), &w, x.view_mut(), true);
                let stats = kernels::batch_stats(y.view());
                (x.data, y.data, dw, stats)
            };
            pool.install(|| if direct { directly(all) } else { all() })
        };
        for direct in [false, true] {
            let one = run(1, direct);
            for threads in [2, 3, 7] {
                assert!(run(threads, direct) == one, "{threads} threads, direct {direct}: {shape:?}");
            }
        }
    }
}
