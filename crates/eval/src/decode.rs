//! Raw maps of a detection head to boxes and probabilities: all of them, or only those that can survive.

use graph::{AnchorLevel, BoxDecode, Extra, Head};
use rayon::prelude::*;

use crate::nms::{Candidate, suppress};
use crate::{Detection, NmsConfig, Predictions};

/// A view of one feature map that enters a head: dense, axes in the order (N, H, W, C).
#[derive(Clone, Copy, Debug)]
pub struct RawMap<'a> {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub data: &'a [f32],
}

impl<'a> RawMap<'a> {
    /// The channels of one cell.
    fn cell(&self, image: usize, y: usize, x: usize) -> &'a [f32] {
        let start = ((image * self.h + y) * self.w + x) * self.c;
        &self.data[start..start + self.c]
    }
}

/// Decodes every box of every image. Rows are ordered level, anchor, row, column, as YOLOv5 exports them; heads without
/// anchors have one anchor a cell. Formulas: [`BoxDecode`], [`graph::DflHead`], [`graph::Extra`], [`graph::YoloxHead`].
///
/// # Panics
/// If `maps` are not the maps the head reads (count, channels, equal batch and matching sizes within a level).
pub fn decode(head: &Head, maps: &[RawMap]) -> Predictions {
    let images = check(head, maps);
    let objectness = !matches!(head, Head::Dfl(_));
    let decode_image = |image| {
        let mut rows = Vec::new();
        visit(head, maps, image, |anchor| {
            rows.extend(anchor.bbox());
            rows.extend(anchor.objectness.map(|raw| anchor.link.probability(raw)));
            rows.extend(anchor.classes.iter().map(|&raw| anchor.link.probability(raw)));
            anchor.tell_extra(&mut rows);
        });
        rows
    };
    let data = (0..images).into_par_iter().map(decode_image).collect::<Vec<_>>().concat();
    let extra = head.extra().map_or(0, Extra::channels);
    Predictions { data, images, classes: head.classes(), objectness, extra }
}

/// [`decode`] followed by [`nms`](crate::nms()), or, for a head that is end to end, by taking the best scores; without computing what the confidence threshold discards: raw values are
/// compared with the threshold's logit, and only those that can pass are decoded. The result is exactly the same.
///
/// # Panics
/// As [`decode`]; if the head's boxes are turned, whose overlap no upright boxes tell.
pub fn detect(head: &Head, maps: &[RawMap], config: &NmsConfig) -> Vec<Vec<Detection>> {
    let images = check(head, maps);
    assert!(head.extra() != Some(Extra::Angle), "turned boxes are decoded, not selected");
    let config = if head.end_to_end() { config.without_suppression() } else { *config };
    let detect_image = |image| {
        let mut candidates = Vec::new();
        visit(head, maps, image, |anchor| anchor.candidates(&config, &mut candidates));
        suppress(candidates, &config)
    };
    (0..images).into_par_iter().map(detect_image).collect()
}

/// The batch size, if `maps` are what the head reads.
fn check(head: &Head, maps: &[RawMap]) -> usize {
    assert_eq!(maps.len(), head.inputs(), "maps for the head");
    let batch = maps.first().map_or(0, |map| map.n);
    for (i, map) in maps.iter().enumerate() {
        assert_eq!(map.c, head.input_channels(i), "channels of map {i}");
        assert_eq!(map.n, batch, "images in map {i}");
        assert_eq!(map.data.len(), map.n * map.h * map.w * map.c, "values in map {i}");
    }
    for (i, map) in maps.iter().enumerate().skip(1) {
        let same_level = head.input_stride(i) == head.input_stride(i - 1);
        assert!(!same_level || (map.h, map.w) == (maps[i - 1].h, maps[i - 1].w), "one level has two sizes");
    }
    batch
}

