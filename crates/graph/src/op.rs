//! The operators a detector is made of, with the weights they own.

use serde::{Deserialize, Serialize};

use crate::Tensor;

/// One operator. Weights are skipped by serde: the native file stores them as tensors named after their node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Op {
    /// The image, (N, channels, H, W), RGB in 0..1.
    Input {
        channels: usize,
    },
    Conv(Conv),
    BatchNorm(BatchNorm),
    Act(Act),
    /// Joins all inputs along the channel axis, in order.
    Concat,
    /// Element-wise sum of two or more inputs of one shape.
    Add,
    /// Nearest-neighbour upsampling by a whole factor.
    Upsample {
        factor: usize,
    },
    /// Every `factor` x `factor` channels become one channel of as many times the rows and columns: channel
    /// `(c * factor + dy) * factor + dx` is what channel c holds at the rows dy and columns dx of every block. After a 1x1
    /// convolution it is a transposed convolution whose windows do not overlap; see [`Conv::unfolding`].
    PixelShuffle {
        factor: usize,
    },
    MaxPool(MaxPool),
    /// Channels `start..start + len` of the input.
    Slice {
        start: usize,
        len: usize,
    },
    Attention(Attention),
    /// The end of the graph: raw maps in, nothing out. Decoding them is the business of `eval`.
    Head(Head),
}

/// 2-D convolution, dilation 1, symmetric zero padding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conv {
    /// (O, I / groups, KH, KW).
    #[serde(skip)]
    pub weight: Tensor,
    /// (O).
    #[serde(skip)]
    pub bias: Option<Vec<f32>>,
    pub stride: [usize; 2],
    pub pad: [usize; 2],
    pub groups: usize,
}

impl Conv {
    /// Output channels O.
    pub fn out_channels(&self) -> usize {
        self.weight.shape[0]
    }

    /// Input channels I (all groups together).
    pub fn in_channels(&self) -> usize {
        self.weight.shape[1] * self.groups
    }

    /// (KH, KW).
    pub fn kernel(&self) -> [usize; 2] {
        [self.weight.shape[2], self.weight.shape[3]]
    }

    /// Weights (O, I / groups, KH, KW) and biases (O) of one convolution that does what this one and then `norm` do, with
    /// `norm`'s running statistics. In f64, rounded once: the shift is a small difference of large numbers where a
    /// channel's mean is far from zero.
    pub fn folded(&self, norm: &BatchNorm) -> (Vec<f32>, Vec<f32>) {
        let mut weight = Vec::with_capacity(self.weight.len());
        let mut bias = Vec::with_capacity(self.out_channels());
        for o in 0..self.out_channels() {
            let scale = f64::from(norm.gamma[o]) / (f64::from(norm.var[o]) + f64::from(norm.eps)).sqrt();
            weight.extend(self.weight.outer(o).iter().map(|&v| (f64::from(v) * scale) as f32));
            let own = self.bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
            bias.push(((own - f64::from(norm.mean[o])) * scale + f64::from(norm.beta[o])) as f32);
        }
        (weight, bias)
    }

    /// The 1x1 convolution before a [`Op::PixelShuffle`] of `factor` that together are the transposed convolution of
    /// `weight` (I, O, factor, factor) with stride `factor`, no padding and `bias` (O).
    pub fn unfolding(weight: &Tensor, bias: Option<&[f32]>, factor: usize) -> Self {
        let (inputs, outputs) = (weight.shape[0], weight.shape[1] * factor * factor);
        let transposed = (0..outputs).flat_map(|o| (0..inputs).map(move |i| weight.data[i * outputs + o])).collect();
        let bias = bias.map(|b| b.iter().flat_map(|&b| std::iter::repeat_n(b, factor * factor)).collect());
        let weight = Tensor::new([outputs, inputs, 1, 1], transposed);
        Self { weight, bias, stride: [1, 1], pad: [0, 0], groups: 1 }
    }

    /// One filter a channel, as many channels out as in.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.out_channels() && self.weight.shape[1] == 1
    }
}

