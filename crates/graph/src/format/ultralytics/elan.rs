//! The blocks of YOLOv9: layer aggregation, its two ways down, and the links between two backbones.

use super::Build;
use crate::format::pickle::Ref;
use crate::{Conv, MaxPool, NodeId, Op, Result, Tensor};

impl<'a> Build<'a> {
    /// `RepNCSPELAN4`, `ELAN1`: cv1(x) cut into halves a, b; then cv4(cat(a, b, cv2(b), cv3(cv2(b)))).
    pub(super) fn elan(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let [a, b] = self.halves(module, path, x)?;
        let c = self.sub(module, path, "cv2", b)?;
        let d = self.sub(module, path, "cv3", c)?;
        self.join(module, path, vec![a, b, c, d], "cv4")
    }

    /// `AConv`: means of 2x2 neighbours, then cv1, which goes down.
    pub(super) fn a_conv(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let x = self.means(path, x)?;
        self.sub(module, path, "cv1", x)
    }

    /// `ADown`: means of 2x2 neighbours cut into halves a, b; then cv1(a), which goes down, beside cv2 of b's maxima.
    pub(super) fn a_down(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let x = self.means(path, x)?;
        let [a, b] = self.halves_of(x, path)?;
        let a = self.sub(module, path, "cv1", a)?;
        let pool = Op::MaxPool(MaxPool { kernel: 3, stride: 2, pad: [1, 1] });
        let b = self.graph.push(format!("{path}.pool"), pool, vec![b]);
        let b = self.sub(module, path, "cv2", b)?;
        Ok(self.graph.push(format!("{path}.cat"), Op::Concat, vec![a, b]))
    }

    /// The mean of every 2x2 neighbours, stride 1, as a depthwise convolution: weights that are equal at first and that
    /// training may change.
    fn means(&mut self, path: &str, x: NodeId) -> Result<NodeId> {
        let channels = self.shape(x)?.c;
        self.make(path, 4 * channels)?;
        let weight = Tensor::new([channels, 1, 2, 2], vec![0.25; 4 * channels]);
        let conv = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: channels };
        Ok(self.convolution(format!("{path}.mean"), conv, x))
    }

    /// `SPPELAN`: y = cv1(x), then its max pools cv2, cv3, cv4 one after another; cv5 of all of them joined.
    pub(super) fn spp_elan(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let mut parts = vec![self.sub(module, path, "cv1", x)?];
        for name in ["cv2", "cv3", "cv4"] {
            parts.push(self.sub(module, path, name, parts[parts.len() - 1])?);
        }
        self.join(module, path, parts, "cv5")
    }

    /// `CBLinear`: a convolution whose channels are cut into parts of `c2s` channels. The cutting is left to `CBFuse`.
    pub(super) fn cb_linear(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let parts = self.numbers(module, path, "c2s")?;
        let y = self.sub(module, path, "conv", x)?;
        let channels = self.shape(y)?.c;
        if parts.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n)) != Some(channels) {
            return Err(self.error(path, format!("cuts {channels} channels into {parts:?}")));
        }
        self.splits.insert(y, parts);
        Ok(y)
    }

    /// `CBFuse`: to the last input, add part `idx[i]` of `CBLinear` i, enlarged to its size.
    pub(super) fn cb_fuse(&mut self, module: Ref<'a>, path: &str, inputs: &[NodeId]) -> Result<NodeId> {
        let chosen = self.numbers(module, path, "idx")?;
        let Some((&last, linears)) = inputs.split_last() else {
            return Err(self.error(path, "reads nothing"));
        };
        if linears.len() != chosen.len() {
            return Err(self.error(path, format!("takes {} parts from {} layers", chosen.len(), linears.len())));
        }
        let size = self.shape(last)?;
        let mut terms = Vec::new();
        for (i, (&linear, &part)) in linears.iter().zip(&chosen).enumerate() {
            let parts = self.splits.get(&linear).map_or(&[][..], Vec::as_slice);
            let Some(&len) = parts.get(part) else {
                return Err(self.error(path, format!("takes part {part} of the {} that input {i} has", parts.len())));
            };
            let slice = Op::Slice { start: parts[..part].iter().sum(), len };
            let from = self.shape(linear)?;
            let factor = size.h / from.h.max(1);
            if factor == 0 || (from.h.saturating_mul(factor), from.w.saturating_mul(factor)) != (size.h, size.w) {
                return Err(self.error(path, format!("enlarges {}x{} to {}x{}", from.h, from.w, size.h, size.w)));
            }
            let mut term = self.graph.push(format!("{path}.part{i}"), slice, vec![linear]);
            if factor > 1 {
                term = self.graph.push(format!("{path}.up{i}"), Op::Upsample { factor }, vec![term]);
            }
            terms.push(term);
        }
        terms.push(last);
        Ok(self.graph.push(format!("{path}.add"), Op::Add, terms))
    }

    /// An attribute that is a list of whole numbers.
    fn numbers(&self, module: Ref<'a>, path: &str, name: &str) -> Result<Vec<usize>> {
        self.attr(module, path, name, |list| list.items()?.map(Ref::index).collect())
    }
}
