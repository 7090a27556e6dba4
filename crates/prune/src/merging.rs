//! Neuron merging (Kim et al., NeurIPS 2020): a removed channel is taken for a multiple of the kept one whose filter points
//! most nearly the same way, by the weights alone. A rival of stage 2, kept to be compared with.

use graph::{BatchNorm, Graph, NodeId, Op};

use crate::{ClassId, Coupling, Row};

/// How much the angle between filters counts against what their BatchNorms leave apart (the paper's lambda).
const ANGLE: f64 = 0.85;
/// Cosine below which a channel is left unreplaced (the paper's threshold for networks of this depth).
const LEAST_COSINE: f64 = 0.1;

/// The rows that put kept channels of the tensor `node` in place of those that go.
///
/// Where several convolutions produce a channel (they are added up), the first stands for all.
pub(crate) fn rows(graph: &Graph, coupling: &Coupling, node: NodeId, removed: impl Fn(ClassId) -> bool) -> Vec<Row> {
    let kept = coupling.positions(node, |class| !removed(class));
    let merged = |channel: usize| {
        let best = kept.iter().filter_map(|&other| Some((other, resemblance(graph, coupling, node, channel, other)?)));
        let furthest = best.clone().map(|(_, r)| r.shift).fold(f64::MIN_POSITIVE, f64::max);
        let distance = |r: &Resemblance| ANGLE * (1.0 - r.cosine) + (1.0 - ANGLE) * r.shift / furthest;
        let best = best.min_by(|(_, a), (_, b)| distance(a).total_cmp(&distance(b)));
        let stand_ins = best.filter(|(_, r)| r.cosine >= LEAST_COSINE).map(|(other, r)| (other, r.scale as f32));
        Row { channel, stand_ins: stand_ins.into_iter().collect(), constant: 0.0 }
    };
    coupling.positions(node, removed).into_iter().map(merged).collect()
}

/// One channel as a multiple of another: `BN_i(x_i) ~ scale BN_j(x_j) + shift * scale` for filters `w_i ~ |w_i| / |w_j| w_j`.
struct Resemblance {
    cosine: f64,
    scale: f64,
    /// How far apart the BatchNorms leave them, as a share of the scale.
    shift: f64,
}

/// None where the channels come from different convolutions, or the scale is not positive: an activation would not carry it.
fn resemblance(graph: &Graph, coupling: &Coupling, node: NodeId, i: usize, j: usize) -> Option<Resemblance> {
    let class = |channel: usize| &coupling.classes[coupling.channels(node)[channel]];
    let (site, other) = class(i).members.iter().find_map(|site| {
        let other = class(j).members.iter().find(|other| other.node == site.node)?;
        Some((site, other))
    })?;
    let Op::Conv(conv) = &graph.nodes[site.node].op else { return None };
    let (w, v) = (conv.weight.outer(site.channel), conv.weight.outer(other.channel));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let (length, onto) = (dot(w, w).sqrt(), dot(v, v).sqrt());
    let ratio = length / onto;
    let norm = coupling.norm_after(graph, site.node).map(|norm| &graph.nodes[norm].op);
    let (scale, shift) = match norm {
        Some(Op::BatchNorm(bn)) => through(bn, site.channel, other.channel, ratio),
        _ => (ratio, 0.0),
    };
    let found = Resemblance { cosine: dot(w, v) / (length * onto), scale, shift: (shift / scale).abs() };
    (scale > 0.0 && found.cosine.is_finite() && found.shift.is_finite()).then_some(found)
}

/// `BN_i(ratio x) = scale BN_j(x) + shift`.
fn through(bn: &BatchNorm, i: usize, j: usize, ratio: f64) -> (f64, f64) {
    let at = |values: &[f32], c: usize| f64::from(values[c]);
    let gain = |c: usize| at(&bn.gamma, c) / (at(&bn.var, c) + f64::from(bn.eps)).sqrt();
    let scale = ratio * gain(i) / gain(j);
    let shift = gain(i) * (ratio * at(&bn.mean, j) - at(&bn.mean, i)) + at(&bn.beta, i) - scale * at(&bn.beta, j);
    (scale, shift)
}

