//! Which published family a detector is of, as exactly as its structure tells: its operators and its head, not its file's
//! name, nor the width of its layers, which pruning changes.

use graph::{Act, AnchorHead, BoxDecode, Conv, DflHead, Graph, Head, Node, Op};

/// The family's name, such as `YOLOv3-tiny`.
pub fn name(graph: &Graph) -> &'static str {
    let seen = Seen(graph);
    match graph.head().map(|(head, _)| head) {
        Ok(Head::Dfl(head)) => seen.dfl(head),
        Ok(Head::Anchor(head)) if head.levels.iter().all(|l| l.decode == BoxDecode::V5) => seen.yolov5(head),
        Ok(Head::Anchor(head)) => seen.darknet(head),
        Ok(Head::Yolox(_)) if seen.convs().any(Conv::is_depthwise) => "YOLOX, depthwise",
        Ok(Head::Yolox(_)) => "YOLOX",
        Err(_) => "no detector",
    }
}

/// What there is to see in a graph.
struct Seen<'a>(&'a Graph);

impl<'a> Seen<'a> {
    fn count(&self, what: impl Fn(&Node) -> bool) -> usize {
        self.0.nodes.iter().filter(|n| what(n)).count()
    }

    fn any(&self, what: impl Fn(&Op) -> bool) -> bool {
        self.0.nodes.iter().any(|n| what(&n.op))
    }

    fn convs(&self) -> impl Iterator<Item = &'a Conv> {
        self.0.nodes.iter().filter_map(|n| if let Op::Conv(conv) = &n.op { Some(conv) } else { None })
    }

    fn adds(&self) -> usize {
        self.count(|n| n.op == Op::Add)
    }

    /// Max pools that keep the size: pyramid pooling.
    fn pyramid(&self) -> usize {
        self.count(|n| matches!(&n.op, Op::MaxPool(pool) if pool.stride == 1))
    }

    /// The first convolution is YOLOv5's: 6x6, which `Focus` of earlier releases is as well.
    fn wide_stem(&self) -> bool {
        self.convs().next().is_some_and(|conv| conv.kernel() == [6, 6])
    }

    /// Whether halves of a map and what is made of the second are joined, as `C2f` and its kin do.
    fn halves(&self) -> bool {
        let slice = |id: &usize| matches!(self.0.nodes[*id].op, Op::Slice { .. });
        self.0.nodes.iter().any(|n| n.op == Op::Concat && n.inputs.iter().filter(|id| slice(id)).count() == 2)
    }

    /// YOLOv8 and all that share its head.
    fn dfl(&self, head: &DflHead) -> &'static str {
        let attention = self.any(|op| matches!(op, Op::Attention(_)));
        let areas = self.any(|op| matches!(op, Op::Attention(a) if a.areas > 1));
        // Means of 2x2 neighbours before a layer goes down.
        let means = self.convs().any(|conv| conv.is_depthwise() && conv.kernel() == [2, 2]);
        match (head.end_to_end, head.reg_max) {
            (true, 1) => return "YOLO26",
            (true, _) => return "YOLOv10",
            _ => {}
        }
        match () {
            () if areas => "YOLO12",
            () if attention => "YOLO11",
            () if means => "YOLOv9",
            () if self.halves() => "YOLOv8",
            () if self.wide_stem() => "YOLOv5u, with YOLOv8's head",
            () if head.strides.len() == 2 => "YOLOv3-tinyu, with YOLOv8's head",
            () if self.adds() == 0 => "YOLOv6, as Ultralytics builds it",
            () => "YOLOv3u, with YOLOv8's head",
        }
    }

    /// What the YOLOv5 repository holds.
    fn yolov5(&self, head: &AnchorHead) -> &'static str {
        match (self.wide_stem(), head.levels.len(), self.pyramid()) {
            (true, 4, _) => "YOLOv5-P6",
            // One pool after another, or the image's phases and pools side by side.
            (true, ..) if self.chained() => "YOLOv5",
            (true, ..) => "YOLOv5, older than release 6.0",
            (false, 2, _) => "YOLOv3-tiny, with YOLOv5's head",
            (false, _, 0) => "YOLOv3, with YOLOv5's head",
            (false, ..) => "YOLOv3-SPP, with YOLOv5's head",
        }
    }

    /// Whether a max pool reads another.
    fn chained(&self) -> bool {
        let pool = |id: &usize| matches!(self.0.nodes[*id].op, Op::MaxPool(_));
        self.0.nodes.iter().any(|n| matches!(n.op, Op::MaxPool(_)) && n.inputs.iter().any(pool))
    }

    /// Darknet's.
    fn darknet(&self, head: &AnchorHead) -> &'static str {
        let new = head.levels.iter().any(|l| matches!(l.decode, BoxDecode::DarknetNew { .. }));
        let plain = head.levels.iter().all(|l| l.decode == BoxDecode::Darknet { scale_xy: 1.0 });
        let mish = self.any(|op| *op == Op::Act(Act::Mish));
        let tiny = self.adds() == 0;
        match () {
            () if self.convs().any(Conv::is_depthwise) => "YOLO-Fastest",
            () if new && mish => "YOLOv4-CSP",
            () if new && self.any(|op| *op == Op::Act(Act::Leaky)) => "YOLOv7-tiny",
            () if new => "YOLOv7",
            () if !plain && tiny => "YOLOv4-tiny",
            () if !plain => "YOLOv4",
            () if tiny => "YOLOv3-tiny",
            () if self.pyramid() > 0 => "YOLOv3-SPP",
            () => "YOLOv3",
        }
    }
}

