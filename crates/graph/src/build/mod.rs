//! Untrained detectors of the published families, by name and from a seed.
//!
//! A family is a table of layers (`rows`) with a head, a detector a family with a scale (`catalog`). The graph is the one
//! the loaders make of the same detector's checkpoint: the same nodes, names and order.

mod blocks;
mod catalog;
mod head;
mod init;
mod rows;
#[cfg(test)]
mod tests;
mod yolox;

use blocks::{Builder, Window};
use rows::{Block, Row, Table};

use crate::graph::MAX_IMGSZ;
use crate::{Error, Family, Graph, Meta, NodeId, Op, Result};

pub use catalog::{Design, names};
pub use init::restarted;

/// Most classes a detector is built for.
pub const MAX_CLASSES: usize = 10_000;

/// A family's channels and bottlenecks, as factors of its table.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    depth: f64,
    width: f64,
    /// Channels of the table above which it is cut off, before the width is applied.
    max_channels: usize,
    /// Every `C3k2` is made of `C3k`.
    deep: bool,
}

impl Scale {
    /// Channels a layer has, of `table`: a multiple of 8.
    fn channels(self, table: usize) -> usize {
        (((table.min(self.max_channels) as f64 * self.width) / 8.0).ceil() as usize * 8).max(8)
    }

    /// Bottlenecks a layer has, of `table`.
    fn repeats(self, table: usize) -> usize {
        match table {
            0 | 1 => table,
            _ => ((table as f64 * self.depth).round_ties_even() as usize).max(1),
        }
    }
}

/// Which head stands on a table's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadKind {
    /// YOLOv5's.
    Anchor,
    /// YOLOv8's.
    Dfl,
    /// YOLO11's.
    SeparableDfl,
}

/// What is being built, for whom.
struct Order<'a> {
    names: &'a [String],
    imgsz: usize,
    family: Family,
}

impl Order<'_> {
    /// Says whether there can be such a detector.
    fn check(&self) -> Result<()> {
        let error = |what: String, hint: String| Err(Error::node("images", what).hint(hint));
        if self.names.is_empty() || self.names.len() > MAX_CLASSES {
            let what = format!("a detector of {} classes is asked for", self.names.len());
            return error(what, format!("give between 1 and {MAX_CLASSES} classes"));
        }
        let largest = head::STRIDES[2];
        if self.imgsz == 0 || !self.imgsz.is_multiple_of(largest) || self.imgsz > MAX_IMGSZ {
            let what = format!("{} pixels are no size these detectors are trained at", self.imgsz);
            return error(what, format!("give a multiple of {largest} up to {MAX_IMGSZ}"));
        }
        Ok(())
    }

    fn builder(&self) -> Builder {
        let meta = Meta { family: self.family, names: self.names.to_vec(), imgsz: [self.imgsz; 2] };
        Builder::new(Graph::new(meta, 3), 3)
    }

    /// The graph of a YOLOX with weights of zero.
    fn yolox(&self, scale: Scale, depthwise: bool) -> Result<Graph> {
        self.check()?;
        let mut b = self.builder();
        yolox::build(&mut b, scale, depthwise, self.names.len());
        Ok(b.graph)
    }

    /// The graph of a table with weights of zero.
    fn table(&self, table: &Table, scale: Scale, head: HeadKind) -> Result<Graph> {
        self.check()?;
        let mut b = self.builder();
        let mut layers: Vec<NodeId> = vec![];
        for (i, row) in table.rows.iter().enumerate() {
            let from: Vec<NodeId> = row
                .from
                .iter()
                .map(|&f| usize::try_from(f).map_or(layers.last().copied().unwrap_or(0), |layer| layers[layer]))
                .collect();
            layers.push(layer(&mut b, &format!("model.{i}"), row, &from, scale));
        }
        let (name, from) = (format!("model.{}", layers.len()), table.levels.map(|layer| layers[layer]));
        let classes = self.names.len();
        match head {
            HeadKind::Anchor => b.anchor_head(&name, from, classes, self.imgsz),
            HeadKind::Dfl => b.dfl_head(&name, from, classes, false),
            HeadKind::SeparableDfl => b.dfl_head(&name, from, classes, true),
        }
        Ok(b.graph)
    }
}

/// One line of a table.
fn layer(b: &mut Builder, name: &str, row: &Row, from: &[NodeId], scale: Scale) -> NodeId {
    let (x, n) = (from[0], scale.repeats(row.repeats));
    let c = |out: usize| scale.channels(out);
    match row.block {
        Block::Conv { out, kernel, stride, pad } => b.conv(name, x, c(out), Window { kernel, stride, pad }),
        Block::C3 { out, shortcut } => b.c3(name, x, c(out), n, 1, shortcut),
        Block::C2f { out, shortcut } => b.c2f(name, x, c(out), n, shortcut),
        Block::C3k2 { out, deep, share } => {
            let half = (c(out) as f64 * share) as usize;
            b.c3k2(name, x, c(out), n, half, deep || scale.deep)
        }
        Block::C2psa { out } => b.c2psa(name, x, c(out), n),
        Block::Sppf { out } => b.sppf(name, x, c(out)),
        Block::Upsample => b.push(name, Op::Upsample { factor: 2 }, from.to_vec()),
        Block::Concat => b.push(name, Op::Concat, from.to_vec()),
    }
}

/// A graph with weights, checked.
fn started(mut graph: Graph, seed: u64) -> Result<Graph> {
    init::weights(&mut graph, seed)?;
    graph.validate()?;
    Ok(graph)
}

/// A YOLOv5 of any width and depth; [`Design`] has the published ones.
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
    /// The untrained detector.
    ///
    /// # Errors
    /// `imgsz` is no multiple of 32, or there are no names.
    pub fn build(&self) -> Result<Graph> {
        let scale =
            Scale { depth: f64::from(self.depth), width: f64::from(self.width), max_channels: usize::MAX, deep: false };
        let order = Order { names: &self.names, imgsz: self.imgsz, family: Family::Yolov5 };
        started(order.table(&rows::YOLOV5, scale, HeadKind::Anchor)?, self.seed)
    }
}
