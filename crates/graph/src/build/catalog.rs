//! The detectors that can be built by name.

use super::{HeadKind, Order, Scale, Table, rows, started};
use crate::{Family, Graph, Result};

/// A published family: its table, its head and its scales by letter.
struct Entry {
    /// What a name begins with.
    prefix: &'static str,
    /// What a name ends with, after the scale.
    suffix: &'static str,
    family: Family,
    table: &'static Table,
    head: HeadKind,
    scales: &'static [(&'static str, Scale)],
}

const fn scale(depth: f64, width: f64, max_channels: usize) -> Scale {
    Scale { depth, width, max_channels, deep: false }
}

const fn deep(scale: Scale) -> Scale {
    Scale { deep: true, ..scale }
}

const YOLOV5: &[(&str, Scale)] = &[
    ("n", scale(0.33, 0.25, 1024)),
    ("s", scale(0.33, 0.50, 1024)),
    ("m", scale(0.67, 0.75, 1024)),
    ("l", scale(1.00, 1.00, 1024)),
    ("x", scale(1.33, 1.25, 1024)),
];

const YOLOV8: &[(&str, Scale)] = &[
    ("n", scale(0.33, 0.25, 1024)),
    ("s", scale(0.33, 0.50, 1024)),
    ("m", scale(0.67, 0.75, 768)),
    ("l", scale(1.00, 1.00, 512)),
    ("x", scale(1.00, 1.25, 512)),
];

const YOLO11: &[(&str, Scale)] = &[
    ("n", scale(0.50, 0.25, 1024)),
    ("s", scale(0.50, 0.50, 1024)),
    ("m", deep(scale(0.50, 1.00, 512))),
    ("l", deep(scale(1.00, 1.00, 512))),
    ("x", deep(scale(1.00, 1.50, 512))),
];

const CATALOG: &[Entry] = &[
    Entry {
        prefix: "yolov5",
        suffix: "",
        family: Family::Yolov5,
        table: &rows::YOLOV5,
        head: HeadKind::Anchor,
        scales: YOLOV5,
    },
    // YOLOv5's layers under YOLOv8's head. The loaders, too, call it by its head.
    Entry {
        prefix: "yolov5",
        suffix: "u",
        family: Family::Yolov8,
        table: &rows::YOLOV5,
        head: HeadKind::Dfl,
        scales: YOLOV5,
    },
    Entry {
        prefix: "yolov8",
        suffix: "",
        family: Family::Yolov8,
        table: &rows::YOLOV8,
        head: HeadKind::Dfl,
        scales: YOLOV8,
    },
    Entry {
        prefix: "yolo11",
        suffix: "",
        family: Family::Yolo11,
        table: &rows::YOLO11,
        head: HeadKind::SeparableDfl,
        scales: YOLO11,
    },
];

/// A published detector.
#[derive(Clone, Copy)]
pub struct Design {
    entry: &'static Entry,
    scale: Scale,
}

/// All detectors with their names.
pub(super) fn all() -> impl Iterator<Item = (String, Design)> {
    CATALOG.iter().flat_map(|entry| {
        let named = move |&(letter, scale): &(&str, Scale)| {
            (format!("{}{letter}{}", entry.prefix, entry.suffix), Design { entry, scale })
        };
        entry.scales.iter().map(named)
    })
}

/// The names of all detectors that can be built.
pub fn names() -> Vec<String> {
    all().map(|(name, _)| name).collect()
}

impl Design {
    /// The detector published under `name`, such as `yolov8n`; `None` where none is known (see [`names`]).
    pub fn named(name: &str) -> Option<Self> {
        all().find(|(known, _)| known == name).map(|(_, design)| design)
    }

    /// Side in pixels of the images it is usually trained at.
    pub fn imgsz(&self) -> usize {
        640
    }

    /// Largest stride of its head: what the side of an image has to be a multiple of.
    pub fn largest_stride(&self) -> usize {
        super::head::STRIDES[2]
    }

    /// The untrained detector for classes `names` and square images of `imgsz` pixels a side, weights drawn from `seed` as its
    /// authors' trainer draws them: those of convolutions as PyTorch does, the head's biases for rare objects.
    ///
    /// # Errors
    /// `imgsz` is no multiple of 32 or there are no, or unreasonably many, classes.
    pub fn build(&self, names: &[String], imgsz: usize, seed: u64) -> Result<Graph> {
        started(self.structure(names, imgsz)?, seed)
    }

    /// The graph with weights of zero.
    pub(super) fn structure(&self, names: &[String], imgsz: usize) -> Result<Graph> {
        Order { names, imgsz, family: self.entry.family }.table(self.entry.table, self.scale, self.entry.head)
    }
}
