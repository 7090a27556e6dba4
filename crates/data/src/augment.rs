//! What training does to its images: mosaic, scaling and shifting, colour, mirroring, as in YOLOv5's low recipe.
//!
//! Everything random is drawn here from the stream handed in; [`crate::warp`] moves the pixels.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::hsv;
use crate::warp::{Placed, Warp};
use crate::{LabelBox, Target};

/// Strengths of the augmentation. The defaults are those of YOLOv5's `hyp.scratch-low`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Chance that an image is a mosaic of four.
    pub mosaic: f32,
    /// Zoom is drawn from 1 - scale to 1 + scale.
    pub scale: f32,
    /// Shift, as a fraction of the canvas, either way.
    pub translate: f32,
    /// Chance of a left-right mirror.
    pub fliplr: f32,
    /// Chance of an upside-down mirror.
    pub flipud: f32,
    /// Hue gain is drawn from 1 - hsv_h to 1 + hsv_h; likewise saturation and value.
    pub hsv_h: f32,
    pub hsv_s: f32,
    pub hsv_v: f32,
}

impl Default for Augment {
    fn default() -> Self {
        Self { mosaic: 1.0, scale: 0.5, translate: 0.1, fliplr: 0.5, flipud: 0.0, hsv_h: 0.015, hsv_s: 0.7, hsv_v: 0.4 }
    }
}

impl Augment {
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { mosaic, scale, translate, fliplr, flipud, hsv_h, hsv_s, hsv_v } = *self;
        let named = [
            ("mosaic", mosaic),
            ("translate", translate),
            ("fliplr", fliplr),
            ("flipud", flipud),
            ("hsv_h", hsv_h),
            ("hsv_s", hsv_s),
            ("hsv_v", hsv_v),
        ];
        if let Some((name, value)) = named.iter().find(|(_, v)| !(0.0..=1.0).contains(v)) {
            return Err(format!("augmentation `{name}` is {value}; it must lie in 0 to 1"));
        }
        // At 1 the zoom could be nought.
        if !(0.0..=0.95).contains(&scale) {
            return Err(format!("augmentation `scale` is {scale}; it must lie in 0 to 0.95"));
        }
        Ok(())
    }
}

/// An image already resized so that its long side is the canvas side S.
pub(crate) struct Source<'a> {
    pub pixels: &'a [u8],
    pub width: usize,
    pub height: usize,
    /// Resized pixels per original pixel.
    pub scale: f32,
    pub boxes: &'a [LabelBox],
}

