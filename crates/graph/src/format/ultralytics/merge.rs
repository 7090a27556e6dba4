//! Parallel convolutions of one map, summed: while training they are several (`RepConv`, `RepVGGDW`), here they are one.

use super::Build;
use crate::format::pickle::Ref;
use crate::{Conv, NodeId, Result, Tensor};

impl<'a> Build<'a> {
    /// The sum of the convolutions in submodules `names` (each with its BatchNorm; those that are not there have been merged
    /// already) and of the module's own BatchNorm `bn` on x itself, as one convolution `{path}.conv`; then the activation.
    pub(super) fn merged(&mut self, module: Ref<'a>, path: &str, names: &[&str], x: NodeId) -> Result<NodeId> {
        let mut sum: Option<Conv> = None;
        for name in names {
            let Some(branch) = self.optional(module, name) else { continue };
            let conv = self.branch(branch, &format!("{path}.{name}"))?;
            sum = Some(match sum {
                None => conv,
                Some(first) => self.add(first, &conv, path)?,
            });
        }
        let mut sum = sum.ok_or_else(|| self.error(path, "has no convolution"))?;
        if let Some(bn) = self.optional(module, "bn") {
            let norm = self.norm_op(bn, &format!("{path}.bn"))?;
            let (channels, groups) = (norm.gamma.len(), sum.groups);
            let per_group = sum.weight.shape[1];
            let vectors = [&norm.beta, &norm.mean, &norm.var];
            if per_group.checked_mul(groups) != Some(channels)
                || channels != sum.out_channels()
                || vectors.iter().any(|v| v.len() != channels)
            {
                let what = format!("normalises {channels} channels beside a convolution of {}", sum.out_channels());
                return Err(self.error(path, what));
            }
            // x is a convolution of 1x1 whose filter o is 1 at the channel o of its group.
            let mut weight = Tensor::zeros([channels, per_group, 1, 1]);
            (0..channels).for_each(|o| weight.data[o * per_group + o % per_group] = 1.0);
            let same = Conv { weight, bias: None, stride: sum.stride, pad: [0, 0], groups };
            let (weight, bias) = same.folded(&norm);
            let same = Conv { weight: Tensor::new([channels, per_group, 1, 1], weight), bias: Some(bias), ..same };
            sum = self.add(sum, &same, path)?;
        }
        let y = self.convolution(format!("{path}.conv"), sum, x);
        match self.optional(module, "act") {
            Some(_) => self.sub(module, path, "act", y),
            None => Ok(y),
        }
    }

    /// A plain convolution, or a `Conv` block without activation whose BatchNorm is multiplied in.
    fn branch(&mut self, module: Ref<'a>, path: &str) -> Result<Conv> {
        if self.class(module, path)?.1 == "Conv2d" {
            return self.conv_op(module, path);
        }
        if let Some(act) = self.optional(module, "act")
            && self.class(act, path)?.1 != "Identity"
        {
            return Err(self.error(path, "has an activation before it is summed"));
        }
        let inner = self.child(module, path, "conv")?;
        let conv = self.conv_op(inner, &format!("{path}.conv"))?;
        let Some(bn) = self.optional(module, "bn") else { return Ok(conv) };
        let norm = self.norm_op(bn, &format!("{path}.bn"))?;
        if [&norm.gamma, &norm.beta, &norm.mean, &norm.var].iter().any(|v| v.len() != conv.out_channels()) {
            return Err(self.error(path, "normalises other channels than its convolution has"));
        }
        let (weight, bias) = conv.folded(&norm);
        Ok(Conv { weight: Tensor::new(conv.weight.shape.clone(), weight), bias: Some(bias), ..conv })
    }

    /// `a + b` of two convolutions of the same map: the smaller kernel in the middle of the larger.
    fn add(&self, a: Conv, b: &Conv, path: &str) -> Result<Conv> {
        let (mut sum, less) = if a.kernel() >= b.kernel() { (a, b.clone()) } else { (b.clone(), a) };
        let ([kh, kw], [lh, lw]) = (sum.kernel(), less.kernel());
        // The windows have the same middle if what the larger kernel reaches further on each side is what it pads more.
        let reach =
            |k: usize, l: usize, pad: usize, less: usize| k >= l && 2 * (pad.max(less) - less) == k - l && pad >= less;
        let centred = reach(kh, lh, sum.pad[0], less.pad[0]) && reach(kw, lw, sum.pad[1], less.pad[1]);
        let alike =
            sum.weight.shape[..2] == less.weight.shape[..2] && sum.stride == less.stride && sum.groups == less.groups;
        let biases = [&sum, &less].iter().all(|c| c.bias.as_ref().is_none_or(|b| b.len() == c.out_channels()));
        if !centred || !alike || !biases {
            return Err(self.error(path, "sums convolutions of which one cannot be made part of the other"));
        }
        let (top, left) = ((kh - lh) / 2, (kw - lw) / 2);
        for (i, &w) in less.weight.data.iter().enumerate() {
            let (filter, y, x) = (i / (lh * lw), i / lw % lh, i % lw);
            sum.weight.data[(filter * kh + y + top) * kw + x + left] += w;
        }
        if let Some(bias) = less.bias {
            match &mut sum.bias {
                Some(own) => own.iter_mut().zip(bias).for_each(|(a, b)| *a += b),
                none => *none = Some(bias),
            }
        }
        Ok(sum)
    }
}
