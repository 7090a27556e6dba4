//! What our own export of a head makes of given maps.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use super::array::Array;
use super::eval::Budget;
use super::tail::Tail;
use crate::format::onnx::proto::{AttributeProto, TensorProto};
use crate::format::onnx::{OPSET, OUTPUT, head, writer::Writer};
use crate::{Head, Result, Shape};

/// How an output presents a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As [`crate::format::onnx::export`] does: boxes in pixels.
    Decoded,
    /// YOLOX as its authors export it: the raw box, probabilities, rows by level, row, column.
    Undecoded,
}

/// The output for `maps`, the head's inputs in order.
pub fn run(head: &Head, layout: Layout, maps: &[(Rc<Array>, Shape)], budget: &mut Budget) -> Result<Rc<Array>> {
    let mut writer = Writer::default();
    let names: Vec<String> = (0..maps.len()).map(|i| format!("map{i}")).collect();
    let shapes: Vec<Shape> = maps.iter().map(|(_, shape)| *shape).collect();
    match layout {
        Layout::Decoded => {
            head::write(&mut writer, head, "head", &names, &shapes);
        }
        Layout::Undecoded => undecoded(&mut writer, &names, &shapes),
    }
    let constants: HashMap<&str, &TensorProto> =
        writer.graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let nodes = writer.graph.node.iter().collect();
    let tail = Tail { path: Path::new("(our export)"), opset: OPSET, nodes, output: OUTPUT };
    let given = |name: &str| match names.iter().position(|n| n == name) {
        Some(i) => Ok(Some(maps[i].0.clone())),
        None => constants.get(name).map(|t| Array::decode(t).map(Rc::new)).transpose(),
    };
    tail.run(given, budget)
}

/// Box, objectness and classes of every level joined, levels joined as columns, turned into rows.
fn undecoded(w: &mut Writer, maps: &[String], shapes: &[Shape]) {
    let mut levels = Vec::new();
    for (i, (level, shape)) in maps.chunks_exact(3).zip(shapes.chunks_exact(3)).enumerate() {
        let mut parts = vec![level[0].clone()];
        for (k, map) in level.iter().enumerate().skip(1) {
            parts.push(w.node("Sigmoid", &format!("{i}.sigmoid{k}"), &[map], vec![]));
        }
        let joined = w.concat(&format!("{i}.joined"), &parts, 1);
        let channels: usize = shape.iter().map(|s| s.c).sum();
        let flat = [0, channels as i64, (shape[0].h * shape[0].w) as i64];
        levels.push(w.reshape(&format!("{i}.flat"), &joined, &flat));
    }
    let all = w.concat("all", &levels, 2);
    w.node("Transpose", OUTPUT, &[&all], vec![AttributeProto::ints("perm", &[0, 2, 1])]);
}
