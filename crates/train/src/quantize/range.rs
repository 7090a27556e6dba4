//! From where to where bytes should reach: the range with the least mean square error.

use graph::Act;

use super::histogram::Histogram;

/// A map whose bytes are sought.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub histogram: &'a Histogram,
    /// What is made of the map before anything else reads it: errors count as they are after it.
    pub act: Act,
}

/// Candidates for an end of the range: what is seen, times this to the power of 0, 1, 2, ...
const NARROWER: f32 = 0.96;
const CANDIDATES: i32 = 100;

/// The range `[low, high]` around 0 in which bytes stand for the values of `maps` with the least square error over all of
/// them: values within are off by `step^2 / 12` on average, values beyond by their distance to the end.
pub fn least_squares(maps: &[Seen]) -> [f32; 2] {
    let [low, high] = bounds(maps);
    let bins: Vec<Bin> = maps.iter().flat_map(Bin::of).collect();
    let error = |[low, high]: [f32; 2]| bins.iter().map(|bin| bin.error(low, high)).sum::<f64>();
    let mut best = ([low, high], error([low, high]));
    // Each end by turns; the other's best depends on it, but not much.
    for _ in 0..3 {
        let before = best.0;
        for end in 0..2 {
            for k in 0..CANDIDATES {
                let mut range = best.0;
                range[end] = [low, high][end] * NARROWER.powi(k);
                let error = error(range);
                if error < best.1 {
                    best = (range, error);
                }
            }
        }
        if best.0 == before {
            break;
        }
    }
    best.0
}

/// All that was seen.
fn bounds(maps: &[Seen]) -> [f32; 2] {
    maps.iter().map(|m| m.histogram.bounds()).fold([0.0; 2], |a, b| [a[0].min(b[0]), a[1].max(b[1])])
}

/// Values of one map around one place.
struct Bin {
    value: f32,
    count: f64,
    /// The activation's value and the square of its slope.
    after: f32,
    slope: f64,
    act: Act,
}

impl Bin {
    fn of<'a>(map: &Seen<'a>) -> impl Iterator<Item = Self> + use<'a> {
        let act = map.act;
        map.histogram.bins().map(move |(value, count)| {
            let reach = (value.abs() * 1e-2).max(1e-3);
            let slope = f64::from(act.apply(value + reach) - act.apply(value - reach)) / f64::from(2.0 * reach);
            Self { value, count: count as f64, after: act.apply(value), slope: slope * slope, act }
        })
    }

    fn error(&self, low: f32, high: f32) -> f64 {
        let end = self.value.clamp(low, high);
        if end == self.value {
            let step = f64::from(high - low) / 255.0;
            return self.count * self.slope * step * step / 12.0;
        }
        let off = f64::from(self.after - self.act.apply(end));
        self.count * off * off
    }
}

#[cfg(test)]
mod tests {
    use kernels::{Layout, View};

    use super::*;

    fn seen(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(View::new(values, Layout::dense(1, 1, 1, values.len()))).unwrap();
        histogram
    }

    /// Mean square error of `values` rounded to bytes over `range`, after `act`.
    fn error(values: &[f32], [low, high]: [f32; 2], act: Act) -> f64 {
        let affine = graph::quant::Affine::covering(low, high).unwrap();
        let off = |&v: &f32| f64::from(act.apply(affine.round(f64::from(v)) as f32) - act.apply(v));
        values.iter().map(|v| off(v).powi(2)).sum::<f64>() / values.len() as f64
    }

    /// A bell of small values, and every thousandth one far out.
    fn bell(outlier: f32) -> Vec<f32> {
        let uniform = |i: usize, k: usize| ((i * k + k) as f32 * 0.618_034).fract() - 0.5;
        let mut values: Vec<f32> =
            (0..20_000).map(|i| [7, 11, 13, 17].iter().map(|&k| uniform(i, k)).sum::<f32>() * 1.7).collect();
        values.iter_mut().step_by(1000).for_each(|v| *v = outlier);
        values
    }

    #[test]
    fn far_outliers_are_cut_off_and_near_ones_kept() {
        let (far, near) = (bell(9.0), bell(3.5));
        let range = |values: &[f32]| least_squares(&[Seen { histogram: &seen(values), act: Act::Identity }]);
        assert!(range(&near)[1] > 3.0, "{:?}", range(&near));
        for values in [&far, &near] {
            let chosen = range(values);
            let all = seen(values).bounds();
            let [ours, theirs] = [chosen, all].map(|r| error(values, r, Act::Identity));
            assert!(ours <= theirs * 1.001, "{chosen:?} {ours} against {all:?} {theirs}");
            // No other range on a grid is much better.
            for k in 1..30 {
                let share = k as f32 / 30.0;
                let other = error(values, [all[0] * share, all[1] * share], Act::Identity);
                assert!(ours <= other * 1.05, "{share}: {ours} against {other}");
            }
        }
    }

    #[test]
    fn what_an_activation_flattens_needs_no_bytes() {
        let values: Vec<f32> = (0..10_000).map(|i| (i as f32 * 0.618_034).fract() * 40.0 - 30.0).collect();
        let histogram = seen(&values);
        let [low, high] = least_squares(&[Seen { histogram: &histogram, act: Act::Silu }]);
        assert!(low > -15.0 && high > 9.5, "{low} {high}");
        let all = histogram.bounds();
        assert!(error(&values, [low, high], Act::Silu) < 0.5 * error(&values, all, Act::Silu));
        // Maps that share their bytes are looked at together.
        let small = seen(&[0.01, -0.01]);
        let both = [&histogram, &small].map(|histogram| Seen { histogram, act: Act::Identity });
        assert!(least_squares(&both)[0] < -25.0);
    }
}
