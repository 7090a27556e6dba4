//! `compare`: every method under one budget, recipe and list of seeds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::args::Compare;
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::pipeline::{LONGER, METHODS, Method, Pipeline, Recipe};
use crate::report::compare::{Comparison, Entry, Spread, picture, render, table};
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
                let name = folder_name(method, macs);
                ui::note(format_args!("Seed {seed}, {name}: {}", method.about));
                finish(&recipe, &dataset, &folder.join(&name), &dense)?;
            }
        }
    }
    let finished = finished(&out)?;
    let comparison = Comparison {
        model: args.model.model.display().to_string(),
        data: args.data.data.display().to_string(),
        imgsz,
        epochs: args.epochs,
        seeds: finished.iter().map(|r| r.seed).collect::<BTreeSet<_>>().into_iter().collect(),
        entries: entries(&finished),
    };
    runs::write_json(&out.join("compare.json"), &comparison)?;
    graph::format::write_whole(&out.join("report.html"), render(&comparison).as_bytes())?;
    graph::format::write_whole(&out.join("frontier.svg"), picture(&comparison).as_bytes())?;
    if args.json {
        ui::print_json(&comparison);
    } else {
        ui::print(format_args!("{}\n", table(&comparison)));
    }
    ui::note(format_args!("The report is `{}`", out.join("report.html").display()));
    Ok(Exit::Done)
}

/// Runs one method, or goes on with it, where it has not been finished.
fn finish(recipe: &Recipe, dataset: &data::Dataset, folder: &Path, dense: &graph::Graph) -> miette::Result<()> {
    if folder.join("summary.json").is_file() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    runs::write_toml(&folder.join("recipe.toml"), recipe)?;
    Pipeline::new(recipe, dataset, folder, dense.meta.family)?.run(dense)?;
    Ok(())
}

/// The folder of `method` keeping `macs`, within its seed's.
fn folder_name(method: &Method, macs: f64) -> String {
    if method.name == LONGER { method.name.into() } else { format!("{}-{macs}", method.name) }
}

/// A run that has been finished.
struct Finished {
    seed: u64,
    method: &'static Method,
    /// Share of the multiply-accumulates kept; none where nothing was removed.
    macs: Option<f64>,
    summary: Summary,
}

/// Every finished run in the folder of a comparison, of this call or an earlier one: methods in their order.
fn finished(out: &Path) -> miette::Result<Vec<Finished>> {
    let mut all = vec![];
    for (seed_name, seed_folder) in folders(out)? {
        let Some(seed) = seed_name.strip_prefix("seed").and_then(|s| s.parse().ok()) else { continue };
        for (name, folder) in folders(&seed_folder)? {
            let (method, macs) = match name.rsplit_once('-') {
                Some((method, macs)) if macs.parse::<f64>().is_ok() => (method, macs.parse().ok()),
                _ => (name.as_str(), None),
            };
            let file = folder.join("summary.json");
            let (Some(method), true) = (Method::named(method), file.is_file()) else { continue };
            all.push(Finished { seed, method, macs, summary: runs::read_json(&file)? });
        }
    }
    let place = |m: &Method| METHODS.iter().position(|other| other.name == m.name);
    all.sort_by_key(|r| (place(r.method), r.seed));
    Ok(all)
}

/// The folders within one, by name.
fn folders(within: &Path) -> miette::Result<Vec<(String, PathBuf)>> {
    let listing = std::fs::read_dir(within).map_err(|e| Error::io("read", within, &e))?;
    Ok(listing
        .filter_map(|entry| {
            let entry = entry.ok().filter(|e| e.path().is_dir())?;
            Some((entry.file_name().into_string().ok()?, entry.path()))
        })
        .collect())
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
fn entries(runs: &[Finished]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = vec![];
    for Finished { method, macs, .. } in runs {
        if entries.iter().any(|e| e.method == method.name && e.macs_kept == *macs) {
            continue;
        }
        let of: Vec<&Summary> =
            runs.iter().filter(|r| r.method.name == method.name && r.macs == *macs).map(|r| &r.summary).collect();
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
