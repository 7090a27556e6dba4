//! ONNX files read back: YOLOX against its authors' outputs, our own exports against the graphs they were made from.

use graph::build::Yolov5;
use graph::format::onnx::{ExportOptions, export, export_quantized};
use graph::format::{LoadOptions, load};
use graph::reference::{Map, forward};
use graph::{Family, Graph, Head, Op, Shape};
use testkit::{shared, tensors};

/// Loads `bytes` as if they were a file called `model.onnx`.
fn load_bytes(bytes: &[u8]) -> graph::Result<Graph> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    load(&path, &LoadOptions::default())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn yolox_is_what_its_authors_export_computes() {
    let Some(shared) = shared() else { return };
    let graph = load(&shared.join("weights/yolox-nano/yolox_nano.onnx"), &LoadOptions::default()).unwrap();
    assert_eq!((graph.meta.family, graph.meta.imgsz), (Family::Yolox, [416, 416]));
    assert_eq!((graph.meta.names.len(), graph.meta.names[79].as_str()), (80, "toothbrush"));
    let (head, inputs) = graph.head().unwrap();
    assert_eq!(head.strides(), [8, 16, 32]);
    assert!(matches!(head, Head::Yolox(_)) && inputs.iter().all(|&i| matches!(graph.nodes[i].op, Op::Conv(_))));

    let golden = tensors(&shared.join("golden/yolox-nano/forward.safetensors"));
    let image = &golden["image_u8"];
    let plane = 416 * 416;
    // The golden has its planes in the order blue, green, red.
    let rgb = |i: usize| f64::from(image.data[(2 - i / plane) * plane + i % plane]) / 255.0;
    let image = Map { shape: Shape { c: 3, h: 416, w: 416 }, data: (0..3 * plane).map(rgb).collect() };
    let maps = forward(&graph, &image).unwrap();
    let mut worst = [0.0_f64; 2];
    let mut row = 0;
    for ids in inputs.chunks_exact(3) {
        let [boxes, object, class] = [&maps[ids[0]], &maps[ids[1]], &maps[ids[2]]];
        for p in 0..boxes.shape.h * boxes.shape.w {
            let wanted = &golden["output"].data[85 * row..85 * (row + 1)];
            let at = |map: &Map, c: usize| map.channel(c)[p];
            for (k, &wanted) in wanted.iter().enumerate() {
                let (found, kind) = match k {
                    0..4 => (at(boxes, k), 0),
                    4 => (sigmoid(at(object, 0)), 1),
                    _ => (sigmoid(at(class, k - 5)), 1),
                };
                worst[kind] = worst[kind].max((found - f64::from(wanted)).abs());
            }
            row += 1;
        }
    }
    println!("largest differences: {:.1e} cells or their logarithm, {:.1e} in probability", worst[0], worst[1]);
    assert_eq!(row, 3549);
    assert!(worst[0] < 1e-4 && worst[1] < 1e-4, "{worst:?}");
}

