//! `info`: a detector layer by layer.

use std::collections::BTreeMap;
use std::path::Path;

use graph::format::{LoadOptions, load};
use graph::{Conv, Family, Graph, Head, Node, NodeId, Op, cost};
use prune::{Class, Coupling};
use serde::Serialize;

use crate::args::{Info, load_model};
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::family;
use crate::ui::{self, Column, Table};

/// Runs the command.
pub fn run(args: &Info) -> miette::Result<Exit> {
    let untrained = without_weights(args);
    let graph = if untrained {
        load(&args.model, &LoadOptions { untrained: Some(0), ..LoadOptions::default() })?
    } else {
        load_model(&args.model, args.weights.as_deref())?
    };
    let imgsz = match args.imgsz {
        None => graph.meta.imgsz,
        asked => [image_size(&graph, asked)?; 2],
    };
    let summary = Summary { untrained, ..Summary::of(&graph, imgsz, files(args, untrained)?)? };
    if args.json {
        ui::print_json(&summary);
    } else {
        ui::print(summary.table());
    }
    Ok(Exit::Done)
}

/// The sizes of the model's file, or of a Darknet detector's two.
fn files(args: &Info, untrained: bool) -> miette::Result<Files> {
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).map_err(|e| Error::io("read", path, &e));
    let extension = |name: &str| args.model.extension().is_some_and(|e| e.eq_ignore_ascii_case(name));
    let darknet = extension("cfg") || extension("weights");
    if !darknet || untrained {
        return Ok(Files { file_bytes: size(&args.model)?, weights_bytes: None });
    }
    let beside = args.model.with_extension("weights");
    let weights = args.weights.as_ref().unwrap_or(&beside);
    Ok(Files { file_bytes: size(&args.model.with_extension("cfg"))?, weights_bytes: Some(size(weights)?) })
}

/// Whether the model is a Darknet `.cfg` alone: what it costs and how it is coupled needs no weights.
fn without_weights(args: &Info) -> bool {
    let cfg = args.model.extension().is_some_and(|e| e.eq_ignore_ascii_case("cfg"));
    cfg && args.weights.is_none() && args.model.is_file() && !args.model.with_extension("weights").exists()
}

/// Sizes on disk.
#[derive(Debug, Serialize)]
struct Files {
    /// Of the detector's file; of a Darknet detector the `.cfg`.
    file_bytes: u64,
    /// Of a Darknet detector's `.weights`.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights_bytes: Option<u64>,
}

/// What `info --json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    family: Family,
    /// The family as exactly as the structure tells.
    recognised: &'static str,
    /// The file describes a detector and holds no weights.
    untrained: bool,
    classes: Vec<String>,
    /// (height, width) in pixels.
    imgsz: [usize; 2],
    params: u64,
    /// Multiply-accumulates for one image.
    macs: u64,
    /// 2e-9 times `macs`, as YOLO users quote it.
    gflops: f64,
    /// Outputs of convolutions that may be removed, of how many: what `--rate` is a share of.
    prunable_channels: usize,
    channels: usize,
    #[serde(flatten)]
    files: Files,
    layers: Vec<Layer>,
}

/// A convolution with the BatchNorm and activation that follow it, or any other node alone.
#[derive(Debug, Serialize)]
struct Layer {
    name: String,
    op: String,
    /// (C, H, W).
    shape: [usize; 3],
    params: u64,
    macs: u64,
    /// Numbers of the groups of coupled channels it makes; layers that share a number are pruned together.
    group: Vec<usize>,
    /// Of the channels it makes, how many may be removed.
    prunable: usize,
}

impl Summary {
    fn of(graph: &Graph, imgsz: [usize; 2], files: Files) -> miette::Result<Self> {
        let (shapes, costs) = (graph.shapes(imgsz)?, cost::per_node(graph, imgsz)?);
        let coupling = Coupling::of(graph)?;
        let mut layers: Vec<Layer> = vec![];
        // The layer each node belongs to: a BatchNorm or activation joins the convolution it is alone in reading.
        let mut layer_of: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (id, node) in graph.nodes.iter().enumerate() {
            let joined = match (&node.op, &node.inputs[..]) {
                (Op::BatchNorm(_) | Op::Act(_), &[input]) if coupling.readers(input).len() == 1 => {
                    layer_of.get(&input).copied().filter(|_| !matches!(graph.nodes[input].op, Op::Concat | Op::Add))
                }
                _ => None,
            };
            let index = joined.unwrap_or_else(|| {
                let (shape, classes) = (shapes[id], coupling.channels(id));
                layers.push(Layer {
                    name: node.name.clone(),
                    op: String::new(),
                    shape: [shape.c, shape.h, shape.w],
                    params: 0,
                    macs: 0,
                    group: if matches!(node.op, Op::Conv(_)) { coupling.sets_of(id) } else { vec![] },
                    prunable: classes.iter().filter(|&&c| coupling.classes[c].pinned.is_none()).count(),
                });
                layers.len() - 1
            });
            layer_of.insert(id, index);
            let layer = &mut layers[index];
            layer.op = if layer.op.is_empty() { describe(node) } else { format!("{}, {}", layer.op, describe(node)) };
            layer.params += costs[id].params;
            layer.macs += costs[id].macs;
        }
        let total = cost::total(graph, imgsz)?;
        let members = |free: fn(&Class) -> bool| {
            coupling.classes.iter().filter(|class| free(class)).map(|class| class.members.len()).sum()
        };
        Ok(Self {
            family: graph.meta.family,
            recognised: family::name(graph),
            untrained: false,
            classes: graph.meta.names.clone(),
            imgsz,
            params: total.params,
            macs: total.macs,
            gflops: 2e-9 * total.macs as f64,
            prunable_channels: members(|class| class.pinned.is_none()),
            channels: members(|_| true),
            files,
            layers,
        })
    }

