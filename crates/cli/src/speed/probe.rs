//! Single operators as models: the same operator several times on one input, so that starting a run weighs little.

use graph::format::onnx::export_maps;
use graph::{BatchNorm, Conv, Family, Graph, Meta, NodeId, Op, Shape, Tensor};

use super::is_fixed;

/// The input of a graph.
const INPUT: NodeId = 0;

/// Bytes that the copies of an operator write in one run at most. More would be given back to the system after every run
/// and taken anew, which a detector, whose maps pass buffers on, does not pay.
const WRITTEN: usize = 1 << 19;
/// Copies in one model at most.
const COPIES: usize = 8;

/// A kind of operator, ready to be built with other channel counts.
pub struct Probe {
    op: Op,
    /// How many maps it reads.
    arity: usize,
    map: Shape,
    /// Most channels of its first input in the detector.
    pub inputs: usize,
    /// Most channels of its output in the detector.
    pub outputs: usize,
}

impl Probe {
    /// The kind of `op`, which reads `arity` maps like `map`.
    pub fn of(op: &Op, arity: usize, map: Shape) -> Self {
        Self { op: op.clone(), arity, map, inputs: 0, outputs: 0 }
    }

    /// True for a convolution whose inputs and outputs are removed independently.
    pub fn is_dense(&self) -> bool {
        matches!(&self.op, Op::Conv(conv) if conv.groups == 1)
    }

    /// The counts of input and output channels to measure. Where both go together only outputs are counted.
    pub fn axes(&self) -> (Vec<usize>, Vec<usize>) {
        if is_fixed(&self.op) {
            return (vec![self.inputs], vec![self.outputs]);
        }
        let each = if matches!(self.op, Op::Concat) { self.arity } else { 1 };
        let inputs = if self.is_dense() { counts(self.inputs, 1) } else { vec![self.inputs] };
        (inputs, counts(self.outputs, each))
    }

    /// How often the operator stands in one model.
    pub fn copies(&self, outputs: usize) -> usize {
        (WRITTEN / (4 * outputs * self.map.h * self.map.w).max(1)).clamp(1, COPIES)
    }

    /// The ONNX model of `copies` such operators side by side.
    pub fn model(&self, inputs: usize, outputs: usize, copies: usize) -> graph::Result<Vec<u8>> {
        let (op, channels) = self.sized(inputs, outputs);
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [self.map.h, self.map.w] };
        let mut graph = Graph::new(meta, channels);
        for copy in 0..copies {
            graph.push(format!("copy{copy}"), op.clone(), vec![INPUT; self.arity]);
        }
        export_maps(&graph, graph.meta.imgsz)
    }

    /// The operator with other channel counts, and the channels of each map it reads then.
    fn sized(&self, inputs: usize, outputs: usize) -> (Op, usize) {
        let even = |count: usize| (0..count).map(|i| 0.01 * (i % 7) as f32 - 0.03).collect::<Vec<f32>>();
        match &self.op {
            op if is_fixed(op) => (op.clone(), self.inputs),
            Op::Conv(conv) => {
                let [kh, kw] = conv.kernel();
                let (groups, per_filter) = if conv.groups == 1 { (1, inputs) } else { (outputs, 1) };
                let weight = Tensor::new(vec![outputs, per_filter, kh, kw], even(outputs * per_filter * kh * kw));
                let op = Conv { weight, bias: Some(even(outputs)), groups, ..conv.clone() };
                (Op::Conv(op), if conv.groups == 1 { inputs } else { outputs })
            }
            Op::BatchNorm(norm) => {
                let all = |value: f32| vec![value; outputs];
                let norm = BatchNorm { gamma: all(1.0), beta: all(0.1), mean: all(0.1), var: all(1.0), ..norm.clone() };
                (Op::BatchNorm(norm), outputs)
            }
            Op::Concat => (Op::Concat, outputs / self.arity),
            Op::Slice { .. } => (Op::Slice { start: 0, len: outputs }, 2 * outputs),
            Op::PixelShuffle { factor } => (self.op.clone(), factor * factor * outputs),
            op => (op.clone(), outputs),
        }
    }
}

/// A model that does next to nothing.
pub fn nothing() -> graph::Result<Vec<u8>> {
    let map = Shape { c: 1, h: 1, w: 1 };
    Probe::of(&Op::Act(graph::Act::Relu), 1, map).model(1, 1, 1)
}

/// A few counts up to `most`, all multiples of `each`: where vectors fill and where they do not, and where layers that are
/// cut usually end up.
fn counts(most: usize, each: usize) -> Vec<usize> {
    let some = [4, 13, 16, most / 4, most / 2, 3 * most / 4, most];
    let mut counts: Vec<usize> =
        some.into_iter().map(|c| (c / each).max(1) * each).filter(|&c| c <= most.max(each)).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_reach_from_a_few_channels_to_all() {
        assert_eq!(counts(64, 1), [4, 13, 16, 32, 48, 64]);
        assert_eq!(counts(3, 1), [1, 2, 3]);
        assert_eq!(counts(1, 1), [1]);
        assert_eq!(counts(48, 3), [3, 12, 15, 24, 36, 48]);
    }
}
