//! The attention blocks: `PSA`, `C2PSA` and `PSABlock` (YOLOv10 and later), `A2C2f` and `ABlock` (YOLO12).

use super::Build;
use crate::format::pickle::Ref;
use crate::{Attention, Conv, NodeId, Op, Result, Tensor};

impl<'a> Build<'a> {
    /// `C2PSA`: cv1(x) cut into halves a, b; then cv2(cat(a, m(b))).
    pub(super) fn c2psa(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let [a, b] = self.halves(module, path, x)?;
        let b = self.sub(module, path, "m", b)?;
        self.join(module, path, vec![a, b], "cv2")
    }

    /// `PSA`: `C2PSA` whose one block has no module of its own.
    pub(super) fn psa(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let [a, b] = self.halves(module, path, x)?;
        let b = self.attend_and_feed(module, path, b, true)?;
        self.join(module, path, vec![a, b], "cv2")
    }

    /// `PSABlock`: y = x + attn(x), then y + ffn(y); neither sum where its flag `add` is off.
    pub(super) fn psa_block(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let sum = self.attr(module, path, "add", Ref::bool)?;
        self.attend_and_feed(module, path, x, sum)
    }

    /// y = x + attn(x), then y + ffn(y); neither sum without `sum`.
    fn attend_and_feed(&mut self, module: Ref<'a>, path: &str, x: NodeId, sum: bool) -> Result<NodeId> {
        let y = self.sub(module, path, "attn", x)?;
        let y = if sum { self.graph.push(format!("{path}.add0"), Op::Add, vec![x, y]) } else { y };
        let z = self.sub(module, path, "ffn", y)?;
        Ok(if sum { self.graph.push(format!("{path}.add1"), Op::Add, vec![y, z]) } else { z })
    }

    /// `Attention`: proj(attention(qkv(x)) + pe(v)), where v are the values of all heads and pe is a depthwise convolution.
    pub(super) fn attention(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let [heads, key, value] =
            ["num_heads", "key_dim", "head_dim"].map(|name| self.attr(module, path, name, Ref::index));
        let op = Attention { heads: heads?, key: key?, value: value?, areas: 1 };
        self.attend(module, path, op, x)
    }

    /// `A2C2f`: y0 = cv1(x), then y1 = m0(y0), y2 = m1(y1), ...; cv2 of all of them joined. Where it has a `gamma`, one a
    /// channel, that scales the result and x is added.
    pub(super) fn a2c2f(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let mut parts = vec![self.sub(module, path, "cv1", x)?];
        let list = self.child(module, path, "m")?;
        for (name, block) in self.children(list, path)? {
            let last = parts[parts.len() - 1];
            parts.push(self.module(block, &format!("{path}.m.{name}"), &[last])?);
        }
        let y = self.join(module, path, parts, "cv2")?;
        let Some(gamma) = self.parameter(module, path, "gamma")? else { return Ok(y) };
        let channels = gamma.len();
        let weight = Tensor::new([channels, 1, 1, 1], gamma.data);
        let scale = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: channels };
        let y = self.convolution(format!("{path}.gamma"), scale, y);
        Ok(self.graph.push(format!("{path}.add"), Op::Add, vec![x, y]))
    }

    /// `ABlock`: y = x + attn(x), then y + mlp(y).
    pub(super) fn a_block(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let y = self.sub(module, path, "attn", x)?;
        let y = self.graph.push(format!("{path}.add0"), Op::Add, vec![x, y]);
        let z = self.sub(module, path, "mlp", y)?;
        Ok(self.graph.push(format!("{path}.add1"), Op::Add, vec![y, z]))
    }

    /// `AAttn`: `Attention` within areas, keys as wide as values.
    pub(super) fn area_attention(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let [heads, width, areas] =
            ["num_heads", "head_dim", "area"].map(|name| self.attr(module, path, name, Ref::index));
        let (width, areas) = (width?, areas?);
        self.attend(module, path, Attention { heads: heads?, key: width, value: width, areas }, x)
    }

    /// proj(attention(qkv(x)) + pe(v)).
    fn attend(&mut self, module: Ref<'a>, path: &str, op: Attention, x: NodeId) -> Result<NodeId> {
        let qkv = self.sub(module, path, "qkv", x)?;
        // Checked before anything is made for each head: the numbers are the file's.
        let channels = self.shape(qkv)?.c;
        let (heads, per_head) = (op.heads, op.head_channels());
        if heads == 0 || op.key == 0 || op.value == 0 || heads.checked_mul(per_head) != Some(channels) {
            let what = format!("has {heads} heads of 2 x {} + {} channels, qkv gives {channels}", op.key, op.value);
            return Err(self.error(path, what));
        }
        if module.attr("scale").and_then(Ref::float).is_some_and(|s| (s - op.scale()).abs() > 1e-6 * op.scale()) {
            return Err(self.error(path, format!("scales by something other than 1 / sqrt({})", op.key)));
        }
        let mixed = self.graph.push(format!("{path}.attention"), Op::Attention(op), vec![qkv]);
        let mut values: Vec<NodeId> = (0..heads)
            .map(|head| {
                let part = Op::Slice { start: op.starts(head)[2], len: op.value };
                self.graph.push(format!("{path}.v{head}"), part, vec![qkv])
            })
            .collect();
        let v = match values[..] {
            [only] => only,
            _ => self.graph.push(format!("{path}.v"), Op::Concat, std::mem::take(&mut values)),
        };
        let place = self.sub(module, path, "pe", v)?;
        let sum = self.graph.push(format!("{path}.add"), Op::Add, vec![mixed, place]);
        self.sub(module, path, "proj", sum)
    }
}
