//! `compare`: every method under one budget, recipe and list of seeds.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::args::Compare;
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::pipeline::{LONGER, METHODS, Method, Pipeline, Recipe};
use crate::report::compare::{Comparison, Entry, Spread, render, table};
use crate::report::{StageRow, Summary};
use crate::training::tell_skipped;
use crate::{runs, ui};

/// What the runs of a comparison share, as compare.toml holds it: a folder is gone on with only where it is the same.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    macs: Vec<f64>,
    recipe: Recipe,
}

/// Runs the command.
pub fn run(args: &Compare) -> miette::Result<Exit> {
    let model = args.model.load()?;
    let dataset = args.data.open()?;
    tell_skipped(&dataset);
    let imgsz = image_size(&model, args.imgsz)?;
    let settings = Settings { macs: args.macs.clone(), recipe: recipe(args, imgsz, &dataset)? };
    let out = runs::folder(Some(&args.out), "compare", true)?;
    check_folder(&out, &settings)?;

    let methods: Vec<&Method> =
        METHODS.iter().filter(|m| args.methods.is_empty() || args.methods.iter().any(|name| name == m.name)).collect();
    let mut runs_done: Vec<(&Method, Option<f64>, Summary)> = vec![];
    for &seed in &args.seeds {
        let folder = out.join(format!("seed{seed}"));
        let mut base = settings.recipe.clone();
        base.seed = seed;
        base.each_training(|t| t.seed = seed);
        if model.meta.names == dataset.names {
            base.dense.epochs = 0;
        }
        ui::note(format_args!("Seed {seed}: the dense detector"));
        let dense = Pipeline::new(&base, &dataset, &folder, model.meta.family)?.dense(&model)?;
        base.dense.epochs = 0;
        for method in &methods {
            let budgets: &[f64] = if method.name == LONGER { &[1.0] } else { &args.macs };
            for &macs in budgets {
                let mut recipe = base.clone();
                recipe.budget.macs = Some(macs);
                let recipe = method.of(&recipe);
                let share = (method.name != LONGER).then_some(macs);
                let name = share.map_or(method.name.into(), |m| format!("{}-{m}", method.name));
                ui::note(format_args!("Seed {seed}, {}: {}", name, method.about));
                let folder = folder.join(&name);
                runs_done.push((method, share, summary(&recipe, &dataset, &folder, &dense)?));
            }
        }
    }
    let comparison = Comparison {
        model: args.model.model.display().to_string(),
        data: args.data.data.display().to_string(),
        imgsz,
        epochs: args.epochs,
        seeds: args.seeds.clone(),
        entries: entries(&runs_done),
    };
    runs::write_json(&out.join("compare.json"), &comparison)?;
    graph::format::write_whole(&out.join("report.html"), render(&comparison).as_bytes())?;
    if args.json {
        ui::print_json(&comparison);
    } else {
        ui::print(format_args!("{}\n", table(&comparison)));
    }
    ui::note(format_args!("The report is `{}`", out.join("report.html").display()));
    Ok(Exit::Done)
}

/// What one run came to; run or gone on with where it has not been finished.
fn summary(recipe: &Recipe, dataset: &data::Dataset, folder: &Path, dense: &graph::Graph) -> miette::Result<Summary> {
    let file = folder.join("summary.json");
    if file.is_file() {
        return runs::read_json(&file);
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    runs::write_toml(&folder.join("recipe.toml"), recipe)?;
    Pipeline::new(recipe, dataset, folder, dense.meta.family)?.run(dense)
}

fn recipe(args: &Compare, imgsz: usize, dataset: &data::Dataset) -> miette::Result<Recipe> {
    let mut recipe = Recipe {
        model: args.model.model.clone(),
        weights: args.model.weights.clone(),
        data: args.data.data.clone(),
        data_format: args.data.form.options().format,
        images: args.data.form.images.clone(),
        ..Recipe::default()
    };
    recipe.each_training(|t| {
        t.imgsz = imgsz;
        t.batch = args.batch;
    });
    (recipe.dense.epochs, recipe.heal.epochs) = (args.epochs, args.epochs);
    recipe.step_often(dataset.split("train")?.items.len());
    Ok(recipe)
}

fn check_folder(out: &Path, settings: &Settings) -> miette::Result<()> {
    let file = out.join("compare.toml");
    if !file.is_file() {
        return runs::write_toml(&file, settings);
    }
    let text = std::fs::read_to_string(&file).map_err(|e| Error::io("read", &file, &e))?;
    // More budgets, methods and seeds may join a comparison; another recipe makes it another one.
    if toml::from_str::<Settings>(&text).is_ok_and(|old| old.recipe == settings.recipe) {
        return Ok(());
    }
    let what = format!("`{}` holds a comparison with another recipe", out.display());
    Err(Error::failed(what, "give another `--out`, or delete that folder"))
}

/// One entry a method and budget: means over seeds.
fn entries(runs: &[(&Method, Option<f64>, Summary)]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = vec![];
    for (method, macs, _) in runs {
        if entries.iter().any(|e| e.method == method.name && e.macs_kept == *macs) {
            continue;
        }
        let of: Vec<&Summary> =
            runs.iter().filter(|(m, b, _)| m.name == method.name && b == macs).map(|r| &r.2).collect();
        let spread = |value: &dyn Fn(&Summary) -> Option<f64>| {
            Spread::of(&of.iter().filter_map(|s| value(s)).collect::<Vec<_>>())
        };
        let last = |f: fn(&StageRow) -> f64| move |s: &Summary| s.stages.last().map(f);
        entries.push(Entry {
            method: method.name.into(),
            about: method.about.into(),
            macs_kept: *macs,
            params: spread(&last(|r| r.params as f64)),
            macs: spread(&last(|r| r.macs as f64)),
            ms: spread(&last(|r| r.ms_per_image)),
            unhealed: spread(&|s| unhealed(&s.stages)),
            map50: spread(&last(|r| r.map50)),
            map50_95: spread(&last(|r| r.map50_95)),
            test: spread(&|s| s.stages.last().and_then(|r| r.test.map(|t| t.map50_95))),
        });
    }
    entries
}

/// mAP50-95 of what healing started from: the last stage before it, or the one before that where recalibration did harm and
/// was dropped.
fn unhealed(stages: &[StageRow]) -> Option<f64> {
    let before: Vec<&StageRow> = stages.iter().filter(|r| r.stage != "healed").collect();
    match before[..] {
        [.., kept, last] if last.stage == "recalibrated" => Some(kept.map50_95.max(last.map50_95)),
        [.., last] => Some(last.map50_95),
        [] => None,
    }
}