#[cfg(test)]
mod tests {
    use graph::build::Design;
    use graph::format::{LoadOptions, load};
    use testkit::{shared, small};

    use super::name;

    #[test]
    fn families_of_modules_are_told_apart() {
        for (detector, family) in [
            ("yolov5n", "YOLOv5"),
            ("yolov5nu", "YOLOv5u, with YOLOv8's head"),
            ("yolov8n", "YOLOv8"),
            ("yolo11n", "YOLO11"),
            ("yolo11m", "YOLO11"),
        ] {
            let graph = Design::named(detector).expect("it is listed").build(&["a".into()], 32, 0).unwrap();
            assert_eq!(name(&graph), family, "{detector}");
        }
        for (detector, family) in [
            ("yolov9", "YOLOv9"),
            ("yolov9e", "YOLOv9"),
            ("yolov10", "YOLOv10"),
            ("yolo12", "YOLO12"),
            ("yolo26", "YOLO26"),
            ("yolov3", "YOLOv3, with YOLOv5's head"),
            ("yolov3-spp", "YOLOv3-SPP, with YOLOv5's head"),
            ("yolov3-tiny", "YOLOv3-tiny, with YOLOv5's head"),
        ] {
            assert_eq!(name(&small(detector).graph), family, "{detector}");
        }
    }

    #[test]
    fn darknets_and_yolox_are_told_apart() {
        let Some(shared) = shared() else { return };
        for (file, family) in [
            ("cfg/yolov3.cfg", "YOLOv3"),
            ("cfg/yolov3-spp.cfg", "YOLOv3-SPP"),
            ("cfg/yolov3-tiny.cfg", "YOLOv3-tiny"),
            ("cfg/yolov4.cfg", "YOLOv4"),
            ("cfg/yolov4-tiny.cfg", "YOLOv4-tiny"),
            ("cfg/yolov4-csp.cfg", "YOLOv4-CSP"),
            ("cfg/yolov7-tiny.cfg", "YOLOv7-tiny"),
            ("cfg/yolov7.cfg", "YOLOv7"),
            ("weights/yolo-fastest-1.1/yolo-fastest-1.1.cfg", "YOLO-Fastest"),
            ("weights/yolox-nano/yolox_nano.onnx", "YOLOX, depthwise"),
        ] {
            let untrained = file.ends_with("cfg").then_some(0);
            let options = LoadOptions { untrained, ..LoadOptions::default() };
            assert_eq!(name(&load(&shared.join(file), &options).unwrap()), family, "{file}");
        }
    }
}