/// Composes one training image into `out` (S, S, 3) from one source (letterboxed) or four (mosaic) and returns its
/// boxes, with `image` as their index in the batch.
pub(crate) fn compose(
    sources: &[Source<'_>],
    config: &Augment,
    rng: &mut impl Rng,
    image: usize,
    out: &mut [u8],
    side: usize,
) -> Vec<Target> {
    let mosaic = sources.len() == 4;
    let canvas = if mosaic { 2 * side } else { side } as f32;
    let corners: Vec<(i64, i64)> = if mosaic {
        // The four meet at a point of the inner half of the canvas: each lies against it with a corner.
        let (half, size) = (side as i64 / 2, side as i64);
        let (cx, cy) = (rng.random_range(half..=half + size), rng.random_range(half..=half + size));
        let corner = |(i, s): (usize, &Source<'_>)| {
            let x = if i % 2 == 0 { cx - s.width as i64 } else { cx };
            let y = if i < 2 { cy - s.height as i64 } else { cy };
            (x, y)
        };
        sources.iter().enumerate().map(corner).collect()
    } else {
        let centred = |s: &Source<'_>| (((side - s.width) / 2) as i64, ((side - s.height) / 2) as i64);
        sources.iter().map(centred).collect()
    };
    let warp = Warp {
        zoom: uniform(rng, 1.0 - config.scale, 1.0 + config.scale),
        centre: canvas / 2.0,
        shift: [0.0; 2].map(|_: f32| uniform(rng, 0.5 - config.translate, 0.5 + config.translate) * side as f32),
        flip: [rng.random::<f32>() < config.fliplr, rng.random::<f32>() < config.flipud],
        side,
    };
    let gains = [config.hsv_h, config.hsv_s, config.hsv_v].map(|g| uniform(rng, 1.0 - g, 1.0 + g));

    let mut targets = Vec::new();
    let mut placed = Vec::with_capacity(sources.len());
    for (source, &(x, y)) in sources.iter().zip(&corners) {
        placed.push(Placed { pixels: source.pixels, width: source.width, height: source.height, x, y });
        for label in source.boxes.iter().filter(|b| b.counts()) {
            let [x1, y1, x2, y2] = label.xyxy.map(|v| v * source.scale);
            let cut = |v: f32, by: i64| (v + by as f32).clamp(0.0, canvas);
            let on_canvas = [cut(x1, x), cut(y1, y), cut(x2, x), cut(y2, y)];
            if let Some(bbox) = warp.map_box(on_canvas) {
                targets.push(Target { image, class: label.class, bbox });
            }
        }
    }
    warp.paint(&placed, out);
    if gains != [1.0; 3] {
        hsv::shift(out, gains);
    }
    targets
}

fn uniform(rng: &mut impl Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const SIDE: usize = 64;

    const STILL: Augment = Augment {
        mosaic: 1.0,
        scale: 0.0,
        translate: 0.0,
        fliplr: 0.0,
        flipud: 0.0,
        hsv_h: 0.0,
        hsv_s: 0.0,
        hsv_v: 0.0,
    };

    /// Pictures of one grey each, every one with a box around half of it; told in pixels of twice its size.
    fn composed(count: usize, config: &Augment, seed: u64) -> (Vec<u8>, Vec<Target>) {
        let (width, height) = (60, 48);
        let pixels: Vec<Vec<u8>> = (0..count).map(|i| picture(50 * i as u8, width, height)).collect();
        let label = |class: usize, difficult: bool| {
            [LabelBox { class, xyxy: [0.0, 0.0, 60.0, 96.0], area: 5760.0, crowd: false, difficult }]
        };
        let boxes: Vec<_> = (0..count).map(|i| [label(i, false), label(9, true)].concat()).collect();
        let sources: Vec<Source> = pixels
            .iter()
            .zip(&boxes)
            .map(|(pixels, boxes)| Source { pixels, width, height, scale: 0.5, boxes })
            .collect();
        let mut out = vec![0; SIDE * SIDE * 3];
        let targets = compose(&sources, config, &mut ChaCha8Rng::seed_from_u64(seed), 7, &mut out, SIDE);
        (out, targets)
    }

    /// The left half of one grey, the right half white.
    fn picture(grey: u8, width: usize, height: usize) -> Vec<u8> {
        (0..width * height).flat_map(|i| [if i % width < width / 2 { grey } else { 255 }; 3]).collect()
    }

    /// Rows and columns of the pixels of one grey, from where to where.
    fn bounds(out: &[u8], grey: u8) -> [f32; 4] {
        let marked = (0..SIDE * SIDE).filter(|i| out[3 * i] == grey);
        marked.fold([f32::MAX, f32::MAX, 0.0, 0.0], |[x1, y1, x2, y2], i| {
            let (x, y) = ((i % SIDE) as f32, (i / SIDE) as f32);
            [x1.min(x), y1.min(y), x2.max(x + 1.0), y2.max(y + 1.0)]
        })
    }

    #[test]
    fn boxes_of_a_mosaic_are_where_its_pixels_are() {
        let mut told = 0;
        let mut heights = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let (out, targets) = composed(4, &STILL, seed);
            for Target { image, class, bbox: [x, y, w, h] } in targets {
                assert!(image == 7 && class < 4, "a difficult box is not for training");
                let seen = bounds(&out, 50 * class as u8);
                let said = [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0].map(|v| v * SIDE as f32);
                assert!(seen.iter().zip(said).all(|(a, b)| (a - b).abs() < 1e-3), "{seed}, {class}: {seen:?} {said:?}");
                told += 1;
                heights.insert((h * SIDE as f32) as usize);
            }
        }
        assert!(told > 80 && heights.len() > 8, "{told} boxes of {heights:?}: the corner moves about");
    }

    #[test]
    fn each_chance_is_taken_by_itself() {
        let grey = |config: Augment| bounds(&composed(1, &config, 1).0, 0);
        // 60 x 48 pixels in the middle of 64 x 64.
        assert_eq!(grey(STILL), [2.0, 8.0, 32.0, 56.0]);
        assert_eq!(grey(Augment { fliplr: 1.0, ..STILL }), [32.0, 8.0, 62.0, 56.0]);
        assert_eq!(grey(Augment { flipud: 1.0, translate: 0.0, ..STILL }), [2.0, 8.0, 32.0, 56.0]);
        let widths = |scale: f32| {
            let of = |seed: u64| composed(1, &Augment { scale, ..STILL }, seed).1[0].bbox[3] * SIDE as f32 / 48.0;
            (0..60).map(of).fold([f32::MAX, 0.0], |[low, high], v| [low.min(v), high.max(v)])
        };
        let [low, high] = widths(0.3);
        assert!((0.7..0.75).contains(&low) && (1.25..1.34).contains(&high), "{low} to {high}");
        let places = |seed: u64| composed(1, &Augment { translate: 0.1, ..STILL }, seed).1[0].bbox[1];
        let [low, high] = (0..60).map(places).fold([1.0f32, 0.0f32], |[low, high], v| [low.min(v), high.max(v)]);
        assert!(low < 0.43 && high > 0.57, "{low} to {high}");
    }

    #[test]
    fn a_picture_may_stand_on_its_head() {
        let mut out = vec![0; 64 * 64 * 3];
        let pixels: Vec<u8> = (0..64 * 64).flat_map(|i| [if i < 64 * 16 { 255 } else { 0 }; 3]).collect();
        let top = LabelBox { class: 0, xyxy: [0.0, 0.0, 64.0, 16.0], area: 1024.0, crowd: false, difficult: false };
        let source = Source { pixels: &pixels, width: 64, height: 64, scale: 1.0, boxes: &[top] };
        for (fliplr, flipud, y) in [(0.0, 1.0, 56.0), (1.0, 0.0, 8.0)] {
            let config = Augment { fliplr, flipud, ..STILL };
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            let found = compose(std::slice::from_ref(&source), &config, &mut rng, 0, &mut out, 64);
            assert_eq!(found[0].bbox, [0.5, y / 64.0, 1.0, 0.25]);
            assert_eq!(out[(y as usize * 64 + 9) * 3], 255);
        }
    }
}