/// Calls `f` for every anchor of one image in the order of the rows.
fn visit<'a>(head: &'a Head, maps: &[RawMap<'a>], image: usize, mut f: impl FnMut(Anchor<'a>)) {
    match head {
        Head::Anchor(head) => {
            let columns = 5 + head.classes;
            for (level, map) in head.levels.iter().zip(maps) {
                for (a, &prior) in level.anchors.iter().enumerate() {
                    cells(map, |y, x| {
                        let raw = &map.cell(image, y, x)[a * columns..(a + 1) * columns];
                        f(Anchor {
                            raw_box: &raw[..4],
                            objectness: Some(raw[4]),
                            classes: &raw[5..],
                            link: Link::of(level),
                            rule: Rule::Prior { decode: level.decode, prior },
                            stride: level.stride as f32,
                            cell: [x as f32, y as f32],
                            extra: None,
                        });
                    });
                }
            }
        }
        Head::Dfl(head) => {
            let (pairs, beside) = maps.split_at(head.pairs());
            for (i, (&stride, level)) in head.strides.iter().zip(pairs.chunks_exact(2)).enumerate() {
                cells(&level[0], |y, x| {
                    f(Anchor {
                        raw_box: level[0].cell(image, y, x),
                        objectness: None,
                        classes: level[1].cell(image, y, x),
                        link: Link::Sigmoid,
                        rule: Rule::Distribution { bins: head.reg_max },
                        stride: stride as f32,
                        cell: [x as f32, y as f32],
                        extra: head.extra.map(|extra| (extra, beside[i].cell(image, y, x))),
                    });
                });
            }
        }
        Head::Yolox(head) => {
            for (&stride, level) in head.strides.iter().zip(maps.chunks_exact(3)) {
                cells(&level[0], |y, x| {
                    f(Anchor {
                        raw_box: level[0].cell(image, y, x),
                        objectness: Some(level[1].cell(image, y, x)[0]),
                        classes: level[2].cell(image, y, x),
                        link: Link::Sigmoid,
                        rule: Rule::Free,
                        stride: stride as f32,
                        cell: [x as f32, y as f32],
                        extra: None,
                    });
                });
            }
        }
    }
}

fn cells(map: &RawMap, mut f: impl FnMut(usize, usize)) {
    for y in 0..map.h {
        for x in 0..map.w {
            f(y, x);
        }
    }
}

/// The raw values of one anchor and what it takes to decode them.
struct Anchor<'a> {
    raw_box: &'a [f32],
    objectness: Option<f32>,
    classes: &'a [f32],
    link: Link,
    rule: Rule,
    /// Pixels a cell.
    stride: f32,
    /// Column and row of the cell.
    cell: [f32; 2],
    /// Raw values of what is told beside.
    extra: Option<(Extra, &'a [f32])>,
}

/// How the four sides of a box are coded.
#[derive(Clone, Copy)]
enum Rule {
    /// Offset from the cell and factor on a prior of (width, height) pixels.
    Prior { decode: BoxDecode, prior: [f32; 2] },
    /// Distances from the cell's centre to left, top, right, bottom, each a distribution over `bins` cells, or as they are
    /// where there is but one bin.
    Distribution { bins: usize },
    /// Offset from the cell, logarithm of the size in cells.
    Free,
}

