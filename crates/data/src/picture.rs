//! Reading image files: upright, RGB, eight bits.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, RgbImage};

use crate::{Error, Result};

/// Most bytes of a decoded image; a header may lie.
const MAX_BYTES: u64 = 1 << 29;

/// Decodes an image to RGB, turned as its EXIF orientation says.
///
/// # Errors
/// If the file cannot be read, does not decode or ends before its picture does, naming it.
pub fn decode(path: &Path) -> Result<RgbImage> {
    let file = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    if is_cut_short(&file) {
        return Err(damaged(path, "it is cut short, its end is missing: copy it again or leave it out"));
    }
    decode_whole(path, &file)
}

/// Decodes what `file`, which lies at `path`, holds, whether or not it is all there.
pub(crate) fn decode_whole(path: &Path, file: &[u8]) -> Result<RgbImage> {
    let mut decoder = decoder(path, Cursor::new(file))?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| Error::image(path, e))?;
    picture.apply_orientation(orientation);
    Ok(picture.into_rgb8())
}

/// Width and height of an image as [`decode`] would give it, from the header alone.
///
/// # Errors
/// If the file cannot be read or its header does not decode, naming it.
pub fn size(path: &Path) -> Result<(u32, u32)> {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut decoder = decoder(path, BufReader::new(file))?;
    let (w, h) = decoder.dimensions();
    let turned = matches!(decoder.orientation(), Ok(Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH));
    Ok(if turned { (h, w) } else { (w, h) })
}

/// Whether `file` is a JPEG that ends before its picture does: the decoder fills up what is missing and says nothing.
pub(crate) fn is_cut_short(file: &[u8]) -> bool {
    let Some(mut rest) = file.strip_prefix(&[0xff, 0xd8]) else { return false };
    // A marker is 0xff and a byte of its own; within the picture 0xff has a 0 behind it.
    while let Some(at) = rest.windows(2).position(|w| w[0] == 0xff && !matches!(w[1], 0 | 0xff)) {
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match (marker, rest) {
            (0xd9, _) => return false,
            // Restarts stand alone; what any other marker begins has a length, and may be a small picture with an end of its own.
            (0xd0..=0xd7, _) => {}
            (_, [high, low, ..]) => {
                rest = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default();
            }
            _ => break,
        }
    }
    true
}

fn decoder<'a>(path: &Path, file: impl BufRead + Seek + 'a) -> Result<impl ImageDecoder + 'a> {
    let decoder = ImageReader::new(file)
        .with_guessed_format()
        .map_err(|e| Error::io("read", path, e))?
        .into_decoder()
        .map_err(|e| Error::image(path, e))?;
    if decoder.total_bytes() > MAX_BYTES {
        let (w, h) = decoder.dimensions();
        let what = format!("it is {w} x {h} pixels by its header, which take more than {} MiB", MAX_BYTES >> 20);
        return Err(damaged(path, &what));
    }
    Ok(decoder)
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::image(path, ImageError::IoError(std::io::Error::other(what)))
}
