//! Recasting: the channels that stay of a layer need not be what they were.
//!
//! A cut keeps some of a layer's channels. Where only dense convolutions read them any others would do from which those can make what
//! they heard before. So the filters that are left, and a depthwise convolution behind them, move until what the readers lack
//! after least squares is least: for any filters the readers' best weights are a linear problem, which leaves a problem of the filters
//! alone (variable projection, Golub and Pereyra 1973), and Gauss and Newton's steps go down that, by conjugate gradients, with
//! Kaufman's derivative (1975), which takes the readers' weights as following only what they can follow.
//!
//! What readers lack is weighed as in stage 2 (`prune::similarity`): by how much the detector minds each of their outputs.

use graph::{Act, Conv, Graph, NodeId, Op};
use kernels::{Layout, View, ViewMut};
use prune::{Cholesky, Class, Coupling, Normal};
use rand_chacha::ChaCha8Rng;

use super::{Heard, Now, PLACES, Reconstruction, only_reader};
use crate::samples::{self, Places, Samples, enough};

/// Steps of Gauss and Newton at most, and of conjugate gradients in each.
const STEPS: usize = 5;
const GRADIENTS: usize = 6;

/// How far to go along a step: the first that goes down.
const LENGTHS: [f32; 4] = [1.0, 0.5, 0.25, 0.1];

/// Ridge on what the filters change, as a share of each feature's own mean square.
const RIDGE: f64 = 1e-3;

/// The same for what readers make of the channels.
const READERS_RIDGE: f64 = 1e-4;

/// Share of what readers hear that is too little to look after: directions of less, together, are left out.
const LITTLE: f64 = 1e-3;

/// Share of what readers hear that single precision cannot tell from nothing.
const NOTHING: f64 = 1e-6;

/// Share of the held-out loss a recast has to take away to be made.
const LEAST_GAIN: f64 = 1e-2;

/// A layer that was recast.
#[derive(Clone, Debug, PartialEq)]
pub struct Recast {
    pub node: String,
    /// Share of what its readers lacked on held-out images that is left.
    pub left: f64,
}

/// A dense convolution's channels on the way to those that read them.
struct Layer {
    /// The depthwise convolution all of them pass.
    depthwise: Option<NodeId>,
    readers: Vec<Reader>,
}

/// A dense convolution that reads a layer.
struct Reader {
    node: NodeId,
    /// Of every channel of the layer the inputs where it is read, as many of each.
    inputs: Vec<Vec<usize>>,
}

impl Layer {
    /// The channels of convolution `id` of `graph`; `None` where any of them has to stay what it is: an addition sums it with others,
    /// or something but a dense convolution reads it.
    fn of(graph: &Graph, coupling: &Coupling, id: NodeId) -> Option<Self> {
        let classes: Vec<_> = coupling.channels(id).iter().map(|&class| &coupling.classes[class]).collect();
        let first = classes.first()?;
        let depthwise = first.depthwise.first().map(|site| site.node);
        let is_free = |class: &&Class| {
            let passes: Vec<NodeId> = class.depthwise.iter().map(|site| site.node).collect();
            class.pinned.is_none() && class.members.len() == 1 && passes == Vec::from_iter(depthwise)
        };
        // Nobody reads what has not passed the depthwise convolution yet.
        if !classes.iter().all(is_free)
            || depthwise.is_some_and(|d| only_reader(graph, graph.nodes[d].inputs[0]) != Some(d))
        {
            return None;
        }
        let mut nodes: Vec<NodeId> = first.consumers.iter().map(|site| site.node).collect();
        nodes.dedup();
        let reader = |node: NodeId| {
            let inputs = |class: &&Class| {
                class.consumers.iter().filter(|site| site.node == node).map(|site| site.channel).collect::<Vec<_>>()
            };
            Reader { node, inputs: classes.iter().map(inputs).collect() }
        };
        let readers: Vec<Reader> = nodes.into_iter().map(reader).collect();
        let alike = |reader: &Reader| reader.inputs.iter().all(|inputs| inputs.len() == reader.inputs[0].len());
        // Nor may a channel have readers that the first has not.
        let of_all = |class: &&Class| class.consumers.len() == first.consumers.len();
        (readers.iter().all(alike) && classes.iter().all(of_all)).then_some(Self { depthwise, readers })
    }
}

