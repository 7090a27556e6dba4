//! The layers of `torch.nn` a detector is made of.

use super::Build;
use crate::format::pickle::Ref;
use crate::graph::MAX_FACTOR;
use crate::{Act, BatchNorm, Conv, MaxPool, NodeId, Op, Result, Tensor};

/// Most rows or columns a layer pads by.
const MAX_PAD: usize = 16;

impl<'a> Build<'a> {
    /// `Conv2d`: weight (O, I / groups, KH, KW), bias (O) or none.
    pub(super) fn conv2d(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let conv = self.conv_op(module, path)?;
        Ok(self.convolution(path, conv, x))
    }

    /// The operator of a `Conv2d`.
    pub(super) fn conv_op(&mut self, module: Ref<'a>, path: &str) -> Result<Conv> {
        self.own(module, path)?;
        let weight = self.parameter(module, path, "weight")?;
        let weight = weight.ok_or_else(|| self.error(path, "has no weight"))?;
        if weight.shape.len() != 4 || weight.shape.contains(&0) {
            return Err(self.error(path, format!("weight has shape {:?}, not (O, I, KH, KW)", weight.shape)));
        }
        let zeros = module.attr("padding_mode").is_none_or(|m| m.str() == Some("zeros"));
        let transposed = module.attr("transposed").is_some_and(|t| t.bool() != Some(false));
        if self.pair(module, path, "dilation")? != [1, 1] || !zeros || transposed {
            return Err(
                self.error(path, "is dilated, transposed or not padded with zeros: the graph has no such convolution")
            );
        }
        let groups = self.attr(module, path, "groups", Ref::index)?;
        let bias = self.parameter(module, path, "bias")?.map(|b| b.data);
        let (stride, pad) = (self.pair(module, path, "stride")?, self.pair(module, path, "padding")?);
        Ok(Conv { weight, bias, stride, pad, groups })
    }

    /// `BatchNorm2d` with its affine pair and running statistics.
    pub(super) fn batch_norm(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let norm = self.norm_op(module, path)?;
        Ok(self.graph.push(path, Op::BatchNorm(norm), vec![x]))
    }

    /// The operator of a `BatchNorm2d`.
    pub(super) fn norm_op(&mut self, module: Ref<'a>, path: &str) -> Result<BatchNorm> {
        self.own(module, path)?;
        let vector = |name: &str| {
            let found = self.parameter(module, path, name)?;
            Ok(found.ok_or_else(|| self.error(path, format!("has no `{name}`")))?.data)
        };
        let (gamma, beta) = (vector("weight")?, vector("bias")?);
        let (mean, var) = (vector("running_mean")?, vector("running_var")?);
        let eps = self.attr(module, path, "eps", Ref::float)? as f32;
        let momentum = self.attr(module, path, "momentum", Ref::float)? as f32;
        Ok(BatchNorm { gamma, beta, mean, var, eps, momentum })
    }

    /// `MaxPool2d`, square.
    pub(super) fn max_pool(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let pool = self.pool_op(module, path)?;
        Ok(self.graph.push(path, Op::MaxPool(pool), vec![x]))
    }

    /// The operator of a `MaxPool2d`.
    pub(super) fn pool_op(&self, module: Ref<'a>, path: &str) -> Result<MaxPool> {
        let [kernel, stride, pad] = ["kernel_size", "stride", "padding"].map(|name| self.pair(module, path, name));
        let (kernel, stride, pad) = (kernel?, stride?, pad?);
        let square = [kernel, stride, pad].iter().all(|[a, b]| a == b);
        let ceil = module.attr("ceil_mode").is_some_and(|c| c.bool() != Some(false));
        if !square || ceil || self.pair(module, path, "dilation")? != [1, 1] {
            return Err(self.error(path, "is a max pool that is not square, is dilated or rounds up"));
        }
        Ok(MaxPool { kernel: kernel[0], stride: stride[0], pad })
    }

    /// `ZeroPad2d` (left, right, top, bottom), as YOLOv3-tiny has it before a max pool: a depthwise convolution whose only weight
    /// that is not zero takes a value as it is. A max pool's own padding would not do, since zeros win over what is negative.
    pub(super) fn zero_pad(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let sides = self.attr(module, path, "padding", |p| {
            let sides = p.array::<4>()?;
            Some([sides[0].index()?, sides[1].index()?, sides[2].index()?, sides[3].index()?])
        })?;
        if sides.iter().any(|&n| n > MAX_PAD) {
            return Err(self.error(path, format!("pads by {sides:?}, by {MAX_PAD} at most can be")));
        }
        let [left, right, top, bottom] = sides;
        if sides == [0; 4] {
            return Ok(x);
        }
        let channels = self.shape(x)?.c;
        // Padded on both sides by the larger, the window is as much longer than one as makes up for the smaller.
        let (pad, kernel) = ([top.max(bottom), left.max(right)], [top.abs_diff(bottom) + 1, left.abs_diff(right) + 1]);
        let (row, column) = (pad[0] - top, pad[1] - left);
        self.make(path, channels * kernel[0] * kernel[1])?;
        let mut weight = Tensor::zeros([channels, 1, kernel[0], kernel[1]]);
        weight.data.chunks_exact_mut(kernel[0] * kernel[1]).for_each(|w| w[row * kernel[1] + column] = 1.0);
        let conv = Conv { weight, bias: None, stride: [1, 1], pad, groups: channels };
        Ok(self.convolution(path, conv, x))
    }

