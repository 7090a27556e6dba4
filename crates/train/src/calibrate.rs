//! What the data say about a graph: statistics of its channels for stage 2, what its answers and its loss mind, and BatchNorm
//! statistics estimated anew.

use std::collections::BTreeMap;

use graph::{Conv, Graph, Head, NodeId, Op};
use kernels::{ConvShape, Layout, View, ViewMut};
use prune::{ChannelStats, Coupling, Sensitivity, Statistics, dense_readers, mirror, observed};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::evaluate::raw;
use crate::loss::{Criterion, probe};
use crate::maps::Maps;
use crate::net::{BnUpdate, Infer, TrainNet, bytes_an_image, conv_shape};
use crate::room::{Keep, Room};
use crate::samples::{self, Places, Samples, enough};
use crate::{Gradients, Result, reconstruct};

/// Images of one size: (N, H, W, 3) bytes.
pub struct Images {
    pub data: Vec<u8>,
    pub n: usize,
}

/// How much an error at each position of every convolution's output is minded, (N, H, W) over images in order: the square of the probe's
/// gradient there, summed over channels.
pub type Focus = BTreeMap<NodeId, Vec<f32>>;

/// Mean and covariance of the channels of `nodes` over every position of `batches`, in inference mode.
///
/// # Errors
/// The graph does not fit `imgsz`, or reading a batch fails.
pub fn statistics<E: From<graph::Error>>(
    graph: &Graph,
    nodes: &[NodeId],
    imgsz: [usize; 2],
    batches: impl Iterator<Item = std::result::Result<Images, E>>,
) -> std::result::Result<Statistics, E> {
    let _keep = Keep::rooms();
    let mut infer = Infer::new(graph, imgsz)?;
    let mut by_node = ByNode::new();
    for batch in batches {
        let batch = batch?;
        infer.run_observed(&batch.data, batch.n, |node, map| {
            if nodes.contains(&node) {
                count(&mut by_node, node, pixels(map, None));
            }
        })?;
    }
    Ok(Statistics { by_node: finish(by_node), ..Statistics::default() })
}

/// Share of the weight that all positions have alike in [`focused_statistics`]: what is not minded today may be once something
/// else is wrong.
const EVEN: f64 = 0.1;

/// Features of a convolution (taps of input channels) at most for which [`focused_statistics`] looks at its taps together: their covariance
/// has the square of that.
const FEATURES: usize = 2304;

/// Images after which [`focused_statistics`] has seen enough places to tell what taps have to do with one another.
const IMAGES_FOR_TAPS: usize = 256;

/// The same with every position weighed by how much an error in what is read there is minded: most of an image is background, and
/// channels that agree there need not agree on an object. And the statistics of all that a convolution of several taps reads, at places
/// drawn likewise; and where errors are minded, in the first [`reconstruct::IMAGES`].
///
/// # Errors
/// As [`sensitivity`].
pub fn focused_statistics<E: From<graph::Error>>(
    graph: &Graph,
    coupling: &Coupling,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = std::result::Result<Images, E>>,
) -> std::result::Result<(Statistics, Focus), E> {
    let _keep = Keep::rooms();
    let mut infer = Infer::new(graph, imgsz)?;
    let mut probes = Probes::new(graph, imgsz)?;
    let [mut by_node, mut by_reader] = [ByNode::new(), ByNode::new()];
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let nodes = observed(graph, coupling);
    let (mut whole, mut seen) = (Focus::new(), 0);
    for batch in batches {
        let batch = batch?;
        let mut focus = Focus::new();
        probes.run(&batch.data, batch.n, |node, dy| {
            focus.insert(node, squares(dy));
        })?;
        infer.run_observed(&batch.data, batch.n, |node, map| {
            if !nodes.contains(&node) {
                return;
            }
            let weights = minded(graph, node, map.layout, &focus);
            count(&mut by_node, node, pixels(map, Some(&weights)));
            for (id, conv) in dense_readers(graph, coupling, node).filter(|(_, conv)| has_taps(conv)) {
                let focus = focus.get(&id).map(Vec::as_slice);
                count(&mut by_reader, id, taps(conv, map, focus, &mut rng));
            }
        })?;
        if seen < reconstruct::IMAGES {
            focus.into_iter().for_each(|(node, f)| whole.entry(node).or_default().extend(f));
        }
        seen += batch.n;
    }
    let sums = Statistics { by_node: finish(by_node), by_reader: finish(by_reader), ..Statistics::default() };
    Ok((sums, whole))
}

