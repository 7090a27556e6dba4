//! Zoom, shift and mirror in one pass: each output pixel is sampled straight from the image that lies there, so the
//! 2S x 2S mosaic is never built.

use crate::letterbox::FILL;

/// From the canvas (side 2S for a mosaic, else S) to the S x S output: `out = zoom * (p - centre) + shift`, then mirrored.
pub(crate) struct Warp {
    pub zoom: f32,
    /// Canvas coordinate (both axes) that the zoom leaves in place.
    pub centre: f32,
    /// Output x and y of that point, pixels.
    pub shift: [f32; 2],
    /// Left-right, upside-down.
    pub flip: [bool; 2],
    /// S.
    pub side: usize,
}

/// An image lying on the canvas, its corner at (x, y).
pub(crate) struct Placed<'a> {
    /// (height, width, 3)
    pub pixels: &'a [u8],
    pub width: usize,
    pub height: usize,
    pub x: i64,
    pub y: i64,
}

/// Two neighbouring source offsets and the weight (of 256) of the second, for one output column or row.
struct Tap {
    out: usize,
    first: usize,
    second: usize,
    weight: u32,
}

impl Warp {
    /// The output columns (axis 0) or rows (axis 1) that fall on an image reaching from `start` over `length` canvas
    /// pixels, with what they are sampled from.
    fn taps(&self, axis: usize, start: i64, length: usize, step: usize) -> Vec<Tap> {
        let inverse = 1.0 / self.zoom;
        let mut taps = Vec::with_capacity(self.side);
        for o in 0..self.side {
            // Pixel centres are at halves.
            let canvas = (o as f32 + 0.5 - self.shift[axis]) * inverse + self.centre;
            let p = canvas - start as f32;
            if p < 0.0 || p >= length as f32 {
                continue;
            }
            let p = (p - 0.5).clamp(0.0, (length - 1) as f32);
            let first = p as usize;
            let second = (first + 1).min(length - 1);
            let weight = ((p - first as f32) * 256.0) as u32;
            let out = if self.flip[axis] { self.side - 1 - o } else { o };
            taps.push(Tap { out, first: first * step, second: second * step, weight });
        }
        taps
    }

