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
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, testkit::larger)
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

/// Largest difference of the maps `ids` of `graph` and `back_ids` of `back` for an image of noise, as a share of the largest value.
fn apart(graph: &Graph, ids: &[usize], back: &Graph, back_ids: &[usize]) -> f64 {
    let [h, w] = graph.meta.imgsz;
    let value = |i: usize| f64::from((i * 2_654_435_761 % 256) as u32) / 255.0;
    let image = Map { shape: Shape { c: 3, h, w }, data: (0..3 * h * w).map(value).collect() };
    let (wanted, found) = (forward(graph, &image).unwrap(), forward(back, &image).unwrap());
    assert_eq!(ids.len(), back_ids.len());
    let largest = ids.iter().flat_map(|&id| &wanted[id].data).fold(1.0_f64, |m, v| m.max(v.abs()));
    let pairs = ids.iter().zip(back_ids).flat_map(|(&a, &b)| wanted[a].data.iter().zip(&found[b].data));
    pairs.fold(0.0_f64, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn attentions(graph: &Graph) -> Vec<&Op> {
    graph.nodes.iter().map(|n| &n.op).filter(|op| matches!(op, Op::Attention(_))).collect()
}

/// YOLO11 has two heads of attention where it is widest, YOLO12 attends within areas; the small YOLOv10 and YOLO26 have one
/// head.
#[test]
fn attention_is_read_back_from_our_own_exports() {
    let names = ["red".to_owned(), "blue".to_owned()];
    let yolo11 = graph::build::Design::named("yolo11n").unwrap().build(&names, 64, 4).unwrap();
    for graph in
        [yolo11, testkit::small("yolov10").graph, testkit::small("yolo12").graph, testkit::small("yolo26").graph]
    {
        for dynamic_batch in [false, true] {
            let options = ExportOptions { imgsz: graph.meta.imgsz, batch: 1, dynamic_batch };
            let back = load_bytes(&export(&graph, &options).unwrap()).unwrap();
            assert!(!attentions(&graph).is_empty());
            assert_eq!(attentions(&back), attentions(&graph), "{:?}", graph.meta.family);
            assert_eq!(back.head().unwrap().0, graph.head().unwrap().0);
            let far = apart(&graph, graph.head().unwrap().1, &back, back.head().unwrap().1);
            assert!(far < 1e-6, "{:?}, dynamic {dynamic_batch}: {far}", graph.meta.family);
        }
    }
}

/// What the package makes of the small YOLO26 by `export(format="onnx")`: the branches that help training, unless it is told
/// to take the others.
#[test]
fn ultralytics_own_export_of_a_yolo26_is_read() {
    let exported = testkit::unpacked("yolo26-exported");
    let back = load(&exported.path().join("yolo26.onnx"), &LoadOptions::default()).unwrap();
    let folder = testkit::unpacked("yolo26");
    let options = LoadOptions { one_to_many: true, ..LoadOptions::default() };
    let graph = load(&folder.path().join("yolo26.pt"), &options).unwrap();
    assert_eq!(back.meta.imgsz, graph.meta.imgsz);
    assert_eq!(back.meta.names, graph.meta.names);
    let [_, helps] = graph.branches().unwrap();
    let far = apart(&graph, helps, &back, back.head().unwrap().1);
    assert!(far < 1e-5, "{far}");
    // Ours holds the others, whatever the graph has.
    let options = ExportOptions { imgsz: graph.meta.imgsz, batch: 1, dynamic_batch: false };
    assert!(export(&graph, &options).unwrap() == export(&graph.for_inference(), &options).unwrap());
}

/// YOLO12's attention within areas and YOLOv9's pools of means, as the package itself writes them out.
#[test]
fn ultralytics_own_exports_are_read() {
    for name in ["yolo12", "yolov9"] {
        let exported = testkit::unpacked(&format!("{name}-exported"));
        let back = load(&exported.path().join(format!("{name}.onnx")), &LoadOptions::default());
        let back = back.unwrap_or_else(|e| panic!("{name}: {e}"));
        let graph = testkit::small(name).graph;
        assert_eq!((back.meta.imgsz, &back.meta.names), (graph.meta.imgsz, &graph.meta.names), "{name}");
        assert_eq!(back.head().unwrap().0, graph.head().unwrap().0, "{name}");
        assert_eq!(attentions(&back), attentions(&graph), "{name}");
        let far = apart(&graph, graph.head().unwrap().1, &back, back.head().unwrap().1);
        assert!(far < 1e-5, "{name}: {far}");
    }
    let areas = |op: &Op| matches!(op, Op::Attention(a) if a.areas == 4);
    assert!(testkit::small("yolo12").graph.nodes.iter().any(|n| areas(&n.op)), "no areas, so nothing is tested");
}

/// Attention that no detector here has is told from what it has.
#[test]
fn attention_with_another_factor_is_refused() {
    let graph = testkit::small("yolo26").graph;
    let options = ExportOptions { imgsz: graph.meta.imgsz, batch: 1, dynamic_batch: false };
    let mut bytes = export(&graph, &options).unwrap();
    let Op::Attention(first) = attentions(&graph)[0] else { panic!("no attention") };
    let factor = first.scale() as f32;
    let at = bytes.windows(4).position(|w| w == factor.to_le_bytes()).expect("it is written");
    bytes[at..at + 4].copy_from_slice(&(2.0 * factor).to_le_bytes());
    let refused = load_bytes(&bytes).unwrap_err().to_string();
    assert!(refused.contains("scores are multiplied with"), "{refused}");
}