impl Reconstruction<'_> {
    /// What to add to the weights of convolution `id` of the slim detector, of the depthwise one behind it and of those that read
    /// them, (O, features, the last of which is 1) each, so that it serves its readers best; and what share of their loss that leaves.
    pub(super) fn recast(
        &self,
        coupling: &Coupling,
        now: Now,
        id: NodeId,
        rng: &mut ChaCha8Rng,
    ) -> Option<(Vec<(NodeId, Vec<f64>)>, Recast)> {
        let Now { slim, theirs, ours } = now;
        let (origin, kept) = (self.kept.nodes[id], &self.kept.channels[id]);
        let all: Vec<usize> = (0..coupling.channels(origin).len()).collect();
        let Op::Conv(conv) = &slim.nodes[id].op else { return None };
        if kept.len() == all.len() {
            return None;
        }
        let layer = Layer::of(self.dense, coupling, origin)?;
        // A reader that went with its branch hears nothing any more.
        let here = |node: NodeId| self.kept.nodes.binary_search(&node).ok();
        let readers: Vec<(&Reader, NodeId)> =
            layer.readers.iter().filter_map(|reader| Some((reader, here(reader.node)?))).collect();
        let passes = layer.depthwise.map(|node| Some((node, here(node)?))).map_or(Some(None), |both| both.map(Some))?;

        let (check, fit) = self.sides(theirs.n())?;
        let features = conv.weight.shape[1..].iter().product::<usize>() + 1;
        let minded = passes.map_or(id, |(_, slim)| slim);
        let plane = self.plane(ours, slim, id, minded);
        let places = fit.len() * plane.drawn[0] * plane.drawn[1];
        if places < PLACES * features {
            return None;
        }
        let count = enough(features).div_ceil(plane.taps.len().min(4));
        let focus = self.focus.get(&self.kept.nodes[minded]).map(Vec::as_slice);
        let mut draw = |views: &[usize], count: usize| {
            Places { views, images: self.images.n, plane: plane.drawn, focus }.draw(count, rng)
        };
        let mut at = draw(&fit, count - count / super::HELD_OUT);
        let fitted = at.len();
        at.extend(draw(&check, count / super::HELD_OUT));
        let at = plane.taps_of(&at);

        let heard = Maker::new(self.dense, (origin, &all), passes.map(|(dense, _)| dense), theirs.of(origin), &at);
        let heard = heard.at(&[]).said;
        let own: Vec<usize> = (0..kept.len()).collect();
        let maker = Maker::new(slim, (id, &own), passes.map(|(_, slim)| slim), ours.of(id), &at);
        let pixels: Vec<usize> = at.iter().map(|pixel| pixel.unwrap_or(0)).collect();
        let read = samples::read(conv, ours.of(slim.nodes[id].inputs[0]), plane.read, &pixels);
        let maker = Maker { read: &read, features, ..maker };
        let aim = Aim::new(&heard[..fitted * all.len()], self.metric(&readers, &all));
        let target = aim.of(&heard);

        let split = fitted * plane.taps.len();
        let [fit, check] = [0..split, split..at.len()].map(|range| maker.part(range));
        let (fit_target, check_target) = target.split_at(fitted * aim.directions);
        let (change, left) = descend(&fit, fit_target, &check, check_target)?;

        // Readers as they follow best.
        let said = maker.at(&change).said;
        let before = maker.at(&vec![0.0; change.len()]).said;
        let follow = Fit::new(&said, kept.len(), &heard)?.weights;
        let mut changes = maker.changes(slim, id, passes.map(|(_, slim)| slim), &change);
        for &(reader, node) in &readers {
            changes.push((node, self.follow(slim, reader, node, kept, &follow, [&before, &said])?));
        }
        Some((changes, Recast { node: slim.nodes[id].name.clone(), left }))
    }

    /// (C, C): how much `readers` mind errors of the layer's channels, together.
    fn metric(&self, readers: &[(&Reader, NodeId)], all: &[usize]) -> Vec<f64> {
        let channels = all.len();
        let mut metric = vec![0.0; channels * channels];
        for &(reader, slim) in readers {
            let Op::Conv(conv) = &self.dense.nodes[reader.node].op else { unreachable!("readers are convolutions") };
            let outputs = &self.kept.channels[slim];
            let minds: Vec<f64> = match self.sensitivity.outputs.get(&reader.node) {
                Some(minds) => outputs.iter().map(|&o| minds[o]).collect(),
                None => Heard::behind(self.dense, reader.node, outputs)
                    .scale
                    .iter()
                    .map(|s| f64::from(*s).powi(2))
                    .collect(),
            };
            for (&o, minds) in outputs.iter().zip(minds) {
                for (site, tap) in columns(reader, conv) {
                    let row: Vec<f64> = all
                        .iter()
                        .map(|&c| f64::from(conv.weight.outer(o)[reader.inputs[c][site] * taps(conv) + tap]))
                        .collect();
                    for (to, a) in metric.chunks_mut(channels).zip(&row) {
                        to.iter_mut().zip(&row).for_each(|(to, b)| *to += minds * a * b);
                    }
                }
            }
        }
        metric
    }

    /// What to add to the weights of `node`, the slim detector's `reader`, for it to hear of the recast channels what the dense
    /// one did, where those are `follow` (C, kept + 1) of them and of 1; what it puts out on average stays.
    fn follow(
        &self,
        slim: &Graph,
        reader: &Reader,
        node: NodeId,
        kept: &[usize],
        follow: &[f64],
        [before, after]: [&[f32]; 2],
    ) -> Option<Vec<f64>> {
        let (Op::Conv(old), Op::Conv(dense)) = (&slim.nodes[node].op, &self.dense.nodes[reader.node].op) else {
            return None;
        };
        let inputs = &self.kept.channels[slim.nodes[node].inputs[0]];
        let [before, after] = [before, after].map(|said| means(said, kept.len()));
        let width = old.weight.len() / old.out_channels() + 1;
        let mut change = vec![0.0; old.out_channels() * width];
        for ((change, &o), own) in change.chunks_mut(width).zip(&self.kept.channels[node]).zip(0..) {
            for (site, tap) in columns(reader, dense) {
                for (j, &channel) in kept.iter().enumerate() {
                    let input = inputs.binary_search(&reader.inputs[channel][site]).ok()? * taps(old) + tap;
                    let dense =
                        |inputs: &Vec<usize>| f64::from(dense.weight.outer(o)[inputs[site] * taps(dense) + tap]);
                    let new: f64 =
                        reader.inputs.iter().zip(follow.chunks(kept.len() + 1)).map(|(c, row)| dense(c) * row[j]).sum();
                    let old = f64::from(old.weight.outer(own)[input]);
                    change[input] += new - old;
                    change[width - 1] += old * before[j] - new * after[j];
                }
            }
        }
        Some(change)
    }

    fn plane(&self, ours: &crate::maps::Maps, slim: &Graph, id: NodeId, minded: NodeId) -> Plane {
        let layout = ours.of(id).layout;
        let read = [layout.h, layout.w];
        match &slim.nodes[minded].op {
            Op::Conv(conv) if minded != id => {
                let (h, w) = crate::net::conv_shape(conv).output(layout);
                let [kh, kw] = conv.kernel();
                let taps = (0..kh).flat_map(|y| (0..kw).map(move |x| [y, x])).collect();
                Plane { read, drawn: [h, w], taps, stride: conv.stride, pad: conv.pad }
            }
            _ => Plane { read, drawn: read, taps: vec![[0, 0]], stride: [1, 1], pad: [0, 0] },
        }
    }
}

