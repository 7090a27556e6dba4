//! The graph itself: nodes in topological order, shape inference and the check every loader must pass.

use serde::{Deserialize, Serialize};

use crate::{BatchNorm, BoxDecode, Error, Extra, Head, Op, Result};

/// More channels than a map of any detector has.
pub(crate) const MAX_CHANNELS: usize = 1 << 16;
/// More channels than all maps of a detector have together.
const MAX_CHANNELS_IN_ALL: usize = 1 << 22;
/// Most values of a map (1 GiB), or of what one head of attention compares: more is no detector but a file that lies.
const MAX_VALUES: usize = 1 << 28;
/// Longest side of the images a detector was trained on, pixels.
pub const MAX_IMGSZ: usize = 1 << 14;
/// Largest factor by which a map is enlarged.
pub(crate) const MAX_FACTOR: usize = 64;
/// Largest window of a pool, and most rows or columns that are padded.
const MAX_WINDOW: usize = 1 << 10;

/// Index of a node in [`Graph::nodes`].
pub type NodeId = usize;

/// One operator and where its inputs come from. `name` is unique and prefixes the names of its weights: node
/// `model.0.conv` owns `model.0.conv.weight`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub op: Op,
    pub inputs: Vec<NodeId>,
}

/// Which family of detectors a graph belongs to; decides how images are fitted to its input and by which module names a `.pt` is
/// written. What a detector computes, and how it is trained, its operators and its head say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Darknet,
    Yolov5,
    /// As Ultralytics rebuilt it: plain convolutions and the head of YOLOv8.
    Yolov6,
    Yolov8,
    Yolov9,
    Yolov10,
    Yolo11,
    Yolo12,
    Yolo26,
    Yolox,
    /// A graph whose family is not known (tests, foreign ONNX).
    Other,
}

/// What a detector knows about itself beside its graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub family: Family,
    /// Class names in the order of the class channels; as many as the head has classes.
    pub names: Vec<String>,
    /// (height, width) in pixels it was trained at.
    pub imgsz: [usize; 2],
}

/// A detector: nodes in topological order (inputs come before their readers), exactly one [`Op::Input`] first and, in a
/// detector, exactly one [`Op::Head`] last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub meta: Meta,
}

/// Shape of one feature map without the batch axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub c: usize,
    pub h: usize,
    pub w: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.c, self.h, self.w)
    }
}

impl Graph {
    /// An empty graph with its input node.
    pub fn new(meta: Meta, channels: usize) -> Self {
        let input = Node { name: "images".into(), op: Op::Input { channels }, inputs: vec![] };
        Self { nodes: vec![input], meta }
    }

    /// Appends a node and returns its id.
    pub fn push(&mut self, name: impl Into<String>, op: Op, inputs: Vec<NodeId>) -> NodeId {
        self.nodes.push(Node { name: name.into(), op, inputs });
        self.nodes.len() - 1
    }

    /// True where there is BatchNorm and none of it has met an image yet: all means are 0, all variances 1.
    pub fn is_untrained(&self) -> bool {
        let mut norms = self.nodes.iter().filter_map(|n| if let Op::BatchNorm(bn) = &n.op { Some(bn) } else { None });
        let fresh = |bn: &BatchNorm| bn.mean.iter().all(|&m| m == 0.0) && bn.var.iter().all(|&v| v == 1.0);
        norms.next().is_some_and(fresh) && norms.all(fresh)
    }

    /// The head and the nodes whose maps enter it, or an error if the graph is no detector.
    pub fn head(&self) -> Result<(&Head, &[NodeId])> {
        match self.nodes.last() {
            Some(Node { op: Op::Head(head), inputs, .. }) => Ok((head, inputs)),
            last => Err(Error::node(
                last.map_or("(empty graph)", |n| n.name.as_str()),
                "the graph does not end in a detection head",
            )),
        }
    }

