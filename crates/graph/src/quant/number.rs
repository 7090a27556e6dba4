//! Numbers of eight bits: how a map's values and a filter's weights are rounded, and back.

use crate::Tensor;

/// Steps below this are those of zeros: products of two of them are still numbers f32 can hold.
const NOTHING: f32 = 1e-12;

/// How one map becomes unsigned bytes: `q = round(x / scale) + zero`, saturating, ties to even, as ONNX's `QuantizeLinear`.
///
/// Zero is always a value of its own, so that padding and rectified activations stay exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// What one step is worth; above 0 and finite.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero: u8,
}

impl Affine {
    /// Bytes that reach from `low` to `high`, and to 0 where that lies outside. A map that is 0 everywhere has steps of 1.
    ///
    /// # Errors
    /// A bound is not finite, or `low` is above `high`.
    pub fn covering(low: f32, high: f32) -> Result<Self, String> {
        if !low.is_finite() || !high.is_finite() || low > high {
            return Err(format!("has values from {low} to {high}, which are no range"));
        }
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let scale = ((high - low) / 255.0) as f32;
        if scale < NOTHING {
            return Ok(Self { scale: 1.0, zero: 0 });
        }
        let zero = (-low / f64::from(scale)).round_ties_even().clamp(0.0, 255.0) as u8;
        Ok(Self { scale, zero })
    }

    /// The byte nearest to `x`; 0 for NaN.
    pub fn quantize(self, x: f64) -> u8 {
        ((x / f64::from(self.scale)).round_ties_even() + f64::from(self.zero)) as u8
    }

    /// What a byte stands for.
    pub fn dequantize(self, q: u8) -> f64 {
        (f64::from(q) - f64::from(self.zero)) * f64::from(self.scale)
    }

    /// The value nearest to `x` that a byte can stand for.
    pub fn round(self, x: f64) -> f64 {
        self.dequantize(self.quantize(x))
    }

    /// Least and greatest value.
    pub fn bounds(self) -> [f64; 2] {
        [self.dequantize(0), self.dequantize(255)]
    }
}

/// The weights of a convolution as signed bytes, symmetric about 0, one scale a filter: `w = q * scale[filter]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Filters {
    /// -127..=127, in the order of the weights.
    pub values: Vec<i8>,
    /// One a filter, above 0.
    pub scales: Vec<f32>,
}

/// The largest byte of a weight; -128 is left out so that a weight and its negative are alike.
const LARGEST: f32 = 127.0;

impl Filters {
    /// Rounds `weight`, (O, ...). No scale is below `least`, (O): see [`super::Quantized::conv`].
    ///
    /// # Errors
    /// A weight is not finite.
    pub fn new(weight: &Tensor, least: &[f32]) -> Result<Self, String> {
        if let Some(at) = weight.data.iter().position(|w| !w.is_finite()) {
            return Err(format!("`weight` holds {} at index {at}", weight.data[at]));
        }
        let (mut values, mut scales) = (Vec::with_capacity(weight.len()), Vec::with_capacity(least.len()));
        for (o, &least) in least.iter().enumerate() {
            let filter = weight.outer(o);
            let largest = filter.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            let scale = (largest / LARGEST).max(least).max(NOTHING);
            values.extend(filter.iter().map(|w| (w / scale).round_ties_even().clamp(-LARGEST, LARGEST) as i8));
            scales.push(scale);
        }
        Ok(Self { values, scales })
    }

    /// The weights the bytes stand for.
    pub fn dequantize(&self) -> Vec<f32> {
        let per_filter = self.values.len() / self.scales.len().max(1);
        let scale = |i: usize| self.scales[i / per_filter.max(1)];
        self.values.iter().enumerate().map(|(i, &q)| f32::from(q) * scale(i)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_in_range_moves_by_half_a_step_at_most(low in -1e3f32..0.0, width in 1e-3f32..1e3, at in 0.0f64..=1.0) {
            let affine = Affine::covering(low, low + width).unwrap();
            let [least, greatest] = affine.bounds();
            let x = least + at * (greatest - least);
            prop_assert!((affine.round(x) - x).abs() <= f64::from(affine.scale) * 0.5 * (1.0 + 1e-9));
            // The range asked for is reached but for the shift that makes 0 exact.
            prop_assert!(least <= f64::from(low) + 0.51 * f64::from(affine.scale));
            prop_assert!(greatest >= f64::from((low + width).max(0.0)) - 0.51 * f64::from(affine.scale));
            prop_assert_eq!(affine.round(0.0), 0.0);
        }

        #[test]
        fn a_weight_moves_by_half_of_its_filters_step_at_most(weights in prop::collection::vec(-2.0f32..2.0, 24)) {
            let tensor = Tensor::new([4, 6], weights);
            let filters = Filters::new(&tensor, &[0.0; 4]).unwrap();
            for (i, (w, back)) in tensor.data.iter().zip(filters.dequantize()).enumerate() {
                prop_assert!((w - back).abs() <= filters.scales[i / 6] * 0.5 * 1.0001, "{w} became {back}");
            }
        }
    }

    #[test]
    fn every_filter_has_its_own_scale() {
        let tensor = Tensor::new([3, 2], vec![127.0, -1.0, 0.0, 0.0, 0.0127, -0.0127]);
        let filters = Filters::new(&tensor, &[0.0; 3]).unwrap();
        assert_eq!(filters.values, [127, -1, 0, 0, 127, -127]);
        assert_eq!(filters.scales[0], 1.0);
        assert!(filters.scales[1] > 0.0 && (filters.scales[2] - 1e-4).abs() < 1e-9, "{:?}", filters.scales);
        assert_eq!(Filters::new(&tensor, &[2.0, 0.0, 0.0]).unwrap().values[..2], [64, 0]);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        assert!(Affine::covering(0.0, f32::NAN).is_err() && Affine::covering(f32::NEG_INFINITY, 0.0).is_err());
        assert!(Affine::covering(2.0, 1.0).is_err());
        let bad = Filters::new(&Tensor::new([1, 2], vec![0.5, f32::NAN]), &[0.0]).unwrap_err();
        assert!(bad.contains("NaN at index 1"), "{bad}");
    }

    #[test]
    fn the_ends_saturate_and_nothing_is_nought() {
        let affine = Affine::covering(-1.0, 3.0).unwrap();
        assert_eq!((affine.quantize(-50.0), affine.quantize(50.0)), (0, 255));
        assert_eq!(Affine::covering(0.0, 0.0).unwrap().round(0.4), 0.0);
        // All above 0: the range still starts there.
        assert_eq!(Affine::covering(2.0, 5.1).unwrap(), Affine { scale: 0.02, zero: 0 });
    }
}
