//! First weights: PyTorch's defaults, which all families keep, and the biases their heads start from.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{BatchNorm, Conv, Graph, Head, Op, Result};

/// Image size the priors of YOLOv5, YOLOv8 and YOLO11 are meant for, whatever a detector is trained at.
const PRIOR_SIZE: f32 = 640.0;
/// Share of cells YOLOX takes to hold an object, and objects of a class.
const YOLOX_PRIOR: f32 = 0.01;

/// The architecture of `graph` with none of what it has learnt: weights drawn from `seed` as those of a new detector.
///
/// # Errors
/// The graph has no head.
pub fn restarted(graph: &Graph, seed: u64) -> Result<Graph> {
    let mut graph = graph.clone();
    for node in &mut graph.nodes {
        if let Op::BatchNorm(bn) = &mut node.op {
            *bn = BatchNorm::identity(bn.gamma.len(), bn.eps, bn.momentum);
        }
    }
    weights(&mut graph, seed)?;
    Ok(graph)
}

/// Draws all weights of `graph` from `seed`. Weights and biases of a convolution are uniform in ±1/sqrt(fan-in), as PyTorch
/// starts them; then the biases of the head are set or shifted so that objects are rare. BatchNorm stays the identity.
///
/// YOLOX's authors feed bytes in BGR to the same weights: behind a BatchNorm neither factor nor order of the channels
/// makes a difference to weights drawn at random.
///
/// # Errors
/// The graph has no head.
pub(super) fn weights(graph: &mut Graph, seed: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let bound = |conv: &Conv| 1.0 / (conv.weight.shape[1..].iter().product::<usize>() as f32).sqrt();
    let mut convs: Vec<&mut Conv> = vec![];
    for node in &mut graph.nodes {
        if let Op::Conv(conv) = &mut node.op {
            convs.push(conv);
        }
    }
    for conv in &mut convs {
        let bound = bound(conv);
        conv.weight.data.iter_mut().for_each(|w| *w = rng.random_range(-bound..bound));
    }
    for conv in &mut convs {
        let bound = bound(conv);
        conv.bias.iter_mut().flatten().for_each(|b| *b = rng.random_range(-bound..bound));
    }
    priors(graph)
}

/// The head's biases.
fn priors(graph: &mut Graph) -> Result<()> {
    let (head, inputs) = graph.head()?;
    let (head, inputs) = (head.clone(), inputs.to_vec());
    let classes = head.classes();
    for (i, id) in inputs.into_iter().enumerate() {
        let Op::Conv(Conv { bias: Some(bias), .. }) = &mut graph.nodes[id].op else { continue };
        let cells = (PRIOR_SIZE / head.input_stride(i) as f32).powi(2);
        match &head {
            Head::Anchor(_) => {
                // Eight objects an image. The last number is the family's own: a single class is taken for certain, and
                // its loss leaves it so.
                let [object, class] = [(8.0 / cells).ln(), (0.6 / (classes as f64 - 0.99999)).ln() as f32];
                for (k, b) in bias.iter_mut().enumerate() {
                    *b += match k % (5 + classes) {
                        0..4 => 0.0,
                        4 => object,
                        _ => class,
                    };
                }
            }
            // A softmax does not see what all bins have in common: the distances start evenly spread.
            Head::Dfl(_) if i % 2 == 0 => bias.fill(1.0),
            Head::Dfl(_) => bias.fill((5.0 / classes as f32 / cells).ln()),
            Head::Yolox(_) if i % 3 == 0 => {}
            Head::Yolox(_) => bias.fill((YOLOX_PRIOR / (1.0 - YOLOX_PRIOR)).ln()),
        }
    }
    Ok(())
}