    /// The readers of every node, in order of their ids.
    pub fn consumers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate() {
            for &i in &node.inputs {
                if readers[i].last() != Some(&id) {
                    readers[i].push(id);
                }
            }
        }
        readers
    }

    /// The node that alone reads `id`, and what it is; `readers` are [`consumers`](Self::consumers).
    pub fn only_reader(&self, readers: &[Vec<NodeId>], id: NodeId) -> Option<(NodeId, &Op)> {
        match readers[id][..] {
            [only] => Some((only, &self.nodes[only].op)),
            _ => None,
        }
    }

    /// The BatchNorm that alone reads convolution `id`, and so can become part of it; `readers` are
    /// [`consumers`](Self::consumers).
    pub(crate) fn norm_behind(&self, readers: &[Vec<NodeId>], id: NodeId) -> Option<&BatchNorm> {
        match (&self.nodes[id].op, self.only_reader(readers, id)) {
            (Op::Conv(_), Some((_, Op::BatchNorm(norm)))) => Some(norm),
            _ => None,
        }
    }

    /// The graph without the nodes for which `instead` names an earlier one, which their readers read from then on.
    pub(crate) fn without(&self, instead: impl Fn(NodeId) -> Option<NodeId>) -> Self {
        let mut number = vec![0; self.nodes.len()];
        let mut graph = Self { nodes: vec![], meta: self.meta.clone() };
        for (id, node) in self.nodes.iter().enumerate() {
            if let Some(other) = instead(id) {
                number[id] = number[other];
                continue;
            }
            number[id] = graph.nodes.len();
            let mut node = node.clone();
            node.inputs.iter_mut().for_each(|input| *input = number[*input]);
            graph.nodes.push(node);
        }
        graph
    }

    /// Shape of every node's output for an input of `imgsz` = (H, W) pixels; the head's is (0, 0, 0).
    ///
    /// # Errors
    /// Names the first node that does not fit its inputs or its weights.
    pub fn shapes(&self, imgsz: [usize; 2]) -> Result<Vec<Shape>> {
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.nodes.len());
        let mut channels = 0;
        for (id, node) in self.nodes.iter().enumerate() {
            if let Some(&late) = node.inputs.iter().find(|&&i| i >= id) {
                return Err(Error::node(&node.name, format!("reads node {late}, which comes after it")));
            }
            let inputs: Vec<Shape> = node.inputs.iter().map(|&i| shapes[i]).collect();
            let shape = infer(&node.op, &inputs, imgsz).map_err(|what| Error::node(&node.name, what))?;
            channels += shape.c;
            if channels > MAX_CHANNELS_IN_ALL {
                return Err(Error::node(&node.name, format!("here the maps have {channels} channels in all"))
                    .hint("no detector has as many; the file is damaged or built to harm"));
            }
            shapes.push(shape);
        }
        Ok(shapes)
    }

    /// Checks everything a loader or surgery can get wrong: order, unique names, shapes against weights, finite weights,
    /// class names against the head, and that the image is RGB and of a size that images have.
    ///
    /// # Errors
    /// Names the first node that is wrong.
    pub fn validate(&self) -> Result<()> {
        let mut names = std::collections::HashSet::new();
        for (id, node) in self.nodes.iter().enumerate() {
            if !names.insert(&node.name) {
                return Err(Error::node(&node.name, "two nodes have this name"));
            }
            if (id == 0) != matches!(node.op, Op::Input { .. }) {
                return Err(Error::node(&node.name, "a graph has one input node, its first"));
            }
            for (what, values) in node.op.weights() {
                if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
                    return Err(Error::node(&node.name, format!("`{what}` holds {} at index {bad}", values[bad]))
                        .hint("the file is damaged or training diverged; load an earlier checkpoint"));
                }
            }
            let [h, w] = self.meta.imgsz;
            match &node.op {
                Op::Input { channels } if *channels != 3 => {
                    return Err(Error::node(&node.name, format!("an image has {channels} channels"))
                        .hint("only detectors of RGB images are known"));
                }
                Op::Input { .. } if ![h, w].iter().all(|side| (1..=MAX_IMGSZ).contains(side)) => {
                    return Err(Error::node(&node.name, format!("an image is {h}x{w} pixels"))
                        .hint(format!("a side is 1 to {MAX_IMGSZ} pixels long")));
                }
                Op::Head(_) if id + 1 < self.nodes.len() => {
                    return Err(Error::node(&node.name, "a detector has one head, its last node"));
                }
                Op::BatchNorm(bn) => {
                    if let Some(bad) = bn.var.iter().position(|v| v + bn.eps <= 0.0) {
                        let what = format!("`running_var` holds {} at index {bad}", bn.var[bad]);
                        return Err(Error::node(&node.name, what).hint("a variance is 0 or more; the file is damaged"));
                    }
                }
                _ => {}
            }
        }
        self.shapes(self.meta.imgsz)?;
        if let Ok((head, _)) = self.head()
            && head.classes() != self.meta.names.len()
        {
            return Err(Error::node(
                &self.nodes[self.nodes.len() - 1].name,
                format!("the head has {} classes, {} names are given", head.classes(), self.meta.names.len()),
            ));
        }
        Ok(())
    }

    /// Makes every weight and running statistic `own` times what it is plus `share` times what it is in `other`.
    ///
    /// # Panics
    /// If `other` has other weights.
    pub fn mix(&mut self, own: f32, other: &Self, share: f32) {
        assert_eq!(self.nodes.len(), other.nodes.len(), "the other is another model");
        for (mine, theirs) in self.nodes.iter_mut().zip(&other.nodes) {
            for ((_, a), (name, b)) in mine.op.weights_mut().into_iter().zip(theirs.op.weights()) {
                assert_eq!(a.len(), b.len(), "`{}.{name}` differs in size", theirs.name);
                a.iter_mut().zip(b).for_each(|(a, b)| *a = own * *a + share * b);
            }
        }
    }
}

