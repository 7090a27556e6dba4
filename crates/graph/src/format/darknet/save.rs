//! Writing a graph as Darknet files, where Darknet's layers can say what the graph computes.

use std::fmt::Write as _;
use std::path::Path;

use super::{names, weights::statistics};
use crate::format::write_whole;
use crate::{Act, AnchorHead, AnchorLevel, BoxDecode, Conv, Error, Graph, Head, MaxPool, NodeId, Op, Result};

/// Writes `graph` as `cfg`, a `.weights` (version 0.2.5) and a `.names` of the same name beside it; each whole or not at
/// all, the `.cfg` last. What [`super::super::load`] reads back computes the same, bit for bit where every BatchNorm has
/// Darknet's eps and no bias before it.
///
/// # Errors
/// Darknet has no layer for a node (names it), the graph is invalid, or a file cannot be written.
pub fn save(graph: &Graph, cfg: &Path) -> Result<()> {
    graph.validate()?;
    let names = names::text(graph)?;
    let mut writer = Writer::new(graph)?;
    for id in 1..graph.nodes.len() - 1 {
        if writer.layer_of[id].is_none() {
            writer.node(id)?;
            writer.yolos(false)?;
        }
    }
    writer.yolos(true)?;
    write_whole(&cfg.with_extension("weights"), &writer.weights)?;
    write_whole(&cfg.with_extension("names"), names.as_bytes())?;
    write_whole(cfg, writer.cfg.as_bytes())
}

