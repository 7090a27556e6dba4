//! `DepthToSpace`, and `ConvTranspose` whose windows do not overlap, which is a 1x1 convolution before one.

use super::body::{Body, Value};
use super::layers::{floats, pads, tensor};
use super::problem::Problem;
use crate::format::onnx::proto::NodeProto;
use crate::graph::MAX_FACTOR;
use crate::{Conv, NodeId, Op};

impl Body<'_> {
    /// The map with `blocksize` times the rows and columns.
    pub(super) fn pixel_shuffle(&mut self, node: &NodeProto, x: NodeId) -> Result<NodeId, Problem> {
        let factor =
            node.int("blocksize").and_then(|f| usize::try_from(f).ok()).filter(|f| (1..=MAX_FACTOR).contains(f));
        let factor = factor.ok_or_else(|| format!("has blocks of {:?} pixels", node.int("blocksize")))?;
        let mode = node.word("mode").unwrap_or("DCR");
        if mode != "CRD" && factor > 1 {
            return Err(Problem::new(format!("takes blocks from channels in the order `{mode}`"))
                .hint("only `CRD`, the order of PyTorch's PixelShuffle, has a counterpart here"));
        }
        self.push(node, "", Op::PixelShuffle { factor }, vec![x])
    }

    /// The 1x1 convolution and the shuffle that do the same.
    pub(super) fn conv_transpose(
        &mut self,
        node: &NodeProto,
        x: NodeId,
        inputs: &[Option<Value>],
    ) -> Result<NodeId, Problem> {
        let weight = tensor(self.constant(inputs, 1)?.ok_or("has no weight")?)?;
        let &[_, outputs, factor, width] = weight.shape.as_slice() else {
            return Err(format!("has a weight of {:?}; only two dimensions can be read", weight.shape).into());
        };
        let bias = self.constant(inputs, 2)?.map(floats).transpose()?;
        if bias.as_ref().is_some_and(|b| b.len() != outputs) {
            return Err(format!("has other than {outputs} biases").into());
        }
        let (stride, dilation) = (node.pair("strides", 1)?, node.pair("dilations", 1)?);
        let map = self.shapes[x];
        let padded = pads(node, [map.h, map.w], [factor, width], stride)? != [0; 4]
            || node.ints("output_padding").is_some_and(|p| p.iter().any(|&p| p != 0))
            || node.ints("output_shape").is_some();
        let alone = node.int("group").unwrap_or(1) == 1 && dilation == [1, 1] && (1..=MAX_FACTOR).contains(&factor);
        if padded || !alone || stride != [factor; 2] || width != factor || weight.data.is_empty() {
            return Err(Problem::new(format!(
                "is a transposed convolution of {factor}x{width} pixels with stride {stride:?} that pads, groups or overlaps"
            ))
            .hint("only those whose stride is their kernel have a counterpart here"));
        }
        let conv = Conv::unfolding(&weight, bias.as_deref(), factor);
        let x = self.push(node, ".conv", Op::Conv(conv), vec![x])?;
        self.push(node, "", Op::PixelShuffle { factor }, vec![x])
    }
}