/// Whether a dense convolution has several taps that can be looked at together.
fn has_taps(conv: &Conv) -> bool {
    let taps: usize = conv.kernel().iter().product();
    taps > 1 && conv.weight.shape[1] * taps <= FEATURES
}

/// What `conv`, which reads `map`, reads at some places of a batch: those that `focus` (N, H, W) says count most.
fn taps(conv: &Conv, map: View, focus: Option<&[f32]>, rng: &mut ChaCha8Rng) -> Rows {
    let images = map.layout.n;
    let (h, w) = conv_shape(conv).output(map.layout);
    let all: Vec<usize> = (0..images).collect();
    let places = Places { views: &all, images, plane: [h, w], focus };
    let features = conv.weight.shape[1..].iter().product();
    let at = places.draw((enough(features) * images).div_ceil(IMAGES_FOR_TAPS), rng);
    Rows { features, data: samples::read(conv, map, [h, w], &at), count: at.len() }
}

/// Every position of `map`, which counts as `weights` (N, H, W) say, else 1.
fn pixels(map: View, weights: Option<&[f32]>) -> Rows {
    let (features, pixels) = (map.layout.c, map.layout.pixels());
    // What fills up the last row of samples counts for nothing.
    let mut data = Room::any(pixels.next_multiple_of(samples::ROW) * (features + 1));
    data[pixels * (features + 1)..].fill(0.0);
    data.par_chunks_mut(features + 1).enumerate().take(pixels).for_each(|(p, row)| {
        row[..features].copy_from_slice(map.pixel(p));
        row[features] = weights.map_or(1.0, |weights| weights[p]);
    });
    Rows { features, data, count: pixels }
}

/// Samples of features.
struct Rows {
    features: usize,
    /// (S, features + 1), S a multiple of [`samples::ROW`]: in the last column how much each counts.
    data: Room,
    /// What they count together.
    count: usize,
}

/// Sums over samples of what nodes write, or read.
type ByNode = BTreeMap<NodeId, Moments>;

fn count(sums: &mut ByNode, node: NodeId, rows: Rows) {
    sums.entry(node).or_insert_with(|| Moments::around(&rows)).add(rows);
}

fn finish(sums: ByNode) -> BTreeMap<NodeId, ChannelStats> {
    sums.into_iter().map(|(node, moments)| (node, moments.finish())).collect()
}

/// (N, H, W) of what `node` writes: how much is minded what its readers make of each position; 1 on average.
fn minded(graph: &Graph, node: NodeId, layout: Layout, focus: &Focus) -> Vec<f32> {
    let layout = Layout::dense(layout.n, layout.h, layout.w, 1);
    let mut weights = vec![0.0f32; layout.end()];
    for (id, reader) in graph.nodes.iter().enumerate() {
        let Op::Conv(conv) = &reader.op else { continue };
        let Some(focus) = focus.get(&id).filter(|_| reader.inputs[0] == node) else { continue };
        // Each window hands what its output is minded to all it has read: the input gradient of a convolution with ones.
        let ones = ConvShape { ci: 1, co: 1, groups: 1, ..conv_shape(conv) };
        let (h, w) = ones.output(layout);
        let dy = View::new(focus, Layout::dense(layout.n, h, w, 1));
        let weight = vec![1.0; ones.kernel.iter().product()];
        kernels::conv_backward_input(&ones, dy, &weight, ViewMut::new(&mut weights, layout), true);
    }
    let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / weights.len().max(1) as f64;
    match mean > 0.0 {
        true => weights.iter_mut().for_each(|w| *w = (EVEN + (1.0 - EVEN) * f64::from(*w) / mean) as f32),
        // Nobody minds, or no reader's gradient is known.
        false => weights.fill(1.0),
    }
    weights
}

/// What the answers of `graph` mind, over `batches`, which should come from the training distribution: gradients are carried back
/// through each batch's own BatchNorm statistics, as in training. No labels are looked at.
///
/// # Errors
/// The graph is no detector that [`probe::is_probed`] or does not fit `imgsz`, or reading a batch fails.
pub fn sensitivity<E: From<graph::Error>>(
    graph: &Graph,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = std::result::Result<Images, E>>,
) -> std::result::Result<Sensitivity, E> {
    let mut outputs: BTreeMap<NodeId, Vec<f64>> = BTreeMap::new();
    let mut images = 0;
    let mut probes = Probes::new(graph, imgsz)?;
    for batch in batches {
        let batch = batch?;
        probes.run(&batch.data, batch.n, |node, dy| {
            let sum = outputs.entry(node).or_insert_with(|| vec![0.0; dy.layout.c]);
            for p in 0..dy.layout.pixels() {
                sum.iter_mut().zip(dy.pixel(p)).for_each(|(s, d)| *s += f64::from(*d) * f64::from(*d));
            }
        })?;
        images += batch.n;
    }
    outputs.values_mut().flatten().for_each(|s| *s /= images.max(1) as f64);
    Ok(Sensitivity { outputs, gates: BTreeMap::new() })
}

