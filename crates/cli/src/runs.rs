//! Folders of runs: one place for everything a run makes.

use std::path::{Path, PathBuf};

use graph::format::write_whole;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exit::Error;
use crate::{files, ui};

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
    if !resume && out.join("recipe.toml").exists() {
        let what = format!("`{}` holds another run", out.display());
        return Err(Error::failed(what, "give another `--out`, or go on with that run with `--resume`"));
    }
    std::fs::create_dir_all(&out).map_err(|e| Error::io("create", &out, &e))?;
    files::try_folder(&out).map_err(|e| Error::io("write to", &out, &e))?;
    Ok(out)
}

/// Writes `value` as TOML, whole or not at all.
pub fn write_toml(path: &Path, value: &impl Serialize) -> miette::Result<()> {
    let text =
        toml::to_string(value).map_err(|e| Error::failed(format!("cannot describe the recipe: {e}"), "report it"))?;
    Ok(write_whole(path, text.as_bytes())?)
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
        Error::failed(what, "the file is damaged; delete it and resume the run, which makes it anew")
    })
}