    /// Paints the images, which must not overlap, over grey into `out` (S, S, 3), bilinearly.
    pub fn paint(&self, images: &[Placed<'_>], out: &mut [u8]) {
        out.fill(FILL);
        for image in images {
            let columns = self.taps(0, image.x, image.width, 3);
            let rows = self.taps(1, image.y, image.height, image.width * 3);
            // Down the columns first, for the whole row at once, then across.
            let mut blended = vec![0u16; image.width * 3];
            for row in rows {
                let upper = &image.pixels[row.first..][..blended.len()];
                let lower = &image.pixels[row.second..][..blended.len()];
                let (below, above) = (row.weight as u16, 256 - row.weight as u16);
                for ((sum, &u), &l) in blended.iter_mut().zip(upper).zip(lower) {
                    *sum = u16::from(u) * above + u16::from(l) * below;
                }
                let line = &mut out[row.out * self.side * 3..][..self.side * 3];
                for column in &columns {
                    let (left, right) = (&blended[column.first..][..3], &blended[column.second..][..3]);
                    let pixel = &mut line[column.out * 3..][..3];
                    for ((value, &l), &r) in pixel.iter_mut().zip(left).zip(right) {
                        let sum = u32::from(l) * (256 - column.weight) + u32::from(r) * column.weight;
                        *value = ((sum + (1 << 15)) >> 16) as u8;
                    }
                }
            }
        }
    }

    /// Maps a box (left, top, right, bottom on the canvas) to centre and size as fractions of the output.
    ///
    /// `None` if too little of it is left to learn from: YOLOv5's limits, over 2 pixels each way, over a tenth of its
    /// area, an aspect under 100.
    pub fn map_box(&self, canvas: [f32; 4]) -> Option<[f32; 4]> {
        let side = self.side as f32;
        let map = |v: f32, axis: usize| (self.zoom * (v - self.centre) + self.shift[axis]).clamp(0.0, side);
        let [mut x1, mut y1, mut x2, mut y2] =
            [map(canvas[0], 0), map(canvas[1], 1), map(canvas[2], 0), map(canvas[3], 1)];
        let (w, h) = (x2 - x1, y2 - y1);
        let whole = (canvas[2] - canvas[0]) * (canvas[3] - canvas[1]) * self.zoom * self.zoom;
        if w <= 2.0 || h <= 2.0 || w * h <= 0.1 * whole || w >= 100.0 * h || h >= 100.0 * w {
            return None;
        }
        if self.flip[0] {
            (x1, x2) = (side - x2, side - x1);
        }
        if self.flip[1] {
            (y1, y2) = (side - y2, side - y1);
        }
        Some([(x1 + x2) / 2.0 / side, (y1 + y2) / 2.0 / side, w / side, h / side])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warp(zoom: f32, shift: [f32; 2], flip: [bool; 2]) -> Warp {
        Warp { zoom, centre: 16.0, shift, flip, side: 32 }
    }

    /// A picture with a bright rectangle at the given pixels.
    fn marked([x1, y1, x2, y2]: [usize; 4]) -> Vec<u8> {
        let at = |i: usize| if (x1..x2).contains(&(i % 32)) && (y1..y2).contains(&(i / 32)) { 255 } else { 0 };
        (0..32 * 32).flat_map(|i| [at(i); 3]).collect()
    }

    #[test]
    fn doing_nothing_changes_nothing() {
        let picture = marked([3, 5, 17, 9]);
        let placed = [Placed { pixels: &picture, width: 32, height: 32, x: 0, y: 0 }];
        let mut out = vec![0; picture.len()];
        warp(1.0, [16.0; 2], [false; 2]).paint(&placed, &mut out);
        assert_eq!(out, picture);
    }

    #[test]
    fn pixels_and_boxes_move_together() {
        let bounds = [8, 10, 20, 16];
        let picture = marked(bounds);
        let placed = [Placed { pixels: &picture, width: 32, height: 32, x: 0, y: 0 }];
        for (zoom, shift, flip) in [
            (1.0, [18.0, 13.0], [false, false]),
            (1.5, [16.0, 16.0], [true, false]),
            (0.5, [14.0, 19.0], [false, true]),
            (1.2, [12.0, 20.0], [true, true]),
        ] {
            let warp = warp(zoom, shift, flip);
            let mut out = vec![0; picture.len()];
            warp.paint(&placed, &mut out);
            let [cx, cy, w, h] = warp.map_box(bounds.map(|v| v as f32)).unwrap().map(|v| v * 32.0);
            // Outside its image the canvas is grey, so only what is brighter than that is the mark.
            let bright = |i: &usize| out[i * 3] > 160;
            let xs: Vec<_> = (0..32 * 32).filter(bright).map(|i| (i % 32) as f32).collect();
            let ys: Vec<_> = (0..32 * 32).filter(bright).map(|i| (i / 32) as f32).collect();
            let span = |v: &[f32]| {
                (v.iter().copied().fold(f32::MAX, f32::min), v.iter().copied().fold(f32::MIN, f32::max) + 1.0)
            };
            let ((x1, x2), (y1, y2)) = (span(&xs), span(&ys));
            for (seen, said) in [(x1, cx - w / 2.0), (x2, cx + w / 2.0), (y1, cy - h / 2.0), (y2, cy + h / 2.0)] {
                assert!((seen - said).abs() <= 1.0, "zoom {zoom}, shift {shift:?}, flip {flip:?}: {seen} and {said}");
            }
        }
    }

    #[test]
    fn slivers_are_dropped() {
        let warp = warp(1.0, [16.0; 2], [false; 2]);
        assert!(warp.map_box([4.0, 4.0, 5.9, 20.0]).is_none(), "two pixels wide or less");
        assert!(warp.map_box([-100.0, 4.0, 6.0, 20.0]).is_none(), "less than a tenth is visible");
        assert!(warp.map_box([4.0, 4.0, 10.0, 20.0]).is_some());
        assert!(warp.map_box([4.0, 4.0, 20.0, 5.9]).is_none(), "two pixels high or less");
        // Of 64 x 16 pixels 10 x 16 are visible: more than a tenth, also at half the size.
        assert!(warp.map_box([-54.0, 4.0, 10.0, 20.0]).is_some());
        let half = Warp { zoom: 0.5, ..self::warp(1.0, [16.0; 2], [false; 2]) };
        assert!(half.map_box([-70.0, 4.0, -6.0, 20.0]).is_some());
        let wide = Warp { side: 640, centre: 320.0, ..self::warp(1.0, [320.0; 2], [false; 2]) };
        assert!(wide.map_box([4.0, 4.0, 304.0, 6.9]).is_none(), "a hundred times as wide as high");
        assert!(wide.map_box([4.0, 4.0, 6.9, 304.0]).is_none(), "a hundred times as high as wide");
        assert!(wide.map_box([4.0, 4.0, 304.0, 8.0]).is_some());
    }
}
