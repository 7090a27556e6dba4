//! The blocks of `ultralytics::blocks` in the other direction: from the names of what is in a block to its class.

use super::modules::{Module, identity, leaf, list, max_pool};
use super::parts::{Part, foreign};
use crate::format::pickle::encode::{Class, Py};
use crate::{Attention, Conv, Family, Graph, Node, NodeId, Op, Result};

/// Which Python package is to load the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Package {
    /// The YOLOv5 repository, or the package `yolov5`.
    Yolov5,
    Ultralytics,
}

impl Package {
    /// The class of a block, where the package has it.
    fn class(self, name: &str) -> Option<Class> {
        const COMMON: [&str; 6] = ["Conv", "Concat", "Bottleneck", "C3", "SPP", "SPPF"];
        const CONV: [&str; 2] = ["Conv", "Concat"];
        const BLOCK: [&str; 24] = [
            "A2C2f",
            "AAttn",
            "ABlock",
            "AConv",
            "ADown",
            "Attention",
            "Bottleneck",
            "C2PSA",
            "C2f",
            "C2fCIB",
            "C3",
            "C3k",
            "C3k2",
            "CIB",
            "DFL",
            "ELAN1",
            "PSA",
            "PSABlock",
            "Proto",
            "RepNCSPELAN4",
            "SCDown",
            "SPP",
            "SPPELAN",
            "SPPF",
        ];
        let find = |names: &[&'static str]| names.iter().copied().find(|&n| n == name);
        match self {
            Self::Yolov5 => find(&COMMON).map(|n| ("models.common", n)),
            Self::Ultralytics => find(&CONV)
                .map(|n| ("ultralytics.nn.modules.conv", n))
                .or_else(|| find(&BLOCK).map(|n| ("ultralytics.nn.modules.block", n))),
        }
    }
}

/// Turns parts into modules.
pub(super) struct Blocks<'g> {
    pub graph: &'g Graph,
    pub package: Package,
}

/// A module on its way into the file.
pub(super) struct Made<'g> {
    pub class: Class,
    pub module: Py<'g>,
}

