//! How many images a second the loader makes: first epoch (decoding), then from the cache; training and validation.
//!
//! `cargo run --release -p prunella-data --example loader_speed -- DATASET [SIZE] [THREADS]`

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use data::synth::{self, SynthConfig};
use data::{Augment, Loader, LoaderConfig, Mode, OpenOptions, open};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("usage: loader_speed DATASET [SIZE] [THREADS]")?;
    let size: u32 = arguments.get(1).map_or(Ok(320), |s| s.parse())?;
    let threads: usize = arguments.get(2).map_or(Ok(1), |s| s.parse())?;

    let start = Instant::now();
    let dataset = open(Path::new(path), &OpenOptions::default())?;
    println!("opened in {:.2?}", start.elapsed());
    let split = dataset.split("train").or_else(|_| dataset.split("val"))?;
    for (name, mode) in [("train", Mode::Train(Augment::default())), ("val", Mode::Val(data::Fit::Letterbox))] {
        let loader = Loader::new(&split.items, LoaderConfig { size, threads, mode, ..LoaderConfig::default() })?;
        for epoch in 0..3 {
            let start = Instant::now();
            let mut images = 0;
            for batch in loader.epoch(epoch) {
                images += batch?.n;
            }
            println!("{name}, epoch {epoch}: {:.0} images/s", images as f64 / start.elapsed().as_secs_f64());
        }
    }

    let folder = tempfile::tempdir()?;
    let config = SynthConfig::default();
    let start = Instant::now();
    synth::write(folder.path(), &config)?;
    println!("{} smears of {} px in {:.2?}", config.train + config.val + config.test, config.size, start.elapsed());
    Ok(())
}