/// Batch normalisation: `y = gamma * (x - mean) / sqrt(var + eps) + beta`, one of each per channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNorm {
    #[serde(skip)]
    pub gamma: Vec<f32>,
    #[serde(skip)]
    pub beta: Vec<f32>,
    /// Running mean.
    #[serde(skip)]
    pub mean: Vec<f32>,
    /// Running variance; unbiased, as PyTorch accumulates it.
    #[serde(skip)]
    pub var: Vec<f32>,
    pub eps: f32,
    /// PyTorch's convention: `running = (1 - momentum) * running + momentum * batch`.
    pub momentum: f32,
}

impl BatchNorm {
    /// gamma 1, beta 0, mean 0, var 1.
    pub fn identity(channels: usize, eps: f32, momentum: f32) -> Self {
        Self {
            gamma: vec![1.0; channels],
            beta: vec![0.0; channels],
            mean: vec![0.0; channels],
            var: vec![1.0; channels],
            eps,
            momentum,
        }
    }

    /// The affine map of inference: `y = scale * x + shift`, per channel.
    pub fn scale_shift(&self) -> (Vec<f32>, Vec<f32>) {
        let scale: Vec<f32> = self
            .gamma
            .iter()
            .zip(&self.var)
            .map(|(g, v)| (f64::from(*g) / f64::from(v + self.eps).sqrt()) as f32)
            .collect();
        let shift = (0..scale.len()).map(|c| self.beta[c] - self.mean[c] * scale[c]).collect();
        (scale, shift)
    }
}

/// Point-wise non-linearities of the YOLO families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    Identity,
    /// `x * sigmoid(x)`; Darknet calls it swish.
    Silu,
    /// Slope 0.1 below zero.
    Leaky,
    /// `x * tanh(ln(1 + e^x))`.
    Mish,
    Relu,
    Relu6,
    /// Darknet's `logistic`.
    Sigmoid,
}

impl Act {
    /// The value at `x`.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::Identity => x,
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Leaky => {
                if x > 0.0 {
                    x
                } else {
                    0.1 * x
                }
            }
            // tanh(ln(1+e)) = (n^2 - 1) / (n^2 + 1) with n = 1 + e^x; above 20 it is x to float precision.
            Self::Mish => {
                if x > 20.0 {
                    return x;
                }
                let e = x.exp();
                let n = e * (e + 2.0);
                x * n / (n + 2.0)
            }
            Self::Relu => x.max(0.0),
            Self::Relu6 => x.clamp(0.0, 6.0),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        }
    }
}

/// Max pooling; positions outside the map never win. `pad` is `[before, after]` on both axes (Darknet pads after only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaxPool {
    pub kernel: usize,
    pub stride: usize,
    pub pad: [usize; 2],
}

/// Multi-head attention of every position of a map over all of them, without weights of its own.
///
/// Reads (heads * (2 * key + value), H, W): head by head its queries (`key` channels), keys (`key`), values (`value`). Writes
/// (heads * value, H, W): at position i of a head `sum_j p_ij v_j` with `p_i = softmax_j(q_i . k_j / sqrt(key))`.
///
/// With `areas` (YOLO12) the positions, row by row, are cut into so many parts of one length, and j runs over i's part alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    pub heads: usize,
    /// Channels of a query and of a key.
    pub key: usize,
    /// Channels of a value.
    pub value: usize,
    /// Parts of the map that are attended over apart; 1 for the whole map.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub areas: usize,
}

fn whole() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_whole(areas: &usize) -> bool {
    *areas == 1
}

impl Attention {
    /// Channels one head reads; saturates where numbers from a hostile file overflow.
    pub fn head_channels(&self) -> usize {
        self.key.saturating_mul(2).saturating_add(self.value)
    }

    /// First channel of head `head`'s queries, keys and values in the input.
    pub fn starts(&self, head: usize) -> [usize; 3] {
        let start = head * self.head_channels();
        [start, start + self.key, start + 2 * self.key]
    }

    /// What the products of queries and keys are multiplied with: `1 / sqrt(key)`.
    pub fn scale(&self) -> f64 {
        1.0 / (self.key as f64).sqrt()
    }
}

/// How the raw maps that enter the head become boxes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Head {
    Anchor(AnchorHead),
    Dfl(DflHead),
    Yolox(YoloxHead),
}

