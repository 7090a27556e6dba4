//! The module tree that a graph's node names spell: `model.2.cv1.conv` is module `conv` of module `cv1` of layer 2.

use std::collections::BTreeMap;

use super::super::MAX_DEPTH;
use crate::{Error, Graph, NodeId, Op, Result};

/// One module: its own operator, its submodules, or (the head) both.
#[derive(Default)]
pub(super) struct Part<'g> {
    /// The node that has the module's own name.
    pub node: Option<NodeId>,
    /// First node within it.
    first: NodeId,
    children: BTreeMap<&'g str, Part<'g>>,
}

impl<'g> Part<'g> {
    /// The tree of a graph: the module `model`, the children of which are the layers.
    ///
    /// # Errors
    /// A name that is no path within `model`, or one of more modules than any detector nests.
    pub fn tree(graph: &'g Graph) -> Result<Self> {
        let mut root = Self::default();
        for (id, node) in graph.nodes.iter().enumerate() {
            if let Op::Input { .. } = node.op {
                continue;
            }
            let names: Vec<&str> = node.name.split('.').collect();
            if names[0] != "model" || names.len() < 2 || names.len() > MAX_DEPTH || names.contains(&"") {
                return Err(foreign(&node.name, "is not named after a module of a checkpoint"));
            }
            let mut part = &mut root;
            for name in &names[1..] {
                part = part.children.entry(name).or_insert_with(|| Self { first: id, ..Self::default() });
            }
            part.node = Some(id);
        }
        Ok(root)
    }

    /// A submodule.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.get(name)
    }

    /// Submodules in the order in which they run.
    pub fn children(&self) -> Vec<(&'g str, &Self)> {
        let mut all: Vec<_> = self.children.iter().map(|(&name, part)| (name, part)).collect();
        all.sort_by_key(|(_, part)| part.first);
        all
    }

    /// True where the names of its submodules are all `needed` ones and some of the `optional`.
    pub fn is_made_of(&self, needed: &[&str], optional: &[&str]) -> bool {
        needed.iter().all(|name| self.children.contains_key(name))
            && self.children.keys().all(|name| needed.contains(name) || optional.contains(name))
    }

    /// All nodes within it.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.node.into_iter().chain(self.children.values().flat_map(Self::nodes)).collect()
    }
}

/// The error of a graph the families' modules cannot be found in.
pub(super) fn foreign(node: &str, what: impl Into<String>) -> Error {
    Error::node(node, what)
        .hint("only detectors that came from a .pt file can be written as one; write .onnx or .safetensors instead")
}
