//! A detector in eight bits: weights as signed bytes with a scale a filter, maps as unsigned bytes with a scale each.
//!
//! [`folded`] and [`sites`] say what there is to be rounded, whoever has seen images says from where to where
//! (`train::quantize`), and [`Quantized`] is the result: what `format::onnx::export_quantized` writes and
//! [`Quantized::forward`] computes slowly.

mod fold;
mod number;
mod simulate;
mod sites;

pub use fold::folded;
pub use number::{Affine, Filters};
pub use sites::{merged, moves, sites};

use crate::{Conv, Error, Graph, NodeId, Op, Result};

/// What a sigmoid becomes where it is one half of SiLU: its values are 0..1 by nature.
pub const GATE: Affine = Affine { scale: 1.0 / 255.0, zero: 0 };

/// A folded detector and the bytes of its maps.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    graph: Graph,
    maps: Vec<Option<Affine>>,
}

/// A convolution in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedConv {
    pub filters: Filters,
    /// (O), with scales `input scale * filter scale`; `None` where the output stays f32, and the bias with it.
    pub bias: Option<Vec<i32>>,
    /// (O): what one step of the bias is worth.
    pub bias_scales: Vec<f32>,
}

/// Largest whole number of a bias: a quarter of what 32 bits hold, the rest is for the sum of products.
const LARGEST_BIAS: f32 = (1 << 29) as f32;

impl Quantized {
    /// `graph` with the bytes of its maps, by node; `None` where a map stays f32.
    ///
    /// # Errors
    /// The graph has BatchNorm or convolutions without bias ([`folded`] leaves neither), the maps that become bytes are not
    /// those of [`sites`], or a convolution's weights are not finite.
    pub fn new(graph: Graph, maps: Vec<Option<Affine>>) -> Result<Self> {
        let sites = sites(&graph);
        for (id, node) in graph.nodes.iter().enumerate() {
            let bare = match &node.op {
                Op::BatchNorm(_) => true,
                Op::Conv(conv) => conv.bias.is_none(),
                _ => false,
            };
            if bare {
                return Err(Error::node(&node.name, "cannot be quantised before BatchNorm is folded"));
            }
            let map = maps.get(id).copied().flatten();
            if map.is_some() != sites[id].is_some() || sites[id].is_some_and(|first| maps[first] != map) {
                return Err(Error::node(&node.name, "its map has a scale where it should have none, or lacks it"));
            }
        }
        let quantized = Self { graph, maps };
        for id in 0..quantized.graph.nodes.len() {
            quantized.conv(id)?;
        }
        Ok(quantized)
    }

    /// The detector in f32 the bytes stand for.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// How the map of node `id` becomes bytes; `None` where it stays f32.
    pub fn map(&self, id: NodeId) -> Option<Affine> {
        self.maps[id]
    }

    /// Node `id` in bytes, if it is a convolution.
    ///
    /// A filter's scale is made larger than its weights need where its bias would not fit 32 bits otherwise: filters that
    /// sparse training has emptied have all but vanished weights and an ordinary bias.
    ///
    /// # Errors
    /// A weight or bias is not finite.
    pub fn conv(&self, id: NodeId) -> Result<Option<QuantizedConv>> {
        let node = &self.graph.nodes[id];
        let Op::Conv(conv) = &node.op else { return Ok(None) };
        let input = self.maps[node.inputs[0]].map_or(1.0, |m| m.scale);
        let bias = conv.bias.as_deref().unwrap_or_default();
        quantize(conv, bias, input, self.is_float(id)).map(Some).map_err(|what| Error::node(&node.name, what))
    }

    /// Whether what convolution `id` says never becomes bytes: neither itself nor behind a rectifier.
    fn is_float(&self, id: NodeId) -> bool {
        let readers = self.graph.consumers();
        self.maps[id].is_none() && !(merged(&self.graph, &readers, id) && self.maps[readers[id][0]].is_some())
    }
}

fn quantize(conv: &Conv, bias: &[f32], input: f32, float: bool) -> Result<QuantizedConv, String> {
    if let Some(at) = bias.iter().position(|b| !b.is_finite()) {
        return Err(format!("`bias` holds {} at index {at}", bias[at]));
    }
    let least: Vec<f32> = match float {
        true => vec![0.0; bias.len()],
        false => bias.iter().map(|b| b.abs() / (input * LARGEST_BIAS)).collect(),
    };
    let filters = Filters::new(&conv.weight, &least)?;
    let bias_scales: Vec<f32> = filters.scales.iter().map(|s| s * input).collect();
    if let Some(at) = bias_scales.iter().position(|s| !s.is_normal()) {
        return Err(format!("the weights of filter {at} are too large or its input too small for a scale in f32"));
    }
    let whole = |(b, s): (&f32, &f32)| (f64::from(*b) / f64::from(*s)).round_ties_even() as i32;
    let bias = (!float).then(|| bias.iter().zip(&bias_scales).map(whole).collect());
    Ok(QuantizedConv { filters, bias, bias_scales })
}

#[cfg(test)]
mod tests;
