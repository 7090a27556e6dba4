//! Reading image files: upright, RGB, eight bits.

use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};

use crate::{Error, Result};

/// Decodes an image to RGB, turned as its EXIF orientation says.
///
/// # Errors
/// If the file cannot be read or does not decode, naming it.
pub fn decode(path: &Path) -> Result<RgbImage> {
    let mut decoder = decoder(path)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| Error::image(path, e))?;
    picture.apply_orientation(orientation);
    Ok(picture.into_rgb8())
}

/// Width and height of an image as [`decode`] would give it, from the header alone.
///
/// # Errors
/// As [`decode`].
pub fn size(path: &Path) -> Result<(u32, u32)> {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let mut decoder = decoder(path)?;
    let (w, h) = decoder.dimensions();
    let turned = matches!(decoder.orientation(), Ok(Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH));
    Ok(if turned { (h, w) } else { (w, h) })
}

fn decoder(path: &Path) -> Result<impl ImageDecoder> {
    ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|e| Error::io("read", path, e))?
        .into_decoder()
        .map_err(|e| Error::image(path, e))
}
