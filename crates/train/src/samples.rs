//! What a convolution reads, and what its outputs lack, at positions drawn where the detector minds.

use std::ops::Range;

use graph::{Act, Conv};
use kernels::{ConvShape, Epilogue, Layout, Packed, View, ViewMut};
use prune::{Normal, mirror};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::room::Room;

/// Positions that are enough to fit so many features of a convolution (taps of input channels).
pub(crate) fn enough(features: usize) -> usize {
    32768.max(30 * features)
}

/// Share of the samples drawn where errors matter. Uniform sampling fits the background, which is most of an image.
const FOCUSED: f64 = 0.9;

/// Pixels in a row of the made-up map the samples are multiplied as.
pub(crate) const ROW: usize = 64;

/// Where samples may be drawn.
pub(crate) struct Places<'a> {
    /// Which views: images, and after the last of these their mirrors in the same order.
    pub(crate) views: &'a [usize],
    /// How many images there are.
    pub(crate) images: usize,
    /// (H, W) of the map.
    pub(crate) plane: [usize; 2],
    /// (images, H, W): how much errors matter. A mirror's is that of its image, mirrored.
    pub(crate) focus: Option<&'a [f32]>,
}

impl Places<'_> {
    /// `count` pixels of the map over all views, a few more or no more than there are, with replacement, most of them where errors matter.
    pub(crate) fn draw(&self, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let all = self.views.len() * self.plane[0] * self.plane[1];
        let count = count.min(all).next_multiple_of(ROW);
        let mut total = 0.0;
        let heights: Vec<f64> = match self.focus {
            Some(focus) => (0..all)
                .map(|place| {
                    total += f64::from(focus[self.minded(place)]);
                    total
                })
                .collect(),
            None => vec![],
        };
        let anywhere = if total > 0.0 { ((1.0 - FOCUSED) * count as f64) as usize } else { count };
        let draw = |i: usize| {
            if i < anywhere {
                return self.pixel(rng.random_range(0..all));
            }
            let height = rng.random_range(0.0..total);
            self.pixel(heights.partition_point(|&h| h <= height).min(heights.len() - 1))
        };
        (0..count).map(draw).collect()
    }

    /// The pixel, over all views there are, that is number `place` of the chosen ones.
    fn pixel(&self, place: usize) -> usize {
        let plane = self.plane[0] * self.plane[1];
        self.views[place / plane] * plane + place % plane
    }

    /// The value of `focus` that tells how much errors matter at `place`.
    fn minded(&self, place: usize) -> usize {
        let [h, w] = self.plane;
        let (view, row, column) = (self.views[place / (h * w)], place / w % h, place % w);
        let column = if view < self.images { column } else { w - 1 - column };
        (view % self.images * h + row) * w + column
    }
}

/// (S, F): what `conv` reads of `x` at `positions`, pixels of a map of (H, W) = `plane`: F features, the last of which is 1.
pub(crate) fn read(conv: &Conv, x: View, plane: [usize; 2], positions: &[usize]) -> Room {
    let [kh, kw] = conv.kernel();
    let features = conv.weight.shape[1] * kh * kw + 1;
    let [h, w] = plane;
    let mut read = Room::any(positions.len() * features);
    read.par_chunks_mut(features).zip(positions).for_each(|(read, &at)| {
        read.fill(0.0);
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
    });
    read
}

/// Features that [`Samples::add_gram`] works on together.
const TOGETHER: usize = 128;

/// A convolution as a linear problem: S samples of F features, the last of which is 1, and of O outputs.
#[derive(Clone, Copy)]
pub(crate) struct Samples<'a> {
    pub(crate) features: usize,
    pub(crate) outputs: usize,
    /// (S, F): what the convolution reads at each position.
    read: &'a [f32],
    /// (S, O): what is missing of its outputs there.
    pub(crate) missing: &'a [f32],
}

impl<'a> Samples<'a> {
    /// Of `features` that have been [`read`], a multiple of [`ROW`] of them, where so much is `missing` of the outputs.
    pub(crate) fn new(features: usize, read: &'a [f32], missing: &'a [f32]) -> Self {
        Self { features, outputs: missing.len() * features / read.len(), read, missing }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.read.len() / self.features
    }

