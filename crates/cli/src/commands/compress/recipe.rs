//! What a call of `compress` asks for: a recipe file or the defaults, or the recipe of the run it goes on with, and the command line
//! over that.

use std::path::{Path, PathBuf};

use prune::Budget;
use train::TrainConfig;

use crate::args::Compress;
use crate::commands::train::follow;
use crate::exit::Error;
use crate::pipeline::Recipe;
use crate::{files, runs};

/// The recipe of a run that begins.
pub fn fresh(args: &Compress) -> miette::Result<Recipe> {
    let recipe = match &args.recipe {
        Some(file) => Recipe::load(file)?,
        None => {
            let mut recipe = Recipe::default();
            recipe.each_training(|t| t.imgsz = 0);
            recipe
        }
    };
    let mut recipe = over(recipe, args);
    for (what, path) in [("--model", &recipe.model), ("--data", &recipe.data)] {
        if path.as_os_str().is_empty() {
            return Err(Error::usage(format!("`{what}` is missing"), "give it, or a `--recipe` that has it"));
        }
    }
    // A training whose own seed the recipe names keeps it.
    let (seed, usual) = (recipe.seed, TrainConfig::default().seed);
    recipe.each_training(|t| t.seed = if t.seed == usual { seed } else { t.seed });
    Ok(recipe)
}

/// The recipe that the run to be gone on with keeps in `file`.
///
/// # Errors
/// The command line asks for something else.
pub fn resumed(file: &Path, args: &Compress) -> miette::Result<Recipe> {
    let mut stored = Recipe::load(file)?;
    let mut asked = match &args.recipe {
        Some(_) => fresh(args)?,
        None => over(stored.clone(), args),
    };
    // Eight bits are written last, and may be asked for at any time.
    stored.int8 |= asked.int8;
    asked.int8 = stored.int8;
    runs::same_settings(files::folder_of(file), &settled(stored.clone(), &stored), &settled(asked, &stored))?;
    Ok(stored)
}

/// `recipe` with what the command line says.
fn over(mut recipe: Recipe, args: &Compress) -> Recipe {
    recipe.model = args.model.clone().unwrap_or(recipe.model);
    recipe.weights = args.weights.clone().or(recipe.weights);
    recipe.data = args.data.clone().unwrap_or(recipe.data);
    recipe.data_format = args.form.options().format.or(recipe.data_format);
    recipe.images = args.form.images.clone().or(recipe.images);
    if !args.budget.is_empty() {
        recipe.budget = args.budget.budget();
        recipe.max_drop = args.budget.max_drop;
    }
    recipe.multiple_by_speed = args.limits.auto(recipe.multiple_by_speed);
    recipe.similarity_share = args.similarity_share.unwrap_or(recipe.similarity_share);
    recipe.rounds = args.rounds.unwrap_or(recipe.rounds);
    recipe.similarity.mode = args.similarity.map_or(recipe.similarity.mode, Into::into);
    recipe.importance.limits = args.limits.over(recipe.importance.limits);
    recipe.similarity.limits = args.limits.over(recipe.similarity.limits);
    recipe.int8 |= args.int8;
    recipe.seed = args.seed.unwrap_or(recipe.seed);
    recipe.each_training(|t| {
        t.seed = args.seed.unwrap_or(t.seed);
        t.batch = args.batch.unwrap_or(t.batch);
        t.imgsz = args.imgsz.first().copied().unwrap_or(t.imgsz);
    });
    match args.imgsz.len() {
        0 => {}
        1 => recipe.sizes.clear(),
        _ => recipe.sizes.clone_from(&args.imgsz),
    }
    // Sparse training keeps its own rates: its proximal steps are set up for them.
    for t in [&mut recipe.dense, &mut recipe.heal] {
        follow(t, args.optimizer, args.lr0, args.lrf);
    }
    recipe.dense.epochs = args.epochs.unwrap_or(recipe.dense.epochs);
    recipe.heal.epochs = args.epochs.unwrap_or(recipe.heal.epochs);
    recipe.sparse.epochs = args.sparse_epochs.unwrap_or(recipe.sparse.epochs);
    recipe
}

