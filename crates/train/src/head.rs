//! Fitting a detector's head to other classes: new class channels, everything else kept.

use graph::{Conv, Error, Graph, Head, NodeId, Op, Result, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// `graph` with a head for `names`. Box and objectness channels of the last convolutions keep their weights, class
/// channels start anew: uniform in ±1/sqrt(fan-in), PyTorch's default, and the bias that makes a class as rare as the
/// YOLO papers assume (0.6 / classes, or 5 / classes / cells for a DFL head). The same names change nothing.
///
/// # Errors
/// The graph has no head, or a map enters it that no convolution makes.
pub fn fit_classes(graph: &Graph, names: &[String], rng: &mut ChaCha8Rng) -> Result<Graph> {
    let (head, inputs) = graph.head()?;
    if graph.meta.names == names {
        return Ok(graph.clone());
    }
    let (mut out, head, inputs) = (graph.clone(), head.clone(), inputs.to_vec());
    if head.classes() != names.len() {
        for (i, &node) in inputs.iter().enumerate() {
            let rows = Rows::of(&head, i, names.len(), graph.meta.imgsz[0]);
            let name = &graph.nodes[node].name;
            let Op::Conv(conv) = &mut out.nodes[node].op else {
                return Err(Error::node(
                    name,
                    "enters the head but is no convolution, so its classes cannot be changed",
                ));
            };
            if let Some(rows) = rows {
                rows.rebuild(conv, rng);
            }
        }
        set_classes(&mut out, names.len());
    }
    out.meta.names = names.to_vec();
    out.validate()?;
    Ok(out)
}

/// How the output channels of one last convolution are made up: `blocks` times `keep` channels and the classes.
struct Rows {
    blocks: usize,
    keep: usize,
    old: usize,
    new: usize,
    bias: f32,
}

impl Rows {
    /// `None` where input `i` of the head has no class channels.
    fn of(head: &Head, i: usize, new: usize, imgsz: usize) -> Option<Self> {
        let old = head.classes();
        let prior = |p: f32| (p / (1.0 - p)).ln();
        match head {
            Head::Anchor(h) => {
                let bias = (0.6 / (new as f32 - 0.99999)).ln();
                Some(Self { blocks: h.levels[i].anchors.len(), keep: 5, old, new, bias: bias.min(0.0) })
            }
            Head::Dfl(h) if i % 2 == 1 => {
                let cells = imgsz as f32 / h.strides[i / 2] as f32;
                Some(Self { blocks: 1, keep: 0, old, new, bias: (5.0 / new as f32 / (cells * cells)).ln() })
            }
            Head::Yolox(_) if i % 3 == 2 => Some(Self { blocks: 1, keep: 0, old, new, bias: prior(0.01) }),
            Head::Dfl(_) | Head::Yolox(_) => None,
        }
    }

    fn rebuild(&self, conv: &mut Conv, rng: &mut ChaCha8Rng) {
        let [_, i, kh, kw] = conv.weight.shape[..] else { unreachable!("validated") };
        let bound = 1.0 / ((i * kh * kw) as f32).sqrt();
        let old_bias = conv.bias.take().unwrap_or_else(|| vec![0.0; conv.weight.shape[0]]);
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for block in 0..self.blocks {
            let first = block * (self.keep + self.old);
            for row in first..first + self.keep {
                weight.extend_from_slice(conv.weight.outer(row));
                bias.push(old_bias[row]);
            }
            for _ in 0..self.new {
                weight.extend((0..i * kh * kw).map(|_| rng.random_range(-bound..bound)));
                bias.push(self.bias);
            }
        }
        conv.weight = Tensor::new([bias.len(), i, kh, kw], weight);
        conv.bias = Some(bias);
    }
}

fn set_classes(graph: &mut Graph, classes: usize) {
    let last: NodeId = graph.nodes.len() - 1;
    if let Op::Head(head) = &mut graph.nodes[last].op {
        match head {
            Head::Anchor(h) => h.classes = classes,
            Head::Dfl(h) => h.classes = classes,
            Head::Yolox(h) => h.classes = classes,
        }
    }
}
