//! Taking off every bias what rounding does to the mean of what the convolution says.

use std::collections::BTreeMap;

use graph::quant::{Affine, Quantized};
use graph::{Conv, Error, NodeId, Op};
use kernels::View;

use crate::calibrate::Images;
use crate::net::Infer;

/// Channel means of a map, before and after rounding.
struct Means {
    affine: Affine,
    exact: Vec<f64>,
    rounded: Vec<f64>,
    count: u64,
}

impl Means {
    fn of(affine: Affine, channels: usize) -> Self {
        Self { affine, exact: vec![0.0; channels], rounded: vec![0.0; channels], count: 0 }
    }

    fn add(&mut self, map: View) {
        for p in 0..map.layout.pixels() {
            for ((&x, exact), rounded) in map.pixel(p).iter().zip(&mut self.exact).zip(&mut self.rounded) {
                let x = f64::from(x);
                *exact += x;
                *rounded += self.affine.round(x);
            }
        }
        self.count += map.layout.pixels() as u64;
    }
}

/// `quantized` with the bias of each convolution changed by the mean error that rounding its weights and its input makes in
/// its output over `batches`. Padding is taken to be like the rest of the map.
///
/// # Errors
/// The graph does not fit `imgsz`, or reading a batch fails.
pub fn correct_biases<E: From<Error>>(
    quantized: &Quantized,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = Result<Images, E>>,
) -> Result<Quantized, E> {
    let graph = quantized.graph();
    let mut infer = Infer::new(graph, imgsz)?;
    let mut means: BTreeMap<NodeId, Means> = BTreeMap::new();
    for batch in batches {
        let batch = batch?;
        infer.run_observed(&batch.data, batch.n, |id, map| {
            if let Some(affine) = quantized.map(id) {
                means.entry(id).or_insert_with(|| Means::of(affine, map.layout.c)).add(map);
            }
        })?;
    }
    let mut corrected = graph.clone();
    for (id, node) in graph.nodes.iter().enumerate() {
        let (Op::Conv(conv), Some(bytes)) = (&node.op, quantized.conv(id)?) else { continue };
        let Some(means) = node.inputs.first().and_then(|i| means.get(i)) else { continue };
        let shift = shift(conv, &bytes.filters.dequantize(), means);
        if let Op::Conv(Conv { bias: Some(bias), .. }) = &mut corrected.nodes[id].op {
            bias.iter_mut().zip(shift).for_each(|(b, s)| *b = (f64::from(*b) - s) as f32);
        }
    }
    let maps = (0..graph.nodes.len()).map(|id| quantized.map(id)).collect();
    Ok(Quantized::new(corrected, maps)?)
}

/// How much larger the mean of each output channel is with `rounded` weights and a rounded input.
fn shift(conv: &Conv, rounded: &[f32], means: &Means) -> Vec<f64> {
    let filters = conv.out_channels();
    let per_filter = conv.weight.len() / filters;
    let [kh, kw] = conv.kernel();
    let count = means.count.max(1) as f64;
    (0..filters)
        .map(|o| {
            let first = o / (filters / conv.groups) * conv.weight.shape[1];
            let exact = conv.weight.outer(o);
            let rounded = &rounded[o * per_filter..(o + 1) * per_filter];
            let terms = exact.iter().zip(rounded).enumerate().map(|(at, (&w, &r))| {
                let channel = first + at / (kh * kw);
                f64::from(r) * means.rounded[channel] - f64::from(w) * means.exact[channel]
            });
            terms.sum::<f64>() / count
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use graph::reference::{Map, forward};
    use graph::{Family, Graph, Meta, Shape, Tensor};

    use super::*;

    /// Whatever its weights and its input are rounded to, a convolution says on average what it said, in each of its groups.
    #[test]
    fn corrected_means_are_the_exact_ones() -> graph::Result<()> {
        let number = |i: usize| ((i * 37 % 23) as f32 - 9.0) / 8.0;
        let conv = |shape: [usize; 4], groups| {
            let weight = Tensor::new(shape, (0..shape.iter().product()).map(number).collect());
            Op::Conv(Conv {
                weight,
                bias: Some((0..shape[0]).map(number).collect()),
                stride: [1, 1],
                pad: [0, 0],
                groups,
            })
        };
        let mut graph = Graph::new(Meta { family: Family::Other, names: vec![], imgsz: [5, 6] }, 3);
        let first = graph.push("first", conv([4, 3, 1, 1], 1), vec![0]);
        graph.push("second", conv([4, 2, 2, 3], 2), vec![first]);
        // Steps a tenth wide.
        let coarse = |low: f32| Affine::covering(low, low + 25.5).map(Some).expect("a range");
        let quantized = Quantized::new(graph.clone(), vec![coarse(-0.04), coarse(-12.0), None])?;
        // Each channel is the same everywhere, so that all taps read the same mean.
        let bytes: Vec<u8> = (0..90).map(|i| [13, 77, 200][i % 3]).collect();
        let batches = || std::iter::once(Ok::<_, Error>(Images { data: bytes.clone(), n: 1 }));
        let corrected = correct_biases(&quantized, [5, 6], batches())?;
        let shape = Shape { c: 3, h: 5, w: 6 };
        let data = (0..90).map(|i| f64::from(bytes[i % 30 * 3 + i / 30]) / 255.0).collect();
        let maps = forward(&graph, &Map { shape, data })?;
        for id in [1, 2] {
            let Op::Conv(conv) = &corrected.graph().nodes[id].op else { panic!("a convolution") };
            let weight = corrected.conv(id)?.expect("a convolution").filters.dequantize();
            let weight = Tensor::new(conv.weight.shape.clone(), weight);
            let said = Op::Conv(Conv { weight, ..conv.clone() });
            // What it reads in bytes, made exactly.
            let affine = corrected.map(id - 1).expect("bytes");
            let read =
                Map { data: maps[id - 1].data.iter().map(|&x| affine.round(x)).collect(), ..maps[id - 1].clone() };
            let mut alone =
                Graph::new(Meta { imgsz: [read.shape.h, read.shape.w], ..graph.meta.clone() }, read.shape.c);
            alone.push("alone", said, vec![0]);
            let out = forward(&alone, &read)?.remove(1);
            let mean = |map: &Map, c: usize| map.channel(c).iter().sum::<f64>() / map.channel(c).len() as f64;
            for c in 0..4 {
                let off = mean(&out, c) - mean(&maps[id], c);
                assert!(off.abs() < 1e-4, "convolution {id}, channel {c}: off by {off}");
            }
        }
        Ok(())
    }
}
