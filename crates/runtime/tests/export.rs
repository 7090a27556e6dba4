//! Exported detectors, run by the embedded runtime, against the reference executor and our own decoding.

mod common;

use std::path::Path;

use common::{assert_exported, expected, expected_of, images};
use graph::build::Yolov5;
use graph::format::onnx::{ExportOptions, export, export_quantized};
use graph::quant::{Affine, Quantized, folded, sites};
use graph::{
    Act, AnchorHead, AnchorLevel, Attention, BatchNorm, BoxDecode, Conv, DflHead, Family, Graph, Head, MaxPool, Meta,
    NodeId, Op, Tensor, YoloxHead,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::{Error, Session};

#[test]
fn yolov5n_is_what_the_reference_computes() {
    let Some(shared) = testkit::shared() else { return };
    let graph = graph::format::load(&shared.join("weights/yolov5n/yolov5n.pt"), &Default::default()).unwrap();
    assert_exported(&graph, [96, 64], 1e-3);
}

#[test]
fn yolov8n_is_what_the_reference_computes() {
    let Some(shared) = testkit::shared() else { return };
    let graph = graph::format::load(&shared.join("weights/yolov8n/yolov8n-rail.pt"), &Default::default()).unwrap();
    assert_exported(&graph, [64, 96], 1e-3);
}

#[test]
fn yolo11n_is_what_the_reference_computes() {
    let Some(shared) = testkit::shared() else { return };
    let graph = graph::format::load(&shared.join("weights/yolo11n/yolo11n-ball.pt"), &Default::default()).unwrap();
    assert_exported(&graph, [64, 96], 1e-3);
}

#[test]
fn yolox_nano_is_what_the_reference_computes() {
    let Some(shared) = testkit::shared() else { return };
    let graph = graph::format::load(&shared.join("weights/yolox-nano/yolox_nano.onnx"), &Default::default()).unwrap();
    assert_exported(&graph, [96, 64], 1e-3);
}

struct Random {
    graph: Graph,
    rng: ChaCha8Rng,
}

impl Random {
    fn new() -> Self {
        let meta = Meta { family: Family::Other, names: vec!["a".into(), "b".into()], imgsz: [16, 24] };
        Self { graph: Graph::new(meta, 3), rng: ChaCha8Rng::seed_from_u64(3) }
    }

    fn values(&mut self, len: usize, low: f32, high: f32) -> Vec<f32> {
        (0..len).map(|_| self.rng.random_range(low..high)).collect()
    }

    fn push(&mut self, op: Op, inputs: &[NodeId]) -> NodeId {
        self.graph.push(format!("n{}", self.graph.nodes.len()), op, inputs.to_vec())
    }

    /// A convolution with a bias, `groups` of `per_group` input channels each.
    fn conv(&mut self, from: NodeId, weight: [usize; 4], stride: [usize; 2], pad: [usize; 2], groups: usize) -> NodeId {
        let data = self.values(weight.iter().product(), -0.5, 0.5);
        let bias = Some(self.values(weight[0], -0.5, 0.5));
        self.push(Op::Conv(Conv { weight: Tensor::new(weight, data), bias, stride, pad, groups }), &[from])
    }

    fn norm(&mut self, from: NodeId, channels: usize) -> NodeId {
        let norm = BatchNorm {
            gamma: self.values(channels, 0.5, 1.5),
            beta: self.values(channels, -0.5, 0.5),
            mean: self.values(channels, -0.5, 0.5),
            var: self.values(channels, 0.5, 1.5),
            eps: 1e-3,
            momentum: 0.03,
        };
        self.push(Op::BatchNorm(norm), &[from])
    }

    /// Every operator once, in 8 channels at stride 2.
    fn body(&mut self) -> NodeId {
        let x = self.conv(0, [8, 3, 3, 3], [2, 2], [1, 1], 1);
        let mut x = self.norm(x, 8);
        for act in [Act::Silu, Act::Leaky, Act::Mish, Act::Relu6, Act::Identity, Act::Sigmoid] {
            let y = self.conv(x, [8, 4, 1, 3], [1, 1], [0, 1], 2);
            let y = self.norm(y, 8);
            x = self.push(Op::Act(act), &[y]);
        }
        // A convolution read twice: its normalisation must not be folded.
        let depthwise = self.conv(x, [8, 1, 3, 3], [1, 1], [1, 1], 8);
        let normed = self.norm(depthwise, 8);
        let relu = self.push(Op::Act(Act::Relu), &[depthwise]);
        let sum = self.push(Op::Add, &[normed, relu, x]);
        let pooled = self.push(Op::MaxPool(MaxPool { kernel: 2, stride: 2, pad: [0, 0] }), &[sum]);
        let up = self.push(Op::Upsample { factor: 2 }, &[pooled]);
        let phases = self.conv(pooled, [8, 8, 1, 1], [1; 2], [0, 0], 1);
        let shuffled = self.push(Op::PixelShuffle { factor: 2 }, &[phases]);
        let same = self.push(Op::MaxPool(MaxPool { kernel: 2, stride: 1, pad: [0, 1] }), &[sum]);
        let joined = self.push(Op::Concat, &[up, shuffled, same]);
        let part = self.push(Op::Slice { start: 4, len: 8 }, &[joined]);
        let qkv = self.conv(part, [20, 8, 1, 1], [1, 1], [0, 0], 1);
        let mixed = self.push(Op::Attention(Attention { heads: 2, key: 3, value: 4, areas: 2 }), &[qkv]);
        self.push(Op::Add, &[part, mixed])
    }

    /// Ends the graph in `head`, every input a convolution of the right width from the right stride.
    fn head(mut self, head: Head) -> Graph {
        let from = self.body();
        let per_level = head.inputs() / head.strides().len();
        let inputs: Vec<NodeId> = (0..head.inputs())
            .map(|i| {
                let step = head.strides()[i / per_level] / 2;
                self.conv(from, [head.input_channels(i), 8, 1, 1], [step; 2], [0, 0], 1)
            })
            .collect();
        self.push(Op::Head(head), &inputs);
        self.graph.validate().unwrap();
        self.graph
    }
}

#[test]
fn every_operator_and_every_head_is_what_the_reference_computes() {
    let level = |stride, decode| AnchorLevel { stride, anchors: vec![[5.0, 9.0], [12.0, 7.0]], decode };
    let anchors = |decode| Head::Anchor(AnchorHead { classes: 2, levels: vec![level(4, decode), level(8, decode)] });
    let single = AnchorHead { classes: 2, levels: vec![level(8, BoxDecode::V5)] };
    for head in [
        anchors(BoxDecode::V5),
        anchors(BoxDecode::Darknet { scale_xy: 1.05 }),
        anchors(BoxDecode::DarknetNew { scale_xy: 2.0 }),
        Head::Anchor(single),
        Head::Dfl(DflHead::new(2, 5, vec![4, 8])),
        Head::Dfl(DflHead::new(2, 1, vec![4, 8])),
        Head::Yolox(YoloxHead { classes: 2, strides: vec![4, 8] }),
    ] {
        println!("{head:?}");
        assert_exported(&Random::new().head(head), [16, 24], 1e-4);
    }
}

#[test]
fn in_eight_bits_the_runtime_computes_what_the_slow_executor_does() {
    let head = Head::Dfl(DflHead::new(2, 5, vec![4, 8]));
    let (graph, _) = folded(&Random::new().head(head));
    let maps = sites(&graph).into_iter().map(|s| {
        s.map(|first| match first {
            0 => Affine::covering(0.0, 1.0).unwrap(),
            _ => Affine::covering(-2.0, 3.0).unwrap(),
        })
    });
    let quantized = Quantized::new(graph.clone(), maps.collect()).unwrap();
    let bytes =
        export_quantized(&quantized, &ExportOptions { imgsz: [16, 24], batch: 1, dynamic_batch: true }).unwrap();
    let session = Session::from_bytes(Path::new("int8.onnx"), bytes, 2).unwrap();
    let shape = [2, 3, 16, 24];
    let images = images(7, shape);
    let rounded = expected_of(&graph, &images, shape, &|image| quantized.forward(image).unwrap());
    // No value lies so near to the middle between two bytes that f32 and f64 round it apart.
    let worst = session.verify(&images, shape, &rounded, 1e-4).unwrap();
    let exact = expected(&graph, &images, shape);
    let apart = rounded.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, testkit::larger);
    println!("largest difference {worst}, {apart} from f32");
    assert!(apart > 0.01, "rounding changes something: {apart}");
}