/// What the detection loss minds of a factor on each BatchNorm's outputs, by the labels of `batches`; see [`Sensitivity::gates`].
///
/// # Errors
/// The graph is no detector with a loss or does not fit `imgsz`, or reading a batch fails.
pub fn gates(
    graph: &Graph,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = data::Result<data::Batch>>,
) -> Result<Sensitivity> {
    let (head, _) = graph.head()?;
    let criterion = Criterion::of(head, imgsz[0])?;
    let mut net = TrainNet::new(graph.clone(), imgsz)?;
    let mut gradients = Gradients::zeros(graph);
    let mut gates: BTreeMap<NodeId, Vec<f64>> = BTreeMap::new();
    let mut steps = 0;
    for batch in batches {
        let batch = batch?;
        gradients.clear();
        let maps = net.forward(&batch.images, batch.n, BnUpdate::Momentum)?;
        let loss = criterion.evaluate(head, &raw(&maps), &batch.targets)?;
        net.backward(&loss.grads, &mut gradients);
        for (id, node) in graph.nodes.iter().enumerate() {
            let (Op::BatchNorm(bn), [dgamma, dbeta]) = (&node.op, &gradients.by_node[id][..]) else { continue };
            let sum = gates.entry(id).or_insert_with(|| vec![0.0; bn.gamma.len()]);
            for (c, sum) in sum.iter_mut().enumerate() {
                let gate = f64::from(bn.gamma[c]) * f64::from(dgamma[c]) + f64::from(bn.beta[c]) * f64::from(dbeta[c]);
                *sum += gate * gate;
            }
        }
        steps += 1;
    }
    gates.values_mut().flatten().for_each(|s| *s /= f64::from(steps.max(1)));
    Ok(Sensitivity { outputs: BTreeMap::new(), gates })
}

/// Where the answers of `graph` mind errors, in all `images`.
///
/// # Errors
/// As [`sensitivity`].
pub fn focus(graph: &Graph, imgsz: [usize; 2], images: &Images) -> Result<Focus> {
    let mut focus = Focus::new();
    let mut probes = Probes::new(graph, imgsz)?;
    let image = 3 * imgsz[0] * imgsz[1];
    for images in images.data.chunks(together(graph, imgsz)? * image) {
        probes.run(images, images.len() / image, |node, dy| {
            focus.entry(node).or_default().extend(squares(dy));
        })?;
    }
    Ok(focus)
}

/// Images that are looked at together: a batch of training.
const TOGETHER: usize = 16;

/// Bytes of maps at most that images looked at together may take, before gradients: all sixteen of a YOLOv5s at 640 pixels, four of a
/// YOLOv5x.
const MAPS: usize = 5 << 29;

/// How many images [`focus`] looks at together: as many as training does, unless their maps would not fit in memory beside the rest. Who
/// shows [`focused_statistics`] as many at a time finds the same.
///
/// # Errors
/// The graph does not fit `imgsz`.
pub fn together(graph: &Graph, imgsz: [usize; 2]) -> graph::Result<usize> {
    let each = bytes_an_image(graph, imgsz)?;
    Ok((MAPS / each.max(1)).clamp(1, TOGETHER))
}

/// The square of every pixel, summed over channels.
fn squares(map: View) -> Vec<f32> {
    (0..map.layout.pixels()).into_par_iter().map(|p| map.pixel(p).iter().map(|d| d * d).sum()).collect()
}

/// Sums of w (x - s) and w (x - s)(x - s)' over samples x of weight w, with s the mean of the first of them: the products of the raw
/// values would lose the covariance of a feature that hardly moves.
struct Moments {
    shift: Vec<f32>,
    /// (features + 1, features + 1), of x - s and 1, as [`Samples::add_gram`] leaves it.
    upper: Vec<f64>,
    count: u64,
}

