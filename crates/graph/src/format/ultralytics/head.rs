//! The heads: `Detect` with anchors (YOLOv5) and with distributions (YOLOv8 and later), and `Segment`, `Pose`, `OBB`, which
//! are the latter with a third branch.

use super::Build;
use crate::format::pickle::Ref;
use crate::{AnchorHead, AnchorLevel, BoxDecode, DflHead, Extra, Family, Head, NodeId, Op, Result};

impl<'a> Build<'a> {
    /// Adds the detection head, the last layer, and sets the family it tells.
    pub(super) fn head(&mut self, module: Ref<'a>, path: &str, inputs: &[NodeId]) -> Result<()> {
        let (home, class) = self.class(module, path)?;
        let extra = match class {
            "Detect" | "v10Detect" => None,
            "Segment" => Some(Extra::Masks { prototypes: self.attr(module, path, "nm", Ref::index)? }),
            "Pose" => {
                let shape = module.attr("kpt_shape").and_then(|s| s.array::<2>());
                let [points, values] = shape.map(|s| s.map(Ref::index)).unwrap_or_default();
                let (Some(points), Some(values)) = (points, values) else {
                    return Err(self.error(path, "`kpt_shape` is missing or not two numbers"));
                };
                Some(Extra::Keypoints { points, values })
            }
            "OBB" => Some(Extra::Angle),
            _ => {
                return Err(self
                    .error(path, format!("the last layer is a `{home}.{class}`, not a head known here"))
                    .hint("detectors load, and YOLOv8's and YOLO11's Segment, Pose and OBB; classifiers and others do not"));
            }
        };
        let anchors = self.optional(module, "m").is_some();
        match extra {
            Some(extra) if anchors || self.optional(module, "one2one_cv2").is_some() => {
                let kind = if anchors { "YOLOv5's" } else { "an end-to-end" };
                Err(self
                    .error(path, format!("is {kind} `{class}`, whose {} are not known here", extra.name()))
                    .hint("Segment, Pose and OBB load as YOLOv8 and YOLO11 have them"))
            }
            None if anchors => self.anchor_head(module, path, inputs),
            _ => self.dfl_head(module, path, inputs, extra),
        }
    }

    /// YOLOv5: one 1x1 convolution a level; anchors are kept in cells, strides in pixels.
    fn anchor_head(&mut self, module: Ref<'a>, path: &str, inputs: &[NodeId]) -> Result<()> {
        let strides = self.strides(module, path, inputs.len())?;
        let classes = self.attr(module, path, "nc", Ref::index)?;
        let anchors = self.parameter(module, path, "anchors")?.ok_or_else(|| self.error(path, "has no anchors"))?;
        let [levels, per_level, 2] = anchors.shape[..] else {
            return Err(self.error(path, format!("anchors have shape {:?}, not (levels, anchors, 2)", anchors.shape)));
        };
        if per_level == 0 {
            return Err(self.error(path, "has no anchors"));
        }
        if levels != inputs.len() {
            return Err(self.error(path, format!("has anchors for {levels} levels, reads {}", inputs.len())));
        }
        let pixels: Vec<f32> =
            anchors.data.iter().enumerate().map(|(i, a)| a * strides[i / (2 * per_level)] as f32).collect();
        // Before 6.0 the same anchors are kept in pixels too; where they disagree, the cells are not in cells.
        if let Some(grid) = self.parameter(module, path, "anchor_grid")? {
            let same = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.01 * b.abs();
            if grid.len() != pixels.len() || !pixels.iter().zip(&grid.data).all(same) {
                return Err(self.error(path, "`anchors` times `stride` are not `anchor_grid`"));
            }
        }
        let levels = (strides.iter().zip(pixels.chunks_exact(2 * per_level)))
            .map(|(&stride, level)| AnchorLevel {
                stride,
                anchors: level.chunks_exact(2).map(|a| [a[0], a[1]]).collect(),
                decode: BoxDecode::V5,
            })
            .collect();
        let maps = self.branches(module, path, "m", inputs)?;
        self.graph.push(path, Op::Head(Head::Anchor(AnchorHead { classes, levels })), maps);
        self.graph.meta.family = Family::Yolov5;
        Ok(())
    }