fn small() -> Vec<u8> {
    let graph = Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.125, depth: 0.33, seed: 1 }.build().unwrap();
    export(&graph, &ExportOptions { imgsz: [64, 64], batch: 1, dynamic_batch: false }).unwrap()
}

#[test]
fn times_every_run_and_refuses_other_shapes() {
    let session = Session::from_bytes(Path::new("small.onnx"), small(), 1).unwrap();
    let times = session.latency([1, 3, 64, 64], 1, 3).unwrap();
    assert!(times.len() == 3 && times.iter().all(|&t| t > 0.0), "{times:?}");
    for shape in [[2, 3, 64, 64], [1, 1, 64, 64], [1, 3, 32, 64]] {
        let error = session.run(&vec![0.0; shape.iter().product()], shape).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
    }
    assert!(matches!(session.run(&[0.0; 5], [1, 3, 64, 64]), Err(Error::Input { .. })));
}

#[test]
fn verification_finds_a_difference() {
    let session = Session::from_bytes(Path::new("small.onnx"), small(), 1).unwrap();
    let (shape, images) = ([1, 3, 64, 64], images(1, [1, 3, 64, 64]));
    let mut output = session.run(&images, shape).unwrap().data;
    assert_eq!(session.verify(&images, shape, &output, 0.0).unwrap(), 0.0);
    output[5] += 0.5;
    let error = session.verify(&images, shape, &output, 0.1).unwrap_err();
    assert!(error.to_string().contains("value 5"), "{error}");
    output[5] = f32::NAN;
    assert!(session.verify(&images, shape, &output, 0.1).is_err());
}

#[test]
fn what_cannot_be_loaded_is_an_error_with_the_file_in_it() {
    let missing = Session::load(Path::new("no-such.onnx"), 1).err().unwrap();
    assert!(matches!(missing, Error::Read { .. }) && missing.to_string().contains("no-such.onnx"), "{missing}");
    let bytes = small();
    for length in [0, 10, 1000, bytes.len() / 2, bytes.len() - 1] {
        let error = Session::from_bytes(Path::new("cut.onnx"), bytes[..length].to_vec(), 1).err().unwrap();
        assert!(error.to_string().contains("cut.onnx"), "{error}");
    }
}