/// `asked` as a run that wrote down `stored` would have written it down.
fn settled(mut asked: Recipe, stored: &Recipe) -> Recipe {
    same_place(Some(&mut asked.model), Some(&stored.model));
    same_place(Some(&mut asked.data), Some(&stored.data));
    same_place(asked.weights.as_mut(), stored.weights.as_ref());
    same_place(asked.images.as_mut(), stored.images.as_ref());
    // Where several limits were set, one may be repeated without the others.
    let (given, kept) = (asked.budget, stored.budget);
    asked.budget = Budget {
        params: given.params.or(kept.params),
        macs: given.macs.or(kept.macs),
        rate: given.rate.or(kept.rate),
        bytes: given.bytes.or(kept.bytes),
        latency: given.latency.or(kept.latency),
    };
    let imgsz = if asked.heal.imgsz == 0 { stored.heal.imgsz } else { asked.heal.imgsz };
    let pairs =
        [(&mut asked.dense, &stored.dense), (&mut asked.sparse, &stored.sparse), (&mut asked.heal, &stored.heal)];
    for (asked, stored) in pairs {
        asked.imgsz = imgsz;
        // A batch is made smaller where steps would be few.
        if asked.batch.min(asked.nominal_batch) == stored.batch {
            asked.batch = stored.batch;
        }
    }
    // The detector may have needed no dense training.
    if stored.dense.epochs == 0 {
        asked.dense.epochs = 0;
    }
    asked
}

/// Lets `asked` say what `stored` says, where both lead to one file or folder.
fn same_place(asked: Option<&mut PathBuf>, stored: Option<&PathBuf>) {
    if let (Some(asked), Some(stored)) = (asked, stored)
        && files::same(asked, stored)
    {
        asked.clone_from(stored);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(text: &str) -> Compress {
        let Command::Compress(args) = Cli::parse_from(format!("prunella compress {text}").split(' ')).command else {
            panic!("another command")
        };
        args
    }

    /// A recipe as a run of `text` writes it down, for a detector that needs no dense training, on few images.
    fn written(text: &str) -> Recipe {
        let mut recipe = fresh(&args(text)).unwrap();
        recipe.each_training(|t| t.imgsz = if t.imgsz == 0 { 320 } else { t.imgsz });
        recipe.dense.epochs = 0;
        recipe.step_often(100);
        recipe
    }

    #[test]
    fn a_rate_alone_changes_nothing_else_of_a_recipe() {
        let mut recipe = Recipe::default();
        recipe.heal.schedule.warmup_epochs = 1.5;
        recipe.heal.optimizer.weight_decay = 0.1;
        let mut wanted = recipe.clone();
        (wanted.heal.schedule.lr0, wanted.dense.schedule.lr0) = (0.002, 0.002);
        assert_eq!(over(recipe.clone(), &args("--lr0 0.002")), wanted);
        assert_eq!(over(recipe.clone(), &args("--lr0 0.002 --optimizer muon")), wanted, "it is followed already");
        let sgd = over(recipe, &args("--optimizer sgd"));
        assert_eq!((sgd.heal.schedule.lr0, sgd.heal.optimizer.weight_decay), (0.01, 5e-4));
        assert_eq!(
            (sgd.heal.boxes, sgd.heal.anchor_t, sgd.heal.distill),
            (1.0, 4.0, 1.0),
            "YOLOv5's, but for what heals"
        );
        assert_eq!(sgd.sparse, wanted.sparse);
        assert_eq!(over(Recipe::default(), &args("--epochs 0")).heal.epochs, 0, "no training is a training asked for");
    }

    #[test]
    fn a_run_is_gone_on_with_as_it_was_begun() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("recipe.toml");
        let call = "-m m.pt -d ds --macs 0.5 --params 0.9 --batch 16 --epochs 3 --seed 2 --lr0 0.01";
        let mut stored = written(call);
        // Edited by hand since.
        stored.heal.distill = 2.0;
        stored.heal.seed = 7;
        runs::write_toml(&file, &stored).unwrap();
        for same in ["--resume --out run", "--macs 0.5 --batch 16 --resume --out run", "--imgsz 320 --epochs 3"] {
            assert_eq!(resumed(&file, &args(same)).unwrap(), stored, "{same}");
        }
        assert!(resumed(&file, &args("--int8")).unwrap().int8);
        for (other, named) in [
            ("--macs 0.4", "`budget.macs` is 0.5, not 0.4"),
            ("--latency 0.5", "`budget.latency.share` is unset, not 0.5"),
            ("--epochs 4", "`heal.epochs` is 3, not 4"),
            ("--seed 3", "`seed` is 2, not 3"),
            ("-m other.pt", "`model` is \"m.pt\", not \"other.pt\""),
            ("--batch 4", "`batch` is 8, not 4"),
            ("--optimizer sgd", "`optimizer.kind.name`"),
            ("--max-drop 0.1", "`max_drop` is unset, not 0.1"),
        ] {
            let refused = resumed(&file, &args(other)).unwrap_err().to_string();
            assert!(refused.contains(named), "{other}: {refused}");
        }
    }
}
