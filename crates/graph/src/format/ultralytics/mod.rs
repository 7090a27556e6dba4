//! Checkpoints of YOLOv5 and of everything Ultralytics builds after it: the module tree a `.pt` file records, turned into a graph.
//!
//! Everything is read from the modules themselves (weights, strides, routes), nothing from a table of model sizes, so a
//! pruned or customised checkpoint loads like any other. Nodes are named after the modules' paths; what a block computes
//! between its modules is named within it: `model.2.cat`, `model.2.m.0.add`.

mod attention;
mod blocks;
mod elan;
mod head;
mod layers;
mod merge;
mod save;

use std::collections::HashMap;
use std::path::Path;

use super::pickle::{Id, Ref, Value};
use super::torch::Checkpoint;
use crate::graph::{MAX_CHANNELS, MAX_IMGSZ, infer};
use crate::{Conv, Error, Family, Graph, Meta, Node, NodeId, Op, Result, Shape};

pub use save::{Written, save, to_bytes};

/// Deepest nesting of modules; real detectors stay below ten.
const MAX_DEPTH: usize = 64;
/// Most modules entered; the largest real detectors have under a thousand.
const MAX_MODULES: usize = 100_000;
/// Most weights that modules without any become in all (means, zero padding); real detectors have under 20,000.
const MAX_MADE: usize = 1 << 20;
/// Image size where a checkpoint names none.
const IMGSZ: usize = 640;

/// Reads a checkpoint.
///
/// # Errors
/// See [`Checkpoint::open`]; a module the graph has no operators for; a tensor that does not fit its module.
pub(super) fn load(path: &Path) -> Result<Graph> {
    graph(&Checkpoint::open(path)?)
}

/// The graph of an opened checkpoint; not validated yet.
pub(super) fn graph(file: &Checkpoint) -> Result<Graph> {
    let model = model(file)?;
    let layers = model
        .attr("_modules")
        .and_then(|m| m.key("model"))
        .and_then(children)
        .filter(|layers| !layers.is_empty())
        .ok_or_else(|| file.error("model", "has no list of layers, so it is no YOLO model"))?;

    let meta = Meta { family: Family::Other, names: vec![], imgsz: [IMGSZ, IMGSZ] };
    let mut build = Build {
        file,
        model,
        graph: Graph::new(meta, 3),
        owners: HashMap::new(),
        entered: 0,
        made: 0,
        depth: 0,
        tells: None,
        shapes: vec![],
        splits: HashMap::new(),
    };
    let mut outputs: Vec<NodeId> = Vec::with_capacity(layers.len());
    let last = layers.len() - 1;
    for (i, (key, layer)) in layers.into_iter().enumerate() {
        let path = format!("model.{key}");
        let inputs = route(file, layer, &path, &outputs)?;
        if i == last {
            build.head(layer, &path, &inputs)?;
        } else {
            outputs.push(build.module(layer, &path, &inputs)?);
        }
    }
    let mut graph = build.graph;
    let (classes, strides) = (graph.head()?.0.classes(), graph.head()?.0.strides());
    // Before names are made for them: the number is the file's, and whether the maps have as many channels is seen later.
    if classes > MAX_CHANNELS {
        return Err(file.error(&graph.nodes[graph.nodes.len() - 1].name, format!("has {classes} classes")));
    }
    graph.meta.names = names(model, classes);
    graph.meta.imgsz = imgsz(file, model, &strides);
    Ok(graph)
}

/// The module to load: the averaged weights (EMA) where there are any, as inference uses them.
fn model(file: &Checkpoint) -> Result<Ref<'_>> {
    let root = file.root();
    let found = ["ema", "model"].iter().filter_map(|k| root.key(k)).find(|m| !m.is_none()).unwrap_or(root);
    match found.value() {
        Value::Object { .. } => Ok(found),
        Value::Dict(_) => Err(file
            .error("model", "holds weights by name (a state dict), not the modules they belong to")
            .hint("give the checkpoint the training wrote (best.pt, last.pt), which holds the whole model")),
        _ => Err(file.error("model", "is no module").hint("give a detector's training checkpoint")),
    }
}

/// Submodules of a module with their names, in order.
fn children(module: Ref<'_>) -> Option<Vec<(String, Ref<'_>)>> {
    let name = |k: Ref<'_>| k.str().map(str::to_owned).or_else(|| k.int().map(|i| i.to_string()));
    module.attr("_modules")?.pairs()?.filter(|(_, m)| !m.is_none()).map(|(k, m)| Some((name(k)?, m))).collect()
}

