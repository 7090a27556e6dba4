//! Where a backward pass leaves the gradient of every trainable weight.

use graph::Graph;

/// `by_node[node][k]` belongs to `graph.nodes[node].op.trainable()[k]` and has its length.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    pub by_node: Vec<Vec<Vec<f32>>>,
}

impl Gradients {
    /// All zeros, in the shape of `graph`'s trainable weights.
    pub fn zeros(graph: &Graph) -> Self {
        let node = |n: &graph::Node| n.op.trainable().iter().map(|(_, w)| vec![0.0; w.len()]).collect();
        Self { by_node: graph.nodes.iter().map(node).collect() }
    }

    /// Sets every gradient to zero and keeps the memory.
    pub fn clear(&mut self) {
        for g in self.by_node.iter_mut().flatten() {
            g.fill(0.0);
        }
    }

    /// Euclidean norm over all weights.
    pub fn norm(&self) -> f64 {
        self.by_node.iter().flatten().flatten().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
    }
}
