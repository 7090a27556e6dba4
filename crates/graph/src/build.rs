//! Untrained detectors: YOLOv5's architecture at any width and depth, from a seed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Act, AnchorHead, AnchorLevel, BatchNorm, BoxDecode, Conv, Family, Graph, Head, MaxPool, Meta, NodeId, Op, Result,
    Tensor,
};

/// Anchors of YOLOv5 for COCO, (width, height) in pixels at 640, by level.
const ANCHORS: [[[f32; 2]; 3]; 3] = [
    [[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]],
    [[30.0, 61.0], [62.0, 45.0], [59.0, 119.0]],
    [[116.0, 90.0], [156.0, 198.0], [373.0, 326.0]],
];

/// Pixels a cell, by level.
const STRIDES: [usize; 3] = [8, 16, 32];

/// Which detector to build.
#[derive(Clone, Debug, PartialEq)]
pub struct Yolov5 {
    pub names: Vec<String>,
    /// Side of the square images, pixels; the anchors are scaled to it.
    pub imgsz: usize,
    /// Factor of YOLOv5l's channels: 0.25 is yolov5n, 0.5 yolov5s.
    pub width: f32,
    /// Factor of YOLOv5l's bottlenecks a block: 0.33 is yolov5n and yolov5s.
    pub depth: f32,
    pub seed: u64,
}

impl Yolov5 {
    /// The untrained detector: weights uniform in ±1/sqrt(fan-in) as PyTorch starts them, head biases for rare objects as
    /// YOLOv5 does (8 objects an image of 640 pixels, classes at 0.6 / classes).
    ///
    /// # Errors
    /// `imgsz` is no multiple of 32.
    pub fn build(&self) -> Result<Graph> {
        let meta = Meta { family: Family::Yolov5, names: self.names.clone(), imgsz: [self.imgsz; 2] };
        let mut b = Builder { graph: Graph::new(meta, 3), rng: ChaCha8Rng::seed_from_u64(self.seed) };
        let c = |channels: usize| ((channels as f32 * self.width / 8.0).ceil() as usize * 8).max(8);
        let n = |repeats: usize| ((repeats as f32 * self.depth).round() as usize).max(1);

        let x = b.conv("model.0", 0, c(64), 6, 2, 2);
        let x = b.conv("model.1", x, c(128), 3, 2, 1);
        let x = b.c3("model.2", x, c(128), n(3), true);
        let x = b.conv("model.3", x, c(256), 3, 2, 1);
        let p3 = b.c3("model.4", x, c(256), n(6), true);
        let x = b.conv("model.5", p3, c(512), 3, 2, 1);
        let p4 = b.c3("model.6", x, c(512), n(9), true);
        let x = b.conv("model.7", p4, c(1024), 3, 2, 1);
        let x = b.c3("model.8", x, c(1024), n(3), true);
        let x = b.sppf("model.9", x, c(1024));
        let top = b.conv("model.10", x, c(512), 1, 1, 0);
        let x = b.push("model.11", Op::Upsample { factor: 2 }, vec![top]);
        let x = b.push("model.12", Op::Concat, vec![x, p4]);
        let x = b.c3("model.13", x, c(512), n(3), false);
        let middle = b.conv("model.14", x, c(256), 1, 1, 0);
        let x = b.push("model.15", Op::Upsample { factor: 2 }, vec![middle]);
        let x = b.push("model.16", Op::Concat, vec![x, p3]);
        let small = b.c3("model.17", x, c(256), n(3), false);
        let x = b.conv("model.18", small, c(256), 3, 2, 1);
        let x = b.push("model.19", Op::Concat, vec![x, middle]);
        let medium = b.c3("model.20", x, c(512), n(3), false);
        let x = b.conv("model.21", medium, c(512), 3, 2, 1);
        let x = b.push("model.22", Op::Concat, vec![x, top]);
        let large = b.c3("model.23", x, c(1024), n(3), false);
        b.detect("model.24", [small, medium, large], self);
        b.graph.validate()?;
        Ok(b.graph)
    }
}

struct Builder {
    graph: Graph,
    rng: ChaCha8Rng,
}

impl Builder {
    fn push(&mut self, name: &str, op: Op, inputs: Vec<NodeId>) -> NodeId {
        self.graph.push(name, op, inputs)
    }

    /// Channels of a node's output.
    fn channels(&self, id: NodeId) -> usize {
        let node = &self.graph.nodes[id];
        match &node.op {
            Op::Input { channels } => *channels,
            Op::Conv(c) => c.out_channels(),
            Op::Concat => node.inputs.iter().map(|&i| self.channels(i)).sum(),
            Op::Slice { len, .. } => *len,
            Op::Attention(a) => a.heads * a.value,
            _ => self.channels(node.inputs[0]),
        }
    }

