//! The slow executor in eight bits: what a runtime should make of the file.

use super::{GATE, Quantized};
use crate::reference::{Map, run};
use crate::{Act, Conv, Op, Result, Tensor};

impl Quantized {
    /// Output of every node for one image (C, H, W), each rounded to what its bytes stand for; see
    /// [`crate::reference::forward`].
    ///
    /// # Errors
    /// The graph's shapes do not fit.
    pub fn forward(&self, image: &Map) -> Result<Vec<Map>> {
        let graph = self.graph();
        let shapes = graph.shapes([image.shape.h, image.shape.w])?;
        let mut maps: Vec<Map> = Vec::with_capacity(graph.nodes.len());
        for (id, (node, &shape)) in graph.nodes.iter().zip(&shapes).enumerate() {
            let inputs: Vec<&Map> = node.inputs.iter().map(|&i| &maps[i]).collect();
            let map = self.map(id);
            let mut data = match (&node.op, self.conv(id)?) {
                (Op::Input { .. }, _) => image.data.clone(),
                (Op::Conv(conv), Some(bytes)) => {
                    let bias = bytes.bias.as_ref().map(|b| {
                        let values = b.iter().zip(&bytes.bias_scales);
                        values.map(|(&q, &scale)| (f64::from(q) * f64::from(scale)) as f32).collect()
                    });
                    let weight = Tensor::new(conv.weight.shape.clone(), bytes.filters.dequantize());
                    let bias = bias.or_else(|| conv.bias.clone());
                    run(&Op::Conv(Conv { weight, bias, ..conv.clone() }), &inputs, shape)
                }
                (Op::Act(Act::Silu), _) if map.is_some() => {
                    let gate = |x: f64| GATE.round(1.0 / (1.0 + (-x).exp()));
                    inputs[0].data.iter().map(|&x| x * gate(x)).collect()
                }
                (op, _) => run(op, &inputs, shape),
            };
            if let Some(affine) = map {
                data.iter_mut().for_each(|v| *v = affine.round(*v));
            }
            maps.push(Map { shape, data });
        }
        Ok(maps)
    }
}
