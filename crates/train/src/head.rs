//! Fitting a detector's head to other classes: new class channels, everything else kept.

use graph::{Conv, Error, Graph, Head, NodeId, Op, Result, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// `graph` with a head for `names`. Box and objectness channels of the last convolutions keep their weights, and so do
/// classes the head knows by the same name; the rest start anew: weights uniform in ±1/sqrt(fan-in), PyTorch's default,
/// and the bias that makes a class as rare as the YOLO papers assume. Where as many classes are asked for as there are
/// and none goes by the same name, they are taken to be the same under other names.
///
/// # Errors
/// The graph has no head, or a map enters it that no convolution makes.
pub fn fit_classes(graph: &Graph, names: &[String], rng: &mut ChaCha8Rng) -> Result<Graph> {
    let (head, inputs) = graph.head()?;
    let (mut out, head, inputs) = (graph.clone(), head.clone(), inputs.to_vec());
    let known: Vec<Option<usize>> = names.iter().map(|n| graph.meta.names.iter().position(|k| k == n)).collect();
    let renamed = names.len() == head.classes() && known.iter().all(Option::is_none);
    let unchanged = graph.meta.names == names;
    if !renamed && !unchanged {
        for (i, &node) in inputs.iter().enumerate() {
            let Some(rows) = Rows::of(&head, i, &known, graph.meta.imgsz[0]) else { continue };
            let name = &graph.nodes[node].name;
            let Op::Conv(conv) = &mut out.nodes[node].op else {
                return Err(Error::node(
                    name,
                    "enters the head but is no convolution, so its classes cannot be changed",
                ));
            };
            rows.rebuild(conv, rng);
        }
        set_classes(&mut out, names.len());
    }
    out.meta.names = names.to_vec();
    out.validate()?;
    Ok(out)
}

/// How the output channels of one last convolution are made up: `blocks` times `keep` channels and the classes.
struct Rows<'a> {
    blocks: usize,
    keep: usize,
    old: usize,
    /// For each new class the old one it was, if any.
    classes: &'a [Option<usize>],
    bias: f32,
}

impl<'a> Rows<'a> {
    /// `None` where input `i` of the head has no class channels.
    fn of(head: &Head, i: usize, classes: &'a [Option<usize>], imgsz: usize) -> Option<Self> {
        let (old, new) = (head.classes(), classes.len());
        let prior = |p: f32| (p / (1.0 - p)).ln();
        match head {
            Head::Anchor(h) => {
                // A single class is certain, in YOLOv5's prior as in its loss, which leaves the class channel alone.
                let bias = (0.6 / (new as f64 - 0.99999)).ln() as f32;
                Some(Self { blocks: h.levels[i].anchors.len(), keep: 5, old, classes, bias })
            }
            Head::Dfl(h) if (i < h.pairs() || h.one_to_many) && i % 2 == 1 => {
                let cells = imgsz as f32 / head.input_stride(i) as f32;
                Some(Self { blocks: 1, keep: 0, old, classes, bias: (5.0 / new as f32 / (cells * cells)).ln() })
            }
            Head::Yolox(_) if i % 3 == 2 => Some(Self { blocks: 1, keep: 0, old, classes, bias: prior(0.01) }),
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
            (first..first + self.keep).for_each(|row| weight.extend_from_slice(conv.weight.outer(row)));
            bias.extend_from_slice(&old_bias[first..first + self.keep]);
            for class in self.classes {
                if let Some(old) = class {
                    weight.extend_from_slice(conv.weight.outer(first + self.keep + old));
                    bias.push(old_bias[first + self.keep + old]);
                } else {
                    weight.extend((0..i * kh * kw).map(|_| rng.random_range(-bound..bound)));
                    bias.push(self.bias);
                }
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