impl Moments {
    /// Of no sample yet, about the mean of `rows`.
    fn around(rows: &Rows) -> Self {
        let width = rows.features + 1;
        let mut sums = vec![0.0f64; rows.features];
        for row in rows.data.chunks(width) {
            sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        let count = rows.count.max(1) as f64;
        let shift = sums.into_iter().map(|sum| (sum / count) as f32).collect();
        Self { shift, upper: vec![0.0; width * width], count: 0 }
    }

    fn add(&mut self, Rows { features, mut data, count }: Rows) {
        let width = features + 1;
        data.par_chunks_mut(width).for_each(|row| {
            row[features] = row[features].sqrt();
            let root = row[features];
            row.iter_mut().zip(&self.shift).for_each(|(x, s)| *x = root * (*x - s));
        });
        self.count += count as u64;
        Samples::new(width, &data, &[]).add_gram(&mut self.upper);
    }

    fn finish(mut self) -> ChannelStats {
        let features = self.shift.len();
        mirror(&mut self.upper, features + 1);
        let mut rows = self.upper.chunks(features + 1).map(|row| &row[..features]);
        let products: Vec<f64> = rows.by_ref().take(features).flatten().copied().collect();
        let mut stats = ChannelStats::from_sums(self.count, rows.next().unwrap_or_default(), &products);
        stats.mean.iter_mut().zip(&self.shift).for_each(|(m, &s)| *m += f64::from(s));
        stats
    }
}

/// `graph` with the running statistics of every BatchNorm replaced by the average over `batches`, which should come from
/// the training distribution (augmented as in training): see METHOD.md, section 4.
///
/// # Errors
/// The graph does not fit `imgsz`, or reading a batch fails.
pub fn reestimate_batch_norm<E: From<graph::Error>>(
    graph: &Graph,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = std::result::Result<Images, E>>,
) -> std::result::Result<Graph, E> {
    if !graph.nodes.iter().any(|n| matches!(n.op, Op::BatchNorm(_))) {
        return Ok(graph.clone());
    }
    let mut net = TrainNet::new(graph.clone(), imgsz)?;
    for (seen, batch) in batches.enumerate() {
        let batch = batch?;
        net.forward(&batch.data, batch.n, BnUpdate::Average(seen))?;
    }
    Ok(net.graph)
}

/// `graph`, which goes on computing what it computes, with the running statistics of every BatchNorm those of what it reads over
/// `batches`; scales and shifts make up for the change.
///
/// A training step normalises by a batch's own statistics. Weights that were fitted with statistics that are not, as those that a
/// cut leaves behind, would be those of another function in it: the first steps would undo the fit.
///
/// # Errors
/// The graph does not fit `imgsz`, or reading a batch fails.
pub fn rebase_batch_norm<E: From<crate::Error>>(
    graph: &Graph,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = std::result::Result<Images, E>>,
) -> std::result::Result<Graph, E> {
    let _keep = Keep::rooms();
    let mut spreads: BTreeMap<NodeId, Spread> = BTreeMap::new();
    for batch in batches {
        let mut maps = Maps::new(graph, imgsz)?;
        maps.add(graph, 0, &batch?.data);
        for (id, node) in graph.nodes.iter().enumerate() {
            if matches!(node.op, Op::BatchNorm(_)) {
                let read = maps.of(node.inputs[0]);
                spreads.entry(id).or_insert_with(|| Spread::of_nothing(read.layout.c)).add(read);
            }
            maps.compute(graph, id);
            maps.drop_read(id);
        }
    }
    let mut rebased = graph.clone();
    for (id, spread) in spreads {
        let Op::BatchNorm(bn) = &mut rebased.nodes[id].op else { unreachable!("only these have been looked at") };
        for (c, (mean, var)) in spread.finish().enumerate() {
            let gain = f64::from(bn.gamma[c]) / (f64::from(bn.var[c]) + f64::from(bn.eps)).sqrt();
            bn.beta[c] = (f64::from(bn.beta[c]) + gain * (mean - f64::from(bn.mean[c]))) as f32;
            bn.gamma[c] = (gain * (var + f64::from(bn.eps)).sqrt()) as f32;
            (bn.mean[c], bn.var[c]) = (mean as f32, var as f32);
        }
    }
    Ok(rebased)
}

/// Mean and variance of a map's channels over batches: those of each batch put together (Chan, Golub and LeVeque 1983), in which
/// nothing cancels.
struct Spread {
    mean: Vec<f64>,
    /// Sum of the squared distances from the mean.
    squares: Vec<f64>,
    count: f64,
}

impl Spread {
    fn of_nothing(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], squares: vec![0.0; channels], count: 0.0 }
    }

    fn add(&mut self, map: View) {
        let (more, stats) = (map.layout.pixels() as f64, kernels::batch_stats(map));
        let share = more / (self.count + more);
        for (c, (mean, squares)) in self.mean.iter_mut().zip(&mut self.squares).enumerate() {
            let apart = f64::from(stats.mean[c]) - *mean;
            *mean += share * apart;
            *squares += more * f64::from(stats.var[c]) + share * self.count * apart * apart;
        }
        self.count += more;
    }

    /// Mean and biased variance of every channel.
    fn finish(self) -> impl Iterator<Item = (f64, f64)> {
        self.mean.into_iter().zip(self.squares).map(move |(mean, squares)| (mean, squares / self.count))
    }
}

