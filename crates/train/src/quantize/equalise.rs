//! Channels made alike in size, so that the bytes of a map serve all of them.
//!
//! A map has one scale, and a channel much smaller than the largest gets a few of its 256 values. Where nothing but rectifiers without
//! an upper end lies between convolutions, a channel may be multiplied by any positive number if its readers divide by it: rows of
//! weights have scales of their own, columns have not, so a channel's factor makes its values and the weights that read them reach as far
//! as each other ("cross-layer equalization", Nagel et al., "Data-free quantization", 2019; here with what the images show instead
//! of the weights that write). A depthwise convolution's row reads one channel: there values alone decide.

use graph::{Act, Conv, Error, Graph, NodeId, Op, UnionFind};

use crate::calibrate::Images;
use crate::net::{Infer, tapped};

/// Factors stay within this and one over it: a channel that is hardly ever there need not fill its bytes.
const FARTHEST: f64 = 1024.0;

/// `graph`, which is folded, with other weights that compute the same. `batches` shows what its maps hold.
///
/// # Errors
/// The graph does not fit `imgsz`, or reading a batch fails.
pub fn equalised<E: From<Error>>(
    graph: Graph,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = Result<Images, E>>,
) -> Result<Graph, E> {
    let channels = Channels::of(&graph);
    if channels.ids.iter().flatten().all(|&id| channels.fixed[id]) {
        return Ok(graph);
    }
    let values = reach(&graph, &channels, imgsz, batches)?;
    let weights = columns(&graph, &channels);
    let factor = |root: usize| match (values[root], weights[root]) {
        _ if channels.fixed[root] => 1.0,
        // Nobody hears it, or it says nothing.
        (0.0, _) | (_, Some(0.0)) => 1.0,
        (values, None) => 1.0 / values,
        (values, Some(weights)) => (weights / values).sqrt(),
    };
    let factors: Vec<f64> = (0..values.len()).map(|root| factor(root).clamp(1.0 / FARTHEST, FARTHEST)).collect();
    let mut out = graph;
    for id in 0..out.nodes.len() {
        let input = out.nodes[id].inputs.first().copied();
        let (Op::Conv(conv), Some(input)) = (&mut out.nodes[id].op, input) else { continue };
        let taps: usize = conv.kernel().iter().product();
        let (per_filter, outputs) = (conv.weight.shape[1], conv.out_channels());
        for o in 0..outputs {
            let own = factors[channels.ids[id][o]];
            let first = first_read(conv, o);
            let row = &mut conv.weight.data[o * per_filter * taps..][..per_filter * taps];
            for (i, weights) in row.chunks_mut(taps).enumerate() {
                let by = own / factors[channels.ids[input][first + i]];
                weights.iter_mut().for_each(|w| *w = (f64::from(*w) * by) as f32);
            }
            if let Some(bias) = &mut conv.bias {
                bias[o] = (f64::from(bias[o]) * own) as f32;
            }
        }
    }
    Ok(out)
}

/// The first input that filter `o` reads.
fn first_read(conv: &Conv, o: usize) -> usize {
    o / (conv.out_channels() / conv.groups) * conv.weight.shape[1]
}

/// Which channels of maps have to be multiplied by the same number.
struct Channels {
    /// Of every channel of every node: the set it is of.
    ids: Vec<Vec<usize>>,
    /// By set: it has to stay as it is.
    fixed: Vec<bool>,
}

impl Channels {
    fn of(graph: &Graph) -> Self {
        let mut union = UnionFind::default();
        let mut ids: Vec<Vec<usize>> = vec![];
        let mut stay: Vec<usize> = vec![];
        let readers = graph.consumers();
        for (id, node) in graph.nodes.iter().enumerate() {
            let read = |k: usize| &ids[node.inputs[k]];
            let out = match &node.op {
                Op::Input { channels } => {
                    let image = union.fresh(*channels);
                    stay.extend(&image);
                    image
                }
                Op::Conv(conv) => union.fresh(conv.out_channels()),
                Op::Act(Act::Identity | Act::Leaky | Act::Relu) | Op::Upsample { .. } | Op::MaxPool(_) => {
                    read(0).clone()
                }
                Op::Concat => node.inputs.iter().flat_map(|&i| ids[i].iter().copied()).collect(),
                Op::Slice { start, len } => read(0)[*start..start + len].to_vec(),
                Op::Add => {
                    for &other in &node.inputs[1..] {
                        read(0).iter().zip(&ids[other]).for_each(|(&a, &b)| union.unite(a, b));
                    }
                    read(0).clone()
                }
                // What bends a value elsewhere than at nought, mixes channels or is told to the user.
                Op::BatchNorm(_) | Op::Act(_) | Op::PixelShuffle { .. } | Op::Attention(_) | Op::Head(_) => {
                    let all: Vec<usize> = node.inputs.iter().flat_map(|&i| ids[i].iter().copied()).collect();
                    let out = union.fresh(match &node.op {
                        Op::Head(_) => 0,
                        Op::PixelShuffle { factor } => all.len() / (factor * factor),
                        Op::Attention(a) => a.heads * a.value,
                        _ => all.len(),
                    });
                    stay.extend(all.iter().chain(&out));
                    out
                }
            };
            // What nothing reads is an output.
            if readers[id].is_empty() {
                stay.extend(&out);
            }
            ids.push(out);
        }
        let mut fixed = vec![false; union.count()];
        stay.into_iter().for_each(|id| fixed[union.find(id)] = true);
        let ids = ids.into_iter().map(|ids| ids.into_iter().map(|id| union.find(id)).collect()).collect();
        Self { ids, fixed }
    }
}