/// Nodes a top-level layer reads, from its `f`: one index or a list, -1 the layer before, other negatives counted from
/// the layer itself.
fn route(file: &Checkpoint, layer: Ref<'_>, path: &str, outputs: &[NodeId]) -> Result<Vec<NodeId>> {
    let from = match layer.attr("f") {
        None => vec![Some(-1)],
        Some(f) => f.items().map_or_else(|| vec![f.int()], |list| list.map(Ref::int).collect()),
    };
    let resolve = |j: Option<i64>| {
        let absolute = match j? {
            -1 if outputs.is_empty() => return Some(0),
            j if j < 0 => outputs.len().checked_sub(usize::try_from(j.checked_neg()?).ok()?)?,
            j => usize::try_from(j).ok()?,
        };
        outputs.get(absolute).copied()
    };
    from.iter()
        .map(|&j| {
            let told = j.map_or("something that is no number".into(), |j| format!("layer {j}"));
            resolve(j).ok_or_else(|| file.error(path, format!("reads {told}, {} layers come before it", outputs.len())))
        })
        .collect()
}

/// Class names from `names`, a list or a dict by index; `class 0`, ... for any that is missing.
fn names(model: Ref<'_>, classes: usize) -> Vec<String> {
    let mut names: Vec<String> = (0..classes).map(|i| format!("class {i}")).collect();
    let Some(given) = model.attr("names") else { return names };
    let mut set = |i: Option<usize>, name: Ref<'_>| {
        if let (Some(slot), Some(name)) = (i.and_then(|i| names.get_mut(i)), name.str()) {
            *slot = name.to_owned();
        }
    };
    if let Some(list) = given.items() {
        list.enumerate().for_each(|(i, name)| set(Some(i), name));
    } else if let Some(pairs) = given.pairs() {
        pairs.for_each(|(i, name)| set(i.index(), name));
    }
    names
}

/// Image size (H, W) of the training arguments, rounded up to whole cells of the coarsest level as training does.
fn imgsz(file: &Checkpoint, model: Ref<'_>, strides: &[usize]) -> [usize; 2] {
    let root = file.root();
    let places = [model.attr("args"), root.key("train_args"), root.key("opt"), model.attr("hyp")];
    let look = |place: Ref<'_>| {
        let given = place.key("imgsz").or_else(|| place.attr("imgsz"))?;
        let size = match given.array::<2>() {
            Some([h, w]) => [h.index()?, w.index()?],
            None => [given.index()?; 2],
        };
        size.iter().all(|s| (1..=MAX_IMGSZ).contains(s)).then_some(size)
    };
    let size = places.into_iter().flatten().find_map(look).unwrap_or([IMGSZ, IMGSZ]);
    let cell = strides.iter().copied().max().unwrap_or(1);
    size.map(|s| s.next_multiple_of(cell))
}

/// The family a block came with; `None` for those that all have.
fn family_of(block: &str) -> Option<Family> {
    match block {
        // Of the families before YOLOv8's blocks the only one that learns how to enlarge a map.
        "ConvTranspose2d" | "PixelShuffle" => Some(Family::Yolov6),
        "C3" | "C2f" => Some(Family::Yolov8),
        "ELAN1" | "RepNCSPELAN4" | "AConv" | "ADown" | "SPPELAN" => Some(Family::Yolov9),
        "SCDown" | "C2fCIB" => Some(Family::Yolov10),
        "C3k2" | "C2PSA" => Some(Family::Yolo11),
        "A2C2f" => Some(Family::Yolo12),
        _ => None,
    }
}

/// A graph being built from the modules of one checkpoint.
struct Build<'a> {
    file: &'a Checkpoint,
    model: Ref<'a>,
    graph: Graph,
    /// Path under which each module with weights was first met: a second meeting would untie shared weights.
    owners: HashMap<Id, String>,
    entered: usize,
    made: usize,
    depth: usize,
    /// The newest family one of the blocks met so far came with; all of them share their head.
    tells: Option<Family>,
    /// Shapes of the first nodes, as far as one was asked for; see [`Build::shape`].
    shapes: Vec<Shape>,
    /// How the channels of a `CBLinear` are to be cut, by its node.
    splits: HashMap<NodeId, Vec<usize>>,
}

impl<'a> Build<'a> {
    fn error(&self, path: &str, what: impl Into<String>) -> Error {
        self.file.error(path, what)
    }

    /// Adds what a module computes from `inputs` and returns the node of its output.
    fn module(&mut self, module: Ref<'a>, path: &str, inputs: &[NodeId]) -> Result<NodeId> {
        self.entered += 1;
        if self.depth == MAX_DEPTH || self.entered > MAX_MODULES {
            return Err(self.error(path, "modules are nested deeper, or are more, than in any detector"));
        }
        self.depth += 1;
        let (_, class) = self.class(module, path)?;
        let node = match class {
            "Concat" => self.concat(module, path, inputs),
            "CBFuse" => self.cb_fuse(module, path, inputs),
            _ => self.single(module, path, inputs),
        };
        self.depth -= 1;
        node
    }

    /// Adds a convolution; the first to read the image says how many channels it has.
    fn convolution(&mut self, name: impl Into<String>, conv: Conv, x: NodeId) -> NodeId {
        if self.graph.nodes.len() == 1 {
            let channels = conv.weight.shape[1].saturating_mul(conv.groups);
            self.graph.nodes[0].op = Op::Input { channels };
        }
        self.graph.push(name, Op::Conv(conv), vec![x])
    }

