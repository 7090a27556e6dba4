//! Folders of runs: one place for everything a run makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use graph::format::{UNFINISHED, write_whole};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exit::Error;
use crate::{files, ui};

/// Differing settings that are told one by one.
const TOLD: usize = 4;

/// What folders of runs are known by.
const MARKS: [&str; 3] = ["recipe.toml", "compare.toml", "analysis.json"];

/// The file in a run's folder that is locked while somebody works there.
const LOCK: &str = ".lock";

/// What to do about a file of a run that does not load.
pub const DAMAGED: &str = "the file is damaged; delete it and resume the run, which makes it anew";

/// Kinds of runs that `--resume` goes on with.
const RESUMED: [&str; 2] = ["train", "compress"];

/// The folder of a run: `asked`, or the first of `runs/<kind>`, `runs/<kind>2`, ... that is not there yet. It exists after.
///
/// # Errors
/// The folder cannot be made or written to, or holds another run that is not to be resumed.
pub fn folder(asked: Option<&Path>, kind: &str, resume: bool) -> miette::Result<PathBuf> {
    let fresh = || {
        let numbered =
            |n: usize| PathBuf::from(if n == 1 { format!("runs/{kind}") } else { format!("runs/{kind}{n}") });
        (1..).map(numbered).find(|p| !p.exists()).unwrap_or_else(|| PathBuf::from("runs"))
    };
    let out = asked.map_or_else(fresh, Path::to_path_buf);
    let own = marks(kind);
    if MARKS.iter().any(|mark| (*mark != own || !resume) && out.join(mark).exists()) {
        let what = format!("`{}` holds another run", out.display());
        let help = match out.join(own).exists() && RESUMED.contains(&kind) {
            true => "give another `--out`, or go on with that run with `--resume`",
            false => "give another `--out`",
        };
        return Err(Error::failed(what, help));
    }
    std::fs::create_dir_all(&out).map_err(|e| Error::io("create", &out, &e))?;
    files::try_folder(&out).map_err(|e| Error::io("write to", &out, &e))?;
    Ok(out)
}

/// Has the run's folder `out` to itself until what it gives is dropped, and clears away what a killed run was writing.
///
/// # Errors
/// Another run is at work there.
pub fn alone(out: &Path) -> miette::Result<Alone> {
    let path = out.join(LOCK);
    let file = File::create(&path).map_err(|e| Error::io("create", &path, &e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let what = format!("another run is at work in `{}`", out.display());
            return Err(Error::failed(what, "wait for it, stop it, or give another `--out`"));
        }
        // Not every file system knows locks.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    sweep(out);
    Ok(Alone { path, _file: file })
}

/// A folder that nobody else works in.
pub struct Alone {
    path: PathBuf,
    _file: File,
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Where it stays, it does no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Deletes what is unfinished in `folder` and the folders below, but for those that others work in.
fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !path.join(LOCK).exists() => sweep(&path),
            Ok(kind) if kind.is_file() && entry.file_name().to_string_lossy().starts_with(UNFINISHED) => {
                // What cannot be deleted does no harm either.
                let _ = std::fs::remove_file(path);
            }
            _ => {}
        }
    }
}

/// Has Ctrl-C say how the run in `out`, whose recipe is there, is gone on with.
pub fn tell_resume(out: &Path) {
    ui::on_interrupt(format!("the same command with `--out {} --resume` goes on with this run", out.display()));
}

/// The file by which a folder is known to hold a run of `kind`.
fn marks(kind: &str) -> &'static str {
    match kind {
        "compare" => "compare.toml",
        "analyze" => "analysis.json",
        _ => "recipe.toml",
    }
}

/// The recipe of the run in `out` that is to be gone on with; none where one is to begin.
///
/// # Errors
/// There is no run to go on with.
pub fn stored(out: Option<&Path>, resume: bool) -> miette::Result<Option<PathBuf>> {
    let Some(out) = out.filter(|_| resume) else { return Ok(None) };
    let file = out.join("recipe.toml");
    if !file.is_file() {
        let what = format!("`{}` holds no run to go on with", out.display());
        return Err(Error::failed(what, "check the path, or leave out `--resume` to begin one"));
    }
    Ok(Some(file))
}

/// Refuses to go on with the run in `out`, begun with the settings `stored`, where `asked` differ from those.
pub fn same_settings<T: Serialize>(out: &Path, stored: &T, asked: &T) -> miette::Result<()> {
    let differing = differences(stored, asked)?;
    if differing.is_empty() {
        return Ok(());
    }
    let what = format!("`{}` holds a run with other settings: {}", out.display(), ui::listed(&differing, TOLD));
    Err(Error::failed(what, "leave them out to go on with that run as it was begun, or give another `--out`"))
}

/// Every setting by which two recipes differ, in words, what several trainings share once; first those that both have: an optimiser has
/// settings that the other lacks.
fn differences<T: Serialize>(stored: &T, asked: &T) -> miette::Result<Vec<String>> {
    let (stored, asked) = (settings(stored)?, settings(asked)?);
    let names: BTreeSet<&String> = stored.keys().chain(asked.keys()).collect();
    let value = |of: &BTreeMap<String, String>, name| of.get(name).map_or("unset".to_owned(), String::clone);
    let differing = names.into_iter().filter(|name| stored.get(*name) != asked.get(*name));
    let (of_both, of_one): (Vec<_>, Vec<_>) =
        differing.partition(|name| stored.contains_key(*name) && asked.contains_key(*name));
    // What `dense.optimizer.kind` and `heal.optimizer.kind` have in common.
    let shared = |name| str::split_once(name, '.').map_or(name, |(_, rest)| rest);
    let mut told: Vec<(&str, String)> = vec![];
    for name in of_both.into_iter().chain(of_one) {
        let differs = format!("is {}, not {}", value(&stored, name), value(&asked, name));
        let known = told.iter_mut().find(|(other, differ)| shared(other) == shared(name) && *differ == differs);
        match known {
            Some((other, _)) => *other = shared(name),
            None => told.push((name, differs)),
        }
    }
    Ok(told.into_iter().map(|(name, differs)| format!("`{name}` {differs}")).collect())
}