impl Anchor<'_> {
    /// (centre x, centre y, width, height) in canvas pixels.
    fn bbox(&self) -> [f32; 4] {
        let (t, [cx, cy], stride) = (self.raw_box, self.cell, self.stride);
        match self.rule {
            Rule::Prior { decode: BoxDecode::V5, prior: [w, h] } => {
                let s: [f32; 4] = std::array::from_fn(|i| 2.0 * sigmoid(t[i]));
                [(s[0] - 0.5 + cx) * stride, (s[1] - 0.5 + cy) * stride, s[2] * s[2] * w, s[3] * s[3] * h]
            }
            Rule::Prior { decode: BoxDecode::Darknet { scale_xy }, prior: [w, h] } => {
                let place = |t: f32, c: f32| (sigmoid(t) * scale_xy - (scale_xy - 1.0) / 2.0 + c) * stride;
                [place(t[0], cx), place(t[1], cy), t[2].exp() * w, t[3].exp() * h]
            }
            Rule::Prior { decode: BoxDecode::DarknetNew { scale_xy }, prior: [w, h] } => {
                let place = |t: f32, c: f32| (t * scale_xy - (scale_xy - 1.0) / 2.0 + c) * stride;
                [place(t[0], cx), place(t[1], cy), 4.0 * t[2] * t[2] * w, 4.0 * t[3] * t[3] * h]
            }
            Rule::Distribution { bins } => {
                let [left, top, right, bottom] = std::array::from_fn(|i| match bins {
                    1 => t[i],
                    _ => expectation(&t[i * bins..(i + 1) * bins]),
                });
                let (mut x, mut y) = ((right - left) / 2.0, (bottom - top) / 2.0);
                if let Some((Extra::Angle, raw)) = self.extra {
                    let (sin, cos) = angle(raw[0]).sin_cos();
                    (x, y) = (x * cos - y * sin, x * sin + y * cos);
                }
                let centre = |c: f32, off: f32| (c + 0.5 + off) * stride;
                [centre(cx, x), centre(cy, y), (left + right) * stride, (top + bottom) * stride]
            }
            Rule::Free => [(t[0] + cx) * stride, (t[1] + cy) * stride, t[2].exp() * stride, t[3].exp() * stride],
        }
    }

    /// Appends what is told beside the box and its classes, see [`Predictions`].
    fn tell_extra(&self, row: &mut Vec<f32>) {
        match self.extra {
            None => {}
            Some((Extra::Masks { .. }, raw)) => row.extend(raw),
            Some((Extra::Keypoints { values, .. }, raw)) => {
                for point in raw.chunks_exact(values) {
                    row.extend(point.iter().zip(self.cell).map(|(t, c)| (2.0 * t + c) * self.stride));
                    row.extend(point[2..].iter().map(|&t| sigmoid(t)));
                }
            }
            Some((Extra::Angle, raw)) => row.push(angle(raw[0])),
        }
    }

    /// Appends what of this anchor passes the confidence threshold.
    fn candidates(&self, config: &NmsConfig, out: &mut Vec<Candidate>) {
        let factor = match self.objectness {
            Some(raw) if !self.link.may_exceed(raw, self.link.bound(config.conf)) => return,
            Some(raw) => self.link.probability(raw),
            None => 1.0,
        };
        if self.objectness.is_some() && factor <= config.conf {
            return;
        }
        let bound = self.link.bound(config.conf / factor);
        if !self.classes.iter().any(|&raw| self.link.may_exceed(raw, bound)) {
            return;
        }
        let passing = self.classes.iter().enumerate().filter(|&(_, &raw)| self.link.may_exceed(raw, bound));
        let scored = passing.map(|(class, &raw)| (class, factor * self.link.probability(raw)));
        Candidate::push_passing(scored, config, || self.bbox(), out);
    }
}

/// How a raw score becomes a probability.
#[derive(Clone, Copy)]
enum Link {
    Sigmoid,
    /// The network has already applied its sigmoid.
    Identity,
}

impl Link {
    fn of(level: &AnchorLevel) -> Self {
        match level.decode {
            BoxDecode::DarknetNew { .. } => Self::Identity,
            BoxDecode::V5 | BoxDecode::Darknet { .. } => Self::Sigmoid,
        }
    }

    fn probability(self, raw: f32) -> f32 {
        match self {
            Self::Sigmoid => sigmoid(raw),
            Self::Identity => raw,
        }
    }

    /// A raw value that no value of probability above `p` lies below. Somewhat lower than the exact inverse, as the
    /// sigmoid in f32 is off by some 1e-7 of its value: the exact comparison follows on the few that pass.
    fn bound(self, p: f32) -> f32 {
        let p = f64::from(p) * (1.0 - 1e-5);
        match self {
            Self::Sigmoid if p <= 0.0 => f32::NEG_INFINITY,
            Self::Sigmoid if p >= 1.0 => f32::INFINITY,
            Self::Sigmoid => (p / (1.0 - p)).ln() as f32,
            Self::Identity => p as f32,
        }
    }