impl Op {
    /// Every weight vector with its name within the node, in a fixed order.
    pub fn weights(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Conv(c) => {
                let mut all = vec![("weight", c.weight.data.as_slice())];
                all.extend(c.bias.as_deref().map(|b| ("bias", b)));
                all
            }
            Self::BatchNorm(b) => vec![
                ("weight", b.gamma.as_slice()),
                ("bias", b.beta.as_slice()),
                ("running_mean", b.mean.as_slice()),
                ("running_var", b.var.as_slice()),
            ],
            _ => vec![],
        }
    }

    /// The same, to be changed: training's and surgery's door to the weights.
    pub fn weights_mut(&mut self) -> Vec<(&'static str, &mut Vec<f32>)> {
        match self {
            Self::Conv(c) => {
                let mut all = vec![("weight", &mut c.weight.data)];
                all.extend(c.bias.as_mut().map(|b| ("bias", b)));
                all
            }
            Self::BatchNorm(b) => vec![
                ("weight", &mut b.gamma),
                ("bias", &mut b.beta),
                ("running_mean", &mut b.mean),
                ("running_var", &mut b.var),
            ],
            _ => vec![],
        }
    }
}

impl Op {
    /// The weights an optimiser may change, in the order of [`Op::weights`]: all but the running statistics.
    pub fn trainable_mut(&mut self) -> Vec<(&'static str, &mut Vec<f32>)> {
        let mut all = self.weights_mut();
        all.retain(|(name, _)| !name.starts_with("running_"));
        all
    }

    /// [`Op::trainable_mut`], to be read.
    pub fn trainable(&self) -> Vec<(&'static str, &[f32])> {
        let mut all = self.weights();
        all.retain(|(name, _)| !name.starts_with("running_"));
        all
    }
}

/// Shape of what `op` makes of maps of the shapes `inputs`, or why it cannot be.
pub(crate) fn infer(op: &Op, inputs: &[Shape], imgsz: [usize; 2]) -> Result<Shape, String> {
    let shape = apply(op, inputs, imgsz)?;
    if shape.c > MAX_CHANNELS || shape.c.saturating_mul(shape.h).saturating_mul(shape.w) > MAX_VALUES {
        return Err(format!("makes a map of {shape}; at most it has {MAX_CHANNELS} channels and {MAX_VALUES} values"));
    }
    Ok(shape)
}