/// The settings of a recipe by name, such as `heal.schedule.lr0`, as TOML has them.
fn settings(recipe: &impl Serialize) -> miette::Result<BTreeMap<String, String>> {
    fn flatten(name: &str, value: &toml::Value, into: &mut BTreeMap<String, String>) {
        let toml::Value::Table(table) = value else {
            into.insert(name.into(), value.to_string());
            return;
        };
        for (key, value) in table {
            flatten(&if name.is_empty() { key.clone() } else { format!("{name}.{key}") }, value, into);
        }
    }
    // By way of text, which writes single precision as short as it was given.
    let table = toml::from_str(&text(recipe)?).map_err(|e| undescribed(&e))?;
    let mut all = BTreeMap::new();
    flatten("", &toml::Value::Table(table), &mut all);
    Ok(all)
}

/// Writes `value` as TOML, whole or not at all.
pub fn write_toml(path: &Path, value: &impl Serialize) -> miette::Result<()> {
    Ok(write_whole(path, text(value)?.as_bytes())?)
}

/// Reads a recipe.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> miette::Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    toml::from_str(&text).map_err(|e| {
        let what = format!("`{}` is no recipe: {}", path.display(), e.to_string().trim());
        Error::failed(what, "`compress` writes a complete recipe.toml into the folder of its run; start from one of those, not one of another command")
    })
}

fn text(recipe: &impl Serialize) -> miette::Result<String> {
    toml::to_string(recipe).map_err(|e| undescribed(&e))
}

fn undescribed(error: &dyn std::error::Error) -> miette::Report {
    Error::failed(format!("cannot describe the recipe: {error}"), "report it")
}

/// Writes `value` as indented JSON, whole or not at all.
pub fn write_json(path: &Path, value: &impl Serialize) -> miette::Result<()> {
    Ok(write_whole(path, ui::json(value).as_bytes())?)
}

/// Reads what [`write_json`] wrote.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> miette::Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let what = format!("`{}`: {e}", path.display());
        Error::failed(what, DAMAGED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use train::TrainConfig;

    #[test]
    fn a_folder_holds_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let told = |found: miette::Result<PathBuf>| found.map_or_else(|e| e.to_string(), |_| String::new());
        assert!(stored(Some(&out), true).unwrap_err().to_string().contains("no run to go on with"));
        assert_eq!(stored(Some(&out), false).unwrap(), None);
        assert_eq!(told(folder(Some(&out), "compress", false)), "");
        write_json(&out.join("recipe.toml"), &1).unwrap();
        assert_eq!(told(folder(Some(&out), "compress", true)), "");
        for (kind, resume) in [("compress", false), ("compare", true), ("analyze", false), ("predict", false)] {
            assert!(told(folder(Some(&out), kind, resume)).contains("holds another run"), "{kind}");
        }
    }

    #[test]
    fn a_folder_is_worked_in_by_one_and_left_clean() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (dir.path().join("heal"), dir.path().join("other"));
        for folder in [&own, &other] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join(".prunella-abc"), "half").unwrap();
        }
        std::fs::write(own.join("results.csv"), "whole").unwrap();
        let others = alone(&other).unwrap();
        std::fs::write(other.join(".prunella-abc"), "being written").unwrap();
        let held = alone(dir.path()).unwrap();
        let Err(refused) = alone(dir.path()) else { panic!("two at once") };
        assert!(refused.to_string().contains("another run is at work in"), "{refused}");
        drop(held);
        assert!(alone(dir.path()).is_ok() && !dir.path().join(LOCK).exists());
        assert!(!own.join(".prunella-abc").exists() && own.join("results.csv").exists());
        assert!(other.join(".prunella-abc").exists(), "somebody is writing it");
        drop(others);
    }

    #[test]
    fn what_trainings_share_is_told_once() {
        let recipe = |seed: u64, lr0: f32| {
            let mut recipe = crate::pipeline::Recipe { seed, ..Default::default() };
            recipe.each_training(|t| t.seed = seed);
            recipe.heal.schedule.lr0 = lr0;
            recipe
        };
        let told = differences(&recipe(0, 0.001), &recipe(1, 0.002)).unwrap();
        assert_eq!(told, ["`seed` is 0, not 1", "`heal.schedule.lr0` is 0.001, not 0.002"]);
    }

    #[test]
    fn other_settings_are_named() {
        let stored = TrainConfig::default();
        assert!(same_settings(Path::new("run"), &stored, &stored).is_ok());
        let mut asked = TrainConfig { epochs: 3, ..stored.clone() };
        asked.schedule.lr0 = 0.02;
        assert_eq!(
            differences(&stored, &asked).unwrap(),
            ["`epochs` is 25, not 3", "`schedule.lr0` is 0.001, not 0.02"]
        );
        let refused = same_settings(Path::new("run"), &stored, &TrainConfig::yolov5()).unwrap_err().to_string();
        assert!(
            refused.starts_with("`run` holds a run with other settings: `anchor_t` is 3.0, not 4.0, "),
            "{refused}"
        );
        assert!(refused.contains(" more") && refused.matches(" is ").count() == TOLD, "{refused}");
    }
}
