//! The heads of the families, on the maps of stride 8, 16 and 32.

use super::blocks::{Builder, Window};
use crate::{AnchorHead, AnchorLevel, BoxDecode, DflHead, Head, NodeId, Op};

/// Pixels a cell, by level.
pub(super) const STRIDES: [usize; 3] = [8, 16, 32];

/// Anchors of YOLOv5 for COCO, (width, height) in pixels at 640, by level.
const ANCHORS: [[[f32; 2]; 3]; 3] = [
    [[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]],
    [[30.0, 61.0], [62.0, 45.0], [59.0, 119.0]],
    [[116.0, 90.0], [156.0, 198.0], [373.0, 326.0]],
];

/// Bins of a distribution over distances.
const BINS: usize = 16;

/// Channels a class branch has where there are more classes than that.
const MOST_CLASS_CHANNELS: usize = 100;

impl Builder {
    /// YOLOv5's: a 1x1 convolution a level. The anchors are COCO's for images of 640 pixels, scaled to `imgsz`.
    pub fn anchor_head(&mut self, name: &str, from: [NodeId; 3], classes: usize, imgsz: usize) {
        let maps = (0..3)
            .map(|i| self.plain(&format!("{name}.m.{i}"), from[i], 3 * (5 + classes), Window::of(1, 1), 1, true))
            .collect();
        let scale = imgsz as f32 / 640.0;
        let levels = (0..3).map(|i| AnchorLevel {
            stride: STRIDES[i],
            anchors: ANCHORS[i].iter().map(|[w, h]| [w * scale, h * scale]).collect(),
            decode: BoxDecode::V5,
        });
        let head = AnchorHead { classes, levels: levels.collect() };
        self.push(name, Op::Head(Head::Anchor(head)), maps);
    }

    /// YOLOv8's, and with class branches of `separable` convolutions YOLO11's: a branch for distances and one for classes a
    /// level.
    pub fn dfl_head(&mut self, name: &str, from: [NodeId; 3], classes: usize, separable: bool) {
        let first = self.channels(from[0]);
        let wide = (first / 4).max(4 * BINS);
        let boxes: Vec<NodeId> = (0..3)
            .map(|i| {
                let name = format!("{name}.cv2.{i}");
                let x = self.conv(&format!("{name}.0"), from[i], wide, Window::of(3, 1));
                let x = self.conv(&format!("{name}.1"), x, wide, Window::of(3, 1));
                self.plain(&format!("{name}.2"), x, 4 * BINS, Window::of(1, 1), 1, true)
            })
            .collect();
        let wide = first.max(classes.min(MOST_CLASS_CHANNELS));
        let logits: Vec<NodeId> = (0..3)
            .map(|i| {
                let name = format!("{name}.cv3.{i}");
                let mut x = from[i];
                for k in 0..2 {
                    let name = format!("{name}.{k}");
                    x = if separable {
                        let x = self.depthwise(&format!("{name}.0"), x, Window::of(3, 1));
                        self.conv(&format!("{name}.1"), x, wide, Window::of(1, 1))
                    } else {
                        self.conv(&name, x, wide, Window::of(3, 1))
                    };
                }
                self.plain(&format!("{name}.2"), x, classes, Window::of(1, 1), 1, true)
            })
            .collect();
        let maps = boxes.into_iter().zip(logits).flat_map(|(b, c)| [b, c]).collect();
        self.push(name, Op::Head(Head::Dfl(DflHead::new(classes, BINS, STRIDES.to_vec()))), maps);
    }
}