struct Writer<'a> {
    graph: &'a Graph,
    readers: Vec<Vec<NodeId>>,
    head: &'a AnchorHead,
    maps: &'a [NodeId],
    /// Every anchor of the head once, by area, as Darknet's own files have them.
    anchors: Vec<[f32; 2]>,
    cfg: String,
    weights: Vec<u8>,
    /// Layers written.
    layers: usize,
    /// The layer whose output each node's is; the image is none.
    layer_of: Vec<Option<usize>>,
    /// The node the next layer reads if nothing is said; none after a `[yolo]`.
    current: Option<NodeId>,
    /// Levels of the head that have their `[yolo]`.
    levels: usize,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a Graph) -> Result<Self> {
        let (head, maps) = graph.head()?;
        let name = &graph.nodes[graph.nodes.len() - 1].name;
        let refuse = |what: &str| {
            Error::node(name, format!("Darknet cannot decode boxes as {what} does"))
                .hint("only detectors of Darknet's families can be written as one; export ONNX instead")
        };
        let head = match head {
            Head::Anchor(head) => head,
            Head::Dfl(_) => return Err(refuse("YOLOv8")),
            Head::Yolox(_) => return Err(refuse("YOLOX")),
        };
        if head.levels.iter().any(|l| l.decode == BoxDecode::V5) {
            return Err(refuse("YOLOv5"));
        }
        let mut anchors: Vec<[f32; 2]> = head.levels.iter().flat_map(|l| l.anchors.iter().copied()).collect();
        anchors.sort_by(|a, b| (a[0] * a[1]).total_cmp(&(b[0] * b[1])).then(a[0].total_cmp(&b[0])));
        anchors.dedup();
        let Op::Input { channels } = graph.nodes[0].op else {
            return Err(Error::node(&graph.nodes[0].name, "the graph does not begin with its input"));
        };
        let [height, width] = graph.meta.imgsz;
        let cfg = format!("[net]\nbatch=1\nsubdivisions=1\nwidth={width}\nheight={height}\nchannels={channels}\n");
        // Version 0.2.5, no images seen.
        let mut weights: Vec<u8> = [0_i32, 2, 5].iter().flat_map(|v| v.to_le_bytes()).collect();
        weights.extend(0_u64.to_le_bytes());
        let layer_of = vec![None; graph.nodes.len()];
        let readers = graph.consumers();
        Ok(Self { graph, readers, head, maps, anchors, cfg, weights, layers: 0, layer_of, current: Some(0), levels: 0 })
    }

    /// Writes one layer that ends in `node`.
    fn layer(&mut self, node: NodeId, text: &str) {
        self.cfg.push('\n');
        self.cfg.push_str(text);
        self.layer_of[node] = Some(self.layers);
        self.current = Some(node);
        self.layers += 1;
    }

    /// The number of `node`'s layer, counted back from the next one.
    fn back(&self, node: NodeId, reader: NodeId) -> Result<String> {
        let layer = self.layer_of[node].ok_or_else(|| {
            self.refuse(reader, format!("reads `{}`, which no Darknet layer can name", self.graph.nodes[node].name))
        })?;
        Ok(format!("-{}", self.layers - layer))
    }

    fn refuse(&self, node: NodeId, what: impl Into<String>) -> Error {
        Error::node(&self.graph.nodes[node].name, what.into()).hint("export ONNX instead")
    }

    /// Makes `node` what the next layer reads, by a route where it is not already.
    fn read(&mut self, node: NodeId, reader: NodeId) -> Result<()> {
        if self.current != Some(node) {
            let text = format!("[route]\nlayers={}\n", self.back(node, reader)?);
            let layer = self.layer_of[node];
            self.layer(node, &text);
            self.layer_of[node] = layer;
        }
        Ok(())
    }

    /// The node's only reader, where it can be part of the same layer.
    fn sole_reader(&self, id: NodeId) -> Option<NodeId> {
        match self.readers[id][..] {
            [reader] if self.graph.nodes[reader].inputs.len() == 1 => Some(reader),
            _ => None,
        }
    }

    /// The activation that follows `id` in the same layer: its Darknet name, and the node the layer then ends in.
    fn activation(&self, id: NodeId) -> (&'static str, NodeId) {
        let next = self.sole_reader(id);
        match next.map(|n| (n, &self.graph.nodes[n].op)) {
            Some((n, Op::Act(act))) => (act_name(*act), n),
            _ => ("linear", id),
        }
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        let node = &self.graph.nodes[id];
        match &node.op {
            Op::Conv(conv) => self.convolution(id, conv),
            Op::MaxPool(pool) => {
                let text = maxpool(pool).map_err(|what| self.refuse(id, what))?;
                self.read(node.inputs[0], id)?;
                self.layer(id, &text);
                Ok(())
            }
            Op::Upsample { factor } => {
                self.read(node.inputs[0], id)?;
                self.layer(id, &format!("[upsample]\nstride={factor}\n"));
                Ok(())
            }
            Op::Concat => {
                let layers: Result<Vec<String>> = node.inputs.iter().map(|&i| self.back(i, id)).collect();
                let text = format!("[route]\nlayers={}\n", layers?.join(","));
                self.layer(id, &text);
                Ok(())
            }
            Op::Slice { start, len } => self.slice(id, *start, *len),
            Op::Add => self.shortcut(id),
            Op::BatchNorm(_) => Err(self.refuse(id, "Darknet normalises right after a convolution alone read by it")),
            Op::Act(_) => {
                Err(self.refuse(id, "Darknet's activations follow a convolution or a sum alone read by them"))
            }
            Op::Attention(_) => Err(self.refuse(id, "Darknet has no attention")),
            Op::PixelShuffle { .. } => Err(self.refuse(id, "Darknet has no transposed convolution or pixel shuffle")),
            Op::Input { .. } | Op::Head(_) => Err(self.refuse(id, "stands amid the graph")),
        }
    }

    fn slice(&mut self, id: NodeId, start: usize, len: usize) -> Result<()> {
        let from = self.graph.nodes[id].inputs[0];
        let channels = self.graph.shapes(self.graph.meta.imgsz)?[from].c;
        if !channels.is_multiple_of(len) || !start.is_multiple_of(len) {
            let what = format!("takes channels {start}..{} of {channels}", start + len);
            return Err(Error::node(
                &self.graph.nodes[id].name,
                what + ", Darknet takes one of several equal parts only",
            )
            .hint("export ONNX instead, or prune both halves alike"));
        }
        let (groups, group) = (channels / len, start / len);
        let text = format!("[route]\nlayers={}\ngroups={groups}\ngroup_id={group}\n", self.back(from, id)?);
        self.layer(id, &text);
        Ok(())
    }

    fn shortcut(&mut self, id: NodeId) -> Result<()> {
        let mut inputs = self.graph.nodes[id].inputs.clone();
        // A sum of two is the same either way round.
        if let [first, second] = inputs[..]
            && self.current == Some(second)
            && first != second
        {
            inputs.swap(0, 1);
        }
        self.read(inputs[0], id)?;
        let from: Result<Vec<String>> = inputs[1..].iter().map(|&i| self.back(i, id)).collect();
        let from = from?;
        if from.is_empty() {
            return Err(self.refuse(id, "a sum of one map"));
        }
        let (act, end) = self.activation(id);
        self.layer(end, &format!("[shortcut]\nfrom={}\nactivation={act}\n", from.join(",")));
        self.layer_of[id] = self.layer_of[end];
        Ok(())
    }

    fn convolution(&mut self, id: NodeId, conv: &Conv) -> Result<()> {
        let ([size, w], [pad, pad_x], [stride_y, stride_x]) = (conv.kernel(), conv.pad, conv.stride);
        if size != w || pad != pad_x {
            return Err(
                self.refuse(id, format!("Darknet's convolutions are square, not {size}x{w} with {pad}x{pad_x}"))
            );
        }
        let norm = self.sole_reader(id).and_then(|n| match &self.graph.nodes[n].op {
            Op::BatchNorm(bn) => Some((n, bn)),
            _ => None,
        });
        let (act, end) = self.activation(norm.map_or(id, |(n, _)| n));
        self.read(self.graph.nodes[id].inputs[0], id)?;

        let mut text = String::from("[convolutional]\n");
        if norm.is_some() {
            text.push_str("batch_normalize=1\n");
        }
        let _ = write!(text, "filters={}\nsize={size}\n", conv.out_channels());
        let _ = match stride_x == stride_y {
            true => writeln!(text, "stride={stride_x}"),
            false => write!(text, "stride_x={stride_x}\nstride_y={stride_y}\n"),
        };
        let _ = match pad == size / 2 {
            true => writeln!(text, "pad=1"),
            false => writeln!(text, "padding={pad}"),
        };
        if conv.groups > 1 {
            let _ = writeln!(text, "groups={}", conv.groups);
        }
        let _ = writeln!(text, "activation={act}");
        self.layer(end, &text);
        for node in [Some(id), norm.map(|(n, _)| n)].into_iter().flatten() {
            self.layer_of[node] = self.layer_of[end];
        }

        let bias = conv.bias.clone();
        if let Some((_, bn)) = norm {
            let [gamma, mean, var] = statistics(bn, bias.as_deref());
            [&bn.beta, &gamma, &mean, &var].into_iter().for_each(|v| self.floats(v));
        } else {
            self.floats(&bias.unwrap_or_else(|| vec![0.0; conv.out_channels()]));
        }
        self.floats(&conv.weight.data);
        Ok(())
    }

    fn floats(&mut self, values: &[f32]) {
        self.weights.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }

    /// Writes the `[yolo]`s whose turn it is: those whose map is the last one written, at the end all.
    fn yolos(&mut self, all: bool) -> Result<()> {
        while let Some(level) = self.head.levels.get(self.levels)
            && (all || self.current == Some(self.maps[self.levels]))
        {
            self.read(self.maps[self.levels], self.graph.nodes.len() - 1)?;
            let text = self.yolo(level);
            self.cfg.push_str(&text);
            self.layers += 1;
            self.levels += 1;
            self.current = None;
        }
        Ok(())
    }

    fn yolo(&self, level: &AnchorLevel) -> String {
        let place = |a: &[f32; 2]| self.anchors.iter().position(|b| a == b).unwrap_or_default().to_string();
        let mask: Vec<String> = level.anchors.iter().map(place).collect();
        let sizes: Vec<String> = self.anchors.iter().map(|[w, h]| format!("{w},{h}")).collect();
        let (scale, new) = match level.decode {
            BoxDecode::DarknetNew { scale_xy } => (scale_xy, "new_coords=1\n"),
            BoxDecode::Darknet { scale_xy } => (scale_xy, ""),
            BoxDecode::V5 => unreachable!("refused before anything is written"),
        };
        format!(
            "\n[yolo]\nmask={}\nanchors={}\nclasses={}\nnum={}\nscale_x_y={scale}\n{new}",
            mask.join(","),
            sizes.join(", "),
            self.head.classes,
            sizes.len(),
        )
    }
}

fn maxpool(pool: &MaxPool) -> Result<String, String> {
    let MaxPool { kernel, stride, pad: [before, after] } = *pool;
    let total = before + after;
    if before != total / 2 {
        return Err(format!("pads {before} before and {after} after, Darknet one more after at most"));
    }
    let padding = if total + 1 == kernel { String::new() } else { format!("padding={total}\n") };
    Ok(format!("[maxpool]\nsize={kernel}\nstride={stride}\n{padding}"))
}

fn act_name(act: Act) -> &'static str {
    match act {
        Act::Identity => "linear",
        Act::Silu => "swish",
        Act::Leaky => "leaky",
        Act::Mish => "mish",
        Act::Relu => "relu",
        Act::Relu6 => "relu6",
        Act::Sigmoid => "logistic",
    }
}