/// Saturates where numbers from a hostile file overflow: the sum is then too large for anything it is compared with.
fn apply(op: &Op, inputs: &[Shape], imgsz: [usize; 2]) -> Result<Shape, String> {
    let arity = match op {
        Op::Input { .. } => 0,
        Op::Concat | Op::Add => inputs.len().max(1),
        Op::Head(h) => {
            check(h)?;
            h.inputs()
        }
        _ => 1,
    };
    if inputs.len() != arity {
        return Err(format!("takes {arity} inputs, got {}", inputs.len()));
    }
    let one = inputs.first().copied().unwrap_or(Shape { c: 0, h: 0, w: 0 });
    match op {
        Op::Input { channels } => Ok(Shape { c: *channels, h: imgsz[0], w: imgsz[1] }),
        Op::Conv(conv) => {
            let [o, i, kh, kw] = conv.weight.shape[..] else {
                return Err(format!("weight has shape {:?}, not (O, I, KH, KW)", conv.weight.shape));
            };
            if conv.weight.is_empty() {
                return Err(format!("weight has shape {:?}, no values", conv.weight.shape));
            }
            if conv.pad.iter().any(|&n| n > MAX_WINDOW) {
                return Err(format!("pads by {:?}, by {MAX_WINDOW} at most can be", conv.pad));
            }
            if conv.groups == 0 || o % conv.groups != 0 || conv.stride.contains(&0) {
                return Err(format!("{o} filters in {} groups with stride {:?}", conv.groups, conv.stride));
            }
            let expected = i.saturating_mul(conv.groups);
            if expected != one.c {
                return Err(format!("weight expects {expected} channels, the input has {}", one.c));
            }
            if let Some(b) = conv.bias.as_ref().filter(|b| b.len() != o) {
                return Err(format!("{} biases for {o} filters", b.len()));
            }
            let h = window(one.h, kh, conv.stride[0], conv.pad[0].saturating_mul(2))?;
            let w = window(one.w, kw, conv.stride[1], conv.pad[1].saturating_mul(2))?;
            Ok(Shape { c: o, h, w })
        }
        Op::BatchNorm(bn) => {
            for (name, v) in op.weights() {
                if v.len() != one.c {
                    return Err(format!("`{name}` has {} values, the input {} channels", v.len(), one.c));
                }
            }
            if bn.eps <= 0.0 || !bn.eps.is_finite() {
                return Err(format!("eps is {}", bn.eps));
            }
            if !(0.0..=1.0).contains(&bn.momentum) {
                return Err(format!("momentum is {}", bn.momentum));
            }
            Ok(one)
        }
        Op::Act(_) => Ok(one),
        Op::Concat => {
            if let Some(odd) = inputs.iter().find(|s| (s.h, s.w) != (one.h, one.w)) {
                return Err(format!("joins maps of {}x{} and {}x{}", one.h, one.w, odd.h, odd.w));
            }
            Ok(Shape { c: inputs.iter().fold(0, |sum, s| sum.saturating_add(s.c)), ..one })
        }
        Op::Add => match inputs.iter().find(|s| **s != one) {
            Some(odd) => Err(format!("adds {one} and {odd}")),
            None => Ok(one),
        },
        Op::Upsample { factor } if !(1..=MAX_FACTOR).contains(factor) => Err(format!("upsamples by {factor}")),
        Op::Upsample { factor } => {
            Ok(Shape { c: one.c, h: one.h.saturating_mul(*factor), w: one.w.saturating_mul(*factor) })
        }
        Op::PixelShuffle { factor } => {
            let phases = factor.saturating_mul(*factor);
            if phases == 0 || *factor > MAX_FACTOR || one.c == 0 || !one.c.is_multiple_of(phases) {
                return Err(format!("makes one channel of every {factor} x {factor}, the input has {}", one.c));
            }
            Ok(Shape { c: one.c / phases, h: one.h.saturating_mul(*factor), w: one.w.saturating_mul(*factor) })
        }
        Op::MaxPool(p) => {
            let pad = p.pad[0].saturating_add(p.pad[1]);
            if p.stride == 0 || p.kernel > MAX_WINDOW || p.pad.iter().any(|&x| x >= p.kernel) {
                return Err(format!("pools with kernel {}, stride {}, pad {:?}", p.kernel, p.stride, p.pad));
            }
            Ok(Shape {
                c: one.c,
                h: window(one.h, p.kernel, p.stride, pad)?,
                w: window(one.w, p.kernel, p.stride, pad)?,
            })
        }
        Op::Slice { start, len } => {
            let end = start.saturating_add(*len);
            if *len == 0 || end > one.c {
                return Err(format!("takes channels {start}..{end} of {}", one.c));
            }
            Ok(Shape { c: *len, ..one })
        }
        Op::Attention(a) => {
            let expected = a.heads.saturating_mul(a.head_channels());
            let positions = one.h.saturating_mul(one.w);
            if a.areas == 0
                || !positions.is_multiple_of(a.areas)
                || positions.saturating_mul(positions / a.areas) > MAX_VALUES
            {
                return Err(format!("attends over {} areas of a map of {}x{}", a.areas, one.h, one.w));
            }
            if a.heads == 0 || a.key == 0 || a.value == 0 || expected != one.c {
                return Err(format!(
                    "{} heads of 2 x {} + {} channels attend over a map of {}",
                    a.heads, a.key, a.value, one.c
                ));
            }
            Ok(Shape { c: a.heads * a.value, ..one })
        }
        Op::Head(head) => {
            for (i, s) in inputs.iter().enumerate() {
                let want = head.input_channels(i);
                if s.c != want {
                    return Err(format!("input {i} has {} channels, the head needs {want}", s.c));
                }
                let stride = head.input_stride(i);
                if s.h.saturating_mul(stride) != imgsz[0] || s.w.saturating_mul(stride) != imgsz[1] {
                    return Err(format!(
                        "input {i} is {}x{} at stride {stride}, the image {}x{}",
                        s.h, s.w, imgsz[0], imgsz[1]
                    ));
                }
            }
            Ok(Shape { c: 0, h: 0, w: 0 })
        }
    }
}

