//! Darknet detectors (YOLOv3, v4, v7, YOLO-Fastest): a `.cfg` of layers and a `.weights` of numbers.

mod cfg;
mod keys;
mod names;
mod save;
mod weights;

use std::io::ErrorKind::NotFound;
use std::path::Path;

use crate::graph::{infer, is_length};
use crate::{
    Act, AnchorHead, AnchorLevel, BatchNorm, BoxDecode, Conv, Error, Family, Graph, Head, MaxPool, Meta, NodeId, Op,
    Result, Shape, Tensor,
};
use cfg::{Section, short};
use weights::{Source, Start};

pub use save::save;

/// OpenCV's value, which meets its outputs within 1.5e-4; with 1e-5 YOLO-Fastest is off by up to 1e-2.
const BN_EPS: f32 = 1e-6;

/// Most numbers one convolution may hold (1 GiB): what a mistyped `filters` would ask for ends here.
const MAX_WEIGHTS: usize = 1 << 28;

/// Reads a `.cfg` with its `.weights`, `path` being either; the other lies beside it unless `weights` names it.
pub(super) fn load(path: &Path, weights: Option<&Path>) -> Result<Graph> {
    let cfg = path.with_extension("cfg");
    let text = read_cfg(&cfg)?;
    let beside = path.with_extension("weights");
    let weights = weights.unwrap_or(&beside);
    let bytes = std::fs::read(weights).map_err(|e| match e.kind() {
        NotFound => Error::format(weights, format!("there is no such file, and `{}` holds no weights", cfg.display()))
            .hint("give the weights' file with `--weights FILE`"),
        _ => Error::io("read", weights, e),
    })?;
    build(&text, &cfg, Source::open(&bytes, weights)?)
}

/// The detector the `.cfg` at `path` describes, with the weights of [`untrained`].
pub(super) fn load_untrained(path: &Path, seed: u64) -> Result<Graph> {
    untrained(&read_cfg(path)?, path, seed)
}

fn read_cfg(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The detector a `.cfg` describes before any training: convolutions random from `seed` (He), BatchNorm the identity,
/// biases 0. `path` is named in errors, and class names are looked for beside it.
///
/// # Errors
/// The text is no Darknet detector this crate can express; names line and section.
pub fn untrained(text: &str, path: &Path, seed: u64) -> Result<Graph> {
    build(text, path, Source::untrained(seed))
}

fn build(text: &str, path: &Path, source: Source<'_>) -> Result<Graph> {
    let sections = cfg::parse(text, path)?;
    sections.iter().try_for_each(keys::check)?;
    let Some((net, layers)) = sections.split_first().filter(|(net, _)| matches!(net.name.as_str(), "net" | "network"))
    else {
        return Err(Error::format(path, "does not begin with a `[net]` section").at("line 1"));
    };
    net.refuse(&[("channels", "3")])?;
    let shape = Shape { c: net.extent("channels", 3)?, h: net.extent("height", 416)?, w: net.extent("width", 416)? };
    let meta = Meta { family: Family::Darknet, names: vec![], imgsz: [shape.h, shape.w] };
    let mut b = Builder {
        graph: Graph::new(meta, shape.c),
        shapes: vec![shape],
        layers: vec![],
        last: Some(0),
        levels: vec![],
        classes: None,
        source,
        fed: "the header".into(),
    };
    for section in layers {
        let out = b.layer(section)?;
        b.layers.push(out);
        b.last = out;
    }
    let Some(classes) = b.classes else {
        return Err(Error::format(path, "has no `[yolo]` section").hint("only YOLO detectors can be read"));
    };
    b.source.finish(&b.fed)?;
    let (maps, levels) = b.levels.into_iter().unzip();
    b.graph.push("head", Op::Head(Head::Anchor(AnchorHead { classes, levels })), maps);
    b.graph.meta.names = names::beside(path, classes)?;
    b.graph.validate()?;
    Ok(b.graph)
}

struct Builder<'a> {
    graph: Graph,
    /// Shape of every node's output at the size in `[net]`.
    shapes: Vec<Shape>,
    /// The node each layer ends in; `None` for `[yolo]`, whose decoded boxes no layer can read.
    layers: Vec<Option<NodeId>>,
    last: Option<NodeId>,
    levels: Vec<(NodeId, AnchorLevel)>,
    classes: Option<usize>,
    source: Source<'a>,
    /// The last layer that took weights.
    fed: String,
}