    fn weight(&mut self, shape: [usize; 4]) -> Tensor {
        let bound = 1.0 / ((shape[1] * shape[2] * shape[3]) as f32).sqrt();
        let len = shape.iter().product();
        Tensor::new(shape, (0..len).map(|_| self.rng.random_range(-bound..bound)).collect())
    }

    /// Convolution, BatchNorm, SiLU.
    fn conv(&mut self, name: &str, from: NodeId, out: usize, kernel: usize, stride: usize, pad: usize) -> NodeId {
        let weight = self.weight([out, self.channels(from), kernel, kernel]);
        let conv = Conv { weight, bias: None, stride: [stride; 2], pad: [pad; 2], groups: 1 };
        let x = self.push(&format!("{name}.conv"), Op::Conv(conv), vec![from]);
        let x = self.push(&format!("{name}.bn"), Op::BatchNorm(BatchNorm::identity(out, 1e-3, 0.03)), vec![x]);
        self.push(&format!("{name}.act"), Op::Act(Act::Silu), vec![x])
    }

    /// Cross-stage partial block of `repeats` bottlenecks, with or without their shortcut.
    fn c3(&mut self, name: &str, from: NodeId, out: usize, repeats: usize, shortcut: bool) -> NodeId {
        let mut x = self.conv(&format!("{name}.cv1"), from, out / 2, 1, 1, 0);
        for i in 0..repeats {
            let inner = self.conv(&format!("{name}.m.{i}.cv1"), x, out / 2, 1, 1, 0);
            let inner = self.conv(&format!("{name}.m.{i}.cv2"), inner, out / 2, 3, 1, 1);
            x = if shortcut { self.push(&format!("{name}.m.{i}.add"), Op::Add, vec![x, inner]) } else { inner };
        }
        let side = self.conv(&format!("{name}.cv2"), from, out / 2, 1, 1, 0);
        let x = self.push(&format!("{name}.cat"), Op::Concat, vec![x, side]);
        self.conv(&format!("{name}.cv3"), x, out, 1, 1, 0)
    }

    /// Spatial pyramid pooling: a map beside three ever wider maxima of it.
    fn sppf(&mut self, name: &str, from: NodeId, out: usize) -> NodeId {
        let first = self.conv(&format!("{name}.cv1"), from, self.channels(from) / 2, 1, 1, 0);
        let mut parts = vec![first];
        for i in 0..3 {
            let pool = Op::MaxPool(MaxPool { kernel: 5, stride: 1, pad: [2, 2] });
            parts.push(self.push(&format!("{name}.m.{i}"), pool, vec![parts[i]]));
        }
        let x = self.push(&format!("{name}.cat"), Op::Concat, parts);
        self.conv(&format!("{name}.cv2"), x, out, 1, 1, 0)
    }

    fn detect(&mut self, name: &str, from: [NodeId; 3], spec: &Yolov5) {
        let classes = spec.names.len();
        let mut maps = vec![];
        for (i, &map) in from.iter().enumerate() {
            let weight = self.weight([3 * (5 + classes), self.channels(map), 1, 1]);
            let object = (8.0 / (640.0 / STRIDES[i] as f32).powi(2)).ln();
            let class = (0.6 / (classes as f32 - 0.99999)).ln().min(0.0);
            let bias = (0..3 * (5 + classes)).map(|k| match k % (5 + classes) {
                0..4 => 0.0,
                4 => object,
                _ => class,
            });
            let conv = Conv { weight, bias: Some(bias.collect()), stride: [1; 2], pad: [0; 2], groups: 1 };
            maps.push(self.push(&format!("{name}.m.{i}"), Op::Conv(conv), vec![map]));
        }
        let scale = spec.imgsz as f32 / 640.0;
        let levels = (0..3).map(|i| AnchorLevel {
            stride: STRIDES[i],
            anchors: ANCHORS[i].iter().map(|[w, h]| [w * scale, h * scale]).collect(),
            decode: BoxDecode::V5,
        });
        let head = AnchorHead { classes, levels: levels.collect() };
        self.push(name, Op::Head(Head::Anchor(head)), maps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost;

    #[test]
    fn yolov5n_and_s_have_their_published_size() -> Result<()> {
        for (width, params) in [(0.25, 1_872_157), (0.5, 7_235_389)] {
            let names = (0..80).map(|i| i.to_string()).collect();
            let graph = Yolov5 { names, imgsz: 640, width, depth: 0.33, seed: 0 }.build()?;
            assert_eq!(cost::total(&graph, [640, 640])?.params, params);
        }
        Ok(())
    }
}
