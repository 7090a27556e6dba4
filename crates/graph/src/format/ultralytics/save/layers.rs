//! The layers of a model, what each reads, and their description as the families' yaml files have it.

use super::blocks::{Blocks, Made};
use super::modules::identity;
use super::parts::{Part, foreign};
use crate::format::pickle::encode::Py;
use crate::{Conv, Graph, Head, NodeId, Op, Result};

/// One layer.
pub(super) struct Layer<'g> {
    pub name: String,
    pub made: Made<'g>,
    /// Layers it reads, -1 the one before it.
    pub from: Vec<i64>,
    /// Trainable numbers in it.
    pub params: usize,
    /// Its line of the yaml: repeats, name and arguments.
    row: (usize, String, Vec<Py<'g>>),
    /// It takes a list, even of one.
    many: bool,
}

impl<'g> Layer<'g> {
    /// `f`: what it reads, as the package keeps it.
    pub fn from(&self) -> Py<'g> {
        match self.from[..] {
            [only] if !self.many => Py::Int(only),
            _ => Py::List(self.from.iter().map(|&f| Py::Int(f)).collect()),
        }
    }

    /// Its line of the yaml.
    pub fn row(&self) -> Py<'g> {
        let (repeats, name, args) = &self.row;
        Py::List(vec![self.from(), Py::size(*repeats), Py::str(name.clone()), Py::List(args.clone())])
    }
}

/// The layers of `tree`, in order; the last is the head.
///
/// # Errors
/// Layers without numbers, or that read the inside of another; a module the package does not have.
pub(super) fn layers<'g>(blocks: &Blocks<'g>, tree: &Part<'g>) -> Result<Vec<Layer<'g>>> {
    let graph = blocks.graph;
    let homes = homes(graph)?;
    let last = homes.last().copied().flatten().unwrap_or(0);
    let mut layers: Vec<Layer<'g>> = vec![];
    for index in 0..=last {
        let name = index.to_string();
        let path = format!("model.{name}");
        let Some(part) = tree.child(&name) else {
            // A layer that does nothing leaves no node: its number is kept, so that the others keep theirs.
            let made = Made { class: ("torch.nn.modules.linear", "Identity"), module: identity() };
            let row = (1, "nn.Identity".into(), vec![]);
            layers.push(Layer { name, made, from: vec![-1], params: 0, row, many: false });
            continue;
        };
        let head = index == last;
        let made = if head { blocks.head(part, &path)? } else { blocks.module(part, &path)? };
        let from = sources(graph, &homes, part, index)?;
        let params = part.nodes().iter().flat_map(|&id| graph.nodes[id].op.trainable()).map(|(_, v)| v.len()).sum();
        let many = head || made.class.1 == "Concat";
        if !many && from.len() != 1 {
            return Err(foreign(&path, format!("reads {} layers, one is what such a module can take", from.len())));
        }
        let row = row(blocks, part, made.class.1, head);
        layers.push(Layer { name, made, from, params, row, many });
    }
    Ok(layers)
}

/// Number of the layer every node is in; none for the image.
fn homes(graph: &Graph) -> Result<Vec<Option<usize>>> {
    let mut homes = vec![];
    for node in &graph.nodes {
        let number = node.name.split('.').nth(1).and_then(|n| Some((n, n.parse::<usize>().ok()?)));
        homes.push(match (&node.op, number) {
            (Op::Input { .. }, _) => None,
            // As many layers as nodes at the most: numbers with larger gaps are no list.
            (_, Some((text, n))) if n < graph.nodes.len() && text == n.to_string() => Some(n),
            _ => return Err(foreign(&node.name, "is in no numbered layer")),
        });
    }
    Ok(homes)
}

