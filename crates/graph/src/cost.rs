//! What a graph costs: parameters and multiply-accumulates, layer by layer.

use crate::{Graph, Op, Result};

/// Cost of one node or of a whole graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Trainable values: convolution weights and biases, BN gamma and beta (not the running statistics).
    pub params: u64,
    /// Multiply-accumulates of the convolutions for one image; GFLOPs as YOLO users quote them are 2e-9 times this.
    pub macs: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.params += other.params;
        self.macs += other.macs;
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
            macs: (c.weight.len() * shape.h * shape.w) as u64,
        },
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
