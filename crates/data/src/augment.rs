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