/// Where a map is drawn from, and which pixels of the map before that needs.
struct Plane {
    /// (H, W) of the map of the filters.
    read: [usize; 2],
    /// (H, W) of the map behind them.
    drawn: [usize; 2],
    taps: Vec<[usize; 2]>,
    stride: [usize; 2],
    pad: [usize; 2],
}

impl Plane {
    /// (S, T): the pixels that places `at` take; none beyond the border.
    fn taps_of(&self, at: &[usize]) -> Vec<Option<usize>> {
        let ([h, w], [rows, columns]) = (self.drawn, self.read);
        let taps = at.iter().flat_map(|&at| {
            self.taps.iter().map(move |tap| {
                let row = (at / w % h * self.stride[0] + tap[0]).wrapping_sub(self.pad[0]);
                let column = (at % w * self.stride[1] + tap[1]).wrapping_sub(self.pad[1]);
                (row < rows && column < columns).then(|| (at / (h * w) * rows + row) * columns + column)
            })
        });
        taps.collect()
    }
}

/// Every place where a channel of the layer is among a reader's weights: its inputs and their taps.
fn columns(reader: &Reader, conv: &Conv) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (sites, taps) = (reader.inputs[0].len(), taps(conv));
    (0..sites).flat_map(move |site| (0..taps).map(move |tap| (site, tap)))
}

fn taps(conv: &Conv) -> usize {
    conv.kernel().iter().product()
}

