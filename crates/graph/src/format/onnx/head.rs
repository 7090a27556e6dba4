//! The head as ONNX operators: from raw maps to boxes in pixels and probabilities.
//!
//! Grids, strides and anchors are constants of the exported size; the batch axis is never named, so it may stay open.

use crate::{AnchorHead, AnchorLevel, BoxDecode, DflHead, Extra, Head, Shape, YoloxHead};

use super::proto::AttributeProto;
use super::writer::Writer;
use super::{OUTPUT, PROTOTYPES};

/// An output of the file: its name, and its shape without the batch axis.
pub type Output = (&'static str, Vec<usize>);

/// Writes the decoding of `head` on the values `maps` of the given shapes; `name` is the head's value name. Returns the
/// outputs.
pub fn write(w: &mut Writer, head: &Head, name: &str, maps: &[String], shapes: &[Shape]) -> Vec<Output> {
    let boxes = match head {
        Head::Anchor(head) => anchors(w, head, name, maps, shapes),
        Head::Dfl(head) => distributions(w, head, name, maps, shapes),
        Head::Yolox(head) => yolox(w, head, name, maps, shapes),
    };
    let mut outputs = vec![(OUTPUT, boxes.to_vec())];
    if let (Some(Extra::Masks { .. }), Some(map), Some(shape)) = (head.extra(), maps.last(), shapes.last()) {
        w.node("Identity", PROTOTYPES, &[map], vec![]);
        outputs.push((PROTOTYPES, vec![shape.c, shape.h, shape.w]));
    }
    outputs
}

/// (column, row) of every cell, row-major.
fn cells(shape: Shape) -> impl Iterator<Item = [f32; 2]> {
    (0..shape.h).flat_map(move |y| (0..shape.w).map(move |x| [x as f32, y as f32]))
}

fn anchors(w: &mut Writer, head: &AnchorHead, name: &str, maps: &[String], shapes: &[Shape]) -> [usize; 2] {
    let columns = 5 + head.classes;
    let mut levels = Vec::new();
    let mut rows = 0;
    for (i, ((level, map), &shape)) in head.levels.iter().zip(maps).zip(shapes).enumerate() {
        let prefix = format!("{name}.{i}");
        let (priors, plane) = (level.anchors.len(), shape.h * shape.w);
        let split = [0, priors as i64, columns as i64, plane as i64];
        let x = w.reshape(&format!("{prefix}.split"), map, &split);
        let x = anchor_level(w, level, head.classes, &prefix, &x, shape);
        let x = w.transpose(&format!("{prefix}.transpose"), &x, &[0, 1, 3, 2]);
        levels.push(w.reshape(&format!("{prefix}.rows"), &x, &[0, (priors * plane) as i64, columns as i64]));
        rows += priors * plane;
    }
    join(w, &levels, 1);
    [rows, columns]
}

/// One level, (N, anchors, 5 + classes, H * W), decoded; the formulas are [`BoxDecode`]'s. Cells are last, so that constants are one a
/// cell or one an anchor, not two a box: a sixth of them, which saves a fifth of a small detector's file.
fn anchor_level(w: &mut Writer, level: &AnchorLevel, classes: usize, prefix: &str, x: &str, shape: Shape) -> String {
    let stride = level.stride as f32;
    let named = |part: &str| format!("{prefix}.{part}");
    let squashed = match level.decode {
        BoxDecode::V5 | BoxDecode::Darknet { .. } => w.node("Sigmoid", &named("sigmoid"), &[x], vec![]),
        BoxDecode::DarknetNew { .. } => x.to_owned(),
    };
    let xy = w.slice(&named("xy"), &squashed, 2, 0, 2);
    let scores = w.slice(&named("scores"), &squashed, 2, 4, 1 + classes);
    // V5's `2 s - 0.5` is Darknet's rule with scale 2.
    let scale = match level.decode {
        BoxDecode::V5 => 2.0,
        BoxDecode::Darknet { scale_xy } | BoxDecode::DarknetNew { scale_xy } => scale_xy,
    };
    let (wh, factor) = match level.decode {
        BoxDecode::V5 | BoxDecode::DarknetNew { .. } => {
            let wh = w.slice(&named("wh"), &squashed, 2, 2, 2);
            (w.node("Mul", &named("square"), &[&wh, &wh], vec![]), 4.0)
        }
        BoxDecode::Darknet { .. } => {
            let wh = w.slice(&named("wh"), x, 2, 2, 2);
            (w.node("Exp", &named("exp"), &[&wh], vec![]), 1.0)
        }
    };
    let corner = |cell: f32| (cell - (scale - 1.0) / 2.0) * stride;
    let corners: Vec<f32> = [0, 1].iter().flat_map(|&axis| cells(shape).map(move |cell| corner(cell[axis]))).collect();
    let sides: Vec<f32> = level.anchors.iter().flatten().map(|side| side * factor).collect();
    let xy = w.with_constant("Mul", &named("spread"), &xy, &[], &[scale * stride]);
    let xy = w.with_constant("Add", &named("centre"), &xy, &[1, 1, 2, shape.h * shape.w], &corners);
    let wh = w.with_constant("Mul", &named("size"), &wh, &[1, level.anchors.len(), 2, 1], &sides);
    w.concat(&named("boxes"), &[xy, wh, scores], 2)
}

fn distributions(w: &mut Writer, head: &DflHead, name: &str, maps: &[String], shapes: &[Shape]) -> [usize; 2] {
    let named = |part: &str| format!("{name}.{part}");
    let (mut boxes, mut scores) = (Vec::new(), Vec::new());
    let (mut centres, mut strides) = ([Vec::new(), Vec::new()], Vec::new());
    let (pairs, beside) = maps.split_at(head.pairs());
    let mut extras = Vec::new();
    for (i, (&stride, pair)) in head.strides.iter().zip(pairs.chunks_exact(2)).enumerate() {
        let shape = shapes[2 * i];
        let flat = |channels: usize| [0, channels as i64, (shape.h * shape.w) as i64];
        boxes.push(w.reshape(&named(&format!("{i}.box")), &pair[0], &flat(4 * head.reg_max)));
        scores.push(w.reshape(&named(&format!("{i}.class")), &pair[1], &flat(head.classes)));
        if let Some(extra) = head.extra {
            extras.push(w.reshape(&named(&format!("{i}.extra")), &beside[i], &flat(extra.channels())));
        }
        for cell in cells(shape) {
            for (axis, c) in centres.iter_mut().zip(cell) {
                axis.push(c + 0.5);
            }
            strides.push(stride as f32);
        }
    }
    let count = strides.len();
    let grid = Grid { centres: centres.concat(), strides };
    let extra = head.extra.map(|extra| {
        let x = w.concat(&named("extra"), &extras, 2);
        (extra, decode_extra(w, extra, &named, &x, &grid))
    });
    let Grid { centres, strides } = grid;
    let x = w.concat(&named("box"), &boxes, 2);
    let distance = if head.reg_max == 1 { x } else { expectations(w, &named, &x, head.reg_max, count) };
    // (N, 4, A): left, top, right, bottom in cells.
    let low = w.slice(&named("low"), &distance, 1, 0, 2);
    let high = w.slice(&named("high"), &distance, 1, 2, 2);
    let size = w.node("Add", &named("size"), &[&low, &high], vec![]);
    let shift = w.node("Sub", &named("shift"), &[&high, &low], vec![]);
    let mut shift = w.with_constant("Mul", &named("half"), &shift, &[], &[0.5]);
    if let Some((Extra::Angle, angle)) = &extra {
        shift = turned(w, &named, &shift, angle);
    }
    let centre = w.with_constant("Add", &named("centre"), &shift, &[1, 2, count], &centres);
    let cells = w.concat(&named("cells"), &[centre, size], 1);
    let pixels = w.with_constant("Mul", &named("pixels"), &cells, &[1, 1, count], &strides);
    let logits = w.concat(&named("class"), &scores, 2);
    let scores = w.node("Sigmoid", &named("scores"), &[&logits], vec![]);
    let rows = 4 + head.classes + head.extra.map_or(0, Extra::channels);
    join(w, &[pixels, scores].into_iter().chain(extra.map(|(_, value)| value)).collect::<Vec<_>>(), 1);
    [rows, count]
}

/// Where the cells of all levels lie, cell by cell.
struct Grid {
    /// Columns of the centres in cells, then their rows.
    centres: Vec<f32>,
    /// Pixels a cell.
    strides: Vec<f32>,
}

/// What is told beside boxes and classes, decoded from (N, channels, A); the formulas are [`Extra`]'s.
fn decode_extra(w: &mut Writer, extra: Extra, named: &dyn Fn(&str) -> String, x: &str, grid: &Grid) -> String {
    let count = grid.strides.len();
    match extra {
        Extra::Masks { .. } => x.to_owned(),
        Extra::Keypoints { points, values } => {
            let x = w.reshape(&named("points"), x, &[0, points as i64, values as i64, count as i64]);
            let xy = w.slice(&named("points.xy"), &x, 2, 0, 2);
            let xy = w.with_constant("Mul", &named("points.twice"), &xy, &[], &[2.0]);
            let corners: Vec<f32> = grid.centres.iter().map(|c| c - 0.5).collect();
            let xy = w.with_constant("Add", &named("points.cells"), &xy, &[1, 1, 2, count], &corners);
            let mut all = w.with_constant("Mul", &named("points.pixels"), &xy, &[1, 1, 1, count], &grid.strides);
            if values == 3 {
                let seen = w.slice(&named("points.seen"), &x, 2, 2, 1);
                let seen = w.node("Sigmoid", &named("points.visible"), &[&seen], vec![]);
                all = w.concat(&named("points.all"), &[all, seen], 2);
            }
            w.reshape(&named("points.flat"), &all, &[0, (points * values) as i64, count as i64])
        }
        Extra::Angle => {
            let x = w.node("Sigmoid", &named("turn"), &[x], vec![]);
            let x = w.with_constant("Sub", &named("turn.quarter"), &x, &[], &[0.25]);
            w.with_constant("Mul", &named("angle"), &x, &[], &[std::f32::consts::PI])
        }
    }
}

/// (N, 2, A) turned by `angle` (N, 1, A).
fn turned(w: &mut Writer, named: &dyn Fn(&str) -> String, shift: &str, angle: &str) -> String {
    let cos = w.node("Cos", &named("cos"), &[angle], vec![]);
    let sin = w.node("Sin", &named("sin"), &[angle], vec![]);
    let [x, y] = [("x", 0), ("y", 1)].map(|(axis, i)| w.slice(&named(&format!("shift.{axis}")), shift, 1, i, 1));
    let mut product = |name: &str, a: &str, b: &str| w.node("Mul", &named(name), &[a, b], vec![]);
    let (xc, ys) = (product("x.cos", &x, &cos), product("y.sin", &y, &sin));
    let (xs, yc) = (product("x.sin", &x, &sin), product("y.cos", &y, &cos));
    let x = w.node("Sub", &named("turned.x"), &[&xc, &ys], vec![]);
    let y = w.node("Add", &named("turned.y"), &[&xs, &yc], vec![]);
    w.concat(&named("turned"), &[x, y], 1)
}

/// (N, 4, A): the means of the distributions over 0..bins in (N, 4 * bins, A).
fn expectations(w: &mut Writer, named: &dyn Fn(&str) -> String, x: &str, reg_max: usize, count: usize) -> String {
    let x = w.reshape(&named("bins"), x, &[0, 4, reg_max as i64, count as i64]);
    let x = w.node("Softmax", &named("softmax"), &[&x], vec![AttributeProto::int("axis", 2)]);
    let bins: Vec<f32> = (0..reg_max).map(|b| b as f32).collect();
    let x = w.with_constant("Mul", &named("weighted"), &x, &[1, 1, reg_max, 1], &bins);
    let axis = w.ints(&named("distance.axes"), &[2]);
    w.node("ReduceSum", &named("distance"), &[&x, &axis], vec![AttributeProto::int("keepdims", 0)])
}

fn yolox(w: &mut Writer, head: &YoloxHead, name: &str, maps: &[String], shapes: &[Shape]) -> [usize; 2] {
    let named = |part: &str| format!("{name}.{part}");
    let columns = 5 + head.classes;
    let mut levels = Vec::new();
    let (mut places, mut strides) = (Vec::new(), Vec::new());
    for (i, (&stride, level)) in head.strides.iter().zip(maps.chunks_exact(3)).enumerate() {
        let shape = shapes[3 * i];
        let x = w.concat(&named(&format!("{i}.concat")), level, 1);
        let flat = [0, columns as i64, (shape.h * shape.w) as i64];
        levels.push(w.reshape(&named(&format!("{i}.flat")), &x, &flat));
        places.extend(cells(shape).flatten().map(|c| c * stride as f32));
        strides.extend(cells(shape).map(|_| stride as f32));
    }
    let count = strides.len();
    let x = w.concat(&named("levels"), &levels, 2);
    let x = w.transpose(&named("rows"), &x, &[0, 2, 1]);
    let xy = w.slice(&named("xy"), &x, 2, 0, 2);
    let xy = w.with_constant("Mul", &named("offset"), &xy, &[1, count, 1], &strides);
    let xy = w.with_constant("Add", &named("centre"), &xy, &[1, count, 2], &places);
    let wh = w.slice(&named("wh"), &x, 2, 2, 2);
    let wh = w.node("Exp", &named("exp"), &[&wh], vec![]);
    let wh = w.with_constant("Mul", &named("size"), &wh, &[1, count, 1], &strides);
    let scores = w.slice(&named("logits"), &x, 2, 4, 1 + head.classes);
    let scores = w.node("Sigmoid", &named("scores"), &[&scores], vec![]);
    join(w, &[xy, wh, scores], 2);
    [count, columns]
}

/// Ends the graph: all of `parts` along `axis` under the output's name, also where there is a single part.
fn join(w: &mut Writer, parts: &[String], axis: i64) {
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    w.node("Concat", OUTPUT, &parts, vec![AttributeProto::int("axis", axis)]);
}
