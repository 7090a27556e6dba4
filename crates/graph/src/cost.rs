//! What a graph costs: parameters and multiply-accumulates, layer by layer.

use crate::{Graph, Op, Result};

/// Cost of one node or of a whole graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Trainable values: convolution weights and biases, BN gamma and beta (not the running statistics).
    pub params: u64,
    /// Multiply-accumulates for one image, of the convolutions and of the two matrix products of attention; GFLOPs as YOLO
    /// users quote them are 2e-9 times this. (Trainers that count modules only leave attention's products out.)
    pub macs: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.params = self.params.saturating_add(other.params);
        self.macs = self.macs.saturating_add(other.macs);
    }
}

/// Cost of every node for one image of `imgsz` = (H, W) pixels.
///
/// # Errors
/// The graph's shapes do not fit (see [`Graph::shapes`]).
pub fn per_node(graph: &Graph, imgsz: [usize; 2]) -> Result<Vec<Cost>> {
    let shapes = graph.shapes(imgsz)?;
    let cost = |(node, shape): (&crate::Node, &crate::Shape)| match &node.op {
        Op::Conv(c) => Cost {
            params: (c.weight.len() + c.bias.as_ref().map_or(0, Vec::len)) as u64,
            macs: (c.weight.len() as u64).saturating_mul((shape.h * shape.w) as u64),
        },
        // Every position's query with every key of its area, then every probability with every value.
        Op::Attention(a) => {
            let positions = (shape.h as u64).saturating_mul(shape.w as u64);
            let channels = (a.heads as u64).saturating_mul((a.key + a.value) as u64);
            Cost {
                params: 0,
                macs: channels.saturating_mul(positions).saturating_mul(positions / a.areas.max(1) as u64),
            }
        }
        Op::BatchNorm(b) => Cost { params: 2 * b.gamma.len() as u64, macs: 0 },
        _ => Cost::default(),
    };
    Ok(graph.nodes.iter().zip(&shapes).map(cost).collect())
}

/// Cost of the whole graph for one image of `imgsz` = (H, W) pixels.
///
/// # Errors
/// The graph's shapes do not fit (see [`Graph::shapes`]).
pub fn total(graph: &Graph, imgsz: [usize; 2]) -> Result<Cost> {
    let mut sum = Cost::default();
    for c in per_node(graph, imgsz)? {
        sum += c;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attention, BatchNorm, Conv, Family, Meta, Tensor};

    #[test]
    fn attention_costs_both_of_its_products() {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [4, 5] };
        let mut graph = Graph::new(meta, 22);
        graph.push("attention", Op::Attention(Attention { heads: 2, key: 4, value: 3, areas: 1 }), vec![0]);
        // Two heads; 20 x 20 pairs of positions; 4 products for a score, 3 to mix the values.
        assert_eq!(total(&graph, [4, 5]).unwrap(), Cost { params: 0, macs: 2 * 20 * 20 * (4 + 3) });
    }

    #[test]
    fn all_that_is_trained_counts_and_areas_are_attended_over_apart() {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [4, 5] };
        let mut graph = Graph::new(meta, 3);
        let weight = Tensor::zeros([22, 3, 1, 1]);
        let conv = Conv { weight, bias: Some(vec![0.0; 22]), stride: [1, 1], pad: [0, 0], groups: 1 };
        graph.push("conv", Op::Conv(conv), vec![0]);
        graph.push("bn", Op::BatchNorm(BatchNorm::identity(22, 1e-3, 0.03)), vec![1]);
        graph.push("attention", Op::Attention(Attention { heads: 2, key: 4, value: 3, areas: 2 }), vec![2]);
        // 66 weights at 20 positions; 20 positions with the 10 of their own half.
        let expected = Cost { params: 66 + 22 + 2 * 22, macs: 66 * 20 + 2 * 20 * 10 * (4 + 3) };
        assert_eq!(total(&graph, [4, 5]).unwrap(), expected);
    }
}