/// The layers a layer reads, in order.
fn sources(graph: &Graph, homes: &[Option<usize>], part: &Part<'_>, index: usize) -> Result<Vec<i64>> {
    let mut nodes = part.nodes();
    nodes.sort_unstable();
    let outside = |id: NodeId| homes[id] != Some(index);
    let read: Vec<NodeId> = match &graph.nodes[nodes[nodes.len() - 1]] {
        node if matches!(node.op, Op::Concat) && part.node.is_some() => node.inputs.clone(),
        node if let Op::Head(head) = &node.op => {
            // One map of every level leads back to what the level reads.
            let levels = head.strides().len();
            let per_level = match head {
                Head::Dfl(_) => 2,
                Head::Anchor(_) | Head::Yolox(_) => node.inputs.len() / levels.max(1),
            };
            node.inputs
                .iter()
                .step_by(per_level.max(1))
                .take(levels)
                .map(|&map| {
                    let mut at = map;
                    while let (false, Some(&input)) = (outside(at), graph.nodes[at].inputs.first()) {
                        at = input;
                    }
                    at
                })
                .collect()
        }
        _ => {
            let mut read: Vec<NodeId> =
                nodes.iter().flat_map(|&id| &graph.nodes[id].inputs).copied().filter(|&id| outside(id)).collect();
            read.sort_unstable();
            read.dedup();
            read
        }
    };
    let number = |id: NodeId| match homes[id] {
        None if index == 0 => Ok(-1),
        // A first layer that does nothing has left no node.
        None if !homes.contains(&Some(0)) => Ok(if index == 1 { -1 } else { 0 }),
        None => Err(foreign(&format!("model.{index}"), "reads the image, only the first layer can")),
        Some(home) if home + 1 == index => Ok(-1),
        Some(home) => Ok(home as i64),
    };
    read.into_iter().map(number).collect()
}