    /// Counts weights that the file does not hold, before they are made: its concats say how many, at no cost to the file.
    fn make(&mut self, path: &str, weights: usize) -> Result<()> {
        self.made += weights;
        if self.made > MAX_MADE {
            return Err(self.error(path, format!("would be a convolution of {weights} weights")));
        }
        Ok(())
    }

    /// Shape of a node's map for images of [`IMGSZ`] pixels.
    fn shape(&mut self, node: NodeId) -> Result<Shape> {
        for id in self.shapes.len()..=node {
            let Node { name, op, inputs } = &self.graph.nodes[id];
            let inputs: Vec<Shape> = inputs.iter().map(|&i| self.shapes[i]).collect();
            let shape = infer(op, &inputs, [IMGSZ, IMGSZ]).map_err(|what| self.file.error(name, what))?;
            self.shapes.push(shape);
        }
        Ok(self.shapes[node])
    }

    /// A module of one input.
    fn single(&mut self, module: Ref<'a>, path: &str, inputs: &[NodeId]) -> Result<NodeId> {
        let &[x] = inputs else {
            return Err(self.error(path, format!("reads {} layers, it can take one", inputs.len())));
        };
        let (home, class) = self.class(module, path)?;
        self.tells = self.tells.max(family_of(class));
        match class {
            "Conv" | "DWConv" => self.conv_block(module, path, x),
            "Bottleneck" | "CrossConv" => self.bottleneck(module, path, x),
            "C3" | "C3x" | "C3k" | "C3SPP" => self.c3(module, path, x),
            "C2f" | "C3k2" | "C2fCIB" => self.c2f(module, path, x),
            "RepCSP" => self.c3(module, path, x),
            "RepBottleneck" => self.bottleneck(module, path, x),
            "RepConv" => self.merged(module, path, &["conv", "conv1", "conv2"], x),
            "ELAN1" | "RepNCSPELAN4" => self.elan(module, path, x),
            "AConv" => self.a_conv(module, path, x),
            "ADown" => self.a_down(module, path, x),
            "SPPELAN" => self.spp_elan(module, path, x),
            "CBLinear" => self.cb_linear(module, path, x),
            "Proto" => self.proto(module, path, x),
            "SCDown" => self.pair_of(module, path, x),
            "CIB" => self.cib(module, path, x),
            "RepVGGDW" => self.merged(module, path, &["conv", "conv1"], x),
            "PSA" => self.psa(module, path, x),
            "A2C2f" => self.a2c2f(module, path, x),
            "ABlock" => self.a_block(module, path, x),
            "AAttn" => self.area_attention(module, path, x),
            "C2PSA" => self.c2psa(module, path, x),
            "PSABlock" => self.psa_block(module, path, x),
            "Attention" => self.attention(module, path, x),
            "SPP" => self.spp(module, path, x),
            "SPPF" => self.sppf(module, path, x),
            "Focus" => self.focus(module, path, x),
            "Sequential" => self.chain(module, path, x),
            "Conv2d" => self.conv2d(module, path, x),
            "BatchNorm2d" => self.batch_norm(module, path, x),
            "MaxPool2d" => self.max_pool(module, path, x),
            "ConvTranspose2d" => self.conv_transpose(module, path, x),
            "PixelShuffle" => self.pixel_shuffle(module, path, x),
            "ZeroPad2d" => self.zero_pad(module, path, x),
            "Upsample" => self.upsample(module, path, x),
            // Dropout does nothing once training is over.
            "Identity" | "Dropout" | "Dropout2d" => Ok(x),
            _ => match self.activation(module, class, path)? {
                Some(act) => Ok(self.graph.push(path, Op::Act(act), vec![x])),
                None => Err(self
                    .error(path, format!("is a `{home}.{class}`, which the graph has no operators for"))
                    .hint("known are the blocks of YOLOv5 and YOLOv8 to YOLO26 and plain layers")),
            },
        }
    }

    /// (module, name) of a module's class.
    fn class(&self, module: Ref<'a>, path: &str) -> Result<(&'a str, &'a str)> {
        module.class().ok_or_else(|| self.error(path, "is no module"))
    }

    /// A submodule that must be there.
    fn child(&self, module: Ref<'a>, path: &str, name: &str) -> Result<Ref<'a>> {
        self.optional(module, name).ok_or_else(|| self.error(path, format!("has no submodule `{name}`")))
    }

    /// A submodule, where there is one.
    fn optional(&self, module: Ref<'a>, name: &str) -> Option<Ref<'a>> {
        module.attr("_modules")?.key(name).filter(|m| !m.is_none())
    }

    /// Submodules of a list or sequence.
    fn children(&self, module: Ref<'a>, path: &str) -> Result<Vec<(String, Ref<'a>)>> {
        children(module).ok_or_else(|| self.error(path, "has no list of submodules"))
    }

    /// Runs submodule `name` on one input.
    fn sub(&mut self, module: Ref<'a>, path: &str, name: &str, x: NodeId) -> Result<NodeId> {
        let child = self.child(module, path, name)?;
        self.module(child, &format!("{path}.{name}"), &[x])
    }
}
