//! Writes a detector as the checkpoint its family's own package loads: YOLOv5's, or that of `ultralytics`.
//!
//! The module tree is made anew from the graph, by the same table the loader reads with: no checkpoint has to lie beside it,
//! and a pruned graph is written from what it is. Before a file is written, the loader reads it, and the graph that comes
//! back must be the one that was given: a tree whose modules would compute something else is refused.

mod blocks;
mod head;
mod layers;
mod modules;
mod norms;
mod pad;
mod parts;

use std::collections::HashMap;
use std::path::Path;

use blocks::{Blocks, Package};
use layers::Layer;
use modules::Module;
use parts::{Part, foreign};

use crate::format::pickle::encode::{Class, Py};
use crate::format::torch::{Checkpoint, write::archive};
use crate::format::write_whole;
use crate::{AnchorHead, Extra, Graph, Head, Node, Op, Result};

/// A checkpoint that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Convolutions that were given filters of zeros, and how many: the family's code cuts maps into two equal halves, and
    /// pruning may have left one smaller. What the detector computes stays the same.
    pub padded: Vec<(String, usize)>,
}

/// Writes `graph` to `path` as a checkpoint of its family, whole or not at all.
///
/// # Errors
/// The graph is invalid (see [`Graph::validate`]), is not made of the family's modules, or the file cannot be written.
pub fn save(graph: &Graph, path: &Path) -> Result<Written> {
    let (bytes, written) = to_bytes(graph, path)?;
    write_whole(path, &bytes)?;
    Ok(written)
}

/// The bytes [`save`] writes; `path` is for messages.
///
/// # Errors
/// The graph is invalid (see [`Graph::validate`]) or is not made of the family's modules.
pub fn to_bytes(graph: &Graph, path: &Path) -> Result<(Vec<u8>, Written)> {
    graph.validate()?;
    let package = head::package(graph)?;
    let pad::Padded { graph, added } = pad::pad(&norms::placed(graph))?;
    // The package has no end-to-end head without one-to-many branches. Where training has kept none they are what its
    // authors begin with, copies of those that predict, and then both of its ways to validate see the same boxes.
    let graph = graph.for_training();
    let tree = Part::tree(&graph)?;
    let layers = layers::layers(&Blocks { graph: &graph, package }, &tree)?;
    let bytes = archive(&checkpoint(&graph, package, layers)?, path)?;

    let mut back = super::graph(&Checkpoint::from_bytes(path, bytes.clone())?)?;
    back.validate()?;
    if let Some(name) = difference(&graph, &mut back) {
        return Err(foreign(&name, "is not what the module of this name computes"));
    }
    Ok((bytes, Written { padded: added }))
}

/// The first node in which two graphs differ; their order does not matter.
fn difference(graph: &Graph, back: &mut Graph) -> Option<String> {
    let described = |graph: &Graph, node: &Node| {
        node.inputs
            .iter()
            .map(|&i| if i == 0 { String::new() } else { graph.nodes[i].name.clone() })
            .collect::<Vec<_>>()
    };
    let ids: HashMap<&str, usize> = back.nodes.iter().enumerate().map(|(id, n)| (n.name.as_str(), id)).collect();
    for node in &graph.nodes[1..] {
        let same = ids
            .get(node.name.as_str())
            .map(|&id| &back.nodes[id])
            .is_some_and(|other| node.op == other.op && described(graph, node) == described(back, other));
        if !same {
            return Some(node.name.clone());
        }
    }
    let whole =
        graph.nodes.len() == back.nodes.len() && graph.nodes[0].op == back.nodes[0].op && graph.meta == back.meta;
    (!whole).then(|| "model".into())
}

/// What the package saves: the model, and beside it the image size.
fn checkpoint<'g>(graph: &'g Graph, package: Package, layers: Vec<Layer<'g>>) -> Result<Py<'g>> {
    let imgsz = match graph.meta.imgsz {
        [h, w] if h == w => Py::size(h),
        [h, w] => Py::List(vec![Py::size(h), Py::size(w)]),
    };
    let task = graph.head()?.0.extra().map_or("detect", Extra::task);
    let args = || {
        let none = || Py::None;
        vec![("task", Py::str(task)), ("mode", Py::str("train")), ("data", none()), ("imgsz", imgsz.clone())]
    };
    let mut all = vec![("epoch", Py::Int(-1)), ("best_fitness", Py::None)];
    all.push(("model", model(graph, package, layers, Py::dict(args()))?));
    all.extend(["ema", "updates", "optimizer"].map(|name| (name, Py::None)));
    match package {
        Package::Yolov5 => all.push(("opt", Py::dict(vec![("imgsz", imgsz)]))),
        Package::Ultralytics => all.push(("train_args", Py::dict(args()))),
    }
    all.push(("date", Py::None));
    Ok(Py::dict(all))
}

