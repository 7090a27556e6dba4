//! Boxes with their names, drawn on an image.

mod font;

use image::{Rgb, RgbImage};

/// A box to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// Left, top, right, bottom in pixels.
    pub xyxy: [f32; 4],
    /// Settles the colour.
    pub class: usize,
    /// Written above the box; ASCII is shown, anything else as `?`. May be empty.
    pub text: String,
}

/// The colour of a class: hues a golden angle apart, so that any few neighbours differ.
pub fn colour(class: usize) -> [u8; 3] {
    let hue = (class as f32 * 0.618_034 + 0.58).fract() * 6.0;
    let channel = |shift: f32| {
        let k = (hue + shift) % 6.0;
        let strength = k.min(4.0 - k).clamp(0.0, 1.0);
        (225.0 * (1.0 - 0.85 * strength)) as u8
    };
    [5.0, 3.0, 1.0].map(channel)
}

/// Draws the boxes in order; lines and letters grow with the image.
pub fn annotate(image: &mut RgbImage, annotations: &[Annotation]) {
    let unit = (image.width().max(image.height()) / 500).max(1);
    for annotation in annotations {
        let ink = colour(annotation.class);
        let [x1, y1, x2, y2] = annotation.xyxy.map(|v| v.round() as i64);
        let thick = i64::from(unit) * 2;
        fill(image, [x1, y1, x2, y1 + thick], ink);
        fill(image, [x1, y2 - thick, x2, y2], ink);
        fill(image, [x1, y1, x1 + thick, y2], ink);
        fill(image, [x2 - thick, y1, x2, y2], ink);
        if !annotation.text.is_empty() {
            write(image, (x1, y1), &annotation.text, ink, unit);
        }
    }
}

/// Writes on a plate of colour above the point, or below where there is no room.
fn write(image: &mut RgbImage, (x, y): (i64, i64), text: &str, plate: [u8; 3], unit: u32) {
    let (width, height) = font::GLYPH;
    let advance = i64::from((width + 1) * unit);
    let margin = i64::from(unit);
    let tall = i64::from(height * unit) + 2 * margin;
    let wide = advance * text.chars().count() as i64 + margin;
    let x = x.min(i64::from(image.width()) - wide).max(0);
    let y = if y >= tall { y - tall } else { y.max(0) };
    fill(image, [x, y, x + wide, y + tall], plate);

    let luma = 0.299 * f32::from(plate[0]) + 0.587 * f32::from(plate[1]) + 0.114 * f32::from(plate[2]);
    let ink = if luma > 128.0 { [0; 3] } else { [255; 3] };
    for (i, character) in text.chars().enumerate() {
        let left = x + margin + advance * i as i64;
        for (column, row) in (0..width).flat_map(|c| (0..height).map(move |r| (c, r))) {
            if font::dot(character, column, row) {
                let (dx, dy) = (left + i64::from(column * unit), y + margin + i64::from(row * unit));
                fill(image, [dx, dy, dx + i64::from(unit), dy + i64::from(unit)], ink);
            }
        }
    }
}

/// Fills a rectangle as far as it lies within the image.
fn fill(image: &mut RgbImage, [x1, y1, x2, y2]: [i64; 4], ink: [u8; 3]) {
    let (w, h) = (i64::from(image.width()), i64::from(image.height()));
    for y in y1.clamp(0, h)..y2.clamp(0, h) {
        for x in x1.clamp(0, w)..x2.clamp(0, w) {
            image.put_pixel(x as u32, y as u32, Rgb(ink));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_drawn_at_its_place_and_cut_at_the_border() {
        let mut image = RgbImage::new(40, 40);
        let annotation = Annotation { xyxy: [10.0, 12.0, 100.0, 30.0], class: 1, text: String::new() };
        annotate(&mut image, &[annotation]);
        let ink = Rgb(colour(1));
        let row = |y| (0..40).filter(|&x| *image.get_pixel(x, y) == ink).collect::<Vec<u32>>();
        assert!(row(11).is_empty());
        assert_eq!(row(12), (10..40).collect::<Vec<_>>());
        assert_eq!(row(20), [10, 11]);
    }

    #[test]
    fn text_stays_within_the_image() {
        for xyxy in [[0.0, 0.0, 5.0, 5.0], [35.0, 38.0, 60.0, 60.0], [-20.0, 20.0, -10.0, 30.0], [f32::NAN; 4]] {
            let mut image = RgbImage::new(40, 40);
            annotate(&mut image, &[Annotation { xyxy, class: 0, text: "Ab é".into() }]);
            assert!(image.pixels().any(|p| p.0 == [255; 3] || p.0 != [0; 3]), "{xyxy:?}: nothing is drawn");
        }
    }

    #[test]
    fn neighbouring_classes_differ() {
        for class in 0..20 {
            let (a, b) = (colour(class), colour(class + 1));
            let distance: u32 = a.iter().zip(b).map(|(x, y)| u32::from(x.abs_diff(y))).sum();
            assert!(distance > 90, "classes {class} and {} look alike: {a:?}, {b:?}", class + 1);
        }
    }
}