    /// `Upsample` by a whole factor, nearest neighbour.
    pub(super) fn upsample(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let scale = module.attr("scale_factor");
        let factor = scale.and_then(|s| match s.array::<2>() {
            Some([h, w]) if h.float() == w.float() => h.float(),
            _ => s.float(),
        });
        let nearest = module.attr("mode").and_then(Ref::str) == Some("nearest");
        match factor {
            Some(f) if nearest && f.fract() == 0.0 && (1.0..=MAX_FACTOR as f64).contains(&f) => {
                Ok(self.graph.push(path, Op::Upsample { factor: f as usize }, vec![x]))
            }
            _ => Err(self.error(path, "upsamples by something other than a whole factor, nearest neighbour")),
        }
    }

    /// `ConvTranspose2d` whose windows do not overlap, as the 1x1 convolution and the shuffle that do the same; named as a
    /// sequence of the two.
    pub(super) fn conv_transpose(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        self.own(module, path)?;
        let weight = self.parameter(module, path, "weight")?;
        let weight = weight.ok_or_else(|| self.error(path, "has no weight"))?;
        let &[_, outputs, factor, width] = &weight.shape[..] else {
            return Err(self.error(path, format!("weight has shape {:?}, not (I, O, KH, KW)", weight.shape)));
        };
        if weight.data.is_empty() || factor != width || factor > MAX_FACTOR {
            return Err(self.error(path, format!("is a transposed convolution of {factor}x{width} pixels")));
        }
        let [stride, pad, more, dilation] =
            ["stride", "padding", "output_padding", "dilation"].map(|name| self.pair(module, path, name));
        let apart = stride? == [factor; 2] && pad? == [0, 0] && more? == [0, 0] && dilation? == [1, 1];
        if !apart || self.attr(module, path, "groups", Ref::index)? != 1 {
            return Err(self
                .error(path, "is a transposed convolution that is grouped, padded or whose windows overlap")
                .hint("known are those whose stride is their kernel, such as nn.ConvTranspose2d(c, c, 2, 2)"));
        }
        let bias = self.parameter(module, path, "bias")?.map(|b| b.data);
        if let Some(bias) = bias.as_ref().filter(|b| b.len() != outputs) {
            return Err(self.error(path, format!("has {} biases for {outputs} filters", bias.len())));
        }
        let x = self.convolution(format!("{path}.0"), Conv::unfolding(&weight, bias.as_deref(), factor), x);
        Ok(self.graph.push(format!("{path}.1"), Op::PixelShuffle { factor }, vec![x]))
    }

    /// `PixelShuffle`.
    pub(super) fn pixel_shuffle(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let factor = self.attr(module, path, "upscale_factor", Ref::index)?;
        if factor > MAX_FACTOR {
            return Err(self.error(path, format!("shuffles blocks of {factor} pixels")));
        }
        Ok(self.graph.push(path, Op::PixelShuffle { factor }, vec![x]))
    }

    /// The activation a class is; `None` where it is no activation.
    pub(super) fn activation(&self, module: Ref<'a>, class: &str, path: &str) -> Result<Option<Act>> {
        Ok(Some(match class {
            "SiLU" => Act::Silu,
            "ReLU" => Act::Relu,
            "ReLU6" => Act::Relu6,
            "Mish" => Act::Mish,
            "Sigmoid" => Act::Sigmoid,
            "LeakyReLU" => {
                let slope = self.attr(module, path, "negative_slope", Ref::float)?;
                if (slope - 0.1).abs() > 1e-6 {
                    return Err(self.error(path, format!("leaks with slope {slope}, the graph's leaky ReLU has 0.1")));
                }
                Act::Leaky
            }
            _ => return Ok(None),
        }))
    }

    /// A parameter or buffer; `None` where it is missing or Python's `None`.
    pub(super) fn parameter(&self, module: Ref<'a>, path: &str, name: &str) -> Result<Option<Tensor>> {
        let held = |kind: &str| module.attr(kind)?.key(name).filter(|p| !p.is_none());
        let found = held("_parameters").or_else(|| held("_buffers"));
        found.map(|value| self.file.tensor(value, &format!("{path}.{name}"))).transpose()
    }

    /// An attribute that must be there and of the right kind.
    pub(super) fn attr<T>(
        &self,
        module: Ref<'a>,
        path: &str,
        name: &str,
        read: impl Fn(Ref<'a>) -> Option<T>,
    ) -> Result<T> {
        module
            .attr(name)
            .and_then(read)
            .ok_or_else(|| self.error(path, format!("`{name}` is missing or no such number")))
    }

    /// A size given as (height, width) or as one number for both.
    fn pair(&self, module: Ref<'a>, path: &str, name: &str) -> Result<[usize; 2]> {
        self.attr(module, path, name, |value| {
            let pair = match value.array::<2>() {
                Some([h, w]) => [h.index()?, w.index()?],
                None => [value.index()?; 2],
            };
            pair.iter().all(|&n| n <= 1 << 16).then_some(pair)
        })
    }

    /// Notes that a module's weights belong to `path`.
    fn own(&mut self, module: Ref<'a>, path: &str) -> Result<()> {
        match self.owners.insert(module.id, path.to_owned()) {
            None => Ok(()),
            Some(first) => {
                Err(self.error(path, format!("shares its weights with `{first}`, which a graph cannot express")))
            }
        }
    }
}
