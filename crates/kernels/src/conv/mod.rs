//! Convolution: forward, and the gradients of its input, weights and bias.
//!
//! No im2col: a task copies some input rows into a zero-padded strip ([`source`]), where a kernel row of a pixel is one run
//! of consecutive floats; [`pass`] then multiplies runs with weights arranged in [`panels`], in register tiles ([`tile`])
//! of several pixels by two vectors of output channels, or for [`depthwise`] convolutions multiplies channel by channel.
//! The gradient of the input is the same loop with the kernel turned around; that of the weights ([`weight`]) sums outer
//! products over pixels. Kernels 3x3 of stride 1 take a detour that saves three multiplications in four ([`winograd`]); what
//! has few outputs works on several pixels' at a time ([`neighbours`]).

mod depthwise;
mod neighbours;
mod panels;
mod pass;
mod source;
mod tile;
mod weight;
mod winograd;

use graph::Act;
use neighbours::Neighbours;
use panels::Panels;
use pass::{Pass, Phase, Weights};
use rayon::prelude::*;
use source::Window;
use tile::Start;
pub use winograd::directly;

use crate::isa::Isa;
use crate::{Layout, View, ViewMut};

/// A 2-D convolution, dilation 1, symmetric zero padding; pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input channels, all groups together.
    pub ci: usize,
    /// Output channels.
    pub co: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub pad: [usize; 2],
    pub groups: usize,
}

impl ConvShape {
    /// A 1x1 convolution of stride 1, which is a product of matrices: pixels are rows.
    pub fn pointwise(ci: usize, co: usize) -> Self {
        Self { ci, co, kernel: [1, 1], stride: [1, 1], pad: [0, 0], groups: 1 }
    }

    /// Height and width of the output for an input of this layout, which must be at least the kernel with padding.
    pub fn output(&self, x: Layout) -> (usize, usize) {
        let [h, w] = [0, 1].map(|i| ([x.h, x.w][i] + 2 * self.pad[i] - self.kernel[i]) / self.stride[i] + 1);
        (h, w)
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Input position of the first output's first tap.
    fn origin(&self) -> [isize; 2] {
        self.pad.map(|p| -(p as isize))
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.ci == self.groups && self.co == self.groups
    }

    /// What one call of the inner loops handles: a depthwise convolution whole, else one group as a dense convolution.
    fn unit(&self) -> Self {
        if self.is_depthwise() {
            return *self;
        }
        Self { ci: self.ci / self.groups, co: self.co / self.groups, groups: 1, ..*self }
    }

    /// Floats of the weights.
    fn weights(&self) -> usize {
        self.co * (self.ci / self.groups) * self.taps()
    }

    /// A programming error panics here rather than somewhere in a loop.
    fn check(&self, x: Layout, y: Layout, w: usize) {
        assert!(
            self.groups > 0 && self.ci.is_multiple_of(self.groups) && self.co.is_multiple_of(self.groups),
            "{self:?}"
        );
        assert_eq!(
            (x.c, y.n, (y.h, y.w), y.c),
            (self.ci, x.n, self.output(x), self.co),
            "{self:?} from {x:?} to {y:?}"
        );
        assert_eq!(w, self.weights(), "weights of {self:?}");
    }
}

/// Weights arranged for [`conv_forward`] on the instruction set in use; good for any number of calls.
#[derive(Clone, Debug)]
pub struct Packed {
    isa: Isa,
    weights: usize,
    /// One for each group, or for a depthwise convolution as a whole.
    units: Vec<Phase>,
    /// For maps whose neighbours are worked on together.
    together: Option<(Neighbours, Phase)>,
}

impl Packed {
    /// `w` is (O, I / groups, KH, KW).
    pub fn new(shape: &ConvShape, w: &[f32]) -> Self {
        let (isa, unit) = (Isa::current(), shape.unit());
        assert_eq!(w.len(), shape.weights(), "weights of {shape:?}");
        let window = |shape: &ConvShape| Window { kernel: shape.kernel, stride: shape.stride, origin: shape.origin() };
        let units = w.chunks_exact(unit.weights()).map(|w| {
            let weights = if unit.is_depthwise() {
                let taps: Vec<usize> = (0..unit.taps()).collect();
                Weights::Depthwise(depthwise::filters(w, unit.taps(), &taps))
            } else if winograd::fits(&unit) {
                Weights::Winograd(winograd::forward(isa, &unit, w))
            } else {
                Weights::Dense(Panels::forward(isa, &unit, w))
            };
            Phase { window: window(shape), weights, first: [0, 0] }
        });
        let together = neighbours(isa, shape).map(|together| {
            let weights = Weights::Dense(Panels::forward(isa, &together.shape, &together.weights(w)));
            (together, Phase { window: window(&together.shape), weights, first: [0, 0] })
        });
        Self { isa, weights: w.len(), units: units.collect(), together }
    }
}

/// How to work on several outputs of a row together, where that is worth it and no faster way is taken.
fn neighbours(isa: Isa, shape: &ConvShape) -> Option<Neighbours> {
    Neighbours::of(isa, shape).filter(|_| !winograd::fits(shape))
}

/// What is done to a result before it is stored: `act(result + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// (O).
    pub bias: Option<&'a [f32]>,
    pub act: Act,
}

