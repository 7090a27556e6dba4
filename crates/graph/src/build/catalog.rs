//! The detectors that can be built by name.

use super::{HeadKind, Order, Scale, Table, rows, started};
use crate::{Family, Graph, Result};

/// A published family: its layers and its scales by letter.
struct Entry {
    /// What a name begins with.
    prefix: &'static str,
    /// What a name ends with, after the scale.
    suffix: &'static str,
    family: Family,
    layers: Layers,
    scales: &'static [(&'static str, Scale)],
    /// Side in pixels of the images it is usually trained at.
    imgsz: usize,
}

/// What a family is made of.
enum Layers {
    Table(&'static Table, HeadKind),
    Yolox { depthwise: bool },
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

/// Its channels are never cut off.
const fn yolox(depth: f64, width: f64) -> Scale {
    scale(depth, width, usize::MAX)
}

const CATALOG: &[Entry] = &[
    Entry {
        prefix: "yolov5",
        suffix: "",
        family: Family::Yolov5,
        layers: Layers::Table(&rows::YOLOV5, HeadKind::Anchor),
        scales: YOLOV5,
        imgsz: 640,
    },
    // YOLOv5's layers under YOLOv8's head. The loaders, too, call it by its head.
    Entry {
        prefix: "yolov5",
        suffix: "u",
        family: Family::Yolov8,
        layers: Layers::Table(&rows::YOLOV5, HeadKind::Dfl),
        scales: YOLOV5,
        imgsz: 640,
    },
    Entry {
        prefix: "yolov8",
        suffix: "",
        family: Family::Yolov8,
        layers: Layers::Table(&rows::YOLOV8, HeadKind::Dfl),
        scales: YOLOV8,
        imgsz: 640,
    },
    Entry {
        prefix: "yolo11",
        suffix: "",
        family: Family::Yolo11,
        layers: Layers::Table(&rows::YOLO11, HeadKind::SeparableDfl),
        scales: YOLO11,
        imgsz: 640,
    },
    Entry {
        prefix: "yolox-",
        suffix: "",
        family: Family::Yolox,
        layers: Layers::Yolox { depthwise: true },
        scales: &[("nano", yolox(0.33, 0.25))],
        imgsz: 416,
    },
    Entry {
        prefix: "yolox-",
        suffix: "",
        family: Family::Yolox,
        layers: Layers::Yolox { depthwise: false },
        scales: &[("tiny", yolox(0.33, 0.375))],
        imgsz: 416,
    },
    Entry {
        prefix: "yolox-",
        suffix: "",
        family: Family::Yolox,
        layers: Layers::Yolox { depthwise: false },
        scales: &[
            ("s", yolox(0.33, 0.50)),
            ("m", yolox(0.67, 0.75)),
            ("l", yolox(1.00, 1.00)),
            ("x", yolox(1.33, 1.25)),
        ],
        imgsz: 640,
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
        self.entry.imgsz
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
        let order = Order { names, imgsz, family: self.entry.family };
        match self.entry.layers {
            Layers::Table(table, head) => order.table(table, self.scale, head),
            Layers::Yolox { depthwise } => order.yolox(self.scale, depthwise),
        }
    }
}
