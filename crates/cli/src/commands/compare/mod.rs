//! `compare`: every method under one budget, recipe and list of seeds, on images of one size or of several.

mod finished;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use graph::Graph;

use serde::{Deserialize, Serialize};
use train::net::Isa;

use crate::args::Compare;
use crate::detector::image_sizes;
use crate::exit::{Error, Exit};
use crate::pipeline::{LONGER, METHODS, Method, Pipeline, Recipe};
use crate::report::compare::{Comparison, picture, render, table};
use crate::training::{fit, tell_head, tell_left_out, tell_split};
use crate::{runs, splits, ui};

/// What the runs of a comparison share, as compare.toml holds it: a folder is gone on with only where it is the same.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    recipe: Recipe,
}

/// Runs the command.
pub fn run(args: &Compare) -> miette::Result<Exit> {
    let model = args.model.load_to_train()?;
    let dataset = args.data.open()?;
    tell_left_out(&dataset, &["train", "val"]);
    tell_split(&dataset, "val");
    let sizes = once(&image_sizes(&model, &args.imgsz)?);
    let imgsz = sizes[0];
    let images = splits::labelled(&dataset, "train")?.len();
    let settings = Settings { recipe: recipe(args, imgsz, images) };
    settings.recipe.check()?;
    let (budgets, seeds) = (once(&args.macs), once(&args.seeds));
    let methods: Vec<&Method> =
        METHODS.iter().filter(|m| args.methods.is_empty() || args.methods.iter().any(|name| name == m.name)).collect();
    let first = fit(&model, &dataset, imgsz, settings.recipe.seed)?;
    let variants = within_reach(variants(&methods, &budgets, &sizes), &settings.recipe, &first, images)?;
    tell_head(&model, &first);
    let out = runs::folder(Some(&args.out), "compare", true)?;
    let _alone = runs::alone(&out)?;
    check_folder(&out, &settings)?;
    ui::on_interrupt("the same command goes on with this comparison".into());
    let start = |&seed: &u64| {
        let mut base = settings.recipe.clone();
        base.seed = seed;
        base.each_training(|t| t.seed = seed);
        base.skip_dense(&model, &dataset.names);
        let task = format!("Seed {seed}");
        ui::note(format_args!("{task}: the dense detector"));
        let folder = out.join(format!("seed{seed}"));
        let fitted = fit(&model, &dataset, imgsz, seed)?;
        let dense = || Pipeline::new(&base, &dataset, &folder, model.meta.family)?.dense(&fitted);
        let dense = told_apart(args.jobs, &task, dense)?;
        base.dense.epochs = 0;
        Ok(Start { base, folder, dense })
    };
    let starts = side_by_side(args.jobs, &seeds, start)?;
    let tasks: Vec<(&Start, &Variant)> = starts.iter().flat_map(|s| variants.iter().map(move |v| (s, v))).collect();
    side_by_side(args.jobs, &tasks, |&(start, variant)| {
        let (recipe, name) = (variant.recipe(&start.base), variant.folder_name(imgsz));
        let task = format!("Seed {}, {name}", recipe.seed);
        ui::note(format_args!("{task}: {}", variant.method.about));
        told_apart(args.jobs, &task, || finish(&recipe, &dataset, &start.folder.join(name), &start.dense))
    })?;
    let finished = finished::finished(&out)?;
    let times = finished::times(&finished)?;
    let comparison = Comparison {
        model: args.model.model.display().to_string(),
        data: args.data.data.display().to_string(),
        imgsz,
        dense_epochs: settings.recipe.dense_epochs(&model, &dataset.names),
        epochs: args.epochs,
        seeds: finished.iter().map(|r| r.seed).collect::<BTreeSet<_>>().into_iter().collect(),
        entries: finished::entries(&finished, &times),
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

/// `values` without what has been there before.
fn once<T: PartialEq + Copy>(values: &[T]) -> Vec<T> {
    let mut once = vec![];
    values.iter().for_each(|value| {
        if !once.contains(value) {
            once.push(*value)
        }
    });
    once
}

/// A method at one budget, on images of one size.
struct Variant<'a> {
    method: &'a Method,
    /// Share of the dense detector's multiply-accumulates to keep.
    macs: f64,
    imgsz: usize,
}

impl Variant<'_> {
    /// `base` by this method.
    fn recipe(&self, base: &Recipe) -> Recipe {
        let mut recipe = self.method.keeping(base, self.macs);
        recipe.sizes = if self.imgsz == base.dense.imgsz { vec![] } else { vec![self.imgsz] };
        recipe
    }

    /// Its folder within its seed's, when the dense detector is for images of `own`.
    fn folder_name(&self, own: usize) -> String {
        let Self { method, macs, imgsz } = self;
        if method.name == LONGER {
            method.name.into()
        } else if *imgsz == own {
            format!("{}-{macs}", method.name)
        } else {
            format!("{}-{macs}-{imgsz}px", method.name)
        }
    }
}

