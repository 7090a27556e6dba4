//! `demo`: the whole method on a dataset made on the spot.

use std::path::Path;

use data::synth::{self, SynthConfig};
use graph::build::Yolov5;
use graph::format::save;
use prune::Budget;
use train::TrainConfig;
use train::schedule::ScheduleConfig;

use crate::args::Demo;
use crate::commands::compress::compress;
use crate::exit::{Error, Exit};
use crate::pipeline::Recipe;
use crate::{runs, ui};

/// Side of the images, pixels.
const SIZE: usize = 160;

/// Runs the command.
pub fn run(args: &Demo) -> miette::Result<Exit> {
    let out = runs::folder(Some(&args.out), "demo", true)?;
    let _alone = runs::alone(&out)?;
    let recipe = recipe(&out, args.seed);
    let told = out.join("recipe.toml");
    if told.is_file() && Recipe::load(&told)? != recipe {
        let what = format!("`{}` holds a demo with another seed, or of another version", out.display());
        return Err(Error::failed(what, "give another `--out`, or delete that folder"));
    }
    runs::write_toml(&told, &recipe)?;
    ui::on_interrupt("the same command goes on with this demo".into());
    let folder = out.join("dataset");
    let config = SynthConfig { train: 320, val: 80, test: 40, size: SIZE as u32, seed: args.seed };
    let yaml = &recipe.data;
    if !yaml.is_file() {
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
        let spinner = ui::spinner("Rendering");
        synth::write(&folder, &config)?;
        spinner.finish_and_clear();
        ui::note(format_args!(
            "Rendered {} blood smears into `{}`",
            config.train + config.val + config.test,
            folder.display()
        ));
    }
    let dataset = data::open(&recipe.data, &recipe.form())?;
    let names = dataset.names.clone();
    let model = Yolov5 { names, imgsz: SIZE, width: 0.25, depth: 0.33, seed: args.seed }.build()?;
    save(&model, &recipe.model)?;
    ui::note("Training a small YOLO from scratch, then keeping 40 % of its multiply-accumulates");
    compress(&recipe, &model, &dataset, &out, false)
}

/// What a demo in `out` does.
fn recipe(out: &Path, seed: u64) -> Recipe {
    Recipe {
        model: out.join("untrained.safetensors"),
        data: out.join("dataset").join("data.yaml"),
        seed,
        budget: Budget { macs: Some(0.4), ..Budget::default() },
        dense: training(seed, 50),
        sparse: training(seed, 0),
        heal: training(seed, 25),
        ..Recipe::default()
    }
}

/// From scratch on few images: small batches, so that there are enough steps, and as many anchors for an object as YOLOv5 has, so that each step
/// teaches more of them (docs/results/bccd-yolov5n.md).
fn training(seed: u64, epochs: usize) -> TrainConfig {
    let usual = TrainConfig::default();
    let schedule = ScheduleConfig { warmup_epochs: 2.0, warmup_min_iterations: 20, ..usual.schedule };
    TrainConfig { epochs, seed, batch: 16, nominal_batch: 16, imgsz: SIZE, schedule, anchor_t: 4.0, ..usual }
}
