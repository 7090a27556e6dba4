//! Exporting a detector and running it beside the reference executor.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::Path;

use eval::RawMap;
use graph::format::onnx::{ExportOptions, export};
use graph::reference::{Map, forward};
use graph::{Extra, Graph, Head, NodeId, Shape};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::Session;

/// Two images that differ, values in 0..1.
pub fn images(seed: u64, shape: [usize; 4]) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..shape.iter().product()).map(|_| rng.random_range(0.0..1.0)).collect()
}

/// A map as `eval` takes it: (H, W, C), f32.
pub struct Dense {
    shape: Shape,
    data: Vec<f32>,
}

impl Dense {
    pub fn view(&self) -> RawMap<'_> {
        RawMap { n: 1, h: self.shape.h, w: self.shape.w, c: self.shape.c, data: &self.data }
    }
}

/// The maps of nodes `inputs`.
pub fn raw(maps: &[Map], inputs: &[NodeId]) -> Vec<Dense> {
    let dense = |&i: &NodeId| {
        let (map, plane) = (&maps[i], maps[i].shape.h * maps[i].shape.w);
        let data = (0..plane).flat_map(|p| (0..map.shape.c).map(move |c| map.data[c * plane + p] as f32)).collect();
        Dense { shape: map.shape, data }
    };
    inputs.iter().map(dense).collect()
}

/// Reference maps of one image, decoded by `eval`, in the export's layout; prototypes of masks after the boxes.
pub fn predictions(graph: &Graph, maps: &[Map]) -> Vec<f32> {
    let (head, inputs) = graph.head().unwrap();
    let dense = raw(maps, inputs);
    let views: Vec<RawMap> = dense.iter().map(Dense::view).collect();
    let predictions = eval::decode(head, &views);
    let (rows, columns) = (predictions.boxes(), predictions.columns());
    let mut all: Vec<f32> = match head {
        Head::Dfl(_) => {
            (0..columns).flat_map(|k| (0..rows).map(move |r| (r, k))).map(|(r, k)| predictions.row(0, r)[k]).collect()
        }
        Head::Anchor(_) | Head::Yolox(_) => predictions.image(0).to_vec(),
    };
    if let Some(Extra::Masks { .. }) = head.extra() {
        all.extend(maps[inputs[inputs.len() - 1]].data.iter().map(|&v| v as f32));
    }
    all
}

/// What the export should return for `images`: reference maps, decoded by `eval`, in the export's layout, output by output.
pub fn expected(graph: &Graph, images: &[f32], shape: [usize; 4]) -> Vec<f32> {
    expected_of(graph, images, shape, &|image| forward(graph, image).unwrap())
}

/// The same of the maps `run` makes of an image.
pub fn expected_of(
    graph: &Graph,
    images: &[f32],
    [n, c, h, w]: [usize; 4],
    run: &dyn Fn(&Map) -> Vec<Map>,
) -> Vec<f32> {
    let one = |image: &[f32]| {
        let data = image.iter().map(|&v| f64::from(v)).collect();
        predictions(graph, &run(&Map { shape: Shape { c, h, w }, data }))
    };
    let images: Vec<Vec<f32>> = images.chunks_exact(c * h * w).take(n).map(one).collect();
    let (head, inputs) = graph.head().unwrap();
    let prototypes = match head.extra() {
        Some(Extra::Masks { .. }) => {
            let map = graph.shapes([h, w]).unwrap()[inputs[inputs.len() - 1]];
            map.c * map.h * map.w
        }
        _ => 0,
    };
    let boxes = images.iter().flat_map(|all| &all[..all.len() - prototypes]);
    boxes.chain(images.iter().flat_map(|all| &all[all.len() - prototypes..])).copied().collect()
}

/// Exports with an open batch and compares two images at once.
pub fn assert_exported(graph: &Graph, imgsz: [usize; 2], tolerance: f32) {
    let bytes = export(graph, &ExportOptions { imgsz, batch: 1, dynamic_batch: true }).unwrap();
    let session = Session::from_bytes(Path::new("exported.onnx"), bytes, 2).unwrap();
    assert_eq!(session.metadata().names, graph.meta.names);
    assert_eq!(session.input_shape(), [None, Some(3), Some(imgsz[0]), Some(imgsz[1])]);
    let shape = [2, 3, imgsz[0], imgsz[1]];
    let images = images(7, shape);
    let worst = session.verify(&images, shape, &expected(graph, &images, shape), tolerance).unwrap();
    println!("largest difference {worst}");
}