/// All that is to be compared. What removes nothing is what it is on images of the dense detector's size, the first of `sizes`.
fn variants<'a>(methods: &[&'a Method], budgets: &[f64], sizes: &[usize]) -> Vec<Variant<'a>> {
    let mut variants = vec![];
    for &method in methods {
        if method.name == LONGER {
            variants.push(Variant { method, macs: 1.0, imgsz: sizes[0] });
            continue;
        }
        for &macs in budgets {
            variants.extend(sizes.iter().map(|&imgsz| Variant { method, macs, imgsz }));
        }
    }
    variants
}

/// `variants` without those whose budget is out of reach, of which it tells.
///
/// # Errors
/// A method is within reach of nothing.
fn within_reach<'a>(
    variants: Vec<Variant<'a>>,
    base: &Recipe,
    start: &Graph,
    images: usize,
) -> miette::Result<Vec<Variant<'a>>> {
    let start = start.for_inference();
    // Methods of the same limits go as far.
    let mut tried = vec![];
    let (mut within, mut beyond): (Vec<Variant>, Vec<(&str, String)>) = (vec![], vec![]);
    for variant in variants {
        let Variant { method, macs, imgsz } = variant;
        if method.name == LONGER {
            within.push(variant);
            continue;
        }
        let recipe = variant.recipe(base);
        let key = (recipe.cut().reach(), macs, imgsz);
        let at = match tried.iter().position(|(other, _)| *other == key) {
            Some(at) => at,
            None => {
                tried.push((key, recipe.reachable(&start, images).err()));
                tried.len() - 1
            }
        };
        match &tried[at].1 {
            None => within.push(variant),
            Some(why) => beyond.push((method.name, format!("on images of {imgsz} px, {why}"))),
        }
    }
    for (name, why) in &beyond {
        if !within.iter().any(|variant| variant.method.name == *name) {
            let help = "keep more, allow smaller images, or leave the method out with `--methods`";
            return Err(Error::failed(format!("`{name}`: {why}"), help));
        }
        ui::warn(format_args!("`{name}` is left out where it cannot go: {why}"));
    }
    Ok(within)
}

/// What the runs of one seed start from.
struct Start {
    base: Recipe,
    folder: PathBuf,
    dense: Graph,
}

/// Does `work`, which says of its lines that they are of `task` where several `jobs` write theirs.
fn told_apart<T>(jobs: usize, task: &str, work: impl FnOnce() -> T) -> T {
    if jobs > 1 { ui::of_task(task, work) } else { work() }
}

/// Runs `work` on every task, `jobs` of them at a time with equal shares of the threads; what came of them, in order. After
/// an error no further task is begun.
fn side_by_side<T: Sync, R: Send>(
    jobs: usize,
    tasks: &[T],
    work: impl Fn(&T) -> miette::Result<R> + Sync,
) -> miette::Result<Vec<R>> {
    let jobs = jobs.min(tasks.len());
    if jobs < 2 {
        return tasks.iter().map(work).collect();
    }
    let threads = (rayon::current_num_threads() / jobs).max(1);
    // What computes was chosen for this thread.
    let isa = Isa::current();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let worker = || -> miette::Result<()> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool =
            pool.map_err(|e| Error::failed(format!("cannot start {threads} threads: {e}"), "give fewer `--jobs`"))?;
        while let (i, Some(task)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            (i, tasks.get(i))
        } {
            match pool.install(|| isa.scope(|| work(task))) {
                Ok(result) => done.lock().expect("no worker panics with it").push((i, result)),
                Err(error) => {
                    next.store(tasks.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let mut done = done.into_inner().expect("no worker panics with it");
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, result)| result).collect())
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

fn recipe(args: &Compare, imgsz: usize, images: usize) -> Recipe {
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
    recipe.step_often(images);
    recipe
}

fn check_folder(out: &Path, settings: &Settings) -> miette::Result<()> {
    let file = out.join("compare.toml");
    if !file.is_file() {
        return runs::write_toml(&file, settings);
    }
    let old: Settings = runs::read_toml(&file)?;
    // More budgets, methods and seeds may join a comparison; another recipe makes it another one.
    runs::same_settings(out, &old.recipe, &settings.recipe)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn work_side_by_side_comes_back_in_order_and_stops_at_an_error() {
        let tasks: Vec<u64> = (0..20).collect();
        let squares = side_by_side(3, &tasks, |n| Ok(n * n)).unwrap();
        assert_eq!(squares, tasks.iter().map(|n| n * n).collect::<Vec<_>>());

        // The second task waits until the worker that failed is gone, so that no scheduler decides what is begun.
        thread_local!(static FAILED: std::cell::RefCell<Option<mpsc::Sender<()>>> = const { std::cell::RefCell::new(None) });
        let (sender, gone) = mpsc::channel();
        let (sender, gone, begun) = (Mutex::new(Some(sender)), Mutex::new(gone), AtomicUsize::new(0));
        let failed = side_by_side(2, &tasks, |&n| {
            begun.fetch_add(1, Ordering::Relaxed);
            if n == 0 {
                FAILED.set(sender.lock().unwrap().take());
                return Err(Error::failed("no", "hint"));
            }
            gone.lock().unwrap().recv().expect_err("nothing is sent");
            Ok(())
        });
        assert!(failed.is_err() && begun.into_inner() <= 2);
    }
}