impl Head {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        match self {
            Self::Anchor(h) => h.classes,
            Self::Dfl(h) => h.classes,
            Self::Yolox(h) => h.classes,
        }
    }

    /// Strides of the levels, in the order of the inputs.
    pub fn strides(&self) -> Vec<usize> {
        match self {
            Self::Anchor(h) => h.levels.iter().map(|l| l.stride).collect(),
            Self::Dfl(h) => h.strides.clone(),
            Self::Yolox(h) => h.strides.clone(),
        }
    }

    /// Whether every object is told once, so that no overlapping boxes have to be suppressed.
    pub fn end_to_end(&self) -> bool {
        matches!(self, Self::Dfl(h) if h.end_to_end)
    }

    /// What it tells of an object beside its box and class, if anything.
    pub fn extra(&self) -> Option<Extra> {
        match self {
            Self::Dfl(h) => h.extra,
            Self::Anchor(_) | Self::Yolox(_) => None,
        }
    }

    /// Stride of input number `i`: pixels of the image a cell.
    pub fn input_stride(&self, i: usize) -> usize {
        match self {
            Self::Anchor(h) => h.levels[i].stride,
            Self::Dfl(h) => h.input_stride(i),
            Self::Yolox(h) => h.strides[i / 3],
        }
    }

    /// How many maps enter the head.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Anchor(h) => h.levels.len(),
            Self::Dfl(h) => h.inputs(),
            Self::Yolox(h) => 3 * h.strides.len(),
        }
    }

    /// Channels the head expects of its input number `i`.
    pub fn input_channels(&self, i: usize) -> usize {
        match self {
            Self::Anchor(h) => h.levels[i].anchors.len().saturating_mul(h.classes.saturating_add(5)),
            Self::Dfl(h) => h.input_channels(i),
            Self::Yolox(h) => [4, 1, h.classes][i % 3],
        }
    }
}

/// Anchor boxes (YOLOv3, v4, v5, v7): one input a level, channel `a * (5 + classes) + k` with
/// k = tx, ty, tw, th, objectness, class 0, class 1, ... All raw (before any sigmoid) unless `decode` says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnchorHead {
    pub classes: usize,
    pub levels: Vec<AnchorLevel>,
}

/// One level of an [`AnchorHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnchorLevel {
    /// Pixels a cell.
    pub stride: usize,
    /// (width, height) in pixels of the network input.
    pub anchors: Vec<[f32; 2]>,
    pub decode: BoxDecode,
}

/// The formula from (tx, ty, tw, th) to a box in pixels; s is the sigmoid, c the cell, p the anchor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum BoxDecode {
    /// YOLOv5: `xy = (2 s(t) - 0.5 + c) * stride`, `wh = (2 s(t))^2 * p`.
    V5,
    /// Darknet: `xy = (s(t) * scale_xy - (scale_xy - 1) / 2 + c) * stride`, `wh = exp(t) * p`.
    Darknet { scale_xy: f32 },
    /// Darknet with `new_coords`: the map is already past its sigmoid; `wh = (2 t)^2 * p`.
    DarknetNew { scale_xy: f32 },
}

/// Distribution focal loss head (YOLOv8 and all that followed): two inputs a level, box (4 * reg_max: left, top, right,
/// bottom, each a distribution over 0..reg_max cells) and class logits; inputs ordered box0, class0, box1, class1, ...
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DflHead {
    pub classes: usize,
    /// Bins of a distribution; 1 means that there is none: the map holds the distances themselves, in cells (YOLO26).
    pub reg_max: usize,
    pub strides: Vec<usize>,
    /// Trained to tell every object once (YOLOv10, YOLO26): the best scores are taken, overlapping boxes are not suppressed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub end_to_end: bool,
    /// Whether the maps of a second pair of branches a level follow, in the same order: those that learn every object at many
    /// points and so train what both pairs read. Only training looks at them; see [`crate::Graph::for_inference`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_to_many: bool,
    /// What it tells of an object beside its box and class. The maps for it follow those of boxes and classes: one a level,
    /// of [`Extra::channels`], and after them the prototypes of masks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Extra>,
}

