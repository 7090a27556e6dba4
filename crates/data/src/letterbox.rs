//! Fitting an image into a square without changing its proportions, and mapping boxes there and back.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

/// The grey that YOLO detectors are trained to see beside the image.
pub const FILL: u8 = 114;

/// How an image is fitted to a square canvas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// Proportions kept, grey beside it: what Ultralytics' detectors are trained and measured with.
    #[default]
    Letterbox,
    /// Stretched to fill it, from the nearest four pixels however much it shrinks: what Darknet and OpenCV do. Smoother
    /// images score a little higher, but the figures Darknet's detectors are known by were measured like this.
    Stretch,
    /// Proportions kept, the image in the top left corner and grey right of it or below, from the nearest four pixels: what
    /// YOLOX is trained and measured with.
    Corner,
}

/// How an image was placed on its square canvas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Letterbox {
    /// Side of the canvas, pixels.
    pub canvas: u32,
    /// Canvas pixels per image pixel, horizontally and vertically: both `min(S/w, S/h)` unless stretched.
    pub scale: [f32; 2],
    /// Canvas column and row of the image's corner.
    pub pad: (u32, u32),
    /// Width and height of the image on the canvas.
    pub resized: (u32, u32),
    /// Width and height of the original.
    pub original: (u32, u32),
}

impl Letterbox {
    /// Places a `width` x `height` image on a square of side `canvas`, centred; odd padding leans to the left and top.
    pub fn new((width, height): (u32, u32), canvas: u32) -> Self {
        let (w, h) = (f64::from(width.max(1)), f64::from(height.max(1)));
        let side = f64::from(canvas);
        let scale = (side / w).min(side / h);
        let fit = |v: f64| ((v * scale).round_ties_even() as u32).clamp(1, canvas);
        let resized = (fit(w), fit(h));
        let pad = ((canvas - resized.0) / 2, (canvas - resized.1) / 2);
        Self { canvas, scale: [scale as f32; 2], pad, resized, original: (width, height) }
    }

    /// Places an image as `fit` says.
    pub fn fitted((width, height): (u32, u32), canvas: u32, fit: Fit) -> Self {
        match fit {
            Fit::Letterbox => Self::new((width, height), canvas),
            Fit::Corner => {
                let side = f64::from(canvas);
                let scale = (side / f64::from(width.max(1))).min(side / f64::from(height.max(1)));
                // YOLOX cuts the fraction off.
                let resized = [width, height].map(|v| ((f64::from(v) * scale) as u32).clamp(1, canvas));
                let resized = (resized[0], resized[1]);
                Self { canvas, scale: [scale as f32; 2], pad: (0, 0), resized, original: (width, height) }
            }
            Fit::Stretch => {
                let scale = [width, height].map(|v| canvas as f32 / v.max(1) as f32);
                Self { canvas, scale, pad: (0, 0), resized: (canvas, canvas), original: (width, height) }
            }
        }
    }

    /// Maps left, top, right, bottom from image pixels to canvas pixels.
    pub fn to_canvas(&self, [x1, y1, x2, y2]: [f32; 4]) -> [f32; 4] {
        let (px, py) = (self.pad.0 as f32, self.pad.1 as f32);
        let [sx, sy] = self.scale;
        [x1 * sx + px, y1 * sy + py, x2 * sx + px, y2 * sy + py]
    }

    /// Maps left, top, right, bottom from canvas pixels to image pixels, cut to the image.
    pub fn to_image(&self, [x1, y1, x2, y2]: [f32; 4]) -> [f32; 4] {
        let (w, h) = (self.original.0 as f32, self.original.1 as f32);
        let x = |v: f32| ((v - self.pad.0 as f32) / self.scale[0]).clamp(0.0, w);
        let y = |v: f32| ((v - self.pad.1 as f32) / self.scale[1]).clamp(0.0, h);
        [x(x1), y(y1), x(x2), y(y2)]
    }

    /// Writes an already resized image (`resized.0 * resized.1 * 3` bytes, row by row) and the grey around it into
    /// `canvas` (S, S, 3).
    pub fn paste(&self, resized: &[u8], canvas: &mut [u8]) {
        canvas.fill(FILL);
        let stride = self.canvas as usize * 3;
        let width = self.resized.0 as usize * 3;
        let start = self.pad.1 as usize * stride + self.pad.0 as usize * 3;
        for (row, source) in resized.chunks_exact(width).enumerate() {
            canvas[start + row * stride..][..width].copy_from_slice(source);
        }
    }
}

/// The image on its canvas: (S, S, 3) RGB, and how it was placed.
pub fn letterbox(image: &RgbImage, canvas: u32, fit: Fit) -> (Vec<u8>, Letterbox) {
    let placed = Letterbox::fitted(image.dimensions(), canvas, fit);
    let mut pixels = vec![0; canvas as usize * canvas as usize * 3];
    placed.paste(&resize(image, placed.resized, fit), &mut pixels);
    (pixels, placed)
}

