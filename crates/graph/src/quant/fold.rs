//! A detector of convolutions with biases: every BatchNorm is part of one, or has become one.

use crate::{BatchNorm, Conv, Graph, Node, NodeId, Op, Tensor};

/// `graph` without BatchNorm. One that is the only reader of a convolution is folded into it; any other becomes a depthwise
/// 1x1 convolution. Every convolution has a bias afterwards. Also where every old node is now.
pub fn folded(graph: &Graph) -> (Graph, Vec<NodeId>) {
    let readers = graph.consumers();
    let mut out = Graph { nodes: Vec::with_capacity(graph.nodes.len()), meta: graph.meta.clone() };
    let mut place: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    for (id, node) in graph.nodes.iter().enumerate() {
        let op = match &node.op {
            Op::BatchNorm(_) if graph.norm_behind(&readers, node.inputs[0]).is_some() => {
                place.push(place[node.inputs[0]]);
                continue;
            }
            Op::BatchNorm(norm) => Op::Conv(pointwise(norm)),
            Op::Conv(conv) => Op::Conv(match graph.norm_behind(&readers, id) {
                Some(norm) => {
                    let (weight, bias) = conv.folded(norm);
                    Conv { weight: Tensor::new(conv.weight.shape.clone(), weight), bias: Some(bias), ..conv.clone() }
                }
                None => {
                    let bias = conv.bias.clone().unwrap_or_else(|| vec![0.0; conv.out_channels()]);
                    Conv { bias: Some(bias), ..conv.clone() }
                }
            }),
            op => op.clone(),
        };
        let inputs = node.inputs.iter().map(|&i| place[i]).collect();
        out.nodes.push(Node { name: node.name.clone(), op, inputs });
        place.push(out.nodes.len() - 1);
    }
    (out, place)
}

/// A convolution that does what `norm` does.
fn pointwise(norm: &BatchNorm) -> Conv {
    let channels = norm.gamma.len();
    let one = Conv {
        weight: Tensor::new([channels, 1, 1, 1], vec![1.0; channels]),
        bias: None,
        stride: [1, 1],
        pad: [0, 0],
        groups: channels,
    };
    let (weight, bias) = one.folded(norm);
    Conv { weight: Tensor::new([channels, 1, 1, 1], weight), bias: Some(bias), ..one }
}