#[cfg(test)]
mod tests {
    use graph::{Conv, Family, Meta, Tensor};

    use super::*;

    /// (gamma, beta, mean) of the BatchNorm behind each of three filters, the first of which goes.
    type Norms = [[f32; 3]; 3];

    const PLAIN: [f32; 3] = [1.0, 0.0, 0.0];

    /// What stands in for filter (1, 0) where there are `near` and (2, 1), cosine 0.894.
    fn stand_in(near: [f32; 2], norms: Norms) -> Option<(usize, f32)> {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [4, 4] };
        let mut graph = Graph::new(meta, 2);
        let weight = Tensor::new([3, 2, 1, 1], vec![1.0, 0.0, near[0], near[1], 2.0, 1.0]);
        let conv = |weight| Op::Conv(Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 1 });
        let first = graph.push("first", conv(weight), vec![0]);
        let mut bn = BatchNorm::identity(3, 1e-12, 0.1);
        for (c, [gamma, beta, mean]) in norms.into_iter().enumerate() {
            (bn.gamma[c], bn.beta[c], bn.mean[c]) = (gamma, beta, mean);
        }
        let norm = graph.push("norm", Op::BatchNorm(bn), vec![first]);
        graph.push("reader", conv(Tensor::new([1, 3, 1, 1], vec![1.0; 3])), vec![norm]);
        let coupling = Coupling::of(&graph).expect("fits");
        let gone = coupling.channels(norm)[0];
        let rows = rows(&graph, &coupling, norm, |class| class == gone);
        assert_eq!((rows.len(), rows[0].channel, rows[0].stand_ins.len() < 2), (1, 0, true));
        rows[0].stand_ins.first().copied()
    }

    #[test]
    fn the_most_alike_stands_in_unless_batch_norm_leaves_it_apart() {
        let near = [1.8, 0.2];
        let ratio = 1.0 / (1.8f32 * 1.8 + 0.2 * 0.2).sqrt();
        let chosen = |norms: Norms| stand_in(near, norms).map(|(channel, _)| channel);
        let close = |(channel, scale): (usize, f32), by: f32| channel == 1 && (scale - by).abs() < 1e-5;
        assert!(close(stand_in(near, [PLAIN; 3]).expect("alike"), ratio));
        assert!(close(stand_in(near, [[3.0, 0.0, 0.0], PLAIN, PLAIN]).expect("alike"), 3.0 * ratio));
        // The shift between the nearest and the one that goes counts as a share of the largest, however small that is.
        assert_eq!(chosen([PLAIN, [1.0, 0.1, 0.0], PLAIN]), Some(2));
        assert_eq!(chosen([PLAIN, [1.0, 0.0, 0.1], PLAIN]), Some(2));
        // Means and shifts that agree are none.
        let mean = |mean: f32| [1.0, 0.0, mean];
        assert_eq!(chosen([mean(3.0 * ratio), mean(3.0), mean(3.0 * ratio)]), Some(1));
        let beta = |beta: f32| [1.0, beta, 0.0];
        assert_eq!(chosen([beta(3.0 * ratio), beta(3.0), beta(3.0 * ratio)]), Some(1));
        // As far apart, but what is scaled up more is moved by less of it.
        assert_eq!(chosen([[1.0, 0.1, 0.0], PLAIN, [0.2, 0.0, 0.0]]), Some(2));
        // An activation would not carry a change of sign.
        assert_eq!(chosen([PLAIN, [-1.0, 0.0, 0.0], PLAIN]), Some(2));
        // Nothing is put in place of what nothing is like.
        assert_eq!(stand_in([0.0, 1.0], [PLAIN, PLAIN, [-1.0, 0.0, 0.0]]), None);
    }
}