fn model<'g>(graph: &'g Graph, package: Package, layers: Vec<Layer<'g>>, args: Py<'g>) -> Result<Py<'g>> {
    let (head, _) = graph.head()?;
    let mut read: Vec<i64> = layers.iter().flat_map(|l| l.from.iter().copied()).filter(|&f| f >= 0).collect();
    read.sort_unstable();
    read.dedup();
    let numbered = |(i, name): (usize, &'g String)| (Py::size(i), Py::str(name.as_str()));
    let mut attributes = vec![
        ("yaml", yaml(graph, package, &layers)),
        ("save", Py::List(read.into_iter().map(Py::Int).collect())),
        ("names", Py::Dict(graph.meta.names.iter().enumerate().map(numbered).collect())),
        ("inplace", Py::Bool(true)),
        ("stride", head::strides(head)),
        ("nc", Py::size(head.classes())),
    ];
    let class: Class = match package {
        // Of any version: later ones have a `DetectionModel` too, and this is its other name.
        Package::Yolov5 => ("models.yolo", "Model"),
        Package::Ultralytics => {
            let (task, model) = match head.extra() {
                None => ("detect", "DetectionModel"),
                Some(extra @ Extra::Masks { .. }) => (extra.task(), "SegmentationModel"),
                Some(extra @ Extra::Keypoints { .. }) => (extra.task(), "PoseModel"),
                Some(extra @ Extra::Angle) => (extra.task(), "OBBModel"),
            };
            if let Some(Extra::Keypoints { points, values }) = head.extra() {
                attributes.push(("kpt_shape", Py::List(vec![Py::size(points), Py::size(values)])));
            }
            attributes.extend([("args", args), ("task", Py::str(task))]);
            ("ultralytics.nn.tasks", model)
        }
    };
    let mut list = Module::default();
    for (index, layer) in layers.into_iter().enumerate() {
        let from = layer.from();
        let Py::Object { class, mut state } = layer.made.module else { continue };
        state.push(("i", Py::size(index)));
        state.push(("f", from));
        state.push(("type", Py::str(format!("{}.{}", class.0, class.1))));
        state.push(("np", Py::size(layer.params)));
        list.children.push((layer.name.into(), Py::Object { class, state }));
    }
    let list = list.build(("torch.nn.modules.container", "Sequential"));
    Ok(Module::with(attributes).holding([("model", list)]).build(class))
}

/// The description the package keeps of a model. It could build the same one from it where nothing was pruned.
fn yaml<'g>(graph: &'g Graph, package: Package, layers: &[Layer<'g>]) -> Py<'g> {
    let channels = if let Op::Input { channels } = graph.nodes[0].op { channels } else { 3 };
    let head = &graph.nodes[graph.nodes.len() - 1].op;
    let classes = graph.meta.names.len();
    let mut yaml = vec![
        ("nc", Py::size(classes)),
        ("ch", Py::size(channels)),
        ("channels", Py::size(channels)),
        ("depth_multiple", Py::Float(1.0)),
        ("width_multiple", Py::Float(1.0)),
    ];
    match head {
        Op::Head(Head::Anchor(AnchorHead { levels, .. })) if package == Package::Yolov5 => {
            let level = |anchors: &Vec<[f32; 2]>| Py::List(anchors.iter().flatten().map(|&a| Py::short(a)).collect());
            yaml.push(("anchors", Py::List(levels.iter().map(|l| level(&l.anchors)).collect())));
        }
        Op::Head(Head::Dfl(head)) => {
            yaml.push(("reg_max", Py::size(head.reg_max)));
            yaml.extend((head.end_to_end).then_some(("end2end", Py::Bool(true))));
        }
        _ => {}
    }
    let last = layers.len() - 1;
    yaml.push(("backbone", Py::List(layers[..last].iter().map(Layer::row).collect())));
    yaml.push(("head", Py::List(layers[last..].iter().map(Layer::row).collect())));
    Py::dict(yaml)
}
