//! YOLOX (Ge et al., "YOLOX: Exceeding YOLO Series in 2021"): its backbone, neck and decoupled head, which are no table of
//! layers. Nodes are called as its authors call the modules.

use super::blocks::{Builder, Window};
use super::{Scale, head::STRIDES};
use crate::{Head, MaxPool, NodeId, Op, YoloxHead};

/// Kernels of the pools beside the map they read.
const POOLS: [usize; 3] = [5, 9, 13];

/// The parts of a YOLOX under construction.
struct Yolox<'a> {
    b: &'a mut Builder,
    scale: Scale,
    /// Every 3x3 convolution is one filter a channel and a 1x1 convolution (YOLOX-Nano).
    depthwise: bool,
}

/// Builds all of it onto the image.
pub(super) fn build(b: &mut Builder, scale: Scale, depthwise: bool, classes: usize) {
    let mut yolox = Yolox { b, scale, depthwise };
    let features = yolox.backbone();
    let levels = yolox.neck(features);
    yolox.head(levels, classes);
}

impl Yolox<'_> {
    fn channels(&self, table: usize) -> usize {
        (table as f64 * self.scale.width) as usize
    }

    /// Bottlenecks of a stage that has `table` at depth 1.
    fn repeats(&self, table: usize) -> usize {
        let base = ((3.0 * self.scale.depth).round_ties_even() as usize).max(1);
        base * table / 3
    }

    fn one(&mut self, name: &str, x: NodeId, out: usize) -> NodeId {
        self.b.conv(name, x, out, Window::of(1, 1))
    }

    fn three(&mut self, name: &str, x: NodeId, out: usize, stride: usize) -> NodeId {
        if !self.depthwise {
            return self.b.conv(name, x, out, Window::of(3, stride));
        }
        let x = self.b.depthwise(&format!("{name}.dconv"), x, Window::of(3, stride));
        self.one(&format!("{name}.pconv"), x, out)
    }

    /// Two halves, one of them through `n` bottlenecks, joined.
    fn csp(&mut self, name: &str, x: NodeId, out: usize, n: usize, shortcut: bool) -> NodeId {
        let half = out / 2;
        let mut left = self.one(&format!("{name}.conv1"), x, half);
        let right = self.one(&format!("{name}.conv2"), x, half);
        for i in 0..n {
            let name = format!("{name}.m.{i}");
            let y = self.one(&format!("{name}.conv1"), left, half);
            let y = self.three(&format!("{name}.conv2"), y, half, 1);
            left = if shortcut { self.b.add(format!("{name}.add"), y, left) } else { y };
        }
        let both = self.b.push(format!("{name}.cat"), Op::Concat, vec![left, right]);
        self.one(&format!("{name}.conv3"), both, out)
    }

    /// The maps of stride 8, 16 and 32.
    fn backbone(&mut self) -> [NodeId; 3] {
        let name = "backbone.backbone";
        // Its `Focus` puts the four phases of the image into channels before a 3x3 convolution: one 6x6 of stride 2.
        let window = Window { kernel: 6, stride: 2, pad: 2 };
        let mut x = self.b.conv(&format!("{name}.stem.conv"), 0, self.channels(64), window);
        let mut features = [0; 3];
        for (i, repeats) in [3, 9, 9, 3].into_iter().enumerate() {
            let (name, out, last) = (format!("{name}.dark{}", i + 2), self.channels(128 << i), i == 3);
            x = self.three(&format!("{name}.0"), x, out, 2);
            if last {
                x = self.pools(&format!("{name}.1"), x, out);
            }
            x = self.csp(&format!("{name}.{}", 1 + usize::from(last)), x, out, self.repeats(repeats), !last);
            if i > 0 {
                features[i - 1] = x;
            }
        }
        features
    }

    /// Half the channels beside three maxima of them, joined.
    fn pools(&mut self, name: &str, x: NodeId, out: usize) -> NodeId {
        let half = self.b.channels(x) / 2;
        let x = self.one(&format!("{name}.conv1"), x, half);
        let mut parts = vec![x];
        for (i, kernel) in POOLS.into_iter().enumerate() {
            let pool = MaxPool { kernel, stride: 1, pad: [kernel / 2; 2] };
            parts.push(self.b.push(format!("{name}.m.{i}"), Op::MaxPool(pool), vec![x]));
        }
        let x = self.b.push(format!("{name}.cat"), Op::Concat, parts);
        self.one(&format!("{name}.conv2"), x, out)
    }

    /// Down from the coarsest map to the finest and up again.
    fn neck(&mut self, [fine, middle, coarse]: [NodeId; 3]) -> [NodeId; 3] {
        let [c3, c4, c5] = [256, 512, 1024].map(|c| self.channels(c));
        let n = self.repeats(3);
        let join =
            |yolox: &mut Self, name: &str, a, b| yolox.b.push(format!("backbone.{name}"), Op::Concat, vec![a, b]);
        let up = |yolox: &mut Self, name: &str, x| {
            yolox.b.push(format!("backbone.{name}"), Op::Upsample { factor: 2 }, vec![x])
        };
        let top = self.one("backbone.lateral_conv0", coarse, c4);
        let x = up(self, "upsample0", top);
        let x = join(self, "cat0", x, middle);
        let x = self.csp("backbone.C3_p4", x, c4, n, false);
        let mid = self.one("backbone.reduce_conv1", x, c3);
        let x = up(self, "upsample1", mid);
        let x = join(self, "cat1", x, fine);
        let out3 = self.csp("backbone.C3_p3", x, c3, n, false);
        let x = self.three("backbone.bu_conv2", out3, c3, 2);
        let x = join(self, "cat2", x, mid);
        let out4 = self.csp("backbone.C3_n3", x, c4, n, false);
        let x = self.three("backbone.bu_conv1", out4, c4, 2);
        let x = join(self, "cat3", x, top);
        [out3, out4, self.csp("backbone.C3_n4", x, c5, n, false)]
    }

    /// A stem a level, after which classes go one way and boxes with objectness another.
    fn head(&mut self, levels: [NodeId; 3], classes: usize) {
        let wide = self.channels(256);
        let mut maps = vec![];
        for (i, level) in levels.into_iter().enumerate() {
            let stem = self.one(&format!("head.stems.{i}"), level, wide);
            let [class, boxes] = ["cls", "reg"]
                .map(|way| (0..2).fold(stem, |x, k| self.three(&format!("head.{way}_convs.{i}.{k}"), x, wide, 1)));
            for (name, x, out) in [("reg", boxes, 4), ("obj", boxes, 1), ("cls", class, classes)] {
                maps.push(self.b.plain(&format!("head.{name}_preds.{i}"), x, out, Window::of(1, 1), 1, true));
            }
        }
        let head = YoloxHead { classes, strides: STRIDES.to_vec() };
        self.b.push("head", Op::Head(Head::Yolox(head)), maps);
    }
}