/// Resizes as `fit` does: [`Fit::Letterbox`] with a bilinear filter widened when shrinking, so that nothing aliases (as PIL
/// does; OpenCV's bilinear does not). Returns `width * height * 3` bytes.
pub(crate) fn resize(image: &RgbImage, (width, height): (u32, u32), fit: Fit) -> Vec<u8> {
    if image.dimensions() == (width, height) {
        return image.as_raw().clone();
    }
    let mut resized = Image::new(width, height, PixelType::U8x3);
    let algorithm = match fit {
        Fit::Letterbox => ResizeAlg::Convolution(FilterType::Bilinear),
        Fit::Stretch | Fit::Corner => ResizeAlg::Interpolation(FilterType::Bilinear),
    };
    let options = ResizeOptions::new().resize_alg(algorithm).use_alpha(false);
    ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)
        .map_err(|e| e.to_string())
        .and_then(|source| Resizer::new().resize(&source, &mut resized, &options).map_err(|e| e.to_string()))
        .expect("an RgbImage has the length and the pixel type the resizer asks for");
    resized.into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_go_there_and_back() {
        for size in [(640, 480), (333, 500), (37, 1000), (320, 320), (1, 1)] {
            let placed = Letterbox::new(size, 320);
            assert!(placed.resized.0 <= 320 && placed.resized.1 <= 320, "{size:?}");
            assert!(placed.resized.0 == 320 || placed.resized.1 == 320, "{size:?}");
            let inner = [0.1, 0.2, 0.7, 0.9];
            let original = [0, 1, 2, 3].map(|i| inner[i] * if i % 2 == 0 { size.0 as f32 } else { size.1 as f32 });
            let back = placed.to_image(placed.to_canvas(original));
            for (a, b) in original.iter().zip(back) {
                assert!((a - b).abs() < 1e-2, "{size:?}: {original:?} became {back:?}");
            }
        }
    }

    #[test]
    fn sides_are_rounded_and_what_is_left_over_is_shared_out() {
        // 337 * 320 / 500 is 215.68; of the 104 pixels beside it half are before, of 105 the larger half is behind.
        let tall = Letterbox::new((337, 500), 320);
        assert_eq!((tall.resized, tall.pad), ((216, 320), (52, 0)));
        let wide = Letterbox::new((500, 336), 320);
        assert_eq!((wide.resized, wide.pad), ((320, 215), (0, 52)));
        // Nothing is left of a line but one pixel; what lies beside the image is its border.
        assert_eq!(Letterbox::new((1, 1000), 320).resized, (1, 320));
        assert_eq!(tall.to_image([0.0, -9.0, 320.0, 999.0]), [0.0, 0.0, 337.0, 500.0]);
    }

    #[test]
    fn a_stretched_image_fills_the_canvas() {
        let (canvas, placed) = letterbox(&RgbImage::from_pixel(64, 32, image::Rgb([255; 3])), 32, Fit::Stretch);
        assert!(canvas.iter().all(|&v| v == 255));
        assert_eq!(placed.to_canvas([16.0, 8.0, 64.0, 32.0]), [8.0, 8.0, 32.0, 32.0]);
        assert_eq!(placed.to_image([8.0, 8.0, 32.0, 32.0]), [16.0, 8.0, 64.0, 32.0]);
    }

    #[test]
    fn yolox_puts_the_image_into_the_corner() {
        let (canvas, placed) = letterbox(&RgbImage::from_pixel(50, 37, image::Rgb([255; 3])), 32, Fit::Corner);
        // 37 * 32 / 50 is 23.68, of which YOLOX keeps 23 rows; boxes keep the exact scale.
        assert_eq!((placed.pad, placed.resized), ((0, 0), (32, 23)));
        let row = |y: usize| [canvas[y * 32 * 3], canvas[(y * 32 + 31) * 3]];
        assert_eq!([row(0), row(22), row(23), row(31)], [[255; 2], [255; 2], [FILL; 2], [FILL; 2]]);
        assert_eq!(placed.to_canvas([50.0, 25.0, 0.0, 0.0])[..2], [32.0, 16.0]);
    }

    #[test]
    fn the_border_is_grey_and_the_image_is_centred() {
        let white = RgbImage::from_pixel(64, 32, image::Rgb([255; 3]));
        let (canvas, placed) = letterbox(&white, 32, Fit::Letterbox);
        assert_eq!(placed.pad, (0, 8));
        let row = |y: usize| canvas[y * 32 * 3];
        assert_eq!([row(7), row(8), row(23), row(24)], [FILL, 255, 255, FILL]);
    }
}