/// `y = act(x * w + bias)`: x (N, H, W, I), y (N, OH, OW, O).
pub fn conv_forward(shape: &ConvShape, x: View, w: &Packed, epilogue: Epilogue, mut y: ViewMut) {
    shape.check(x.layout, y.layout, w.weights);
    let run = |phase: &Phase, bias: Option<&[f32]>, x: View, y: ViewMut| {
        let start = bias.map_or(Start::Zero, Start::Bias);
        Pass { isa: w.isa, phases: std::slice::from_ref(phase), step: [1, 1], start, act: epilogue.act }.run(x, y);
    };
    if let Some((together, phase)) = &w.together
        && let Some(layout) = together.side_by_side(y.layout)
    {
        let bias = epilogue.bias.map(|bias| bias.repeat(layout.c / shape.co));
        return run(phase, bias.as_deref(), x, ViewMut::new(y.data, layout));
    }
    let unit = shape.unit();
    for (u, phase) in w.units.iter().enumerate() {
        let bias = epilogue.bias.map(|bias| &bias[u * unit.co..][..unit.co]);
        run(phase, bias, x.channels(u * unit.ci, unit.ci), y.reborrow().channels(u * unit.co, unit.co));
    }
}

/// The gradient of the input: dy (N, OH, OW, O), w (O, I / groups, KH, KW), dx (N, H, W, I) overwritten or added to.
///
/// With stride s, input rows fall into s phases that meet different kernel rows, and so do columns: each of the s * s
/// phases is a convolution of `dy` with stride 1 and a part of the kernel, turned around.
pub fn conv_backward_input(shape: &ConvShape, dy: View, w: &[f32], mut dx: ViewMut, accumulate: bool) {
    shape.check(dx.layout, dy.layout, w.len());
    let (isa, unit) = (Isa::current(), shape.unit());
    let start = if accumulate { Start::Destination } else { Start::Zero };
    for (u, w) in w.chunks_exact(unit.weights()).enumerate() {
        let phases: Vec<Phase> = (0..shape.stride[0])
            .flat_map(|py| (0..shape.stride[1]).map(move |px| [py, px]))
            .map(|first| {
                let [rows, columns] = [0, 1].map(|axis| Taps::of_phase(shape, axis, first[axis]));
                let taps: Vec<usize> =
                    rows.indices().flat_map(|y| columns.indices().map(move |x| y * shape.kernel[1] + x)).collect();
                let window = Window {
                    kernel: [rows.count, columns.count],
                    stride: [1, 1],
                    origin: [rows.origin, columns.origin],
                };
                let weights = if unit.is_depthwise() {
                    Weights::Depthwise(depthwise::filters(w, unit.taps(), &taps))
                } else if winograd::fits(&unit) {
                    Weights::Winograd(winograd::transposed(isa, &unit, w))
                } else {
                    Weights::Dense(Panels::transposed(isa, &unit, w, &taps))
                };
                Phase { window, weights, first }
            })
            .collect();
        let pass = Pass { isa, phases: &phases, step: shape.stride, start, act: Act::Identity };
        pass.run(dy.channels(u * unit.co, unit.co), dx.reborrow().channels(u * unit.ci, unit.ci));
    }
}

/// The kernel rows (or columns) that meet one phase of the input, last to first: their outputs then follow each other.
#[derive(Clone, Copy, Debug)]
struct Taps {
    /// The first kernel row of the phase; the others are `stride` apart.
    first: usize,
    count: usize,
    stride: usize,
    /// Output row that the phase's first input row meets with its last kernel row.
    origin: isize,
}

impl Taps {
    /// Input row `phase + i * stride` meets kernel row `k` at output row `(phase + i * stride + pad - k) / stride`, so
    /// `k = (phase + pad) % stride + m * stride`, at output row `i + (phase + pad) / stride - m`.
    fn of_phase(shape: &ConvShape, axis: usize, phase: usize) -> Self {
        let (stride, at) = (shape.stride[axis], phase + shape.pad[axis]);
        let first = at % stride;
        let count = shape.kernel[axis].saturating_sub(first).div_ceil(stride);
        Self { first, count, stride, origin: (at / stride) as isize + 1 - count as isize }
    }

    fn indices(self) -> impl Iterator<Item = usize> + Clone {
        (0..self.count).rev().map(move |m| self.first + m * self.stride)
    }
}

/// The gradient of the weights: x (N, H, W, I), dy (N, OH, OW, O); dw (O, I / groups, KH, KW) is added to.
pub fn conv_backward_weight(shape: &ConvShape, x: View, dy: View, dw: &mut [f32]) {
    shape.check(x.layout, dy.layout, dw.len());
    let (isa, unit) = (Isa::current(), shape.unit());
    if let Some(together) = neighbours(isa, shape)
        && let Some(layout) = together.side_by_side(dy.layout)
    {
        let mut wide = vec![0.0; together.shape.weights()];
        weight::backward_weight(isa, &together.shape, x, View::new(dy.data, layout), &mut wide);
        return together.add(&wide, dw);
    }
    for (u, dw) in dw.chunks_exact_mut(unit.weights()).enumerate() {
        let (x, dy) = (x.channels(u * unit.ci, unit.ci), dy.channels(u * unit.co, unit.co));
        if unit.is_depthwise() {
            depthwise::backward_weight(isa, &unit, x, dy, dw);
        } else {
            weight::backward_weight(isa, &unit, x, dy, dw);
        }
    }
}

/// The gradient of the bias: the sum of dy (N, OH, OW, O) over pixels, added to db (O).
pub fn conv_backward_bias(dy: View, db: &mut [f32]) {
    let l = dy.layout;
    assert_eq!(db.len(), l.c);
    let rows: Vec<Vec<f32>> = (0..l.n * l.h)
        .into_par_iter()
        .map(|row| {
            let mut sum = vec![0.0; l.c];
            for p in row * l.w..(row + 1) * l.w {
                sum.iter_mut().zip(dy.pixel(p)).for_each(|(s, d)| *s += d);
            }
            sum
        })
        .collect();
    for (c, db) in db.iter_mut().enumerate() {
        *db += rows.iter().map(|r| f64::from(r[c])).sum::<f64>() as f32;
    }
}
