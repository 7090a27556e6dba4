//! How often a map has which values, in bins that widen as larger values turn up.

use kernels::View;

/// Bins of a map that is seen once; up to twice as many before they are merged two by two.
const BINS: i64 = 2048;

/// Counts of a map's values over everything it has been shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// A power of two; 0 until a value other than 0 was seen.
    width: f32,
    /// Bin k holds the values of `(first + k) * width ..= (first + k + 1) * width`, except 0.
    first: i64,
    counts: Vec<u64>,
    /// Least and greatest value, and 0.
    bounds: [f32; 2],
}

impl Histogram {
    /// Counts the values of `map`.
    ///
    /// # Errors
    /// One is not finite.
    pub fn add(&mut self, map: View) -> Result<(), String> {
        let (mut low, mut high, mut odd) = (0.0f32, 0.0f32, None);
        let pixels = || (0..map.layout.pixels()).map(|p| map.pixel(p));
        for &v in pixels().flatten() {
            low = low.min(v);
            high = high.max(v);
            if !v.is_finite() {
                odd = Some(v);
            }
        }
        if let Some(odd) = odd {
            return Err(format!("its map holds {odd}"));
        }
        self.reach(low, high);
        let (scale, first) = (1.0 / self.width, self.first);
        for &v in pixels().flatten() {
            // Zeros are exact, whatever the range.
            if v != 0.0 {
                self.counts[((v * scale).floor() as i64 - first) as usize] += 1;
            }
        }
        Ok(())
    }

    /// Makes room for values of `low..=high`.
    fn reach(&mut self, low: f32, high: f32) {
        self.bounds = [self.bounds[0].min(low), self.bounds[1].max(high)];
        let span = self.bounds[1] - self.bounds[0];
        if span == 0.0 {
            return;
        }
        if self.counts.is_empty() {
            // Never so narrow that the division by it overflows.
            self.width = (span / BINS as f32).max(1e-30).log2().ceil().exp2();
        }
        while span / self.width > (2 * BINS) as f32 {
            self.halve();
        }
        let bin = |v: f32| (v / self.width).floor() as i64;
        let (first, last) = (bin(self.bounds[0]), bin(self.bounds[1]));
        let mut counts = vec![0; (last - first + 1) as usize];
        for (k, &n) in self.counts.iter().enumerate() {
            counts[(self.first + k as i64 - first) as usize] = n;
        }
        (self.first, self.counts) = (first, counts);
    }

    /// Merges the bins two by two.
    fn halve(&mut self) {
        let first = self.first.div_euclid(2);
        let mut counts = vec![0; self.counts.len() / 2 + 1];
        for (k, &n) in self.counts.iter().enumerate() {
            counts[((self.first + k as i64).div_euclid(2) - first) as usize] += n;
        }
        while counts.last() == Some(&0) {
            counts.pop();
        }
        (self.first, self.counts, self.width) = (first, counts, 2.0 * self.width);
    }

    /// Least and greatest value seen, 0 among them.
    pub fn bounds(&self) -> [f32; 2] {
        self.bounds
    }

    /// The middle of every bin that is not empty, and how many values other than 0 it holds.
    pub fn bins(&self) -> impl Iterator<Item = (f32, u64)> {
        let middle = |k: usize| ((self.first + k as i64) as f32 + 0.5) * self.width;
        self.counts.iter().enumerate().filter(|(_, n)| **n > 0).map(move |(k, &n)| (middle(k), n))
    }
}

#[cfg(test)]
mod tests {
    use kernels::Layout;

    use super::*;

    fn add(histogram: &mut Histogram, values: &[f32]) -> Result<(), String> {
        histogram.add(View::new(values, Layout::dense(1, 1, 1, values.len())))
    }

    #[test]
    fn every_value_is_counted_near_where_it_is_as_the_range_grows() {
        let mut histogram = Histogram::default();
        let mut all: Vec<f32> = vec![];
        for scale in [0.01f32, 1.0, -40.0, 0.0] {
            let values: Vec<f32> = (0..1000).map(|i| scale * ((i * 37 % 1000) as f32 / 1000.0 - 0.1)).collect();
            add(&mut histogram, &values).unwrap();
            all.extend(values);
        }
        assert_eq!(histogram.bounds(), [-36.0 + 0.04, 4.0]);
        assert!(histogram.counts.len() <= 2 * BINS as usize + 2, "{}", histogram.counts.len());
        let bins: Vec<(f32, u64)> = histogram.bins().collect();
        let mut sorted: Vec<f32> = all.into_iter().filter(|v| *v != 0.0).collect();
        sorted.sort_by(f32::total_cmp);
        let mut at = 0;
        for (middle, n) in bins {
            for v in &sorted[at..at + n as usize] {
                assert!((v - middle).abs() <= 0.5001 * histogram.width, "{v} in the bin around {middle}");
            }
            at += n as usize;
        }
        assert_eq!(at, sorted.len());
    }

    #[test]
    fn what_is_no_number_is_an_error_and_zeros_have_no_bin() {
        let mut histogram = Histogram::default();
        add(&mut histogram, &[0.0, -0.0]).unwrap();
        assert_eq!((histogram.bins().count(), histogram.bounds()), (0, [0.0, 0.0]));
        assert!(add(&mut histogram, &[1.0, f32::NAN]).unwrap_err().contains("NaN"));
        assert!(add(&mut histogram, &[f32::INFINITY]).is_err());
    }
}
