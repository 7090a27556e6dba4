//! Giving a detector back the BatchNorm an export has folded away.
//!
//! Without it a graph does not know how large its channels are: stage 1 can neither rank them nor put a constant in the
//! place of one. Mean and variance of what every convolution says on real images make a BatchNorm that changes nothing.

use graph::{BatchNorm, Graph, Node, NodeId, Op};

use crate::calibrate::{Images, statistics};
use crate::net::tapped;

/// What YOLO's families train with; see [`BatchNorm`].
const EPS: f32 = 1e-3;
const MOMENTUM: f32 = 0.03;

/// The convolutions a BatchNorm could follow and none does. Those that enter the head never have one; nor do those of one
/// filter a channel without a bias, which are means, scales and borders of zeros: folding leaves a bias.
pub fn bare_convolutions(graph: &Graph) -> Vec<NodeId> {
    let readers = graph.consumers();
    let free = |id: &NodeId| {
        let reads = |id: NodeId| &graph.nodes[id].op;
        matches!(&graph.nodes[*id].op, Op::Conv(conv) if !conv.is_depthwise() || conv.bias.is_some())
            && readers[*id].iter().all(|&r| !matches!(reads(r), Op::BatchNorm(_) | Op::Head(_)))
    };
    (0..graph.nodes.len()).filter(free).collect()
}

/// `graph` with a BatchNorm after each of its bare convolutions: gamma and beta are the deviation and the mean of its
/// channels over `batches`, so that the outputs stay what they are. Filters are scaled so that they put out variance 1: the
/// step that training takes shrinks with the square of a filter's length, which folding has left at random (an image of
/// 0..255 instead of 0..1 alone makes the first ones 255 times as long).
///
/// # Errors
/// The graph does not fit `imgsz`, or reading a batch fails.
pub fn unfold_batch_norm<E: From<graph::Error>>(
    graph: &Graph,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = std::result::Result<Images, E>>,
) -> std::result::Result<Graph, E> {
    let bare = bare_convolutions(graph);
    if bare.is_empty() {
        return Ok(graph.clone());
    }
    let (tapped, origin) = tapped(graph, imgsz, |id| bare.contains(&id))?;
    let nodes: Vec<NodeId> = (0..origin.len()).filter(|&at| origin[at].is_some()).collect();
    let seen = statistics(&tapped, &nodes, imgsz, batches)?;

    let (mut unfolded, place) = with_norms(graph, &bare);
    for (&id, tap) in bare.iter().zip(&nodes) {
        let Some(stats) = seen.by_node.get(tap) else { continue };
        let c = stats.mean.len();
        // A channel that never moves keeps its filter: there is nothing to measure it by.
        let deviation: Vec<f64> =
            (0..c).map(|i| stats.cov[i * c + i]).map(|v| if v > 1e-12 { v.sqrt() } else { 1.0 }).collect();
        let mut bias = vec![0.0; c];
        if let Op::Conv(conv) = &mut unfolded.nodes[place[id]].op {
            bias = conv.bias.take().unwrap_or(bias);
            let taps = conv.weight.data.len() / c;
            for (filter, d) in conv.weight.data.chunks_exact_mut(taps).zip(&deviation) {
                filter.iter_mut().for_each(|w| *w = (f64::from(*w) / d) as f32);
            }
        }
        if let Op::BatchNorm(bn) = &mut unfolded.nodes[place[id] + 1].op {
            for (i, (&bias, d)) in bias.iter().zip(&deviation).enumerate() {
                let variance = stats.cov[i * c + i].max(0.0) / (d * d);
                bn.var[i] = variance as f32;
                bn.gamma[i] = (d * (variance + f64::from(EPS)).sqrt()) as f32;
                bn.beta[i] = stats.mean[i] as f32;
                bn.mean[i] = ((stats.mean[i] - f64::from(bias)) / d) as f32;
            }
        }
    }
    Ok(unfolded)
}