/// What a head tells of every object beside its box and class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Extra {
    /// Its outline: the sigmoid of a sum of prototypes, so many masks of the whole image with half the finest level's
    /// stride. A cell's channels are what each prototype counts.
    Masks { prototypes: usize },
    /// Places on it: channel `k * values + v` of a cell is x, y (`(2 t + c) * stride` pixels) and, of three values, the logit
    /// of being visible, of keypoint k.
    Keypoints { points: usize, values: usize },
    /// By how much its box is turned about its own centre: `(s(t) - 1/4) * pi` radians, from the x axis to the y axis. The
    /// distances to the sides are along the turned axes.
    Angle,
}

impl Extra {
    /// Channels a cell; saturates where numbers from a hostile file overflow.
    pub fn channels(self) -> usize {
        match self {
            Self::Masks { prototypes } => prototypes,
            Self::Keypoints { points, values } => points.saturating_mul(values),
            Self::Angle => 1,
        }
    }

    /// In the words of Ultralytics: `segment`, `pose`, `obb`.
    pub fn task(self) -> &'static str {
        match self {
            Self::Masks { .. } => "segment",
            Self::Keypoints { .. } => "pose",
            Self::Angle => "obb",
        }
    }

    /// What there is of it, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Masks { .. } => "masks",
            Self::Keypoints { .. } => "keypoints",
            Self::Angle => "oriented boxes",
        }
    }
}

impl DflHead {
    /// A head whose boxes go through non-maximum suppression.
    pub fn new(classes: usize, reg_max: usize, strides: Vec<usize>) -> Self {
        Self { classes, reg_max, strides, end_to_end: false, one_to_many: false, extra: None }
    }

    /// Maps of boxes and classes that predict: the first it reads.
    pub fn pairs(&self) -> usize {
        2 * self.strides.len()
    }

    fn inputs(&self) -> usize {
        match self.extra {
            None => self.pairs() * (1 + usize::from(self.one_to_many)),
            Some(Extra::Masks { .. }) => 3 * self.strides.len() + 1,
            Some(Extra::Keypoints { .. } | Extra::Angle) => 3 * self.strides.len(),
        }
    }

    fn input_stride(&self, i: usize) -> usize {
        match i.checked_sub(self.pairs()) {
            None => self.strides[i / 2],
            Some(many) if self.one_to_many => self.strides[many / 2],
            // Prototypes lie between the finest level and the image. An odd stride has no half that fits a map.
            Some(level) => self.strides.get(level).copied().unwrap_or(self.strides[0] / 2),
        }
    }

    fn input_channels(&self, i: usize) -> usize {
        match (i.checked_sub(self.pairs()), self.extra) {
            (Some(_), Some(extra)) => extra.channels(),
            _ if i.is_multiple_of(2) => self.reg_max.saturating_mul(4),
            _ => self.classes,
        }
    }
}

