//! What a layer's filters make, and how a small change of them moves that.

use graph::{Act, NodeId, Op};
use kernels::View;
use rayon::prelude::*;

use super::super::{CHUNK, Heard, Wired, in_rows, said_by, slopes, sum_of};
use super::plane::{Pixels, bound};
use super::{Change, taps, times};
use crate::room::{Room, Values};
use crate::samples::{Samples, squares};

/// A convolution's filters, and the depthwise convolution behind them, at S places. Everything is in units of the inputs of the
/// activations. A change is (C, F) of the filters and, where there is a depthwise convolution of T taps, (C, T + 1) of that.
pub(super) struct Maker<'a> {
    pub(super) channels: usize,
    pub(super) features: usize,
    /// (S T, F): what the filters read.
    pub(super) read: &'a [f32],
    /// (S T, C): what they put out before any change.
    before: Values<'a>,
    act: Act,
    depthwise: Option<Depthwise>,
}

/// The depthwise convolution behind.
#[derive(Clone)]
struct Depthwise {
    taps: usize,
    /// (C, T + 1): its weights and what is added.
    weights: Vec<f64>,
    act: Act,
    /// (S T): false beyond the border of what it reads.
    inside: Vec<bool>,
}

/// How a problem curves, one value at a time.
pub(super) struct Stiffness {
    /// (C): a filter's, in units of the mean product of what it reads.
    pub(super) filters: Vec<f64>,
    /// (C, T + 1): of the depthwise convolution.
    pub(super) taps: Vec<f64>,
}

/// What a [`Maker`] makes after a change.
pub(super) struct Made {
    /// (S T, C): what the activation of the filters says, nothing beyond the border; empty where nothing is behind.
    within: Room,
    /// (S T, C): slopes of the activation of the filters, likewise.
    slopes: Room,
    /// (S, C): those of the depthwise convolution's.
    outer: Room,
    /// (S, C): what readers hear.
    pub(super) said: Room,
    /// (C, T + 1): the depthwise weights there.
    weights: Vec<f64>,
}

impl<'a> Maker<'a> {
    /// What `channels` of convolution `id` of a detector, whose map is `outputs`, make at the pixels `at`, as it is.
    pub(super) fn new(
        of: Wired,
        (id, channels): (NodeId, &[usize]),
        depthwise: Option<NodeId>,
        outputs: View,
        at: &Pixels,
    ) -> Self {
        let heard = Heard::behind(of, id, channels);
        let depthwise = depthwise.map(|node| {
            let Op::Conv(conv) = &of.graph.nodes[node].op else { unreachable!("it is a convolution") };
            let behind = Heard::behind(of, node, channels);
            let rows =
                channels.iter().zip(behind.scale.iter().zip(&behind.shift)).flat_map(|(&c, (&scale, &shift))| {
                    let bias = conv.bias.as_ref().map_or(0.0, |bias| f64::from(bias[c]));
                    let weights = conv.weight.outer(c).iter().map(move |w| f64::from(scale) * f64::from(*w));
                    weights.chain([f64::from(shift) + f64::from(scale) * bias]).collect::<Vec<_>>()
                });
            Depthwise { taps: taps(conv), weights: rows.collect(), act: behind.act, inside: at.inside.clone() }
        });
        let before = heard.of(outputs, &at.pixels);
        Self {
            channels: channels.len(),
            features: 0,
            read: &[],
            before: Values::Own(before),
            act: heard.act,
            depthwise,
        }
    }

    /// The same, which reads `read` (S T, F) and changes by that.
    pub(super) fn reading(self, read: &'a [f32], features: usize) -> Self {
        Self { read, features, ..self }
    }