    /// Some of them, a multiple of [`ROW`].
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let of = |values: &'a [f32], width: usize| &values[range.start * width..range.end * width];
        Self { read: of(self.read, self.features), missing: of(self.missing, self.outputs), ..*self }
    }

    /// (F, F): the sums of the products of features.
    pub(crate) fn gram(&self) -> Vec<f64> {
        let mut gram = vec![0.0; self.features * self.features];
        self.add_gram(&mut gram);
        mirror(&mut gram, self.features);
        gram
    }

    /// Adds those on the diagonal and right of it to `upper` (F, F), whose others [`mirror`] makes the same.
    pub(crate) fn add_gram(&self, upper: &mut [f64]) {
        let width = self.features;
        let columns = |first, c| View::new(self.read, self.layout(width).channels(first, c));
        for (first, upper) in (0..width).step_by(TOGETHER).zip(upper.chunks_mut(TOGETHER * width)) {
            let one = ConvShape::pointwise(width - first, TOGETHER.min(width - first));
            let mut rows = vec![0.0f32; one.ci * one.co];
            kernels::conv_backward_weight(&one, columns(first, one.ci), columns(first, one.co), &mut rows);
            upper.par_chunks_mut(width).zip(rows.par_chunks(one.ci)).enumerate().for_each(|(i, (to, row))| {
                to[first + i..].iter_mut().zip(&row[i..]).for_each(|(to, v)| *to += f64::from(*v));
            });
        }
    }

    /// The sums least squares needs.
    pub(crate) fn normal(&self) -> Normal {
        let missing = squares(self.missing, self.outputs);
        Normal { gram: self.gram(), cross: self.sums(self.missing), missing }
    }

    /// (K, F): the sums over samples of the products of `by` (S, K) with the features.
    pub(crate) fn sums(&self, by: &[f32]) -> Vec<f64> {
        let one = ConvShape::pointwise(self.features, by.len() * self.features / self.read.len());
        let mut sums = vec![0.0f32; self.features * one.co];
        // B'A is the weight gradient of a 1x1 convolution that reads A where the gradient is B.
        kernels::conv_backward_weight(&one, self.as_map(self.read), self.as_map(by), &mut sums);
        sums.into_iter().map(f64::from).collect()
    }

    /// (S, K): what rows `change` (K, F) make of the features.
    pub(crate) fn times(&self, change: &[f64]) -> Room {
        let mut out = Room::any(self.count() * change.len() / self.features);
        self.times_into(change, &mut out);
        out
    }

    /// The same, written over what is in `out`.
    pub(crate) fn times_into(&self, change: &[f64], out: &mut [f32]) {
        let one = ConvShape::pointwise(self.features, change.len() / self.features);
        let weights: Vec<f32> = change.iter().map(|&v| v as f32).collect();
        let y = ViewMut::new(out, self.layout(one.co));
        let epilogue = Epilogue { bias: None, act: Act::Identity };
        kernels::conv_forward(&one, self.as_map(self.read), &Packed::new(&one, &weights), epilogue, y);
    }

    /// Samples of `c` values as a map of pixels.
    pub(crate) fn layout(&self, c: usize) -> Layout {
        Layout::dense(1, self.count() / ROW, ROW, c)
    }

    /// `values` (S, K) as a map.
    pub(crate) fn as_map<'b>(&self, values: &'b [f32]) -> View<'b> {
        View::new(values, self.layout(values.len() * self.features / self.read.len()))
    }
}

/// (O): sums of the squares of values (S, O).
pub(crate) fn squares(values: &[f32], outputs: usize) -> Vec<f64> {
    let mut sums = vec![0.0; outputs];
    for row in values.chunks(outputs) {
        sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v).powi(2));
    }
    sums
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn what_is_read_makes_what_the_convolution_puts_out() {
        let number = |i: usize| ((i * 37 % 23) as f32 - 11.0) / 8.0;
        let weight = graph::Tensor::new([3, 2, 3, 2], (0..36).map(number).collect());
        let conv = Conv { weight, bias: None, stride: [2, 3], pad: [2, 1], groups: 1 };
        let mut graph =
            graph::Graph::new(graph::Meta { family: graph::Family::Other, names: vec![], imgsz: [7, 8] }, 2);
        graph.push("conv", graph::Op::Conv(conv.clone()), vec![0]);
        let shape = graph::Shape { c: 2, h: 7, w: 8 };
        let image = graph::reference::Map { shape, data: (0..112).map(|i| f64::from(number(i + 3))).collect() };
        let out = graph::reference::forward(&graph, &image).expect("runs").remove(1);
        let x: Vec<f32> = (0..112).map(|i| image.channel(i % 2)[i / 2] as f32).collect();
        let places: Vec<usize> = (0..out.shape.h * out.shape.w).collect();
        let read = read(&conv, View::new(&x, Layout::dense(1, 7, 8, 2)), [out.shape.h, out.shape.w], &places);
        for (place, read) in read.chunks(13).enumerate() {
            assert_eq!(read[12], 1.0);
            for o in 0..3 {
                let made: f32 = read.iter().zip(conv.weight.outer(o)).map(|(x, w)| x * w).sum();
                assert!((f64::from(made) - out.channel(o)[place]).abs() < 1e-4, "{o} at {place}");
            }
        }
    }

    #[test]
    fn no_more_is_drawn_than_there_is() {
        let places = Places { views: &[0], images: 1, plane: [5, 20], focus: None };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!([70, 1000].map(|count| places.draw(count, &mut rng).len()), [128, 128]);
        assert_eq!([enough(28), enough(2305)], [32768, 69150]);
    }

    #[test]
    fn samples_are_drawn_where_a_view_or_its_image_mirrored_is_minded() {
        // Two images of 2 x 3 positions, of which one position each is minded.
        let mut focus = vec![0.0; 12];
        focus[2] = 1.0;
        focus[6 + 3] = 1.0;
        let views = [1, 2, 3];
        let places = Places { views: &views, images: 2, plane: [2, 3], focus: Some(&focus) };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let drawn: Vec<usize> = (0..300).flat_map(|_| places.draw(18, &mut rng)).collect();
        let share = |pixel| drawn.iter().filter(|&&p| p == pixel).count() as f64 / drawn.len() as f64;
        // Row 1, column 0 of the second image; row 0, column 2 of the first one, mirrored; and the second one mirrored.
        for minded in [6 + 3, 12, 18 + 5] {
            assert!((share(minded) - 0.9 / 3.0).abs() < 0.05, "{minded}: {}", share(minded));
        }
        assert!(drawn.iter().all(|&p| (6..24).contains(&p)), "a view that was not asked for");
    }
}