/// Heads come from files: what they index with must be there, and what they multiply with be a number.
fn check(head: &Head) -> Result<(), String> {
    if head.strides().is_empty() {
        return Err("has no levels".into());
    }
    if head.classes() == 0 {
        return Err("has no classes".into());
    }
    match head {
        Head::Anchor(h) => {
            for level in &h.levels {
                if level.anchors.is_empty() {
                    return Err(format!("has no anchors at stride {}", level.stride));
                }
                if let Some([x, y]) = level.anchors.iter().find(|a| !a.iter().all(|&side| is_length(side))) {
                    return Err(format!("an anchor is {x} x {y} pixels"));
                }
                match level.decode {
                    BoxDecode::Darknet { scale_xy } | BoxDecode::DarknetNew { scale_xy } if !is_length(scale_xy) => {
                        return Err(format!("centres are scaled by {scale_xy}"));
                    }
                    _ => {}
                }
            }
            Ok(())
        }
        Head::Dfl(h) => {
            if h.reg_max == 0 {
                return Err("tells sides by distributions over no bins".into());
            }
            if h.one_to_many && (!h.end_to_end || h.extra.is_some()) {
                return Err("has one-to-many branches, which only end-to-end heads of boxes and classes have".into());
            }
            match h.extra {
                Some(Extra::Keypoints { points, values }) if points == 0 || !(2..=3).contains(&values) => Err(format!(
                    "tells {points} keypoints of {values} values, of which there are x, y and how visible it is"
                )),
                Some(Extra::Masks { prototypes: 0 }) => Err("makes masks of no prototypes".into()),
                _ => Ok(()),
            }
        }
        Head::Yolox(_) => Ok(()),
    }
}

/// Whether it can be a length in pixels or a scale of such: above 0, and no longer than any image.
pub(crate) fn is_length(value: f32) -> bool {
    value > 0.0 && value <= MAX_IMGSZ as f32
}

fn window(size: usize, kernel: usize, stride: usize, pad: usize) -> Result<usize, String> {
    match size.saturating_add(pad).checked_sub(kernel) {
        Some(free) if kernel > 0 => Ok(free / stride + 1),
        _ => Err(format!("a window of {kernel} does not fit {size} pixels with {pad} of padding")),
    }
}