/// (C): means of values (S, C).
fn means(values: &[f32], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for row in values.chunks(channels) {
        sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    let count = (values.len() / channels.max(1)).max(1) as f64;
    sums.into_iter().map(|sum| sum / count).collect()
}

/// (C): sums of the squared distances of values (S, C) from their means.
fn about_the_mean(values: &[f32], channels: usize) -> Vec<f64> {
    let means = means(values, channels);
    let mut sums = vec![0.0; channels];
    for row in values.chunks(channels) {
        sums.iter_mut().zip(row).zip(&means).for_each(|((sum, v), mean)| *sum += (f64::from(*v) - mean).powi(2));
    }
    sums
}

/// What readers want of a layer: directions among its channels, by how much they are minded.
struct Aim {
    channels: usize,
    directions: usize,
    /// (directions, channels).
    rows: Vec<f64>,
}

impl Aim {
    /// `metric` (C, C) says how errors are minded, `heard` (S, C) how much there is of each channel.
    fn new(heard: &[f32], metric: Vec<f64>) -> Self {
        let channels = metric.len().isqrt();
        let spread: Vec<f64> = about_the_mean(heard, channels).into_iter().map(f64::sqrt).collect();
        let metric = (0..metric.len()).map(|k| metric[k] * spread[k / channels] * spread[k % channels]).collect();
        let mut rows = largest(metric, channels);
        for row in rows.chunks_mut(channels) {
            row.iter_mut().zip(&spread).for_each(|(v, s)| *v = if *s > 0.0 { *v / s } else { 0.0 });
        }
        Self { channels, directions: rows.len() / channels.max(1), rows }
    }

    /// (S, directions).
    fn of(&self, heard: &[f32]) -> Vec<f32> {
        times(heard, self.channels, &self.rows)
    }
}

/// (K, n): rows whose products with themselves add up to `matrix` (n, n), but for [`LITTLE`] of it; Cholesky with the largest pivot first.
fn largest(mut matrix: Vec<f64>, n: usize) -> Vec<f64> {
    let trace = |matrix: &[f64]| (0..n).map(|i| matrix[i * n + i].max(0.0)).sum::<f64>();
    let little = LITTLE * trace(&matrix);
    let mut rows = vec![];
    for _ in 0..n {
        let pivot = (0..n).max_by(|&a, &b| matrix[a * n + a].total_cmp(&matrix[b * n + b])).unwrap_or(0);
        if trace(&matrix) <= little || matrix[pivot * n + pivot] <= 0.0 {
            break;
        }
        let root = matrix[pivot * n + pivot].sqrt();
        let row: Vec<f64> = matrix[pivot * n..][..n].iter().map(|v| v / root).collect();
        for (to, a) in matrix.chunks_mut(n).zip(&row) {
            to.iter_mut().zip(&row).for_each(|(to, b)| *to -= a * b);
        }
        rows.extend(row);
    }
    rows
}

/// (S, O): `x` (S, F) times the rows (O, F).
fn times(x: &[f32], features: usize, rows: &[f64]) -> Vec<f32> {
    let nothing = vec![0.0; x.len() / features.max(1) * (rows.len() / features.max(1))];
    Samples::new(features, x, &nothing).times(rows)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A convolution's filters, and the depthwise convolution behind them, at S places. Everything is in units of the inputs of the
/// activations. A change is (C, F) of the filters and, where there is a depthwise convolution of T taps, (C, T + 1) of that.
struct Maker<'a> {
    channels: usize,
    features: usize,
    /// (S T, F): what the filters read.
    read: &'a [f32],
    /// (S T, C): what they put out before any change.
    before: Vec<f32>,
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

/// What a [`Maker`] makes after a change.
struct Made {
    /// (S T, C): what the activation of the filters says, nothing beyond the border, and its slopes; empty where nothing is behind.
    within: Vec<f32>,
    /// (S T, C): slopes of the activation of the filters.
    slopes: Vec<f32>,
    /// (S, C): those of the depthwise convolution's.
    outer: Vec<f32>,
    /// (S, C): what readers hear.
    said: Vec<f32>,
    /// (C, T + 1): the depthwise weights there.
    weights: Vec<f64>,
}

impl<'a> Maker<'a> {
    /// What `channels` of convolution `id` of `graph`, whose map is `outputs`, make at the pixels `at`, (S, T) of them, as it is.
    fn new(
        graph: &Graph,
        (id, channels): (NodeId, &[usize]),
        depthwise: Option<NodeId>,
        outputs: View,
        at: &[Option<usize>],
    ) -> Self {
        let heard = Heard::behind(graph, id, channels);
        let pixels: Vec<usize> = at.iter().map(|pixel| pixel.unwrap_or(0)).collect();
        let depthwise = depthwise.map(|node| {
            let Op::Conv(conv) = &graph.nodes[node].op else { unreachable!("it is a convolution") };
            let behind = Heard::behind(graph, node, channels);
            let rows =
                channels.iter().zip(behind.scale.iter().zip(&behind.shift)).flat_map(|(&c, (&scale, &shift))| {
                    let bias = conv.bias.as_ref().map_or(0.0, |bias| f64::from(bias[c]));
                    let weights = conv.weight.outer(c).iter().map(move |w| f64::from(scale) * f64::from(*w));
                    weights.chain([f64::from(shift) + f64::from(scale) * bias]).collect::<Vec<_>>()
                });
            Depthwise {
                taps: taps(conv),
                weights: rows.collect(),
                act: behind.act,
                inside: at.iter().map(Option::is_some).collect(),
            }
        });
        let before = heard.of(outputs, &pixels);
        Self { channels: channels.len(), features: 0, read: &[], before, act: heard.act, depthwise }
    }

    /// That of some rows (S T).
    fn part(&self, rows: std::ops::Range<usize>) -> Maker<'_> {
        let of = |width: usize| rows.start * width..rows.end * width;
        let depthwise =
            self.depthwise.as_ref().map(|d| Depthwise { inside: d.inside[rows.clone()].to_vec(), ..d.clone() });
        let (read, before) = (&self.read[of(self.features)], self.before[of(self.channels)].to_vec());
        Maker { read, before, depthwise, ..*self }
    }

    /// Values of a change.
    fn len(&self) -> usize {
        self.filters() + self.depthwise.as_ref().map_or(0, |d| d.weights.len())
    }

    fn filters(&self) -> usize {
        self.channels * self.features
    }

    fn at(&self, change: &[f64]) -> Made {
        let mut u = self.before.clone();
        let (filters, taps) = change.split_at(self.filters().min(change.len()));
        if !filters.is_empty() {
            let moved = times(self.read, self.features, filters);
            u.iter_mut().zip(&moved).for_each(|(u, moved)| *u += moved);
        }
        let (mut within, slopes) = (act(self.act, &u), slopes(self.act, &u));
        let Some(depthwise) = &self.depthwise else {
            return Made { within: vec![], slopes, outer: vec![], said: within, weights: vec![] };
        };
        for (row, inside) in within.chunks_mut(self.channels).zip(&depthwise.inside) {
            if !inside {
                row.fill(0.0);
            }
        }
        let mut weights = depthwise.weights.clone();
        weights.iter_mut().zip(taps).for_each(|(w, change)| *w += change);
        let u = self.through(&within, &weights, true);
        Made { said: act(depthwise.act, &u), outer: self::slopes(depthwise.act, &u), within, slopes, weights }
    }

    /// (S, C): what depthwise `weights` (C, T + 1) make of `within` (S T, C), with what they add or without.
    fn through(&self, within: &[f32], weights: &[f64], shifted: bool) -> Vec<f32> {
        let taps = self.depthwise.as_ref().map_or(1, |d| d.taps);
        let mut out = Vec::with_capacity(within.len() / taps);
        for rows in within.chunks(taps * self.channels) {
            out.extend((0..self.channels).map(|c| {
                let weights = &weights[c * (taps + 1)..][..=taps];
                let sum: f64 = (0..taps).map(|t| weights[t] * f64::from(rows[t * self.channels + c])).sum();
                (sum + if shifted { weights[taps] } else { 0.0 }) as f32
            }));
        }
        out
    }

    /// (S, C): what readers hear of a small `change`, nearly.
    fn push(&self, made: &Made, change: &[f64]) -> Vec<f32> {
        let (filters, taps) = change.split_at(self.filters());
        let mut moved = times(self.read, self.features, filters);
        moved.iter_mut().zip(&made.slopes).for_each(|(moved, slope)| *moved *= slope);
        let Some(depthwise) = &self.depthwise else { return moved };
        for (row, inside) in moved.chunks_mut(self.channels).zip(&depthwise.inside) {
            if !inside {
                row.fill(0.0);
            }
        }
        let mut out = self.through(&moved, &made.weights, false);
        let by_taps = self.through(&made.within, taps, true);
        for ((out, by_taps), slope) in out.iter_mut().zip(&by_taps).zip(&made.outer) {
            *out = (*out + by_taps) * slope;
        }
        out
    }

    /// The transpose of [`Maker::push`]: a change by how much it moves what readers hear along `by` (S, C).
    fn pull(&self, made: &Made, by: &[f32]) -> Vec<f64> {
        let channels = self.channels;
        let Some(depthwise) = &self.depthwise else {
            let by: Vec<f32> = by.iter().zip(&made.slopes).map(|(by, slope)| by * slope).collect();
            return self.sums(&by);
        };
        let taps = depthwise.taps;
        let mut own = vec![0.0; channels * (taps + 1)];
        let mut back = vec![0.0f32; made.slopes.len()];
        let rows = made.within.chunks(taps * channels).zip(made.slopes.chunks(taps * channels));
        let rows = rows.zip(depthwise.inside.chunks(taps)).zip(back.chunks_mut(taps * channels));
        let places = by.chunks(channels).zip(made.outer.chunks(channels));
        for ((((within, slopes), inside), back), (by, outer)) in rows.zip(places) {
            for c in 0..channels {
                let by = f64::from(by[c]) * f64::from(outer[c]);
                let (own, weights) = (&mut own[c * (taps + 1)..][..=taps], &made.weights[c * (taps + 1)..][..=taps]);
                own[taps] += by;
                for t in (0..taps).filter(|&t| inside[t]) {
                    own[t] += by * f64::from(within[t * channels + c]);
                    back[t * channels + c] = (by * weights[t]) as f32 * slopes[t * channels + c];
                }
            }
        }
        let mut pulled = self.sums(&back);
        pulled.extend(own);
        pulled
    }

    fn sums(&self, by: &[f32]) -> Vec<f64> {
        Samples::new(self.features, self.read, by).sums(by)
    }

    /// A change as what to add to the weights of convolution `id` of `graph` and of the depthwise one behind it.
    fn changes(&self, graph: &Graph, id: NodeId, depthwise: Option<NodeId>, change: &[f64]) -> Vec<(NodeId, Vec<f64>)> {
        let own: Vec<usize> = (0..self.channels).collect();
        let in_weights = |node: NodeId, change: &[f64]| {
            let scale = Heard::behind(graph, node, &own).scale;
            let rows = change.chunks(change.len() / self.channels).zip(scale);
            // An output that BatchNorm silences is heard by nobody.
            let by = |scale: f32| if scale == 0.0 { 0.0 } else { 1.0 / f64::from(scale) };
            (node, rows.flat_map(|(row, scale)| row.iter().map(move |v| v * by(scale))).collect())
        };
        let (filters, taps) = change.split_at(self.filters());
        let mut changes = vec![in_weights(id, filters)];
        changes.extend(depthwise.map(|node| in_weights(node, taps)));
        changes
    }
}

fn act(act: Act, u: &[f32]) -> Vec<f32> {
    let mut said = vec![0.0; u.len()];
    let layout = Layout::dense(1, 1, 1, u.len());
    kernels::act_forward(act, View::new(u, layout), ViewMut::new(&mut said, layout));
    said
}

fn slopes(act: Act, u: &[f32]) -> Vec<f32> {
    let mut slopes = vec![0.0; u.len()];
    let layout = Layout::dense(1, 1, 1, u.len());
    let ones = vec![1.0; u.len()];
    kernels::act_backward(
        act,
        View::new(u, layout),
        View::new(&ones, layout),
        ViewMut::new(&mut slopes, layout),
        false,
    );
    slopes
}

/// What readers make of a layer's channels by least squares.
struct Fit {
    /// C + 1.
    width: usize,
    /// K.
    directions: usize,
    /// (S, C + 1): the channels, and 1.
    said: Vec<f32>,
    factor: Cholesky,
    /// (K, C + 1).
    weights: Vec<f64>,
    /// (S, K): what they lack.
    lacking: Vec<f32>,
    loss: f64,
}

impl Fit {
    /// Of `said` (S, C) for `target` (S, K); `None` where that is not to be solved.
    fn new(said: &[f32], channels: usize, target: &[f32]) -> Option<Self> {
        let width = channels + 1;
        let said = with_one(said, channels);
        let samples = Samples::new(width, &said, target);
        let missing = vec![0.0; samples.outputs];
        let normal = Normal { gram: samples.gram(), cross: samples.sums(target), missing };
        let factor = normal.factor(READERS_RIDGE)?;
        let mut weights = normal.cross;
        weights.chunks_mut(width).for_each(|row| factor.solve(row));
        let mut lacking = samples.times(&weights);
        lacking.iter_mut().zip(target).for_each(|(made, target)| *made = target - *made);
        let loss = lacking.iter().map(|v| f64::from(*v).powi(2)).sum();
        Some(Self { width, directions: samples.outputs, factor, weights, lacking, loss, said })
    }

    /// (S, K) less what readers can make of the channels.
    fn beyond(&self, mut values: Vec<f32>) -> Vec<f32> {
        let mut weights = Samples::new(self.width, &self.said, &values).sums(&values);
        weights.chunks_mut(self.width).for_each(|row| self.factor.solve(row));
        let made = times(&self.said, self.width, &weights);
        values.iter_mut().zip(&made).for_each(|(value, made)| *value -= made);
        values
    }

    /// What they lack on other samples.
    fn loss_on(&self, said: &[f32], target: &[f32]) -> f64 {
        let made = times(&with_one(said, self.width - 1), self.width, &self.weights);
        made.iter().zip(target).map(|(made, target)| f64::from(target - made).powi(2)).sum()
    }

    /// (K, C): the weights without what is added.
    fn slopes(&self) -> Vec<f64> {
        self.weights.chunks(self.width).flat_map(|row| row[..self.width - 1].iter().copied()).collect()
    }
}

/// (S, C + 1).
fn with_one(said: &[f32], channels: usize) -> Vec<f32> {
    said.chunks(channels).flat_map(|row| row.iter().copied().chain([1.0])).collect()
}

/// (C, R) of (R, C).
fn transposed(rows: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| rows.chunks(columns).map(move |row| row[c])).collect()
}