    fn may_exceed(self, raw: f32, bound: f32) -> bool {
        raw >= bound
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Radians, see [`Extra::Angle`].
fn angle(raw: f32) -> f32 {
    (sigmoid(raw) - 0.25) * std::f32::consts::PI
}

/// Mean of 0, 1, 2, ... under the softmax of `logits`.
fn expectation(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut weighted) = (0.0, 0.0);
    for (bin, &logit) in logits.iter().enumerate() {
        let weight = (logit - max).exp();
        sum += weight;
        weighted += weight * bin as f32;
    }
    weighted / sum
}

#[cfg(test)]
mod tests {
    use graph::{AnchorHead, DflHead, YoloxHead};

    use super::*;

    fn anchor_head(decode: BoxDecode) -> Head {
        Head::Anchor(AnchorHead {
            classes: 2,
            levels: vec![AnchorLevel { stride: 8, anchors: vec![[10.0, 20.0], [30.0, 40.0]], decode }],
        })
    }

    fn assert_row(name: &str, row: &[f32], expected: &[f32]) {
        assert_eq!(row.len(), expected.len(), "{name}");
        let close = row.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0));
        assert!(close, "{name}: {row:?}, expected {expected:?}");
    }

    /// The logit of 3/4, so that its sigmoid is short.
    const L: f32 = 1.098_612_3;

    #[test]
    fn decodes_anchors_by_hand() {
        // One row of two cells; per cell anchor 0 and anchor 1 with 7 channels each.
        let cell = [L, -L, 0.0, L, 0.0, L, -L];
        let zero = [0.0; 7];
        let data = [zero, zero, zero, cell].concat();
        let maps = [RawMap { n: 1, h: 1, w: 2, c: 14, data: &data }];
        // Anchor 1 of cell (0, 1) is the last of the rows (anchor 0: two cells, anchor 1: two cells).
        for (name, decode_as, expected) in [
            ("v5", BoxDecode::V5, [16.0, 0.0, 30.0, 90.0, 0.5, 0.75, 0.25]),
            ("darknet", BoxDecode::Darknet { scale_xy: 1.0 }, [14.0, 2.0, 30.0, 120.0, 0.5, 0.75, 0.25]),
            ("scaled", BoxDecode::Darknet { scale_xy: 2.0 }, [16.0, 0.0, 30.0, 120.0, 0.5, 0.75, 0.25]),
        ] {
            let predictions = decode(&anchor_head(decode_as), &maps);
            assert_eq!((predictions.boxes(), predictions.columns()), (4, 7), "{name}");
            assert_row(name, predictions.row(0, 3), &expected);
        }
        let prior = |i| decode(&anchor_head(BoxDecode::V5), &maps).row(0, i)[..4].to_vec();
        assert_eq!(
            [prior(0), prior(1), prior(2)],
            [vec![4.0, 4.0, 10.0, 20.0], vec![12.0, 4.0, 10.0, 20.0], vec![4.0, 4.0, 30.0, 40.0]]
        );
    }

    #[test]
    fn takes_new_coords_as_they_are() {
        let data = [[0.5; 7], [0.25, 0.75, 0.5, 1.0, 0.9, 0.8, 0.1]].concat();
        let maps = [RawMap { n: 1, h: 1, w: 1, c: 14, data: &data }];
        let predictions = decode(&anchor_head(BoxDecode::DarknetNew { scale_xy: 2.0 }), &maps);
        assert_row("new_coords", predictions.row(0, 1), &[0.0, 8.0, 30.0, 160.0, 0.9, 0.8, 0.1]);
    }

    #[test]
    fn decodes_distributions_by_hand() {
        let head = Head::Dfl(DflHead::new(1, 2, vec![8]));
        // Two bins of logits (0, L): expectation 3/4. (0, 0): one half.
        let boxes = [0.0, L, 0.0, 0.0, 0.0, 0.0, 0.0, L];
        let maps = [RawMap { n: 1, h: 1, w: 1, c: 8, data: &boxes }, RawMap { n: 1, h: 1, w: 1, c: 1, data: &[L] }];
        let predictions = decode(&head, &maps);
        assert!(!predictions.has_objectness());
        // left 6, top 4, right 4, bottom 6 pixels of (4, 4).
        assert_row("dfl", predictions.row(0, 0), &[3.0, 5.0, 10.0, 10.0, 0.75]);
    }

    #[test]
    fn decodes_by_hand_what_is_told_beside() {
        let (boxes, class) = ([2.0, 1.0, 0.0, 3.0], [L]);
        let row = |extra: Extra, raw: &[f32], rest: &[RawMap]| {
            let head = Head::Dfl(DflHead { extra: Some(extra), ..DflHead::new(1, 1, vec![8]) });
            let maps = [&[one(&boxes), one(&class), one(raw)], rest].concat();
            decode(&head, &maps).row(0, 0).to_vec()
        };
        // left 16, top 8, right 0, bottom 24 pixels of (4, 4).
        let upright = [-4.0, 12.0, 16.0, 32.0, 0.75];
        let protos = [0.0; 8];
        let protos = RawMap { n: 1, h: 2, w: 2, c: 2, data: &protos };
        let masks = row(Extra::Masks { prototypes: 2 }, &[0.5, -3.0], &[protos]);
        assert_row("masks", &masks, &[&upright[..], &[0.5, -3.0]].concat());
        let points = row(Extra::Keypoints { points: 2, values: 3 }, &[1.0, -0.5, L, 0.0, 2.0, -L], &[]);
        assert_row("keypoints", &points, &[&upright[..], &[16.0, -8.0, 0.75, 0.0, 32.0, 0.25]].concat());
        let flat = row(Extra::Keypoints { points: 1, values: 2 }, &[1.0, -0.5], &[]);
        assert_row("two values", &flat, &[&upright[..], &[16.0, -8.0]].concat());
        // A quarter turn takes the offset (-8, 8) of the centre to (-8, -8).
        let turned = row(Extra::Angle, &[L], &[]);
        assert_row("angle", &turned, &[-4.0, -4.0, 16.0, 32.0, 0.75, std::f32::consts::FRAC_PI_2]);
    }

    /// A map of one cell.
    fn one(data: &[f32]) -> RawMap<'_> {
        RawMap { n: 1, h: 1, w: 1, c: data.len(), data }
    }

    #[test]
    fn decodes_yolox_by_hand() {
        let head = Head::Yolox(YoloxHead { classes: 2, strides: vec![16] });
        let boxes = [0.0, 0.0, 0.0, 0.0, 0.5, -0.25, 2f32.ln(), 0.0];
        let maps = [
            RawMap { n: 1, h: 2, w: 1, c: 4, data: &boxes },
            RawMap { n: 1, h: 2, w: 1, c: 1, data: &[0.0, L] },
            RawMap { n: 1, h: 2, w: 1, c: 2, data: &[0.0, 0.0, -L, 0.0] },
        ];
        assert_row("yolox", decode(&head, &maps).row(0, 1), &[8.0, 12.0, 32.0, 16.0, 0.75, 0.25, 0.5]);
    }

    #[test]
    fn the_bound_lies_below_every_passing_value() {
        for conf in [0.0, 1e-6, 0.001, 0.25, 0.5, 0.9, 0.999, 0.999_99, 1.0] {
            let bound = Link::Sigmoid.bound(conf);
            for i in -4000..4000 {
                // Around the bound in steps of about one representable number, then far from it.
                for raw in [bound + i as f32 * 1e-6, i as f32 * 0.01] {
                    assert!(sigmoid(raw) <= conf || Link::Sigmoid.may_exceed(raw, bound), "{conf}: {raw}");
                }
            }
        }
    }
}