    /// That of some rows (S T).
    pub(super) fn part(&self, rows: std::ops::Range<usize>) -> Maker<'_> {
        let of = |width: usize| rows.start * width..rows.end * width;
        let depthwise =
            self.depthwise.as_ref().map(|d| Depthwise { inside: d.inside[rows.clone()].to_vec(), ..d.clone() });
        let (read, before) = (&self.read[of(self.features)], Values::Part(&self.before[of(self.channels)]));
        Maker { read, before, depthwise, ..*self }
    }

    /// Values of a change.
    pub(super) fn len(&self) -> usize {
        self.filters() + self.depthwise.as_ref().map_or(0, |d| d.weights.len())
    }

    pub(super) fn filters(&self) -> usize {
        self.channels * self.features
    }

    /// What is made after `change`, or with nothing changed where that is empty.
    pub(super) fn at(&self, change: &[f64]) -> Made {
        let mut u = Room::of(&self.before);
        let (filters, taps) = change.split_at(self.filters().min(change.len()));
        if !filters.is_empty() {
            let moved = times(self.read, self.features, filters);
            in_rows(&mut u, self.channels, &moved, |_, u, moved| *u += moved);
        }
        let (mut within, mut slopes) = (said_by(self.act, &u), slopes(self.act, &u));
        let Some(depthwise) = &self.depthwise else {
            return Made { within: Room::default(), slopes, outer: Room::default(), said: within, weights: vec![] };
        };
        bound(&depthwise.inside, &mut within, self.channels);
        bound(&depthwise.inside, &mut slopes, self.channels);
        let mut weights = depthwise.weights.clone();
        weights.iter_mut().zip(taps).for_each(|(w, change)| *w += change);
        let u = self.through(&within, &weights, true);
        Made {
            said: said_by(depthwise.act, &u),
            outer: super::super::slopes(depthwise.act, &u),
            within,
            slopes,
            weights,
        }
    }

    /// (S, C): what depthwise `weights` (C, T + 1) make of `within` (S T, C), with what they add or without.
    fn through(&self, within: &[f32], weights: &[f64], shifted: bool) -> Room {
        let taps = self.depthwise.as_ref().map_or(1, |d| d.taps);
        let mut out = Room::any(within.len() / taps);
        let places = out.par_chunks_mut(self.channels).zip(within.par_chunks(taps * self.channels));
        places.for_each(|(out, rows)| {
            for ((c, out), weights) in out.iter_mut().enumerate().zip(weights.chunks(taps + 1)) {
                let sum: f64 = (0..taps).map(|t| weights[t] * f64::from(rows[t * self.channels + c])).sum();
                *out = (sum + if shifted { weights[taps] } else { 0.0 }) as f32;
            }
        });
        out
    }

    /// (S, C): what readers hear of a small `change`, nearly.
    pub(super) fn push(&self, made: &Made, change: &[f64]) -> Room {
        let (filters, taps) = change.split_at(self.filters());
        let mut moved = times(self.read, self.features, filters);
        in_rows(&mut moved, self.channels, &made.slopes, |_, moved, slope| *moved *= slope);
        if self.depthwise.is_none() {
            return moved;
        }
        let mut out = self.through(&moved, &made.weights, false);
        let by_taps = self.through(&made.within, taps, true);
        in_rows(&mut out, self.channels, &by_taps, |_, out, by_taps| *out += by_taps);
        in_rows(&mut out, self.channels, &made.outer, |_, out, slope| *out *= slope);
        out
    }

    /// The transpose of [`Maker::push`]: a change by how much it moves what readers hear along `by` (S, C).
    pub(super) fn pull(&self, made: &Made, by: &[f32]) -> Vec<f64> {
        let channels = self.channels;
        let Some(depthwise) = &self.depthwise else {
            let mut by = Room::of(by);
            in_rows(&mut by, channels, &made.slopes, |_, by, slope| *by *= slope);
            return self.sums(&by);
        };
        let taps = depthwise.taps;
        let mut back = Room::zeros(made.slopes.len());
        let own = sum_of(back.par_chunks_mut(CHUNK * taps * channels).enumerate(), |(chunk, back)| {
            let mut own = vec![0.0; channels * (taps + 1)];
            for (place, back) in (chunk * CHUNK..).zip(back.chunks_mut(taps * channels)) {
                let rows = place * taps * channels..;
                let (within, slopes) = (&made.within[rows.clone()], &made.slopes[rows]);
                for c in 0..channels {
                    let by = f64::from(by[place * channels + c]) * f64::from(made.outer[place * channels + c]);
                    let of = c * (taps + 1);
                    own[of + taps] += by;
                    for t in 0..taps {
                        own[of + t] += by * f64::from(within[t * channels + c]);
                        back[t * channels + c] = (by * made.weights[of + t]) as f32 * slopes[t * channels + c];
                    }
                }
            }
            own
        });
        let mut pulled = self.sums(&back);
        pulled.extend(own);
        pulled
    }

    fn sums(&self, by: &[f32]) -> Vec<f64> {
        Samples::new(self.features, self.read, by).sums(by)
    }

    /// How a problem curves along each value of a change, where readers mind channels by `minded` (C).
    pub(super) fn stiffness(&self, made: &Made, minded: &[f64]) -> Stiffness {
        let channels = self.channels;
        let rows = (made.slopes.len() / channels) as f64;
        let sums = match &self.depthwise {
            None => sum_of(made.slopes.par_chunks(CHUNK * channels), |slopes| squares(slopes, channels)),
            Some(depthwise) => {
                let count = depthwise.taps;
                sum_of(made.outer.par_chunks(CHUNK * channels).enumerate(), |(chunk, outer)| {
                    let mut sums = vec![0.0; channels * (count + 2)];
                    let (filters, taps) = sums.split_at_mut(channels);
                    for (p, outer) in (chunk * CHUNK..).zip(outer.chunks(channels)) {
                        for c in 0..channels {
                            let outer = f64::from(outer[c]).powi(2);
                            let own = &mut taps[c * (count + 1)..][..=count];
                            own[count] += outer * minded[c];
                            for (t, own) in own[..count].iter_mut().enumerate() {
                                let at = (p * count + t) * channels + c;
                                *own += outer * f64::from(made.within[at]).powi(2) * minded[c];
                                let weight = made.weights[c * (count + 1) + t];
                                filters[c] += outer * (weight * f64::from(made.slopes[at])).powi(2);
                            }
                        }
                    }
                    sums
                })
            }
        };
        let (mut filters, mut taps) = (sums[..channels].to_vec(), sums[channels..].to_vec());
        // What nobody minds has nothing to gain; the least weight keeps its division finite.
        filters.iter_mut().zip(minded).for_each(|(f, m)| *f = (*f * m / rows).max(f64::MIN_POSITIVE));
        taps.iter_mut().for_each(|t| *t = t.max(f64::MIN_POSITIVE));
        Stiffness { filters, taps }
    }

    /// A change as what to add to the weights of convolution `id` of a detector and of the depthwise one behind it.
    pub(super) fn changes(&self, of: Wired, id: NodeId, depthwise: Option<NodeId>, change: &[f64]) -> Vec<Change> {
        let own: Vec<usize> = (0..self.channels).collect();
        let in_weights = |node: NodeId, change: &[f64]| {
            let scale = Heard::behind(of, node, &own).scale;
            let rows = change.chunks(change.len() / self.channels).zip(scale);
            // An output that BatchNorm silences is heard by nobody.
            let by = |scale: f32| if scale == 0.0 { 0.0 } else { 1.0 / f64::from(scale) };
            Change { node, rows: rows.flat_map(|(row, scale)| row.iter().map(move |v| v * by(scale))).collect() }
        };
        let (filters, taps) = change.split_at(self.filters());
        let mut changes = vec![in_weights(id, filters)];
        changes.extend(depthwise.map(|node| in_weights(node, taps)));
        changes
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::super::dot;
    use super::*;

    const CHANNELS: usize = 5;
    const FEATURES: usize = 7;

    fn random(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
        (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// Filters at 64 places, alone and with a depthwise convolution of nine taps behind them, some of which lie beyond the border.
    fn makers<'a>(rng: &mut ChaCha8Rng, read: &'a [f32]) -> [Maker<'a>; 2] {
        let alone = |rng: &mut ChaCha8Rng, rows: usize| Maker {
            channels: CHANNELS,
            features: FEATURES,
            read: &read[..rows * FEATURES],
            before: Values::Own(Room::of(&random(rng, rows * CHANNELS))),
            act: Act::Silu,
            depthwise: None,
        };
        let weights = random(rng, CHANNELS * 10).into_iter().map(f64::from).collect();
        let inside = (0..64 * 9).map(|_| rng.random_bool(0.8)).collect();
        let depthwise = Some(Depthwise { taps: 9, weights, act: Act::Leaky, inside });
        [alone(rng, 64), Maker { depthwise, ..alone(rng, 64 * 9) }]
    }

    #[test]
    fn what_is_pushed_is_what_a_small_change_moves_and_pulling_is_its_transpose() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let read = random(&mut rng, 64 * 9 * FEATURES);
        for maker in makers(&mut rng, &read) {
            let [at, along] =
                [0, 1].map(|_| random(&mut rng, maker.len()).into_iter().map(f64::from).collect::<Vec<_>>());
            let made = maker.at(&at);
            let pushed = maker.push(&made, &along);

            let by = 1e-3;
            let moved = |sign: f64| {
                maker.at(&at.iter().zip(&along).map(|(a, d)| a + sign * by * d).collect::<Vec<_>>()).said.to_vec()
            };
            let slopes = moved(1.0).into_iter().zip(moved(-1.0)).map(|(a, b)| f64::from(a - b) / (2.0 * by));
            let apart: f64 = slopes.zip(pushed.iter()).map(|(slope, p)| (slope - f64::from(*p)).powi(2)).sum();
            let size: f64 = pushed.iter().map(|p| f64::from(*p).powi(2)).sum();
            // Leaky ReLU has a corner that a few values cross.
            assert!(size > 1.0 && apart < 1e-4 * size, "{apart} of {size}");

            let wanted = random(&mut rng, pushed.len());
            let pulled = maker.pull(&made, &wanted);
            let forth: f64 = pushed.iter().zip(&wanted).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let back = dot(&along, &pulled);
            assert!((forth - back).abs() < 1e-4 * forth.abs().max(1.0), "{forth} {back}");
        }
    }
}