impl<'g> Blocks<'g> {
    /// The module that `part` is, its class beside it.
    ///
    /// # Errors
    /// It is none the package has.
    pub fn module(&self, part: &Part<'g>, path: &str) -> Result<Made<'g>> {
        let module = self.any(part, path)?;
        match &module {
            Py::Object { class, .. } => Ok(Made { class: *class, module }),
            _ => Err(foreign(path, "is no module")),
        }
    }

    fn any(&self, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let children = part.children();
        if let Some(id) = part.node {
            let op = &self.graph.nodes[id].op;
            return match (op, children.is_empty()) {
                (Op::Concat, true) => self.make("Concat", Module::with(vec![("d", Py::Int(1))]), path),
                (_, true) => leaf(op).ok_or_else(|| foreign(path, "is no module of PyTorch by itself")),
                (_, false) => Err(foreign(path, "is an operator and holds modules too")),
            };
        }
        if part.is_made_of(&["conv", "bn"], &["act"]) {
            let names = ["conv", "bn", "act"];
            let parts = names.map(|name| part.child(name).map_or(Ok(identity()), |p| self.any(p, &inner(path, name))));
            let [conv, bn, act] = parts;
            return self.make("Conv", Module::default().holding([("conv", conv?), ("bn", bn?), ("act", act?)]), path);
        }
        if let Some(block) = self.block_of(part, path) {
            return block;
        }
        // Anything else can only be modules one after another; whether it is, reading the file back tells.
        let modules = children.into_iter().map(|(name, child)| Ok((name, self.any(child, &inner(path, name))?)));
        Ok(list("Sequential", modules.collect::<Result<_>>()?))
    }

    /// The block whose submodules have the names of `part`'s; `None` where no block's do.
    fn block_of(&self, part: &Part<'g>, path: &str) -> Option<Result<Py<'g>>> {
        let made_of = |needed: &[&str], optional: &[&str]| part.is_made_of(needed, optional);
        let has = |name: &str| Py::Bool(part.child(name).is_some());
        let half = || vec![("c", Py::size(self.half(part)))];
        Some(if made_of(&["split0", "split1", "cv1", "cat", "cv2"], &["m"]) {
            self.halves(part, path)
        } else if made_of(&["split0", "split1", "cv1", "attn", "add0", "ffn", "add1", "cat", "cv2"], &[]) {
            self.block("PSA", part, path, &["cv1", "cv2", "attn", "ffn"], half())
        } else if made_of(&["split0", "split1", "cv1", "cv2", "cv3", "cat", "cv4"], &[]) {
            let plain = part.child("cv2").is_some_and(|p| p.child("conv").is_some());
            let name = if plain { "ELAN1" } else { "RepNCSPELAN4" };
            self.block(name, part, path, &["cv1", "cv2", "cv3", "cv4"], half())
        } else if made_of(&["mean", "split0", "split1", "cv1", "pool", "cv2", "cat"], &[]) {
            self.a_down(part, path)
        } else if made_of(&["mean", "cv1"], &[]) && self.takes_means(part) {
            self.block("AConv", part, path, &["cv1"], vec![])
        } else if made_of(&["cv1", "cv2", "cv3", "cv4", "cv5", "cat"], &[]) {
            let c = vec![("c", Py::size(self.conv(part, &["cv1", "conv"]).map_or(0, Conv::out_channels)))];
            self.block("SPPELAN", part, path, &["cv1", "cv2", "cv3", "cv4", "cv5"], c)
        } else if made_of(&["cv1", "cv2", "cv3", "cat"], &["m"]) {
            let inside = path.contains(".m.") && self.package == Package::Ultralytics;
            self.c3(if inside { "C3k" } else { "C3" }, part, path)
        } else if made_of(&["cv1", "m", "cat", "cv2"], &["gamma", "add"]) {
            match part.child("m").is_some_and(|m| m.children().iter().any(|(_, block)| block.node.is_none())) {
                true => self.a2c2f(part, path),
                false => self.pools(part, path),
            }
        } else if made_of(&["cv1", "cv2"], &["add"]) {
            // A bottleneck never goes down.
            match self.conv(part, &["cv2", "conv"]).is_some_and(|conv| conv.stride != [1, 1]) {
                true => self.block("SCDown", part, path, &["cv1", "cv2"], vec![]),
                false => self.block("Bottleneck", part, path, &["cv1", "cv2"], vec![("add", has("add"))]),
            }
        } else if made_of(&["cv1"], &["add"]) {
            self.block("CIB", part, path, &["cv1"], vec![("add", has("add"))])
        } else if made_of(&["attn", "ffn"], &["add0", "add1"]) {
            self.block("PSABlock", part, path, &["attn", "ffn"], vec![("add", has("add0"))])
        } else if made_of(&["attn", "mlp", "add0", "add1"], &[]) {
            self.block("ABlock", part, path, &["attn", "mlp"], vec![])
        } else if part.child("attention").is_some() {
            self.attention(part, path)
        } else if part.child("part0").is_some() {
            Err(foreign(path, "links two backbones (`CBFuse`), for which no module is written")
                .hint("write .onnx or .safetensors instead"))
        } else {
            return None;
        })
    }

    /// The node of a submodule that is one operator.
    fn node(&self, part: &Part<'g>, name: &str) -> Option<(NodeId, &'g Node)> {
        part.child(name).and_then(|p| p.node).map(|id| (id, &self.graph.nodes[id]))
    }

    /// The convolution that lies within `part` under these names.
    pub fn conv(&self, part: &Part<'g>, names: &[&str]) -> Option<&'g Conv> {
        let found = names.iter().try_fold(part, |p, name| p.child(name))?;
        match &self.graph.nodes[found.node?].op {
            Op::Conv(conv) => Some(conv),
            _ => None,
        }
    }

    /// Channels of the second half of the map a block cuts; 0 where it cuts none.
    pub fn half(&self, part: &Part<'g>) -> usize {
        match self.node(part, "split1").map(|(_, node)| &node.op) {
            Some(Op::Slice { len, .. }) => *len,
            _ => 0,
        }
    }

    /// Whether convolution `mean` still takes the mean of 2x2 neighbours, as the families' code does without weights.
    fn takes_means(&self, part: &Part<'g>) -> bool {
        let mean = self.conv(part, &["mean"]);
        mean.is_some_and(|conv| conv.bias.is_none() && conv.weight.data.iter().all(|&w| w == 0.25))
    }

    /// `C2f`, `C3k2`, `C2PSA`: told apart by what is joined.
    fn halves(&self, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let (Some((_, cat)), Some((first, _)), Some((second, _))) =
            (self.node(part, "cat"), self.node(part, "split0"), self.node(part, "split1"))
        else {
            return Err(foreign(path, "cuts and joins in a way no block does"));
        };
        if !cat.inputs.starts_with(&[first, second]) {
            let c = vec![("c", Py::size(self.half(part)))];
            return self.block("C2PSA", part, path, &["cv1", "cv2", "m"], c);
        }
        let inverted = |m: &Part<'g>| m.children().iter().any(|(_, block)| block.is_made_of(&["cv1"], &["add"]));
        let name = match self.graph.meta.family {
            _ if part.child("m").is_some_and(inverted) => "C2fCIB",
            Family::Yolo11 | Family::Yolo12 | Family::Yolo26 => "C3k2",
            _ => "C2f",
        };
        self.of_halves(name, part, path, cat.inputs.len())
    }

    /// A `C3` or `C3k`; of the blocks it once had some or all may be gone.
    fn c3(&self, name: &str, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let blocks = match part.child("m") {
            Some(m) => self.any(m, &inner(path, "m"))?,
            None => list("Sequential", Vec::<(&str, _)>::new()),
        };
        let convs = self.children(part, path, &["cv1", "cv2", "cv3"])?;
        self.make(name, Module::default().holding(convs).holding([("m", blocks)]), path)
    }

    /// A block that joins the halves of a map with what a list `m` of blocks makes of them one after another. A block that is gone
    /// leaves one that does nothing: its map is joined all the same.
    fn of_halves(&self, name: &str, part: &Part<'g>, path: &str, joined: usize) -> Result<Py<'g>> {
        let list_path = inner(path, "m");
        let block = |i: usize| {
            let number = i.to_string();
            let block = part.child("m").and_then(|m| m.child(&number));
            let module = block.map_or(Ok(identity()), |block| self.any(block, &inner(&list_path, &number)))?;
            Ok((number, module))
        };
        let blocks = (0..joined.saturating_sub(2)).map(block).collect::<Result<Vec<(String, _)>>>()?;
        let convs = self.children(part, path, &["cv1", "cv2"])?;
        let module = Module::with(vec![("c", Py::size(self.half(part)))]);
        self.make(name, module.holding(convs).holding([("m", list("ModuleList", blocks))]), path)
    }

    fn a_down(&self, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        if !self.takes_means(part) {
            return Err(foreign(path, "takes other than the plain mean that the family's own `ADown` takes")
                .hint("training has changed it; write .onnx or .safetensors instead"));
        }
        let c = vec![("c", Py::size(self.conv(part, &["cv1", "conv"]).map_or(0, Conv::out_channels)))];
        self.block("ADown", part, path, &["cv1", "cv2"], c)
    }

    fn a2c2f(&self, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let mut module = Module::default();
        match self.conv(part, &["gamma"]) {
            Some(Conv { bias: Some(_), .. }) => {
                return Err(foreign(&inner(path, "gamma"), "adds a number too, the family's own only multiplies"));
            }
            Some(gamma) => {
                module.parameters.push(("gamma", Py::parameter([gamma.out_channels()], &gamma.weight.data[..])))
            }
            None => module.attributes.push(("gamma", Py::None)),
        }
        let blocks = part.child("m").map(|m| self.list("ModuleList", m, &inner(path, "m"))).transpose()?;
        let convs = self.children(part, path, &["cv1", "cv2"])?;
        self.make("A2C2f", module.holding(convs).holding(blocks.map(|m| ("m", m))), path)
    }

    /// `SPPF` and `SPP`: the same pool again and again, or pools side by side.
    fn pools(&self, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let pools: Vec<(&str, NodeId)> = part
            .child("m")
            .into_iter()
            .flat_map(Part::children)
            .map(|(name, p)| Ok((name, p.node.ok_or_else(|| foreign(path, "pools by something other than pools"))?)))
            .collect::<Result<_>>()?;
        let made = |id: NodeId| match &self.graph.nodes[id].op {
            Op::MaxPool(pool) => max_pool(pool).map(|m| (*pool, m)),
            _ => None,
        };
        let none = || foreign(path, "pools by something other than PyTorch's max pools");
        let pool_ops = pools.iter().map(|&(_, id)| made(id).ok_or_else(none)).collect::<Result<Vec<_>>>()?;
        let chained = pools.windows(2).all(|w| self.graph.nodes[w[1].1].inputs == [w[0].1]);
        let Some((first, module)) = pool_ops.first().cloned() else { return Err(none()) };
        let convs = self.children(part, path, &["cv1", "cv2"])?;
        if chained && pool_ops.iter().all(|(op, _)| *op == first) {
            let add = part.child("add").is_some();
            if self.package == Package::Yolov5 && (pools.len() != 3 || add) {
                return Err(foreign(path, "pools otherwise than three times in a row, which YOLOv5 has no block for"));
            }
            let attributes = vec![("n", Py::size(pools.len())), ("add", Py::Bool(add))];
            return self.make("SPPF", Module::with(attributes).holding(convs).holding([("m", module)]), path);
        }
        let all = pools.iter().zip(pool_ops).map(|(&(name, _), (_, m))| (name, m)).collect();
        self.make("SPP", Module::default().holding(convs).holding([("m", list("ModuleList", all))]), path)
    }

    /// `Proto`, and the channels its first convolution makes.
    pub fn proto(&self, part: &Part<'g>, path: &str) -> Result<(Py<'g>, usize)> {
        let first = part.child("cv1").and_then(|p| p.child("conv")).and_then(|p| p.node);
        let width = match first.map(|id| &self.graph.nodes[id].op) {
            Some(Op::Conv(conv)) => conv.out_channels(),
            _ => return Err(foreign(path, "does not begin with a convolution")),
        };
        Ok((self.block("Proto", part, path, &["cv1", "upsample", "cv2", "cv3"], vec![])?, width))
    }

    /// `AAttn` where keys are as wide as values, as YOLO12 has it, else `Attention`.
    fn attention(&self, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let Some((_, Node { op: Op::Attention(op), .. })) = self.node(part, "attention") else {
            return Err(foreign(path, "holds no attention"));
        };
        let &Attention { heads, key, value, areas } = op;
        let mut attributes = vec![("num_heads", Py::size(heads)), ("head_dim", Py::size(value))];
        let name = if key == value { "AAttn" } else { "Attention" };
        if key == value {
            attributes.extend([("area", Py::size(areas)), ("all_head_dim", Py::size(heads * value))]);
        } else {
            attributes.extend([("key_dim", Py::size(key)), ("scale", Py::Float(op.scale()))]);
        }
        self.block(name, part, path, &["qkv", "proj", "pe"], attributes)
    }

    /// A block of class `name` with these submodules.
    fn block(
        &self,
        name: &str,
        part: &Part<'g>,
        path: &str,
        children: &[&'g str],
        attributes: Vec<(&'static str, Py<'g>)>,
    ) -> Result<Py<'g>> {
        self.make(name, Module::with(attributes).holding(self.children(part, path, children)?), path)
    }

    fn children(&self, part: &Part<'g>, path: &str, names: &[&'g str]) -> Result<Vec<(&'g str, Py<'g>)>> {
        let missing = |name: &str| foreign(path, format!("has no module `{name}`"));
        let child = |&name: &&'g str| {
            let child = part.child(name).ok_or_else(|| missing(name))?;
            Ok((name, self.any(child, &inner(path, name))?))
        };
        names.iter().map(child).collect()
    }

    /// Every submodule of `part`, in a container of `torch.nn`.
    pub fn list(&self, class: &'static str, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let modules = part.children().into_iter().map(|(name, child)| Ok((name, self.any(child, &inner(path, name))?)));
        Ok(list(class, modules.collect::<Result<_>>()?))
    }

    fn make(&self, name: &str, module: Module<'g>, path: &str) -> Result<Py<'g>> {
        let class = self.package.class(name);
        let class =
            class.ok_or_else(|| foreign(path, format!("is a `{name}`, which {:?} has no class for", self.package)))?;
        Ok(module.build(class))
    }
}

fn inner(path: &str, name: &str) -> String {
    format!("{path}.{name}")
}