/// Decoupled anchor-free head of YOLOX: three inputs a level, box (4: `xy = (t + c) * stride`, `wh = exp(t) * stride`),
/// objectness logit (1), class logits; ordered box0, obj0, class0, box1, ...
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct YoloxHead {
    pub classes: usize,
    pub strides: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::reference::{Map, run};

    /// Values worked out from the formulas with sixteen digits, apart from this crate.
    #[test]
    fn activations_are_what_their_formulas_say() {
        for (act, x, y) in [
            (Act::Identity, -1.5_f32, -1.5),
            (Act::Silu, 1.0, 0.731_058_578_630_004_9),
            (Act::Silu, -2.0, -0.238_405_844_044_235_1),
            (Act::Leaky, 2.0, 2.0),
            (Act::Leaky, -2.0, -0.2),
            (Act::Mish, 1.0, 0.865_098_388_267_310_3),
            (Act::Mish, -2.0, -0.252_501_482_695_708_9),
            // Past where e^x squared is no number of f32 any more.
            (Act::Mish, 100.0, 100.0),
            (Act::Relu, -1.0, 0.0),
            (Act::Relu, 7.0, 7.0),
            (Act::Relu6, -1.0, 0.0),
            (Act::Relu6, 5.5, 5.5),
            (Act::Relu6, 7.0, 6.0),
            (Act::Sigmoid, 0.0, 0.5),
            (Act::Sigmoid, 2.0, 0.880_797_077_977_882_3),
        ] {
            let shape = Shape { c: 1, h: 1, w: 1 };
            let slow = run(&Op::Act(act), &[&Map { shape, data: vec![f64::from(x)] }], shape)[0];
            assert!((slow - y).abs() <= 1e-15, "{act:?} of {x}: {slow}");
            assert!((f64::from(act.apply(x)) - y).abs() <= 2e-7 * y.abs(), "{act:?} of {x}: {}", act.apply(x));
        }
    }

    /// Variance and eps add up to squares, so that every number is exact.
    #[test]
    fn a_norm_is_a_factor_and_a_shift_wherever_it_goes() {
        let norm = BatchNorm {
            gamma: vec![3.0, -1.0],
            beta: vec![0.25, 4.0],
            mean: vec![2.0, -8.0],
            var: vec![3.0, 0.0],
            eps: 1.0,
            momentum: 0.03,
        };
        // 3 / 2 and -1 / 1; 1/4 - 2 * 3/2 and 4 - 8.
        assert_eq!(norm.scale_shift(), (vec![1.5, -1.0], vec![-2.75, -4.0]));
        let bare = Conv {
            weight: Tensor::new([2, 2, 1, 1], vec![1.0, 2.0, -3.0, 0.5]),
            bias: None,
            stride: [1, 1],
            pad: [0, 0],
            groups: 1,
        };
        let weight = vec![1.5, 3.0, 3.0, -0.5];
        assert_eq!(bare.folded(&norm), (weight.clone(), vec![-2.75, -4.0]));
        // What it adds itself is scaled too: 1/2 * 3/2 and 10 * -1.
        let biased = Conv { bias: Some(vec![0.5, 10.0]), ..bare };
        assert_eq!(biased.folded(&norm), (weight, vec![-2.0, -14.0]));
    }

    #[test]
    fn depthwise_is_one_filter_a_channel_of_several() {
        let conv = |shape: [usize; 4], groups| Conv {
            weight: Tensor::zeros(shape),
            bias: None,
            stride: [1, 1],
            pad: [0, 0],
            groups,
        };
        assert!(conv([4, 1, 3, 3], 4).is_depthwise());
        for (shape, groups) in [([1, 1, 3, 3], 1), ([4, 1, 3, 3], 2), ([4, 2, 3, 3], 4), ([4, 4, 3, 3], 1)] {
            assert!(!conv(shape, groups).is_depthwise(), "{shape:?} in {groups} groups");
        }
    }

    /// (Stride, channels) of every map a head of two levels reads, by its documentation.
    #[test]
    fn heads_read_the_maps_they_say() {
        let told = |change: fn(&mut DflHead)| {
            let mut head = DflHead::new(3, 16, vec![8, 16]);
            change(&mut head);
            let head = Head::Dfl(head);
            (0..head.inputs()).map(|i| (head.input_stride(i), head.input_channels(i))).collect::<Vec<_>>()
        };
        let pairs = [(8, 64), (8, 3), (16, 64), (16, 3)];
        let with = |more: &[(usize, usize)]| [&pairs, more].concat();
        assert_eq!(told(|_| {}), pairs);
        assert_eq!(told(|h| (h.end_to_end, h.one_to_many) = (true, true)), with(&pairs));
        assert_eq!(told(|h| h.extra = Some(Extra::Angle)), with(&[(8, 1), (16, 1)]));
        let points = |h: &mut DflHead| h.extra = Some(Extra::Keypoints { points: 5, values: 3 });
        assert_eq!(told(points), with(&[(8, 15), (16, 15)]));
        // The prototypes have half the finest level's stride.
        let masks = |h: &mut DflHead| h.extra = Some(Extra::Masks { prototypes: 32 });
        assert_eq!(told(masks), with(&[(8, 32), (16, 32), (4, 32)]));
        let yolox = Head::Yolox(YoloxHead { classes: 3, strides: vec![8, 16] });
        let maps = (0..yolox.inputs()).map(|i| (yolox.input_stride(i), yolox.input_channels(i)));
        assert_eq!(maps.collect::<Vec<_>>(), [(8, 4), (8, 1), (8, 3), (16, 4), (16, 1), (16, 3)]);
    }
}