    fn table(&self) -> String {
        let mut table = Table::new([
            Column::text("layer").gives_way(),
            Column::text("op").gives_way(),
            Column::number("output"),
            Column::number("params"),
            Column::number("MACs"),
            Column::number("group"),
        ]);
        for layer in &self.layers {
            let [c, h, w] = layer.shape;
            let groups: Vec<String> = layer.group.iter().map(ToString::to_string).collect();
            let group = match (&layer.group[..], layer.prunable) {
                ([], _) => String::new(),
                (_, 0) => "fixed".into(),
                _ => groups.join("+"),
            };
            let blank_zero = |n| if n == 0 { String::new() } else { ui::count(n) };
            let shape = if c == 0 { String::new() } else { format!("{c}×{h}×{w}") };
            let cells =
                [layer.name.clone(), layer.op.clone(), shape, blank_zero(layer.params), blank_zero(layer.macs), group];
            table.row(cells);
        }
        let layers = format!("{} layers", self.layers.len());
        table.total(["total", &layers, "", &ui::count(self.params), &ui::count(self.macs), ""]);
        format!(
            "{table}\n{} · {} classes · {}×{} · {:.2} GFLOPs · {} of {} channels prunable · {}{}\n",
            self.recognised,
            self.classes.len(),
            self.imgsz[0],
            self.imgsz[1],
            self.gflops,
            self.prunable_channels,
            self.channels,
            self.files.told(),
            if self.untrained { " · no weights" } else { "" },
        )
    }
}

impl Files {
    fn told(&self) -> String {
        match self.weights_bytes {
            None => ui::bytes(self.file_bytes),
            Some(weights) => format!("{} and {} of weights", ui::bytes(self.file_bytes), ui::bytes(weights)),
        }
    }
}

/// The operator in a few words.
fn describe(node: &Node) -> String {
    match &node.op {
        Op::Input { .. } => "input".into(),
        Op::Conv(conv) => convolution(conv),
        Op::BatchNorm(_) => "bn".into(),
        Op::Act(act) => format!("{act:?}").to_lowercase(),
        Op::Concat => format!("concat {}", node.inputs.len()),
        Op::Add => "add".into(),
        Op::Upsample { factor } => format!("upsample ×{factor}"),
        Op::PixelShuffle { factor } => format!("shuffle ×{factor}"),
        Op::MaxPool(pool) => format!("maxpool {k}×{k}{}", stride(pool.stride, pool.stride), k = pool.kernel),
        Op::Slice { start, len } => format!("slice {start}..{}", start + len),
        Op::Attention(a) if a.areas > 1 => format!("attention, {} heads, {} areas", a.heads, a.areas),
        Op::Attention(a) => format!("attention, {} heads", a.heads),
        Op::Head(Head::Anchor(head)) => format!("head, {} levels, anchors", head.levels.len()),
        Op::Head(Head::Dfl(head)) => {
            let boxes = if head.reg_max == 1 { "distances" } else { "DFL" };
            let once = if head.end_to_end { ", end to end" } else { "" };
            let extra = head.extra.map_or(String::new(), |extra| format!(", {}", extra.name()));
            format!("head, {} levels, {boxes}{once}{extra}", head.strides.len())
        }
        Op::Head(Head::Yolox(head)) => format!("head, {} levels, anchor-free", head.strides.len()),
    }
}

fn convolution(conv: &Conv) -> String {
    let [h, w] = conv.kernel();
    let kind = if conv.is_depthwise() {
        "dwconv".into()
    } else if conv.groups > 1 {
        format!("conv/{}", conv.groups)
    } else {
        "conv".into()
    };
    format!("{kind} {h}×{w}{}", stride(conv.stride[0], conv.stride[1]))
}

fn stride(h: usize, w: usize) -> String {
    match (h, w) {
        (1, 1) => String::new(),
        _ if h == w => format!(" s{h}"),
        _ => format!(" s{h}×{w}"),
    }
}