/// The change that leaves readers least on the held-out side, on the way down on the other, and the share of their loss there that it
/// leaves; `None` where that is hardly less.
fn descend(fit: &Maker, target: &[f32], check: &Maker, check_target: &[f32]) -> Option<(Vec<f64>, f64)> {
    let gram = Samples::new(fit.features, fit.read, &[]).gram();
    let normal = Normal { gram, cross: vec![0.0; fit.features], missing: vec![0.0] };
    let factor = normal.factor(RIDGE)?;
    let problem = Problem { maker: fit, gram: &normal.gram, factor };

    let mut change = vec![0.0; fit.len()];
    let mut made = fit.at(&change);
    let mut now = Fit::new(&made.said, fit.channels, target)?;
    let before = now.loss_on(&check.at(&change).said, check_target);
    let there: f64 = about_the_mean(check_target, now.directions).iter().sum();
    if before.is_nan() || before <= NOTHING * there {
        return None;
    }
    let mut best = (before, change.clone());
    for _ in 0..STEPS {
        let step = problem.step(&made, &now, &change);
        let along = |length: f32| -> Vec<f64> {
            change.iter().zip(&step).map(|(change, step)| change + f64::from(length) * step).collect()
        };
        let next = LENGTHS.iter().find_map(|&length| {
            let change = along(length);
            let made = fit.at(&change);
            let next = Fit::new(&made.said, fit.channels, target)?;
            (next.loss < now.loss).then_some((change, made, next))
        });
        let Some(next) = next else { break };
        (change, made, now) = next;
        let loss = now.loss_on(&check.at(&change).said, check_target);
        if loss >= best.0 {
            break;
        }
        best = (loss, change.clone());
    }
    let left = best.0 / before;
    (left < 1.0 - LEAST_GAIN).then_some((best.1, left))
}

