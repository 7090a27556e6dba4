//! The blocks of `ultralytics::blocks` in the other direction: from the names of what is in a block to its class.

use super::modules::{Module, identity, leaf, list, max_pool};
use super::parts::{Part, foreign};
use crate::format::pickle::encode::{Class, Py};
use crate::{Family, Graph, NodeId, Op, Result};

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
        const BLOCK: [&str; 9] = ["Bottleneck", "C3", "C3k", "C2f", "C3k2", "SPP", "SPPF", "C2PSA", "PSABlock"];
        const REST: [&str; 3] = ["Attention", "DFL", "Proto"];
        let find = |names: &[&'static str]| names.iter().copied().find(|&n| n == name);
        match self {
            Self::Yolov5 => find(&COMMON).map(|n| ("models.common", n)),
            Self::Ultralytics => find(&CONV)
                .map(|n| ("ultralytics.nn.modules.conv", n))
                .or_else(|| find(&BLOCK).or_else(|| find(&REST)).map(|n| ("ultralytics.nn.modules.block", n))),
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
        if part.is_made_of(&["split0", "split1", "cv1", "m", "cat", "cv2"], &[]) {
            return self.halves(part, path);
        }
        if part.is_made_of(&["cv1", "cv2", "cv3", "m", "cat"], &[]) {
            let inside = path.rsplit_once(".m.").is_some_and(|_| self.package == Package::Ultralytics);
            return self.block(if inside { "C3k" } else { "C3" }, part, path, &["cv1", "cv2", "cv3", "m"], vec![]);
        }
        if part.is_made_of(&["cv1", "m", "cat", "cv2"], &["add"]) {
            return self.pools(part, path);
        }
        if part.is_made_of(&["cv1", "cv2"], &["add"]) {
            let add = Py::Bool(part.child("add").is_some());
            return self.block("Bottleneck", part, path, &["cv1", "cv2"], vec![("add", add)]);
        }
        if part.is_made_of(&["attn", "ffn"], &["add0", "add1"]) {
            let add = Py::Bool(part.child("add0").is_some());
            return self.block("PSABlock", part, path, &["attn", "ffn"], vec![("add", add)]);
        }
        if part.child("attention").is_some() {
            return self.attention(part, path);
        }
        // Anything else can only be modules one after another; whether it is, reading the file back tells.
        let modules = children.into_iter().map(|(name, child)| Ok((name, self.any(child, &inner(path, name))?)));
        Ok(list("Sequential", modules.collect::<Result<_>>()?))
    }

    /// `C2f`, `C3k2`, `C2PSA`: told apart by what is joined.
    fn halves(&self, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let node = |name: &str| part.child(name).and_then(|p| p.node).map(|id| (id, &self.graph.nodes[id]));
        let (Some((_, cat)), Some((first, _)), Some((second, second_node))) =
            (node("cat"), node("split0"), node("split1"))
        else {
            return Err(foreign(path, "cuts and joins in a way no block does"));
        };
        let Op::Slice { len, .. } = second_node.op else {
            return Err(foreign(path, "does not cut its map into halves"));
        };
        let parts = ["cv1", "cv2"];
        let c = vec![("c", Py::size(len))];
        if !cat.inputs.starts_with(&[first, second]) {
            return self.block("C2PSA", part, path, &["cv1", "cv2", "m"], c);
        }
        let name = if self.graph.meta.family == Family::Yolo11 { "C3k2" } else { "C2f" };
        let list_path = inner(path, "m");
        let blocks = part.child("m").map(|m| self.list("ModuleList", m, &list_path)).transpose()?;
        let module = Module::with(c).holding(self.children(part, path, &parts)?).holding(blocks.map(|m| ("m", m)));
        self.make(name, module, path)
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

    fn attention(&self, part: &Part<'g>, path: &str) -> Result<Py<'g>> {
        let op = part.child("attention").and_then(|p| p.node).map(|id| &self.graph.nodes[id].op);
        let Some(Op::Attention(op)) = op else { return Err(foreign(path, "holds no attention")) };
        let attributes = vec![
            ("num_heads", Py::size(op.heads)),
            ("head_dim", Py::size(op.value)),
            ("key_dim", Py::size(op.key)),
            ("scale", Py::Float(op.scale())),
        ];
        self.block("Attention", part, path, &["qkv", "proj", "pe"], attributes)
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