/// What a detector's answers mind, batch by batch.
struct Probes {
    net: TrainNet,
    head: Head,
    rng: ChaCha8Rng,
}

impl Probes {
    fn new(graph: &Graph, imgsz: [usize; 2]) -> graph::Result<Self> {
        let (head, _) = graph.head()?;
        if !probe::is_probed(head) {
            return Err(graph::Error::node("head", "what its answers are worth is not known"));
        }
        let mut net = TrainNet::new(graph.clone(), imgsz)?;
        // What a head that trains nothing before it reads is minded all the same.
        net.joint = true;
        let rng = ChaCha8Rng::seed_from_u64(0);
        Ok(Self { net, head: head.clone(), rng })
    }

    /// Shows `observe` the gradient at the output of every convolution.
    fn run(&mut self, images: &[u8], n: usize, observe: impl FnMut(NodeId, View)) -> graph::Result<()> {
        let maps = self.net.forward(images, n, BnUpdate::Momentum)?;
        let grads = probe::probe(&self.head, &raw(&maps), &mut self.rng);
        self.net.observe_backward(&grads, observe);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use graph::{Act, Conv, Family, Meta, Tensor};

    use super::*;

    fn detector() -> graph::Result<Graph> {
        let build = graph::build::Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.125, depth: 0.33, seed: 3 };
        let mut graph = build.build()?;
        for node in &mut graph.nodes {
            if let Op::BatchNorm(bn) = &mut node.op {
                bn.beta.iter_mut().enumerate().for_each(|(c, b)| *b = 0.3 - 0.1 * (c % 5) as f32);
            }
        }
        Ok(graph)
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n * 64 * 64 * 3).map(|i| (i * 7919 % 251) as u8).collect()
    }

    /// (gamma dL/dgamma + beta dL/dbeta)^2, on average over batches.
    #[test]
    fn gates_are_their_definition() -> Result<()> {
        let graph = detector()?;
        let target = |x: f32| data::Target { image: 0, class: 0, bbox: [x, 0.4, 0.3, 0.2] };
        let batch = |x: f32| data::Batch {
            images: bytes(1),
            n: 1,
            h: 64,
            w: 64,
            targets: vec![target(x)],
            items: vec![0],
            letterboxes: vec![],
        };
        let found = gates(&graph, [64; 2], [0.3, 0.6].into_iter().map(|x| Ok(batch(x))))?;
        let (head, _) = graph.head()?;
        let mut expected: BTreeMap<NodeId, Vec<f64>> = BTreeMap::new();
        for x in [0.3, 0.6] {
            let mut net = TrainNet::new(graph.clone(), [64; 2])?;
            let maps = net.forward(&bytes(1), 1, BnUpdate::Momentum)?;
            let loss = Criterion::of(head, 64)?.evaluate(head, &raw(&maps), &[target(x)])?;
            let mut gradients = Gradients::zeros(&graph);
            net.backward(&loss.grads, &mut gradients);
            for (id, node) in graph.nodes.iter().enumerate() {
                let Op::BatchNorm(bn) = &node.op else { continue };
                let by = |what: usize, c: usize| f64::from(gradients.by_node[id][what][c]);
                let gate = |c: usize| f64::from(bn.gamma[c]) * by(0, c) + f64::from(bn.beta[c]) * by(1, c);
                let sums = expected.entry(id).or_insert_with(|| vec![0.0; bn.gamma.len()]);
                sums.iter_mut().enumerate().for_each(|(c, sum)| *sum += gate(c).powi(2) / 2.0);
            }
        }
        assert_eq!(found.gates.len(), expected.len());
        for (id, expected) in expected {
            for (found, expected) in found.gates[&id].iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-6 * expected, "{id}: {found} for {expected}");
            }
        }
        Ok(())
    }

    /// Both are squares of the same gradients, one summed over places, the other over channels.
    #[test]
    fn sensitivity_is_the_mean_over_images_of_what_places_mind() -> Result<()> {
        let graph = detector()?;
        let images = Images { data: bytes(3), n: 3 };
        let focus = focus(&graph, [64; 2], &images)?;
        let minds = sensitivity(&graph, [64; 2], std::iter::once(Ok::<_, graph::Error>(images)))?;
        for (id, minds) in &minds.outputs {
            let places: f64 = focus[id].iter().map(|&f| f64::from(f)).sum();
            let all = 3.0 * minds.iter().sum::<f64>();
            assert!((places - all).abs() <= 1e-4 * all, "{id}: {places} {all}");
        }
        Ok(())
    }

    #[test]
    fn spreads_of_batches_are_put_together() {
        let values: Vec<f32> = (0..40).map(|i| (i * 29 % 17) as f32 + if i < 16 { 40.0 } else { 0.0 }).collect();
        let mut spread = Spread::of_nothing(2);
        for (from, pixels) in [(0, 8), (16, 12)] {
            spread.add(View::new(&values[from..from + 2 * pixels], Layout::dense(1, 1, pixels, 2)));
        }
        for (c, (mean, var)) in spread.finish().enumerate() {
            let all: Vec<f64> = values.iter().skip(c).step_by(2).map(|&v| f64::from(v)).collect();
            let expected = all.iter().sum::<f64>() / 20.0;
            let squares = all.iter().map(|v| (v - expected).powi(2)).sum::<f64>() / 20.0;
            assert!((mean - expected).abs() < 1e-4 && (var - squares).abs() < 1e-3 * squares, "{c}: {mean} {var}");
        }
    }

    #[test]
    fn a_position_is_minded_by_every_window_that_reads_it() {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [8, 6] };
        let mut graph = Graph::new(meta, 3);
        let conv = |o: usize, i: usize, k: usize, stride, pad| {
            let weight = Tensor::new([o, i, k, k], vec![1.0; o * i * k * k]);
            Op::Conv(Conv { weight, bias: None, stride: [stride; 2], pad: [pad; 2], groups: 1 })
        };
        let read = graph.push("read", conv(2, 3, 1, 1, 0), vec![0]);
        let readers = [(3, 2, 1), (1, 1, 0), (5, 1, 2)].map(|(kernel, stride, pad)| {
            let id = graph.push(format!("k{kernel}"), conv(1, 2, kernel, stride, pad), vec![read]);
            (id, kernel, stride, pad)
        });
        let (n, h, w) = (2, 8, 6);
        let mut expected = vec![0.0f64; n * h * w];
        let mut focus = BTreeMap::new();
        for (id, kernel, stride, pad) in readers {
            let (oh, ow) = ((h + 2 * pad - kernel) / stride + 1, (w + 2 * pad - kernel) / stride + 1);
            let minds: Vec<f32> = (0..n * oh * ow).map(|i| (i * 13 % 7) as f32).collect();
            for (p, f) in minds.iter().enumerate() {
                let (image, y, x) = (p / (oh * ow), p / ow % oh, p % ow);
                for row in (y * stride..y * stride + kernel).filter(|r| (pad..pad + h).contains(r)) {
                    for column in (x * stride..x * stride + kernel).filter(|c| (pad..pad + w).contains(c)) {
                        expected[(image * h + row - pad) * w + column - pad] += f64::from(*f);
                    }
                }
            }
            focus.insert(id, minds);
        }
        let mean = expected.iter().sum::<f64>() / expected.len() as f64;
        let found = minded(&graph, read, Layout::dense(n, h, w, 2), &focus);
        for (i, (e, f)) in expected.iter().zip(&found).enumerate() {
            let e = EVEN + (1.0 - EVEN) * e / mean;
            assert!((e - f64::from(*f)).abs() < 1e-5 * e, "{i}: {e} {f}");
        }
        assert_eq!(minded(&graph, read, Layout::dense(n, h, w, 2), &BTreeMap::new()), vec![1.0; n * h * w]);
    }

    #[test]
    fn weighed_moments_are_those_of_the_weighed_samples() {
        let layout = Layout::dense(2, 4, 5, 3);
        let values: Vec<f32> = (0..layout.end()).map(|i| (i * 29 % 17) as f32 - 5.0).collect();
        let mut weights: Vec<f32> = (0..40).map(|i| (i * 7 % 5) as f32).collect();
        let total: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w *= 40.0 / total);
        let map = View::new(&values, layout);
        let rows = pixels(map, Some(&weights));
        let mut moments = Moments::around(&rows);
        moments.add(rows);
        let stats = moments.finish();
        let mean = |of: &dyn Fn(&[f32]) -> f64| {
            values.chunks(3).zip(&weights).map(|(x, w)| f64::from(*w) * of(x)).sum::<f64>() / 40.0
        };
        let means: Vec<f64> = (0..3).map(|c| mean(&|x| f64::from(x[c]))).collect();
        for (k, found) in stats.cov.iter().enumerate() {
            let (i, j) = (k / 3, k % 3);
            let expected = mean(&|x| (f64::from(x[i]) - means[i]) * (f64::from(x[j]) - means[j]));
            assert!((expected - found).abs() < 1e-4, "{i} {j}: {expected} {found}");
        }
        assert!(means.iter().zip(&stats.mean).all(|(a, b)| (a - b).abs() < 1e-5), "{means:?} {:?}", stats.mean);
    }

    #[test]
    fn what_hardly_moves_far_from_nought_keeps_its_covariance() {
        let layout = Layout::dense(1, 64, 64, 2);
        let noise = |i: usize| (i * 29 % 101) as f32 / 101.0 - 0.5;
        let values: Vec<f32> = (0..layout.end()).map(|i| 4.0 + 1e-3 * noise(i)).collect();
        let weight = Tensor::new([1, 2, 1, 3], vec![1.0; 6]);
        let conv = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 1 };
        let mut sums = ByNode::new();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        count(&mut sums, 0, taps(&conv, View::new(&values, layout), None, &mut rng));
        let stats = finish(sums).remove(&0).expect("was counted");
        let expected = 1e-6 / 12.0;
        for i in 0..6 {
            let found = stats.cov[i * 6 + i];
            assert!((found - expected).abs() < 0.1 * expected, "{i}: {found} for {expected}");
        }
    }

    #[test]
    fn taps_are_told_of_as_they_are_read_where_they_are_minded() {
        let layout = Layout::dense(4, 6, 5, 2);
        let values: Vec<f32> = (0..layout.end()).map(|i| (i * 37 % 19) as f32 / 4.0 - 2.0).collect();
        let map = View::new(&values, layout);
        let weight = Tensor::new([1, 2, 3, 3], vec![1.0; 18]);
        let conv = Conv { weight, bias: None, stride: [1, 1], pad: [1, 1], groups: 1 };
        // Of each image one place matters, by itself a tenth of the samples lie anywhere.
        let place = |image: usize| image * 30 + 7 * image;
        let mut focus = vec![0.0; 120];
        (0..4).for_each(|image| focus[place(image)] = 1.0);
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut sums = ByNode::new();
        (0..300).for_each(|_| count(&mut sums, 0, taps(&conv, map, Some(&focus), &mut rng)));
        let stats = finish(sums).remove(&0).expect("was counted");
        let read = |place: usize, feature: usize| {
            let (image, y, x) = (place / 30, place / 5 % 6, place % 5);
            let (row, column) = ((y + feature % 9 / 3).wrapping_sub(1), (x + feature % 3).wrapping_sub(1));
            let inside = row < 6 && column < 5;
            if inside { f64::from(values[((image * 6 + row) * 5 + column) * 2 + feature / 9]) } else { 0.0 }
        };
        let mean = |of: &dyn Fn(usize) -> f64| {
            0.9 * (0..4).map(|image| of(place(image))).sum::<f64>() / 4.0 + 0.1 * (0..120).map(of).sum::<f64>() / 120.0
        };
        for i in 0..18 {
            let expected = mean(&|p| read(p, i));
            assert!((stats.mean[i] - expected).abs() < 0.03, "{i}: {} for {expected}", stats.mean[i]);
            for j in 0..18 {
                let expected = mean(&|p| read(p, i) * read(p, j)) - mean(&|p| read(p, i)) * mean(&|p| read(p, j));
                let found = stats.cov[i * 18 + j];
                assert!((found - expected).abs() < 0.06, "{i} {j}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn rebased_batch_norm_computes_the_same_and_trains_from_there() -> graph::Result<()> {
        let build = graph::build::Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.125, depth: 0.33, seed: 3 };
        let mut graph = build.build()?;
        // Statistics that are nobody's.
        for (id, node) in graph.nodes.iter_mut().enumerate() {
            let Op::BatchNorm(bn) = &mut node.op else { continue };
            for (c, (mean, var)) in bn.mean.iter_mut().zip(&mut bn.var).enumerate() {
                (*mean, *var) = ((id * 7 + c * 5) as f32 % 3.0 - 1.0, 0.5 + (id * 3 + c) as f32 % 4.0);
            }
        }
        let (n, each) = (4, 64 * 64 * 3);
        let all: Vec<u8> = (0..n * each).map(|i| (i * 7919 % 251) as u8).collect();
        // Batches of different sizes, and together the batch that is trained on below.
        let batches = [(0, 1), (1, 3)].map(|(at, n)| {
            let data = all[at * each..(at + n) * each].to_vec();
            Ok::<_, crate::Error>(Images { data, n })
        });
        let rebased = rebase_batch_norm(&graph, [64; 2], batches.into_iter()).expect("fits");
        let used = |graph: &Graph| Infer::new(graph, [64; 2])?.run(&all, n);
        let trained = |graph: &Graph| TrainNet::new(graph.clone(), [64; 2])?.forward(&all, n, BnUpdate::Momentum);
        let apart = |a: &[crate::net::HeadMap], b: &[crate::net::HeadMap]| {
            let values = |maps: &[crate::net::HeadMap]| maps.iter().flat_map(|m| m.data.clone()).collect::<Vec<f32>>();
            values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, testkit::larger)
        };
        let before = used(&graph)?;
        assert!(apart(&before, &trained(&graph)?) > 0.1, "another function before");
        assert!(apart(&before, &used(&rebased)?) < 1e-4, "off by {}", apart(&before, &used(&rebased)?));
        assert!(apart(&before, &trained(&rebased)?) < 1e-3, "off by {}", apart(&before, &trained(&rebased)?));
        Ok(())
    }

    #[test]
    fn large_detectors_are_shown_fewer_images_together() -> graph::Result<()> {
        let at_once = |width, depth| {
            let graph = graph::build::Yolov5 { names: vec!["a".into()], imgsz: 640, width, depth, seed: 3 }.build()?;
            assert!(together(&graph, [640; 2])? * bytes_an_image(&graph, [640; 2])? <= MAPS);
            Ok::<_, graph::Error>((together(&graph, [640; 2])?, together(&graph, [320; 2])?))
        };
        assert_eq!(at_once(0.25, 0.33)?, (TOGETHER, TOGETHER), "YOLOv5n");
        let (few, all) = at_once(0.75, 0.67)?;
        assert!((4..TOGETHER).contains(&few) && all == TOGETHER, "YOLOv5m: {few}, {all}");
        Ok(())
    }

    #[test]
    fn statistics_are_those_of_the_map() -> graph::Result<()> {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [4, 4] };
        let mut graph = Graph::new(meta, 3);
        let weight = Tensor::new([2, 3, 1, 1], vec![1.0, 0.0, 0.0, 0.5, 0.5, 0.0]);
        let conv =
            |weight| Op::Conv(Conv { weight, bias: Some(vec![7.0, 0.0]), stride: [1, 1], pad: [0, 0], groups: 1 });
        let first = graph.push("first", conv(weight), vec![0]);
        let act = graph.push("act", Op::Act(Act::Identity), vec![first]);
        graph.push("second", conv(Tensor::new([2, 2, 1, 1], vec![1.0; 4])), vec![act]);

        let bytes: Vec<u8> = (0..2 * 48).map(|i| (i * 37 % 251) as u8).collect();
        let batches =
            [(0, 1), (48, 1)].map(|(at, n)| Ok::<_, graph::Error>(Images { data: bytes[at..at + 48].to_vec(), n }));
        let stats = statistics(&graph, &[act], [4, 4], batches.into_iter())?.by_node.remove(&act).expect("observed");

        let (a, b): (Vec<f64>, Vec<f64>) = bytes
            .chunks(3)
            .map(|p| (f64::from(p[0]) / 255.0 + 7.0, (f64::from(p[0]) + f64::from(p[1])) / 510.0))
            .unzip();
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        let (ma, mb) = (mean(&a), mean(&b));
        let cov = a.iter().zip(&b).map(|(x, y)| (x - ma) * (y - mb)).sum::<f64>() / a.len() as f64;
        assert!((stats.mean[0] - ma).abs() < 1e-6 && (stats.mean[1] - mb).abs() < 1e-6, "{:?}", stats.mean);
        assert!((stats.cov[1] - cov).abs() < 1e-7 && stats.cov[1] == stats.cov[2], "{:?} {cov}", stats.cov);
        assert_eq!(stats.count, 32);
        Ok(())
    }
}