/// The linear problems on the way down.
struct Problem<'a> {
    maker: &'a Maker<'a>,
    /// (F, F): products of what the filters read.
    gram: &'a [f64],
    factor: Cholesky,
}

impl Problem<'_> {
    /// The step that would leave readers least if slopes held everywhere, with the ridge on the change as a whole, of which `change` has
    /// been made.
    fn step(&self, made: &Made, now: &Fit, change: &[f64]) -> Vec<f64> {
        let maker = self.maker;
        let readers = now.slopes();
        let back = transposed(&readers, maker.channels);
        let stiffness = self.stiffness(made, &back);
        let pull = |lacking: &[f32]| maker.pull(made, &times(lacking, now.directions, &back));
        let ridged = |values: &[f64]| -> Vec<f64> { values.iter().zip(&stiffness.ridge).map(|(v, r)| v * r).collect() };
        let precondition = |values: &[f64]| {
            let mut values = values.to_vec();
            let (filters, taps) = values.split_at_mut(maker.filters());
            for (row, weight) in filters.chunks_mut(maker.features).zip(&stiffness.filters) {
                self.factor.solve(row);
                row.iter_mut().for_each(|v| *v /= weight);
            }
            taps.iter_mut().zip(&stiffness.taps).for_each(|(v, weight)| *v /= weight);
            values
        };

        let mut residual = pull(&now.lacking);
        residual.iter_mut().zip(ridged(change)).for_each(|(r, ridged)| *r -= ridged);
        let mut step = vec![0.0; change.len()];
        let mut ahead = precondition(&residual);
        let mut direction = ahead.clone();
        let mut size = dot(&residual, &ahead);
        for _ in 0..GRADIENTS {
            let moved = times(&maker.push(made, &direction), maker.channels, &readers);
            let mut image = pull(&now.beyond(moved));
            image.iter_mut().zip(ridged(&direction)).for_each(|(i, ridged)| *i += ridged);
            let curved = dot(&direction, &image);
            if curved.is_nan() || curved <= 0.0 {
                break;
            }
            let by = size / curved;
            step.iter_mut().zip(&direction).for_each(|(step, d)| *step += by * d);
            residual.iter_mut().zip(&image).for_each(|(r, i)| *r -= by * i);
            ahead = precondition(&residual);
            let next = dot(&residual, &ahead);
            direction.iter_mut().zip(&ahead).for_each(|(d, a)| *d = a + next / size * *d);
            size = next;
        }
        step
    }

    /// How much readers, whose weights are `back` (C, K), mind each part of a change, one by one.
    fn stiffness(&self, made: &Made, back: &[f64]) -> Stiffness {
        let maker = self.maker;
        let channels = maker.channels;
        let minded: Vec<f64> = back.chunks(back.len() / channels).map(|row| dot(row, row)).collect();
        let rows = (made.slopes.len() / channels) as f64;
        let mut filters = vec![0.0; channels];
        let mut taps = vec![0.0; maker.len() - maker.filters()];
        match &maker.depthwise {
            None => {
                for row in made.slopes.chunks(channels) {
                    filters.iter_mut().zip(row).for_each(|(sum, slope)| *sum += f64::from(*slope).powi(2));
                }
            }
            Some(depthwise) => {
                let count = depthwise.taps;
                for (p, outer) in made.outer.chunks(channels).enumerate() {
                    for c in 0..channels {
                        let outer = f64::from(outer[c]).powi(2);
                        let own = &mut taps[c * (count + 1)..][..=count];
                        own[count] += outer * minded[c];
                        for t in 0..count {
                            let at = (p * count + t) * channels + c;
                            own[t] += outer * f64::from(made.within[at]).powi(2) * minded[c];
                            let weight = made.weights[c * (count + 1) + t];
                            filters[c] += outer * (weight * f64::from(made.slopes[at])).powi(2);
                        }
                    }
                }
            }
        }
        // What nobody minds has nothing to gain; the least weight keeps its division finite.
        filters.iter_mut().zip(&minded).for_each(|(f, m)| *f = (*f * m / rows).max(f64::MIN_POSITIVE));
        taps.iter_mut().for_each(|t| *t = t.max(f64::MIN_POSITIVE));
        let features = maker.features;
        let of_filters = filters.iter().flat_map(|f| (0..features).map(move |i| (f, i)));
        let mut ridge: Vec<f64> = of_filters.map(|(f, i)| RIDGE * f * self.gram[i * features + i]).collect();
        ridge.extend(taps.iter().map(|t| RIDGE * t));
        Stiffness { filters, taps, ridge }
    }
}