impl Builder<'_> {
    fn layer(&mut self, s: &Section) -> Result<Option<NodeId>> {
        let from = |last: Option<NodeId>| last.ok_or_else(|| s.error("reads the boxes of a `[yolo]` section"));
        let name = format!("layer{}", self.layers.len());
        Ok(Some(match s.name.as_str() {
            "convolutional" | "conv" => self.convolution(s, &name, from(self.last)?)?,
            "maxpool" | "max" => {
                let both = s.text("stride").unwrap_or("1");
                s.refuse(&[("maxpool_depth", "0"), ("antialiasing", "0"), ("stride_x", both), ("stride_y", both)])?;
                let stride = s.extent("stride", 1)?;
                let kernel = s.extent("size", stride)?;
                let total: usize = s.number("padding", kernel - 1)?;
                if total > 2 * kernel {
                    return Err(s.error_at("padding", format!("pads {total} pixels for a window of {kernel}")));
                }
                // Darknet starts half the padding before the map, rounded down; the rest is after it.
                let pad = [total / 2, total - total / 2];
                self.push(s, &name, Op::MaxPool(MaxPool { kernel, stride, pad }), vec![from(self.last)?])?
            }
            "upsample" => {
                s.refuse(&[("scale", "1")])?;
                self.push(s, &name, Op::Upsample { factor: s.extent("stride", 2)? }, vec![from(self.last)?])?
            }
            "route" | "concat" => self.route(s, &name)?,
            "shortcut" => {
                s.refuse(&[("weights_type", "none")])?;
                let mut inputs = vec![from(self.last)?];
                inputs.extend(self.references(s, "from")?);
                let sum = self.push(s, &format!("{name}.add"), Op::Add, inputs)?;
                self.activation(s, &name, sum)?
            }
            // Drops nothing at inference.
            "dropout" => from(self.last)?,
            "yolo" => {
                let map = from(self.last)?;
                self.yolo(s, map)?;
                return Ok(None);
            }
            other => {
                return Err(s.error(format!("`[{other}]` stands among the layers")).hint("a .cfg has one, its first"));
            }
        }))
    }

    fn push(&mut self, s: &Section, name: &str, op: Op, inputs: Vec<NodeId>) -> Result<NodeId> {
        let shapes: Vec<Shape> = inputs.iter().map(|&i| self.shapes[i]).collect();
        let shape = infer(&op, &shapes, self.graph.meta.imgsz).map_err(|what| s.error(what))?;
        self.shapes.push(shape);
        Ok(self.graph.push(name, op, inputs))
    }

    fn convolution(&mut self, s: &Section, name: &str, from: NodeId) -> Result<NodeId> {
        s.refuse(&[("dilation", "1"), ("antialiasing", "0"), ("binary", "0"), ("xnor", "0"), ("share_index", "")])?;
        s.refuse(&[
            ("bin_output", "0"),
            ("dontload", "0"),
            ("dontloadscales", "0"),
            ("flipped", "0"),
            ("reverse", "0"),
        ])?;
        s.refuse(&[
            ("deform", "0"),
            ("rotate", "0"),
            ("sway", "0"),
            ("stretch", "0"),
            ("stretch_sway", "0"),
            ("assisted_excitation", "0"),
        ])?;
        let (out, kernel, groups) = (s.extent("filters", 1)?, s.extent("size", 1)?, s.extent("groups", 1)?);
        let stride = s.extent("stride", 1)?;
        let stride = [s.extent("stride_y", stride)?, s.extent("stride_x", stride)?];
        // `pad=1` means half the kernel, whatever `padding` says.
        let pad = if s.number("pad", 0usize)? != 0 { kernel / 2 } else { s.number("padding", 0)? };
        let channels = self.shapes[from].c;
        if !channels.is_multiple_of(groups) || !out.is_multiple_of(groups) {
            return Err(s.error_at("groups", format!("{groups} groups do not divide {channels} or {out} channels")));
        }
        let shape = [out, channels / groups, kernel, kernel];
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MAX_WEIGHTS);
        let count = count.ok_or_else(|| s.error(format!("weights of shape {shape:?} are out of all proportion")))?;

        let cfg = s.path;
        let bias = self.source.take(out, Start::Zero, name, cfg)?;
        // `cbn` normalises across batches in training; at inference it is the same thing.
        let normalised = s.number("batch_normalize", 0usize)? != 0 || s.number("cbn", 0usize)? != 0;
        let (bn, bias) = if normalised {
            let gamma = self.source.take(out, Start::One, name, cfg)?;
            let mean = self.source.take(out, Start::Zero, name, cfg)?;
            let var = self.source.take(out, Start::Variance, name, cfg)?;
            (Some(BatchNorm { gamma, beta: bias, mean, var, eps: BN_EPS, momentum: 0.1 }), None)
        } else {
            (None, Some(bias))
        };
        let start = Start::He { inputs: shape[1] * kernel * kernel };
        let weight = Tensor::new(shape, self.source.take(count, start, name, cfg)?);
        self.fed = name.to_owned();
        let conv = Op::Conv(Conv { weight, bias, stride, pad: [pad; 2], groups });
        let mut x = self.push(s, &format!("{name}.conv"), conv, vec![from])?;
        if let Some(bn) = bn {
            x = self.push(s, &format!("{name}.bn"), Op::BatchNorm(bn), vec![x])?;
        }
        self.activation(s, name, x)
    }

    fn activation(&mut self, s: &Section, name: &str, x: NodeId) -> Result<NodeId> {
        // Darknet's own default is logistic for convolutions, linear for shortcuts.
        let default = if s.name == "shortcut" { "linear" } else { "logistic" };
        let act = match s.text("activation").unwrap_or(default) {
            "linear" => return Ok(x),
            "leaky" => Act::Leaky,
            "mish" => Act::Mish,
            "swish" => Act::Silu,
            "relu" => Act::Relu,
            "relu6" => Act::Relu6,
            "logistic" => Act::Sigmoid,
            other => {
                return Err(s
                    .error_at("activation", format!("the activation `{}` is not supported", short(other)))
                    .hint("known are linear, leaky, mish, swish, relu, relu6, logistic"));
            }
        };
        self.push(s, &format!("{name}.act"), Op::Act(act), vec![x])
    }

    /// The nodes a list of layer numbers names; negative ones count back from this layer.
    fn references(&self, s: &Section, key: &str) -> Result<Vec<NodeId>> {
        let here = self.layers.len() as i64;
        let numbers: Vec<i64> = s.list(key)?;
        if numbers.is_empty() {
            return Err(s.error_at(key, format!("`{key}` names no layer")));
        }
        let node = |n: i64| {
            let at = if n < 0 { here.checked_add(n) } else { Some(n) };
            let layer = at.and_then(|n| usize::try_from(n).ok()).and_then(|n| self.layers.get(n));
            match layer {
                Some(Some(node)) => Ok(*node),
                Some(None) => Err(s.error_at(key, format!("layer {n} is a `[yolo]` section"))),
                None => Err(s.error_at(key, format!("there is no layer {n} before this one, number {here}"))),
            }
        };
        numbers.into_iter().map(node).collect()
    }

    fn route(&mut self, s: &Section, name: &str) -> Result<NodeId> {
        let mut nodes = self.references(s, "layers")?;
        let (groups, group) = (s.extent("groups", 1)?, s.number("group_id", 0usize)?);
        if groups > 1 {
            // Darknet takes the same part of every map it joins.
            for (i, node) in nodes.iter_mut().enumerate() {
                let c = self.shapes[*node].c;
                if !c.is_multiple_of(groups) || group >= groups {
                    return Err(s.error_at("groups", format!("no part {group} of {groups} in {c} channels")));
                }
                let op = Op::Slice { start: group * (c / groups), len: c / groups };
                *node = self.push(s, &format!("{name}.slice{i}"), op, vec![*node])?;
            }
        }
        match nodes.as_slice() {
            [one] => Ok(*one),
            _ => self.push(s, name, Op::Concat, nodes),
        }
    }

    fn yolo(&mut self, s: &Section, map: NodeId) -> Result<()> {
        let classes = s.extent("classes", 20)?;
        if *self.classes.get_or_insert(classes) != classes {
            return Err(s.error_at("classes", "differs from the `[yolo]` sections before"));
        }
        let sizes: Vec<f32> = s.list("anchors")?;
        let all: Vec<[f32; 2]> = sizes.chunks_exact(2).map(|p| [p[0], p[1]]).collect();
        if !sizes.len().is_multiple_of(2) || all.len() != s.number("num", all.len())? {
            return Err(s.error_at("anchors", format!("{} numbers are not `num` pairs", sizes.len())));
        }
        if let Some(odd) = sizes.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
            return Err(s.error_at("anchors", format!("an anchor of {odd} pixels")));
        }
        let mask: Vec<usize> = if s.text("mask").is_some() { s.list("mask")? } else { (0..all.len()).collect() };
        let anchors: Option<Vec<[f32; 2]>> = mask.iter().map(|&i| all.get(i).copied()).collect();
        let anchors = anchors.filter(|a| !a.is_empty());
        let anchors =
            anchors.ok_or_else(|| s.error_at("mask", format!("picks none, or past {} anchors", all.len())))?;
        let scale_xy = s.number("scale_x_y", 1.0f32)?;
        if !is_length(scale_xy) {
            return Err(s.error_at("scale_x_y", format!("`scale_x_y` is {scale_xy}")));
        }
        let decode = if s.number("new_coords", 0usize)? != 0 {
            BoxDecode::DarknetNew { scale_xy }
        } else {
            BoxDecode::Darknet { scale_xy }
        };
        let shape = self.shapes[map];
        let want = anchors.len() * (5 + classes);
        if shape.c != want {
            return Err(s
                .error(format!("the map before it has {} channels, its classes and anchors need {want}", shape.c))
                .hint("`filters` of the convolution before is anchors in the mask times (5 + classes)"));
        }
        let stride = self.graph.meta.imgsz[0] / shape.h.max(1);
        self.levels.push((map, AnchorLevel { stride, anchors, decode }));
        Ok(())
    }
}