/// Repeats, name and arguments from which the package would build such a layer anew. For a pruned one they give its outer
/// channels only.
fn row<'g>(blocks: &Blocks<'g>, part: &Part<'g>, class: &str, head: bool) -> (usize, String, Vec<Py<'g>>) {
    let graph = blocks.graph;
    let out = |names: &[&str]| Py::size(blocks.conv(part, names).map_or(0, Conv::out_channels));
    let list = part.child("m");
    let repeats = list.map_or(1, |m| m.children().len());
    let block = list.and_then(|m| Some(m.children().first()?.1));
    let shortcut = Py::Bool(block.is_some_and(|b| b.child("add").is_some()));
    let first = |name: &str| block.and_then(|b| b.child(name));
    let share = |of: usize, all: &[&str]| {
        Py::Float(of as f64 / blocks.conv(part, all).map_or(1, Conv::out_channels).max(1) as f64)
    };
    let (repeats, args) = match class {
        _ if head => {
            let anchors = matches!(graph.nodes[graph.nodes.len() - 1].op, Op::Head(Head::Anchor(_)));
            (1, if anchors { vec![Py::str("nc"), Py::str("anchors")] } else { vec![Py::str("nc")] })
        }
        "Conv" => (1, blocks.conv(part, &["conv"]).map_or(vec![], conv_args)),
        "C3" => (repeats, vec![out(&["cv3", "conv"]), shortcut]),
        "C2f" => (repeats, vec![out(&["cv2", "conv"]), shortcut]),
        "C2fCIB" => {
            // Its large kernel is one convolution here, which the package makes of two.
            let large = block.and_then(|b| blocks.conv(b, &["cv1", "2", "conv"])).is_some_and(|c| c.kernel() == [7, 7]);
            (repeats, vec![out(&["cv2", "conv"]), shortcut, Py::Bool(large)])
        }
        "C3k2" => {
            let attends = first("1").is_some_and(|b| b.child("attn").is_some());
            let deep = attends || first("cv3").is_some();
            let half = share(blocks.half(part), &["cv2", "conv"]);
            let mut args = vec![out(&["cv2", "conv"]), Py::Bool(deep), half];
            args.extend(attends.then_some(Py::Bool(true)));
            (repeats, args)
        }
        "A2C2f" => {
            let attention = first("0").and_then(|b| b.child("attn")?.child("attention")?.node);
            let areas = match attention.map(|id| &graph.nodes[id].op) {
                Some(Op::Attention(attention)) => Py::size(attention.areas),
                _ => Py::Int(-1),
            };
            let inner = blocks.conv(part, &["cv1", "conv"]).map_or(0, Conv::out_channels);
            let wide = block.and_then(|b| blocks.conv(b, &["0", "mlp", "0", "conv"])).map_or(0, Conv::out_channels);
            let wide = if attention.is_some() { wide as f64 / inner.max(1) as f64 } else { 2.0 };
            let residual = Py::Bool(part.child("gamma").is_some());
            let whole = out(&["cv2", "conv"]);
            let half = share(inner, &["cv2", "conv"]);
            (repeats, vec![whole, Py::Bool(attention.is_some()), areas, residual, Py::Float(wide), half])
        }
        "C2PSA" => (repeats, vec![out(&["cv2", "conv"])]),
        "PSA" => (1, vec![out(&["cv2", "conv"])]),
        "SCDown" => {
            let down = blocks.conv(part, &["cv2", "conv"]).map_or(vec![], conv_args);
            (1, down)
        }
        "ELAN1" => (1, vec![out(&["cv4", "conv"]), out(&["cv1", "conv"]), out(&["cv2", "conv"])]),
        "RepNCSPELAN4" => {
            let deep = part.child("cv2").and_then(|p| p.child("0")?.child("m")).map_or(1, |m| m.children().len());
            let widths = [out(&["cv4", "conv"]), out(&["cv1", "conv"]), out(&["cv2", "1", "conv"])];
            (1, widths.into_iter().chain([Py::size(deep)]).collect())
        }
        "AConv" => (1, vec![out(&["cv1", "conv"])]),
        "ADown" => {
            let both = ["cv1", "cv2"].map(|name| blocks.conv(part, &[name, "conv"]).map_or(0, Conv::out_channels));
            (1, vec![Py::size(both[0] + both[1])])
        }
        "SPPELAN" => (1, vec![out(&["cv5", "conv"]), out(&["cv1", "conv"])]),
        "SPPF" | "SPP" => {
            let pools = list.map(Part::children).unwrap_or_default();
            let kernels = pools.iter().filter_map(|&(_, p)| match p.node.map(|id| &graph.nodes[id].op) {
                Some(Op::MaxPool(pool)) => Some(Py::size(pool.kernel)),
                _ => None,
            });
            let mut args = vec![out(&["cv2", "conv"])];
            if class == "SPPF" {
                args.extend(kernels.take(1));
                // YOLOv5's own takes no more than these two.
                if part.child("add").is_some() || repeats != 3 {
                    args.extend([Py::size(repeats), Py::Bool(part.child("add").is_some())]);
                }
            } else {
                args.push(Py::List(kernels.collect()));
            }
            (1, args)
        }
        "Concat" => (1, vec![Py::Int(1)]),
        "Upsample" => match part.node.map(|id| &graph.nodes[id].op) {
            Some(Op::Upsample { factor }) => (1, vec![Py::str("None"), Py::size(*factor), Py::str("nearest")]),
            _ => (1, vec![]),
        },
        _ => (1, vec![]),
    };
    let name = match class {
        "Upsample" | "Sequential" | "MaxPool2d" | "SiLU" | "ReLU" | "LeakyReLU" => format!("nn.{class}"),
        _ => class.to_owned(),
    };
    (repeats, name, args)
}

/// Arguments of a `Conv`: channels, kernel, stride, and the padding where it is not half the kernel.
fn conv_args<'g>(conv: &Conv) -> Vec<Py<'g>> {
    let ([kernel, _], [stride, _], [pad, _]) = (conv.kernel(), conv.stride, conv.pad);
    let mut args = vec![conv.out_channels(), kernel, stride];
    args.extend((pad != kernel / 2).then_some(pad));
    args.into_iter().map(Py::size).collect()
}