    /// YOLOv8 and later: a box branch (cv2) and a class branch (cv3) a level. YOLOv10 and YOLO26 have each twice. One pair is
    /// trained with one box an object, and is the one that predicts; the other helps training, and is missing in a checkpoint
    /// that was readied for inference. What `extra` tells comes from a third branch (cv4), and the prototypes of masks from
    /// the finest level.
    fn dfl_head(&mut self, module: Ref<'a>, path: &str, inputs: &[NodeId], extra: Option<Extra>) -> Result<()> {
        let strides = self.strides(module, path, inputs.len())?;
        let classes = self.attr(module, path, "nc", Ref::index)?;
        let reg_max = self.attr(module, path, "reg_max", Ref::index)?;
        if let Some(dfl) = self.optional(module, "dfl").and_then(|dfl| self.optional(dfl, "conv")) {
            let bins = self.parameter(dfl, &format!("{path}.dfl.conv"), "weight")?.map_or(vec![], |w| w.data);
            if bins.len() != reg_max || !bins.iter().enumerate().all(|(i, &w)| w == i as f32) {
                return Err(self.error(path, format!("the bins of its box distribution are not 0..{reg_max}")));
            }
        }
        let end_to_end = self.optional(module, "one2one_cv2").is_some();
        let one_to_many = end_to_end && self.optional(module, "cv2").is_some();
        let names = if end_to_end { ["one2one_cv2", "one2one_cv3"] } else { ["cv2", "cv3"] };
        let mut maps = self.pairs(module, path, names, inputs)?;
        if one_to_many {
            maps.extend(self.pairs(module, path, ["cv2", "cv3"], inputs)?);
        }
        if extra.is_some() {
            maps.extend(self.branches(module, path, "cv4", inputs)?);
        }
        if let (Some(Extra::Masks { .. }), Some(&finest)) = (extra, inputs.first()) {
            maps.push(self.sub(module, path, "proto", finest)?);
        }
        self.graph.push(
            path,
            Op::Head(Head::Dfl(DflHead { classes, reg_max, strides, end_to_end, one_to_many, extra })),
            maps,
        );
        self.graph.meta.family = match self.tells {
            // YOLO26 is built from YOLO11's blocks.
            Some(Family::Yolo11) if end_to_end => Family::Yolo26,
            Some(family) => family,
            None => Family::Yolov8,
        };
        Ok(())
    }

    /// Runs a list of box branches and one of class branches on every input: box and class map of each level.
    fn pairs(&mut self, module: Ref<'a>, path: &str, names: [&str; 2], inputs: &[NodeId]) -> Result<Vec<NodeId>> {
        let boxes = self.branches(module, path, names[0], inputs)?;
        let logits = self.branches(module, path, names[1], inputs)?;
        Ok(boxes.into_iter().zip(logits).flat_map(|(b, c)| [b, c]).collect())
    }

    /// Runs branch i of list `name` on input i.
    fn branches(&mut self, module: Ref<'a>, path: &str, name: &str, inputs: &[NodeId]) -> Result<Vec<NodeId>> {
        let list = self.child(module, path, name)?;
        let path = format!("{path}.{name}");
        let branches = self.children(list, &path)?;
        if branches.len() != inputs.len() {
            return Err(self.error(&path, format!("has {} branches for {} inputs", branches.len(), inputs.len())));
        }
        let run =
            |(&x, (key, branch)): (&NodeId, (String, Ref<'a>))| self.module(branch, &format!("{path}.{key}"), &[x]);
        inputs.iter().zip(branches).map(run).collect()
    }

    /// Pixels a cell of every level, from the head or, where it has none, the model.
    fn strides(&self, module: Ref<'a>, path: &str, levels: usize) -> Result<Vec<usize>> {
        let given = [module, self.model].into_iter().find_map(|m| m.attr("stride")).filter(|s| !s.is_none());
        let given = given.ok_or_else(|| self.error(path, "has no `stride`"))?;
        let strides = self.file.tensor(given, &format!("{path}.stride"))?.data;
        let whole = |s: &f32| (1.0..=1024.0).contains(s) && s.fract() == 0.0;
        if strides.len() != levels || levels == 0 || !strides.iter().all(whole) {
            return Err(self
                .error(path, format!("has strides {strides:?} for {levels} levels"))
                .hint("a checkpoint saved before the model was built has no strides; give one training wrote"));
        }
        Ok(strides.into_iter().map(|s| s as usize).collect())
    }
}
