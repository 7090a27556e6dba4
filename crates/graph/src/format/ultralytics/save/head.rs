//! The `Detect` heads as modules.

use super::blocks::{Blocks, Made, Package};
use super::modules::{Module, identity};
use super::parts::{Part, foreign};
use crate::format::pickle::encode::{Class, Py};
use crate::{AnchorHead, BoxDecode, DflHead, Extra, Family, Graph, Head, Result};

/// The package that has the graph's head.
///
/// # Errors
/// None of the two has it.
pub(super) fn package(graph: &Graph) -> Result<Package> {
    let (head, _) = graph.head()?;
    let name = &graph.nodes[graph.nodes.len() - 1].name;
    match head {
        Head::Anchor(h) if h.levels.iter().all(|l| l.decode == BoxDecode::V5) => {
            let anchors = h.levels.first().map_or(0, |l| l.anchors.len());
            if anchors == 0 || h.levels.iter().any(|l| l.anchors.len() != anchors) {
                return Err(foreign(name, "has not as many anchors on every level, YOLOv5's head has"));
            }
            Ok(Package::Yolov5)
        }
        Head::Dfl(_) => Ok(Package::Ultralytics),
        _ => Err(foreign(name, "is no head of a family that has a .pt")),
    }
}

impl<'g> Blocks<'g> {
    /// The head.
    ///
    /// # Errors
    /// What runs before its maps are joined is no module.
    pub fn head(&self, part: &Part<'g>, path: &str) -> Result<Made<'g>> {
        match self.graph.head()?.0 {
            Head::Anchor(head) => self.anchor_head(head, part, path),
            Head::Dfl(head) => self.dfl_head(head, part, path),
            Head::Yolox(_) => Err(foreign(path, "is no head of a family that has a .pt")),
        }
    }

    fn anchor_head(&self, head: &AnchorHead, part: &Part<'g>, path: &str) -> Result<Made<'g>> {
        const CLASS: Class = ("models.yolo", "Detect");
        let (levels, anchors) = (head.levels.len(), head.levels[0].anchors.len());
        // A grid of one value fits no map: the package makes its own as soon as it sees the first.
        let no_grids = || Py::List(vec![Py::tensor([1], vec![0.0]); levels]);
        let cells = head.levels.iter().flat_map(|l| l.anchors.iter().flatten().map(|a| a / l.stride as f32));
        let mut module = Module::with(vec![
            ("nc", Py::size(head.classes)),
            ("no", Py::size(head.classes + 5)),
            ("nl", Py::size(levels)),
            ("na", Py::size(anchors)),
            ("grid", no_grids()),
            ("anchor_grid", no_grids()),
            ("inplace", Py::Bool(true)),
            ("stride", strides(&Head::Anchor(head.clone()))),
        ])
        .holding([("m", self.branches(part, path, "m")?)]);
        module.buffers = vec![("anchors", Py::tensor([levels, anchors, 2], cells.collect::<Vec<f32>>()))];
        Ok(Made { class: CLASS, module: module.build(CLASS) })
    }

    fn dfl_head(&self, head: &DflHead, part: &Part<'g>, path: &str) -> Result<Made<'g>> {
        let name = match head.extra {
            None if head.end_to_end && self.graph.meta.family == Family::Yolov10 => "v10Detect",
            None => "Detect",
            Some(Extra::Masks { .. }) => "Segment",
            Some(Extra::Keypoints { .. }) => "Pose",
            Some(Extra::Angle) => "OBB",
        };
        let class: Class = ("ultralytics.nn.modules.head", name);
        let mut attributes = vec![
            ("nc", Py::size(head.classes)),
            ("nl", Py::size(head.strides.len())),
            ("reg_max", Py::size(head.reg_max)),
            ("no", Py::size(head.classes + 4 * head.reg_max)),
            ("inplace", Py::Bool(true)),
            ("stride", strides(&Head::Dfl(head.clone()))),
        ];
        let mut beside = vec![];
        if head.end_to_end {
            for name in ["one2one_cv2", "one2one_cv3"] {
                beside.push((name, self.branches(part, path, name)?));
            }
        }
        if head.extra.is_some() {
            beside.push(("cv4", self.branches(part, path, "cv4")?));
        }
        match head.extra {
            Some(Extra::Masks { prototypes }) => {
                let proto = part.child("proto").ok_or_else(|| foreign(path, "has no module `proto`"))?;
                let (module, width) = self.proto(proto, &format!("{path}.proto"))?;
                attributes.extend([("nm", Py::size(prototypes)), ("npr", Py::size(width))]);
                beside.push(("proto", module));
            }
            Some(Extra::Keypoints { points, values }) => {
                let shape = Py::List(vec![Py::size(points), Py::size(values)]);
                attributes.extend([("kpt_shape", shape), ("nk", Py::size(points * values))]);
            }
            Some(Extra::Angle) => attributes.push(("ne", Py::Int(1))),
            None => {}
        }
        let module = Module::with(attributes)
            .holding([("cv2", self.branches(part, path, "cv2")?), ("cv3", self.branches(part, path, "cv3")?)])
            .holding([("dfl", if head.reg_max > 1 { self.dfl(head.reg_max) } else { identity() })])
            .holding(beside);
        Ok(Made { class, module: module.build(class) })
    }

    /// The convolution that takes the mean of a distribution over `bins` cells.
    fn dfl(&self, bins: usize) -> Py<'g> {
        let mut conv = Module::with(vec![
            ("in_channels", Py::size(bins)),
            ("out_channels", Py::Int(1)),
            ("kernel_size", Py::pair([1, 1])),
            ("stride", Py::pair([1, 1])),
            ("padding", Py::pair([0, 0])),
            ("dilation", Py::pair([1, 1])),
            ("transposed", Py::Bool(false)),
            ("output_padding", Py::pair([0, 0])),
            ("groups", Py::Int(1)),
            ("padding_mode", Py::str("zeros")),
            ("_reversed_padding_repeated_twice", Py::Tuple(vec![Py::Int(0); 4])),
        ]);
        let cells: Vec<f32> = (0..bins).map(|i| i as f32).collect();
        conv.parameters = vec![("weight", Py::parameter([1, bins, 1, 1], cells)), ("bias", Py::None)];
        Module::with(vec![("c1", Py::size(bins))])
            .holding([("conv", conv.build(("torch.nn.modules.conv", "Conv2d")))])
            .build(("ultralytics.nn.modules.block", "DFL"))
    }

    fn branches(&self, part: &Part<'g>, path: &str, name: &str) -> Result<Py<'g>> {
        let list = part.child(name).ok_or_else(|| foreign(path, format!("has no module `{name}`")))?;
        self.list("ModuleList", list, &format!("{path}.{name}"))
    }
}

/// Pixels a cell, by level.
pub(super) fn strides<'g>(head: &Head) -> Py<'g> {
    let strides: Vec<f32> = head.strides().into_iter().map(|s| s as f32).collect();
    Py::tensor([strides.len()], strides)
}