/// `graph` with a fresh BatchNorm right after each of the convolutions `after`, for their readers to read. Also where
/// every old node is now.
fn with_norms(graph: &Graph, after: &[NodeId]) -> (Graph, Vec<NodeId>) {
    let mut out = Graph { nodes: Vec::with_capacity(graph.nodes.len() + after.len()), meta: graph.meta.clone() };
    let (mut place, mut read): (Vec<NodeId>, Vec<NodeId>) = (Vec::new(), Vec::new());
    let names: std::collections::HashSet<&str> = graph.nodes.iter().map(|n| n.name.as_str()).collect();
    for (id, node) in graph.nodes.iter().enumerate() {
        let inputs = node.inputs.iter().map(|&i| read[i]).collect();
        out.nodes.push(Node { inputs, ..node.clone() });
        let at = out.nodes.len() - 1;
        place.push(at);
        read.push(at);
        if let (Op::Conv(conv), true) = (&node.op, after.contains(&id)) {
            let mut name = format!("{}.bn", node.name);
            while names.contains(name.as_str()) {
                name.push('_');
            }
            let norm = BatchNorm::identity(conv.out_channels(), EPS, MOMENTUM);
            read[id] = out.push(name, Op::BatchNorm(norm), vec![at]);
        }
    }
    (out, place)
}

#[cfg(test)]
mod tests {
    use graph::build::Yolov5;
    use graph::{Conv, Tensor};

    use super::*;
    use crate::evaluate::raw;
    use crate::net::Infer;

    fn outputs(graph: &Graph, images: &Images) -> Vec<f32> {
        let maps = Infer::new(graph, [64, 64]).unwrap().run(&images.data, images.n).unwrap();
        raw(&maps).iter().flat_map(|m| m.data.to_vec()).collect()
    }

    #[test]
    fn batch_norm_comes_back_and_changes_nothing() {
        let graph = Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.125, depth: 0.33, seed: 3 }.build().unwrap();
        let mut folded = graph.clone();
        let readers = graph.consumers();
        for (id, readers) in readers.iter().enumerate() {
            if let (Op::Conv(conv), [reader]) = (&graph.nodes[id].op, readers.as_slice())
                && let Op::BatchNorm(bn) = &graph.nodes[*reader].op
            {
                let (weight, bias) = conv.folded(bn);
                let weight = Tensor::new(conv.weight.shape.clone(), weight);
                folded.nodes[id].op = Op::Conv(Conv { weight, bias: Some(bias), ..conv.clone() });
                folded.nodes[*reader].op = Op::Act(graph::Act::Identity);
            }
        }
        let norms = |g: &Graph| g.nodes.iter().filter(|n| matches!(n.op, Op::BatchNorm(_))).count();
        assert_eq!((norms(&folded), bare_convolutions(&folded).len()), (0, norms(&graph)));

        let image = |seed: usize| (0..64 * 64 * 3).map(move |i| ((i + seed) * 7919 % 251) as u8);
        let batches = [0, 5].map(|s| Ok::<_, graph::Error>(Images { data: image(s).collect(), n: 1 }));
        let unfolded = unfold_batch_norm(&folded, [64, 64], batches.into_iter()).unwrap();
        unfolded.validate().unwrap();
        assert_eq!(norms(&unfolded), norms(&graph));

        let images = Images { data: image(9).collect(), n: 1 };
        let (before, after) = (outputs(&folded, &images), outputs(&unfolded, &images));
        let worst = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, testkit::larger);
        assert!(worst < 1e-4, "{worst}");
        // The statistics are the images': estimated anew on them they stay.
        let batches = [0, 5].map(|s| Ok::<_, graph::Error>(Images { data: image(s).collect(), n: 1 }));
        let fresh = crate::calibrate::reestimate_batch_norm(&unfolded, [64, 64], batches.into_iter()).unwrap();
        let first = |g: &Graph| match g.nodes.iter().find(|n| matches!(n.op, Op::BatchNorm(_))).map(|n| n.op.clone()) {
            Some(Op::BatchNorm(bn)) => bn,
            _ => panic!("no BatchNorm"),
        };
        let (a, b) = (first(&unfolded), first(&fresh));
        for (x, y) in a.mean.iter().chain(&a.var).zip(b.mean.iter().chain(&b.var)) {
            assert!((x - y).abs() < 1e-2 * x.abs().max(1e-2), "{x} against {y}");
        }
    }
}