/// How a problem curves, one value at a time.
struct Stiffness {
    /// (C): a filter's, in units of what it reads.
    filters: Vec<f64>,
    /// (C, T + 1).
    taps: Vec<f64>,
    /// Of every value of a change: what it costs.
    ridge: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

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
            before: random(rng, rows * CHANNELS),
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
            let moved =
                |sign: f64| maker.at(&at.iter().zip(&along).map(|(a, d)| a + sign * by * d).collect::<Vec<_>>()).said;
            let slopes = moved(1.0).into_iter().zip(moved(-1.0)).map(|(a, b)| f64::from(a - b) / (2.0 * by));
            let apart: f64 = slopes.zip(&pushed).map(|(slope, p)| (slope - f64::from(*p)).powi(2)).sum();
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

    #[test]
    fn directions_add_up_to_the_metric_but_for_little() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let few = random(&mut rng, 3 * 6);
        let product = |rows: &[f64], i: usize, j: usize| rows.chunks(6).map(|row| row[i] * row[j]).sum::<f64>();
        let few: Vec<f64> = few.into_iter().map(f64::from).collect();
        let metric: Vec<f64> = (0..36).map(|k| product(&few, k / 6, k % 6)).collect();
        let rows = largest(metric.clone(), 6);
        assert_eq!(rows.len(), 3 * 6, "of rank three");
        assert!((0..36).all(|k| (product(&rows, k / 6, k % 6) - metric[k]).abs() < 1e-9));
        assert_eq!(largest(vec![0.0; 36], 6), [0.0; 0]);
    }
}