/// Largest absolute difference between the maps that enter the heads of two graphs, on one image of noise.
fn difference(a: &Graph, b: &Graph, [h, w]: [usize; 2]) -> f64 {
    let pixel = |i: usize| ((i as f64 * 0.618_033_988_749).fract() * 7.0).sin().abs();
    let image = Map { shape: Shape { c: 3, h, w }, data: (0..3 * h * w).map(pixel).collect() };
    let maps = |graph: &Graph| {
        let all = forward(graph, &image).unwrap();
        graph.head().unwrap().1.iter().map(|&i| all[i].clone()).collect::<Vec<_>>()
    };
    let (a, b) = (maps(a), maps(b));
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(&b).flat_map(|(a, b)| {
        assert_eq!(a.shape, b.shape);
        a.data.iter().zip(&b.data)
    });
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

/// Exports `graph`, reads it back, and compares head, properties and outputs.
fn round_trip(name: &str, graph: &Graph, imgsz: [usize; 2], options: ExportOptions) -> Graph {
    let bytes = export(graph, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let read = load_bytes(&bytes).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    assert_eq!(read.head().unwrap().0, graph.head().unwrap().0, "{name}");
    let meta = graph::Meta { imgsz, ..graph.meta.clone() };
    assert_eq!(read.meta, meta, "{name}");
    assert!(!read.nodes.iter().any(|n| matches!(n.op, Op::BatchNorm(_))), "{name}");
    let worst = difference(graph, &read, imgsz);
    println!("{name}: {worst:.2e}");
    assert!(worst < 2e-4, "{name}: {worst}");
    read
}

#[test]
fn our_own_exports_come_back() {
    let names = vec!["driver's seat".into(), "b".into()];
    let graph = Yolov5 { names, imgsz: 64, width: 0.125, depth: 0.33, seed: 1 }.build().unwrap();
    let fixed = ExportOptions { imgsz: [96, 64], batch: 1, dynamic_batch: false };
    let read = round_trip("yolov5", &graph, [96, 64], fixed);
    // And once more: what was read is exported as it was.
    assert_eq!(load_bytes(&export(&read, &fixed).unwrap()).unwrap(), read);
    round_trip("yolov5, three images", &graph, [96, 64], ExportOptions { batch: 3, ..fixed });
    round_trip("yolov5, open batch", &graph, [96, 64], ExportOptions { dynamic_batch: true, ..fixed });
}

#[test]
fn exports_of_real_detectors_come_back() {
    let Some(shared) = shared() else { return };
    for (file, imgsz) in [
        ("yolov5n/yolov5n.pt", [96, 64]),
        ("yolov8n/yolov8n-rail.pt", [64, 96]),
        ("yolov3-tiny/yolov3-tiny.cfg", [64, 64]),
        ("yolo-fastest-1.1/yolo-fastest-1.1.cfg", [64, 64]),
        ("yolox-nano/yolox_nano.onnx", [64, 96]),
    ] {
        let mut graph = load(&shared.join("weights").join(file), &LoadOptions::default()).unwrap();
        graph.meta.imgsz = imgsz;
        round_trip(file, &graph, imgsz, ExportOptions { imgsz, batch: 1, dynamic_batch: false });
    }
}

#[test]
fn in_eight_bits_a_detector_comes_back_with_the_weights_its_bytes_stand_for() {
    use graph::quant::{Affine, Quantized, folded, sites};
    let names = vec!["a".into(), "b".into()];
    let graph = Yolov5 { names, imgsz: 64, width: 0.125, depth: 0.33, seed: 1 }.build().unwrap();
    let (flat, _) = folded(&graph);
    let maps = sites(&flat).into_iter().map(|s| s.map(|_| Affine::covering(-2.0, 3.0).unwrap())).collect();
    let quantized = Quantized::new(flat.clone(), maps).unwrap();
    let options = ExportOptions { imgsz: [64, 64], batch: 1, dynamic_batch: false };
    let read = load_bytes(&export_quantized(&quantized, &options).unwrap()).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!((read.head().unwrap().0, &read.meta), (graph.head().unwrap().0, &graph.meta));
    let convs = |graph: &Graph| -> Vec<graph::Conv> {
        graph.nodes.iter().filter_map(|n| if let Op::Conv(c) = &n.op { Some(c.clone()) } else { None }).collect()
    };
    let ids = (0..flat.nodes.len()).filter(|&id| matches!(flat.nodes[id].op, Op::Conv(_)));
    let read = convs(&read);
    assert_eq!(read.len(), convs(&flat).len());
    for (conv, id) in read.iter().zip(ids) {
        let bytes = quantized.conv(id).unwrap().unwrap();
        assert_eq!(conv.weight.data, bytes.filters.dequantize(), "{}", flat.nodes[id].name);
    }
}

#[test]
fn darknet_architectures_come_back() {
    let Some(shared) = shared() else { return };
    for entry in std::fs::read_dir(shared.join("cfg")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut graph = graph::format::darknet::untrained(&text, &path, 0).unwrap();
        graph.meta.imgsz = [64, 64];
        let options = ExportOptions { imgsz: [64, 64], batch: 1, dynamic_batch: false };
        let read =
            load_bytes(&export(&graph, &options).unwrap()).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
        assert_eq!(read.head().unwrap().0, graph.head().unwrap().0, "{}", path.display());
    }
}
