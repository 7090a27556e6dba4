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
