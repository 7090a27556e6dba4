//! Which channel counts are fast, as measured: whether times lie below their trend where counts are multiples of 4, 8, 16.

use std::collections::BTreeMap;

use runtime::Stopwatch;
use serde::{Deserialize, Serialize};

use super::probe::Probe;
use super::timed;
use crate::ui;

/// Multiples that vectors and tiles of today's processors suggest.
const CANDIDATES: [usize; 3] = [4, 8, 16];
/// Kinds of convolution that are looked at: the dearest.
const KINDS: usize = 4;
/// Consecutive channel counts that are timed: two of every candidate.
const WINDOW: usize = 32;
/// A gain below this is noise, or not worth keeping channels for.
const WORTH: f64 = 0.03;

/// How much less than by the trend over all counts a convolution takes at multiples of a number, as a share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    pub multiple: usize,
    pub gain: f64,
}

/// The gain of every candidate, over the dearest kinds of convolution by their share of the time, inputs and outputs alike.
pub fn gains(
    stopwatch: &mut Stopwatch,
    kinds: &BTreeMap<String, Probe>,
    parts: &[(String, u64)],
) -> miette::Result<Vec<Gain>> {
    let convs =
        parts.iter().filter_map(|(name, nanos)| Some((name, kinds.get(name).filter(|p| p.is_dense())?, *nanos)));
    let mut sums = [0.0; CANDIDATES.len()];
    let mut weight = 0.0;
    let dearest: Vec<_> = convs.filter(|(_, p, _)| p.inputs >= WINDOW && p.outputs >= WINDOW).take(KINDS).collect();
    let bar = ui::bar("Timing", 2 * dearest.len(), "rows of channel counts");
    for (name, probe, nanos) in dearest {
        let counts: Vec<usize> = (WINDOW / 2..WINDOW + WINDOW / 2).collect();
        for by_input in [true, false] {
            let pair = |&count: &usize| if by_input { (count, probe.outputs) } else { (probe.inputs, count) };
            let pairs: Vec<(usize, usize)> = counts.iter().map(pair).collect();
            let times = timed(stopwatch, name, probe, &pairs)?;
            for (sum, multiple) in sums.iter_mut().zip(CANDIDATES) {
                *sum += nanos as f64 * below_trend(&counts, &times, multiple);
            }
            weight += nanos as f64;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let gain = |(multiple, sum): (usize, f64)| Gain { multiple, gain: if weight > 0.0 { sum / weight } else { 0.0 } };
    Ok(CANDIDATES.into_iter().zip(sums).map(gain).collect())
}

/// The multiple to take: the smallest of those that gain about as much as any, or 1 where none gains.
pub fn best(gains: &[Gain]) -> usize {
    let most = gains.iter().map(|g| g.gain).fold(0.0, f64::max);
    let good = |g: &&Gain| most >= WORTH && g.gain >= 0.8 * most;
    gains.iter().filter(good).map(|g| g.multiple).min().unwrap_or(1)
}

/// How far the times at multiples of `multiple` lie below the straight line through all, as a share of that line.
fn below_trend(counts: &[usize], times: &[f64], multiple: usize) -> f64 {
    let n = counts.len() as f64;
    let x: Vec<f64> = counts.iter().map(|&c| c as f64).collect();
    let (mx, my) = (x.iter().sum::<f64>() / n, times.iter().sum::<f64>() / n);
    let cov: f64 = x.iter().zip(times).map(|(x, y)| (x - mx) * (y - my)).sum();
    let var: f64 = x.iter().map(|x| (x - mx).powi(2)).sum();
    let slope = if var > 0.0 { cov / var } else { 0.0 };
    let below: Vec<f64> = counts
        .iter()
        .zip(&x)
        .zip(times)
        .filter(|((count, _), _)| count.is_multiple_of(multiple))
        .map(|((_, x), time)| (time, my + slope * (x - mx)))
        // A convolution that takes no longer than starting one tells nothing.
        .filter(|(_, trend)| *trend > 0.0)
        .map(|(time, trend)| 1.0 - time / trend)
        .collect();
    if below.is_empty() { 0.0 } else { below.iter().sum::<f64>() / below.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gains_of(time: impl Fn(usize) -> f64) -> Vec<Gain> {
        let counts: Vec<usize> = (16..48).collect();
        let times: Vec<f64> = counts.iter().map(|&c| time(c)).collect();
        CANDIDATES.map(|multiple| Gain { multiple, gain: below_trend(&counts, &times, multiple) }).to_vec()
    }

    #[test]
    fn whole_vectors_are_found() {
        for tile in CANDIDATES {
            let gains = gains_of(|c| (c.div_ceil(tile) * tile) as f64);
            assert_eq!(best(&gains), tile, "{gains:?}");
        }
    }

    #[test]
    fn a_smooth_machine_needs_no_multiple() {
        let gains = gains_of(|c| 100.0 + 3.0 * c as f64);
        assert!(gains.iter().all(|g| g.gain.abs() < 1e-12), "{gains:?}");
        assert_eq!(best(&gains), 1);
        assert_eq!(best(&[]), 1);
        assert!(gains_of(|_| 0.0).iter().all(|g| g.gain == 0.0), "lost in what starting takes");
    }
}
