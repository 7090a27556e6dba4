//! The families as tables: a line a layer, as the families publish them, for the width and depth of factor 1.

/// One layer: what it reads, how often its block is repeated, and the block.
pub(super) struct Row {
    /// Layers it reads: -1 the one before it, else its number.
    pub from: &'static [isize],
    /// Bottlenecks in it before they are scaled by the depth.
    pub repeats: usize,
    pub block: Block,
}

/// What a layer computes; `out` are its channels before they are scaled by the width.
pub(super) enum Block {
    /// Convolution, BatchNorm, SiLU.
    Conv {
        out: usize,
        kernel: usize,
        stride: usize,
        pad: usize,
    },
    /// Two 1x1 ways, one of them through bottlenecks, joined.
    C3 {
        out: usize,
        shortcut: bool,
    },
    /// One map in halves, the second through bottlenecks, all that comes by joined.
    C2f {
        out: usize,
        shortcut: bool,
    },
    /// The same around blocks of its own: `C3k` where `deep` or where the scale asks for it, else bottlenecks. Each half has
    /// `share` of the channels.
    C3k2 {
        out: usize,
        deep: bool,
        share: f64,
    },
    /// One map in halves, the second through attention.
    C2psa {
        out: usize,
    },
    /// A map beside three ever wider maxima of it.
    Sppf {
        out: usize,
    },
    Upsample,
    Concat,
}

/// A family: its layers, and the layers its head reads, of stride 8, 16 and 32.
pub(super) struct Table {
    pub rows: &'static [Row],
    pub levels: [usize; 3],
}

const PREVIOUS: &[isize] = &[-1];

const fn one(repeats: usize, block: Block) -> Row {
    Row { from: PREVIOUS, repeats, block }
}

/// A convolution padded by half its kernel.
const fn conv(out: usize, kernel: usize, stride: usize) -> Row {
    one(1, Block::Conv { out, kernel, stride, pad: kernel / 2 })
}

const fn c3(repeats: usize, out: usize, shortcut: bool) -> Row {
    one(repeats, Block::C3 { out, shortcut })
}

const fn c2f(repeats: usize, out: usize, shortcut: bool) -> Row {
    one(repeats, Block::C2f { out, shortcut })
}

const fn c3k2(out: usize, deep: bool, share: f64) -> Row {
    one(2, Block::C3k2 { out, deep, share })
}

const fn concat(from: &'static [isize]) -> Row {
    Row { from, repeats: 1, block: Block::Concat }
}

const UPSAMPLE: Row = one(1, Block::Upsample);

/// YOLOv5, release 6.0 and later.
pub(super) const YOLOV5: Table = Table {
    rows: &[
        one(1, Block::Conv { out: 64, kernel: 6, stride: 2, pad: 2 }),
        conv(128, 3, 2),
        c3(3, 128, true),
        conv(256, 3, 2),
        c3(6, 256, true),
        conv(512, 3, 2),
        c3(9, 512, true),
        conv(1024, 3, 2),
        c3(3, 1024, true),
        one(1, Block::Sppf { out: 1024 }),
        conv(512, 1, 1),
        UPSAMPLE,
        concat(&[-1, 6]),
        c3(3, 512, false),
        conv(256, 1, 1),
        UPSAMPLE,
        concat(&[-1, 4]),
        c3(3, 256, false),
        conv(256, 3, 2),
        concat(&[-1, 14]),
        c3(3, 512, false),
        conv(512, 3, 2),
        concat(&[-1, 10]),
        c3(3, 1024, false),
    ],
    levels: [17, 20, 23],
};

/// YOLOv8.
pub(super) const YOLOV8: Table = Table {
    rows: &[
        conv(64, 3, 2),
        conv(128, 3, 2),
        c2f(3, 128, true),
        conv(256, 3, 2),
        c2f(6, 256, true),
        conv(512, 3, 2),
        c2f(6, 512, true),
        conv(1024, 3, 2),
        c2f(3, 1024, true),
        one(1, Block::Sppf { out: 1024 }),
        UPSAMPLE,
        concat(&[-1, 6]),
        c2f(3, 512, false),
        UPSAMPLE,
        concat(&[-1, 4]),
        c2f(3, 256, false),
        conv(256, 3, 2),
        concat(&[-1, 12]),
        c2f(3, 512, false),
        conv(512, 3, 2),
        concat(&[-1, 9]),
        c2f(3, 1024, false),
    ],
    levels: [15, 18, 21],
};

/// YOLO11.
pub(super) const YOLO11: Table = Table {
    rows: &[
        conv(64, 3, 2),
        conv(128, 3, 2),
        c3k2(256, false, 0.25),
        conv(256, 3, 2),
        c3k2(512, false, 0.25),
        conv(512, 3, 2),
        c3k2(512, true, 0.5),
        conv(1024, 3, 2),
        c3k2(1024, true, 0.5),
        one(1, Block::Sppf { out: 1024 }),
        one(2, Block::C2psa { out: 1024 }),
        UPSAMPLE,
        concat(&[-1, 6]),
        c3k2(512, false, 0.5),
        UPSAMPLE,
        concat(&[-1, 4]),
        c3k2(256, false, 0.5),
        conv(256, 3, 2),
        concat(&[-1, 13]),
        c3k2(512, false, 0.5),
        conv(512, 3, 2),
        concat(&[-1, 10]),
        c3k2(1024, true, 0.5),
    ],
    levels: [16, 19, 22],
};
