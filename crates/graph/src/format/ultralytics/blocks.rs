//! The blocks the detectors are stacked from.

use super::Build;
use crate::format::focus::interleave;
use crate::format::pickle::Ref;
use crate::{NodeId, Op, Result};

/// (Row, column) offsets of the phases in the order `Focus` joins them.
const PHASES: [[usize; 2]; 4] = [[0, 0], [1, 0], [0, 1], [1, 1]];

impl<'a> Build<'a> {
    /// `Conv`: convolution, batch norm (none once fused), activation.
    pub(super) fn conv_block(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let mut x = self.sub(module, path, "conv", x)?;
        for part in ["bn", "act"] {
            if self.optional(module, part).is_some() {
                x = self.sub(module, path, part, x)?;
            }
        }
        Ok(x)
    }

    /// `Bottleneck`, `CrossConv`: cv2(cv1(x)), plus x where `add` is set.
    pub(super) fn bottleneck(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let y = self.pair_of(module, path, x)?;
        self.shortcut(module, path, x, y)
    }

    /// `SCDown`: cv2(cv1(x)).
    pub(super) fn pair_of(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let inner = self.sub(module, path, "cv1", x)?;
        self.sub(module, path, "cv2", inner)
    }

    /// `Proto`: cv3(cv2(upsample(cv1(x)))).
    pub(super) fn proto(&mut self, module: Ref<'a>, path: &str, mut x: NodeId) -> Result<NodeId> {
        for part in ["cv1", "upsample", "cv2", "cv3"] {
            x = self.sub(module, path, part, x)?;
        }
        Ok(x)
    }

    /// `CIB`: a sequence of convolutions cv1(x), plus x where `add` is set.
    pub(super) fn cib(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let y = self.sub(module, path, "cv1", x)?;
        self.shortcut(module, path, x, y)
    }

    /// `C3` and its kin: cv3(cat(m(cv1(x)), cv2(x))).
    pub(super) fn c3(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let left = self.sub(module, path, "cv1", x)?;
        let left = self.sub(module, path, "m", left)?;
        let right = self.sub(module, path, "cv2", x)?;
        self.join(module, path, vec![left, right], "cv3")
    }

    /// `C2f` and its kin: cv1(x) cut into halves a, b; then m0(b), m1(m0(b)), ...; cv2 of all of them joined.
    pub(super) fn c2f(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let mut parts = self.halves(module, path, x)?.to_vec();
        let list = self.child(module, path, "m")?;
        let mut last = parts[1];
        for (name, block) in self.children(list, path)? {
            last = self.module(block, &format!("{path}.m.{name}"), &[last])?;
            parts.push(last);
        }
        self.join(module, path, parts, "cv2")
    }

    /// cv1(x), cut into halves.
    pub(super) fn halves(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<[NodeId; 2]> {
        let both = self.sub(module, path, "cv1", x)?;
        self.halves_of(both, path)
    }

    /// `both`, cut into halves `{path}.split0` and `{path}.split1`.
    pub(super) fn halves_of(&mut self, both: NodeId, path: &str) -> Result<[NodeId; 2]> {
        let half = match self.shape(both)?.c {
            all if all > 0 && all % 2 == 0 => all / 2,
            other => return Err(self.error(path, format!("cuts {other} channels into halves"))),
        };
        let mut part = |i: usize| {
            let op = Op::Slice { start: i * half, len: half };
            self.graph.push(format!("{path}.split{i}"), op, vec![both])
        };
        Ok([part(0), part(1)])
    }

    /// `SPP`: cv1(x) beside its max pools of several sizes, joined by cv2.
    pub(super) fn spp(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let x = self.sub(module, path, "cv1", x)?;
        let mut parts = vec![x];
        let pools = self.child(module, path, "m")?;
        for (name, pool) in self.children(pools, path)? {
            parts.push(self.module(pool, &format!("{path}.m.{name}"), &[x])?);
        }
        self.join(module, path, parts, "cv2")
    }

    /// `SPPF`: cv1(x) and the same max pool after itself, `n` times (3 where it is not said), joined by cv2.
    pub(super) fn sppf(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let inner = self.sub(module, path, "cv1", x)?;
        let pool_module = self.child(module, path, "m")?;
        let pool = self.pool_op(pool_module, &format!("{path}.m"))?;
        let times = module.attr("n").and_then(Ref::index).unwrap_or(3);
        if times > 16 {
            return Err(self.error(path, format!("pools {times} times")));
        }
        let mut parts = vec![inner];
        for i in 0..times {
            parts.push(self.graph.push(format!("{path}.m.{i}"), Op::MaxPool(pool), vec![parts[i]]));
        }
        let y = self.join(module, path, parts, "cv2")?;
        self.shortcut(module, path, x, y)
    }

    /// `Focus` (YOLOv5 before 6.0): the image's four 2x2 phases as channels, then a convolution of k x k: the same
    /// numbers as a convolution of 2k x 2k with stride 2, which is what the graph gets.
    pub(super) fn focus(&mut self, module: Ref<'a>, path: &str, x: NodeId) -> Result<NodeId> {
        let block = self.child(module, path, "conv")?;
        let inner = self.child(block, path, "conv")?;
        let name = format!("{path}.conv.conv");
        let mut conv = self.conv_op(inner, &name)?;
        if conv.stride != [1, 1] || conv.groups != 1 || conv.weight.shape[1] % 4 != 0 {
            return Err(self.error(path, "has a convolution that is strided, grouped or not of four phases"));
        }
        conv.weight = interleave(&conv.weight, PHASES);
        conv.stride = [2, 2];
        conv.pad = conv.pad.map(|p| 2 * p);
        let mut x = self.convolution(name, conv, x);
        for part in ["bn", "act"] {
            if self.optional(block, part).is_some() {
                x = self.sub(block, &format!("{path}.conv"), part, x)?;
            }
        }
        Ok(x)
    }

    /// `Sequential`: its submodules one after another.
    pub(super) fn chain(&mut self, module: Ref<'a>, path: &str, mut x: NodeId) -> Result<NodeId> {
        for (name, child) in self.children(module, path)? {
            x = self.module(child, &format!("{path}.{name}"), &[x])?;
        }
        Ok(x)
    }

    /// `Concat` along the channels.
    pub(super) fn concat(&mut self, module: Ref<'a>, path: &str, inputs: &[NodeId]) -> Result<NodeId> {
        if module.attr("d").is_some_and(|d| d.int() != Some(1)) {
            return Err(self.error(path, "joins along an axis other than the channels"));
        }
        Ok(self.graph.push(path, Op::Concat, inputs.to_vec()))
    }

    /// Joins `parts` as `{path}.cat` and runs submodule `last` on it.
    pub(super) fn join(&mut self, module: Ref<'a>, path: &str, parts: Vec<NodeId>, last: &str) -> Result<NodeId> {
        let cat = self.graph.push(format!("{path}.cat"), Op::Concat, parts);
        self.sub(module, path, last, cat)
    }

    /// `y + x` as `{path}.add` where the module's flag `add` is set.
    pub(super) fn shortcut(&mut self, module: Ref<'a>, path: &str, x: NodeId, y: NodeId) -> Result<NodeId> {
        match module.attr("add").and_then(Ref::bool) {
            Some(true) => Ok(self.graph.push(format!("{path}.add"), Op::Add, vec![x, y])),
            _ => Ok(y),
        }
    }
}
