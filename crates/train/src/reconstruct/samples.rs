//! What a convolution reads and what its outputs lack, at positions drawn where the detector minds.

use std::ops::Range;

use graph::{Act, Conv};
use kernels::{ConvShape, Epilogue, Layout, Packed, View, ViewMut};
use prune::Normal;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Positions sampled for each feature of a convolution (a tap of an input channel), and at least.
const SAMPLES: [usize; 2] = [30, 32768];

/// Share of the samples drawn where errors matter. Uniform sampling fits the background, which is most of an image.
const FOCUSED: f64 = 0.9;

/// Pixels in a row of the made-up map the samples are multiplied as.
const ROW: usize = 64;

/// Some of `places` for `features` features, with replacement, most of them where `focus` says that errors matter.
pub(super) fn draw(places: Range<usize>, features: usize, focus: Option<&[f32]>, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let count = SAMPLES[1].max(SAMPLES[0] * features).min(places.len()).next_multiple_of(ROW);
    let mut total = 0.0;
    let heights: Vec<f64> = match focus {
        Some(focus) => places
            .clone()
            .map(|p| {
                total += f64::from(focus[p]);
                total
            })
            .collect(),
        None => vec![],
    };
    let anywhere = if total > 0.0 { ((1.0 - FOCUSED) * count as f64) as usize } else { count };
    let draw = |i: usize| {
        if i < anywhere {
            return rng.random_range(places.clone());
        }
        let height = rng.random_range(0.0..total);
        places.start + heights.partition_point(|&h| h <= height).min(heights.len() - 1)
    };
    (0..count).map(draw).collect()
}

/// A convolution as a linear problem: S samples of F features, the last of which is 1, and of O outputs.
pub(super) struct Samples {
    pub(super) features: usize,
    pub(super) outputs: usize,
    /// (S, F): what the convolution reads at each position.
    read: Vec<f32>,
    /// (S, O): what is missing of its outputs there.
    pub(super) missing: Vec<f32>,
}

impl Samples {
    /// What `conv` reads of `x` at `positions`, which are pixels of `missing`, and what is missing there.
    pub(super) fn take(conv: &Conv, x: View, missing: View, positions: &[usize]) -> Self {
        let [kh, kw] = conv.kernel();
        let features = conv.weight.shape[1] * kh * kw + 1;
        let outputs = missing.layout.c;
        let (h, w) = (missing.layout.h, missing.layout.w);
        let mut read = vec![0.0f32; positions.len() * features];
        let mut lacks = vec![0.0f32; positions.len() * outputs];
        let both = read.par_chunks_mut(features).zip(lacks.par_chunks_mut(outputs));
        both.zip(positions).for_each(|((read, lacks), &at)| {
            let (image, y, xo) = (at / (h * w), at / w % h, at % w);
            for ky in 0..kh {
                for kx in 0..kw {
                    let row = (y * conv.stride[0] + ky).wrapping_sub(conv.pad[0]);
                    let column = (xo * conv.stride[1] + kx).wrapping_sub(conv.pad[1]);
                    if row < x.layout.h && column < x.layout.w {
                        let pixel = x.pixel((image * x.layout.h + row) * x.layout.w + column);
                        pixel.iter().enumerate().for_each(|(i, v)| read[(i * kh + ky) * kw + kx] = *v);
                    }
                }
            }
            read[features - 1] = 1.0;
            lacks.copy_from_slice(missing.pixel(at));
        });
        Self { features, outputs, read, missing: lacks }
    }

    /// The sums least squares needs.
    pub(super) fn normal(&self) -> Normal {
        let mut squares = vec![0.0; self.outputs];
        for row in self.missing.chunks(self.outputs) {
            squares.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v).powi(2));
        }
        Normal { gram: self.sums(&self.read), cross: self.sums(&self.missing), missing: squares }
    }

    /// (K, F): the sums over samples of the products of `by` (S, K) with the features.
    pub(super) fn sums(&self, by: &[f32]) -> Vec<f64> {
        let one = ConvShape::pointwise(self.features, by.len() * self.features / self.read.len());
        let mut sums = vec![0.0f32; self.features * one.co];
        // B'A is the weight gradient of a 1x1 convolution that reads A where the gradient is B.
        kernels::conv_backward_weight(&one, self.as_map(&self.read), self.as_map(by), &mut sums);
        sums.into_iter().map(f64::from).collect()
    }

    /// (S, O): what `change` (O, F) of the weights changes of the outputs.
    pub(super) fn times(&self, change: &[f64]) -> Vec<f32> {
        let one = ConvShape::pointwise(self.features, self.outputs);
        let weights: Vec<f32> = change.iter().map(|&v| v as f32).collect();
        let mut out = vec![0.0f32; self.missing.len()];
        let y = ViewMut::new(&mut out, self.layout(self.outputs));
        let epilogue = Epilogue { bias: None, act: Act::Identity };
        kernels::conv_forward(&one, self.as_map(&self.read), &Packed::new(&one, &weights), epilogue, y);
        out
    }

    /// Samples of `c` values as a map of pixels.
    pub(super) fn layout(&self, c: usize) -> Layout {
        Layout::dense(1, self.read.len() / self.features / ROW, ROW, c)
    }

    /// `values` (S, K) as a map.
    pub(super) fn as_map<'a>(&self, values: &'a [f32]) -> View<'a> {
        View::new(values, self.layout(values.len() * self.features / self.read.len()))
    }
}
