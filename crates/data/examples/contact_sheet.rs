//! A sheet of augmented training images with their boxes, to look at what a network is taught.
//!
//! `cargo run -p prunella-data --example contact_sheet -- DATASET OUT.png [SIZE]`; with `synth` for DATASET the
//! made-up smears are shown.

use std::error::Error;
use std::path::Path;

use data::draw::{Annotation, annotate};
use data::synth::{self, SynthConfig};
use data::{Loader, LoaderConfig, OpenOptions, open};
use image::RgbImage;
use image::imageops::replace;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, out, rest @ ..] = &arguments[..] else {
        return Err("usage: contact_sheet DATASET OUT.png [SIZE]".into());
    };
    let size: u32 = rest.first().map_or(Ok(320), |s| s.parse())?;
    let scratch = tempfile::tempdir()?;
    let dataset = if path == "synth" {
        open(&synth::write(scratch.path(), &SynthConfig::default())?, &OpenOptions::default())?
    } else {
        open(Path::new(path), &OpenOptions::default())?
    };
    let config = LoaderConfig { size, batch: 12, ..LoaderConfig::default() };
    let batch = Loader::new(&dataset.split("train")?.items, config)?.epoch(0).next().ok_or("no batch")??;
    let mut sheet = RgbImage::new(4 * size, 3 * size);
    for (i, pixels) in batch.images.chunks_exact(batch.h * batch.w * 3).enumerate() {
        let mut picture = RgbImage::from_raw(size, size, pixels.to_vec()).ok_or("a batch of another size")?;
        let targets = batch.targets.iter().filter(|t| t.image == i);
        let marks: Vec<_> = targets
            .map(|t| {
                let [cx, cy, w, h] = t.bbox.map(|v| v * size as f32);
                let xyxy = [cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0];
                Annotation { xyxy, class: t.class, text: dataset.names[t.class].clone() }
            })
            .collect();
        annotate(&mut picture, &marks);
        replace(&mut sheet, &picture, i64::from(size) * (i as i64 % 4), i64::from(size) * (i as i64 / 4));
    }
    sheet.save(out)?;
    Ok(())
}