/// By id: how far its values reach from nought, where they are written for others than an activation alone.
fn reach<E: From<Error>>(
    graph: &Graph,
    channels: &Channels,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = Result<Images, E>>,
) -> Result<Vec<f64>, E> {
    let readers = graph.consumers();
    let wanted = |id: NodeId| {
        let bent = matches!(graph.only_reader(&readers, id), Some((_, Op::Act(_))));
        !bent && channels.ids[id].iter().any(|&id| !channels.fixed[id])
    };
    let (tapped, origin) = tapped(graph, imgsz, wanted)?;
    let mut infer = Infer::new(&tapped, imgsz)?;
    let mut reach = vec![0.0f64; channels.fixed.len()];
    for batch in batches {
        let batch = batch?;
        infer.run_observed(&batch.data, batch.n, |at, map| {
            let Some(id) = origin[at] else { return };
            for p in 0..map.layout.pixels() {
                channels.ids[id]
                    .iter()
                    .zip(map.pixel(p))
                    .for_each(|(&id, v)| reach[id] = reach[id].max(f64::from(v.abs())));
            }
        })?;
    }
    Ok(reach)
}

/// By id: how far the weights that read it reach, as a share of the largest of their rows; `None` where every row reads it alone.
fn columns(graph: &Graph, channels: &Channels) -> Vec<Option<f64>> {
    let mut reach: Vec<Option<f64>> = vec![None; channels.fixed.len()];
    for node in &graph.nodes {
        let Op::Conv(conv) = &node.op else { continue };
        if conv.weight.shape[1] == 1 {
            continue;
        }
        let taps: usize = conv.kernel().iter().product();
        let most = |weights: &[f32]| f64::from(weights.iter().fold(0.0f32, |most, w| most.max(w.abs())));
        for o in 0..conv.out_channels() {
            let row = conv.weight.outer(o);
            let largest = most(row);
            for (i, weights) in row.chunks(taps).enumerate().filter(|_| largest > 0.0) {
                let id = channels.ids[node.inputs[0]][first_read(conv, o) + i];
                let share = most(weights) / largest;
                reach[id] = Some(reach[id].unwrap_or(0.0).max(share));
            }
        }
    }
    reach
}

#[cfg(test)]
mod tests {
    use graph::{Family, Meta, Tensor};

    use super::*;

    /// A convolution with its inputs, outputs and groups.
    fn conv(inputs: usize, outputs: usize, groups: usize) -> Op {
        let count = outputs * inputs / groups * 9;
        // Filters and inputs of very different size.
        let value = |k: usize| ((k * 37 % 23) as f32 - 11.0) * 10f32.powi((k / 9 % 5) as i32 - 3);
        let weight = Tensor::new([outputs, inputs / groups, 3, 3], (0..count).map(value).collect());
        let bias = Some((0..outputs).map(|o| o as f32 * 0.3 - 0.5).collect());
        Op::Conv(Conv { weight, bias, stride: [1, 1], pad: [1, 1], groups })
    }

    #[test]
    fn equalised_channels_are_heard_as_before_and_those_of_a_depthwise_convolution_reach_as_far() -> graph::Result<()> {
        let mut graph = Graph::new(Meta { family: Family::Other, names: vec![], imgsz: [8, 8] }, 3);
        let first = graph.push("first", conv(3, 6, 1), vec![0]);
        let first = graph.push("leaky", Op::Act(Act::Leaky), vec![first]);
        let depthwise = graph.push("depthwise", conv(6, 6, 6), vec![first]);
        let second = graph.push("second", conv(6, 6, 1), vec![depthwise]);
        let sum = graph.push("sum", Op::Add, vec![second, depthwise]);
        let silu = graph.push("silu", Op::Act(Act::Silu), vec![sum]);
        let last = graph.push("last", conv(6, 2, 1), vec![silu]);

        let data: Vec<u8> = (0..2 * 192).map(|i| (i * 53 % 251) as u8).collect();
        let batches = || std::iter::once(Ok::<_, Error>(Images { data: data.clone(), n: 2 }));
        let equal = equalised(graph.clone(), [8, 8], batches())?;
        let map = |graph: &Graph, node: NodeId| -> graph::Result<Vec<f32>> {
            let (tapped, origin) = tapped(graph, [8, 8], |id| id == node)?;
            let mut found = vec![];
            Infer::new(&tapped, [8, 8])?.run_observed(&data, 2, |at, map| {
                if origin[at] == Some(node) {
                    (0..map.layout.pixels()).for_each(|p| found.extend_from_slice(map.pixel(p)));
                }
            })?;
            Ok(found)
        };
        // What a SiLU reads stays, and so does what it is the sum of.
        for node in [depthwise, sum, last] {
            let (before, after) = (map(&graph, node)?, map(&equal, node)?);
            let size = before.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            assert!(size > 0.0 && before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-5 * size), "{node}");
        }
        let reach = |map: Vec<f32>| {
            let most = |c: usize| map.iter().skip(c).step_by(6).fold(0.0f32, |most, v| most.max(v.abs()));
            [f32::min, f32::max].map(|of| (0..6).map(most).reduce(of).unwrap_or_default())
        };
        let ([least, most], [low, high]) = (reach(map(&graph, first)?), reach(map(&equal, first)?));
        assert!(most > 5.0 * least, "{least} {most}");
        assert!((low - 1.0).abs() < 1e-4 && (high - 1.0).abs() < 1e-4, "{low} {high}");
        Ok(())
    }
}
