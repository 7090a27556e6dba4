//! A made-up dataset of blood smears, for trying the whole pipeline with nothing to download.

mod smear;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{Error, Result};

pub use smear::{Sample, render};

/// The classes, those of the BCCD dataset: red cells, white cells, platelets.
pub const NAMES: [&str; 3] = ["RBC", "WBC", "Platelets"];

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthConfig {
    /// Images per split.
    pub train: usize,
    pub val: usize,
    pub test: usize,
    /// Side of the square images, pixels.
    pub size: u32,
    pub seed: u64,
}

impl Default for SynthConfig {
    fn default() -> Self {
        Self { train: 200, val: 50, test: 50, size: 160, seed: 0 }
    }
}

/// Writes `images/<split>/*.jpg`, `labels/<split>/*.txt` and `data.yaml` into `folder` and returns the path of the
/// latter. The same configuration gives the same files.
///
/// # Errors
/// If the folder already holds a dataset, or a file cannot be written.
pub fn write(folder: &Path, config: &SynthConfig) -> Result<PathBuf> {
    if config.size < 32 {
        return Err(Error::Config(format!(
            "synthetic images of {} pixels are too small: 32 is the least",
            config.size
        )));
    }
    // It is written last: where it is not, a run was ended while rendering, and the same images are made again.
    let yaml = folder.join("data.yaml");
    if yaml.exists() {
        return Err(Error::dataset(folder, "already holds a `data.yaml`").hint("give a new or empty folder"));
    }
    let splits = [("train", config.train), ("val", config.val), ("test", config.test)];
    for (place, (split, count)) in splits.iter().enumerate() {
        let (images, labels) = (folder.join("images").join(split), folder.join("labels").join(split));
        for made in [&images, &labels] {
            std::fs::create_dir_all(made).map_err(|e| Error::io("create", made, e))?;
        }
        (0..*count).into_par_iter().try_for_each(|index| {
            let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
            rng.set_stream(((place as u64) << 32) | index as u64);
            let sample = render(config.size, &mut rng);
            save(&sample, &images.join(format!("{index:05}.jpg")), &labels.join(format!("{index:05}.txt")))
        })?;
    }
    let text = format!("train: images/train\nval: images/val\ntest: images/test\nnames: [{}]\n", NAMES.join(", "));
    std::fs::write(&yaml, text).map_err(|e| Error::io("write", &yaml, e))?;
    Ok(yaml)
}

fn save(sample: &Sample, image: &Path, label: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 92).encode_image(&sample.image).map_err(|e| Error::image(image, e))?;
    std::fs::write(image, bytes).map_err(|e| Error::io("write", image, e))?;
    let side = sample.image.width() as f32;
    let mut text = String::new();
    for (class, [x1, y1, x2, y2]) in &sample.boxes {
        let [cx, cy, w, h] = [(x1 + x2) / 2.0, (y1 + y2) / 2.0, x2 - x1, y2 - y1].map(|v| v / side);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{class} {cx:.6} {cy:.6} {w:.6} {h:.6}");
    }
    std::fs::write(label, text).map_err(|e| Error::io("write", label, e))
}
