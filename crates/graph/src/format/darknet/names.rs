//! Class names: a `.names` file beside the `.cfg`, one name a line.

use std::path::{Path, PathBuf};

use crate::{Error, Graph, Result};

/// The names of `classes` classes: from the `.names` called as the `.cfg` is, which has to fit; else from the only one beside
/// it, unless that names another number or belongs to another `.cfg`; else the classes' numbers.
pub(super) fn beside(cfg: &Path, classes: usize) -> Result<Vec<String>> {
    let own = cfg.with_extension("names");
    if own.is_file() {
        let names = read(&own)?;
        if names.len() != classes {
            let what = format!("names {} classes, `{}` has {classes}", names.len(), cfg.display());
            return Err(Error::format(&own, what).hint(
                "make it one name a line in the order of the classes, or remove it: classes then go by their numbers",
            ));
        }
        return named(&own, names);
    }
    if let Some(other) = lone(cfg).filter(|other| !other.with_extension("cfg").is_file()) {
        let names = read(&other)?;
        if names.len() == classes {
            return named(&other, names);
        }
    }
    Ok((0..classes).map(|i| i.to_string()).collect())
}

/// The lines of `file` up to the last that is not blank.
fn read(file: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(file).map_err(|e| Error::io("read", file, e))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim_end().lines().map(|l| l.trim().to_owned()).collect())
}

/// `names`, the lines of `file`, unless one of them is blank.
fn named(file: &Path, names: Vec<String>) -> Result<Vec<String>> {
    match names.iter().position(String::is_empty) {
        None => Ok(names),
        Some(blank) => Err(Error::format(file, "the line is blank")
            .at(format!("line {}", blank + 1))
            .hint("every class needs a name; only the end of the file may be blank")),
    }
}

/// The only `.names` in the folder of `cfg`.
fn lone(cfg: &Path) -> Option<PathBuf> {
    let folder = cfg.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "names"));
    files.next().filter(|_| files.next().is_none())
}

/// What a `.names` says of `graph`.
pub(super) fn text(graph: &Graph) -> Result<String> {
    let mut text = String::new();
    for (i, name) in graph.meta.names.iter().enumerate() {
        if name.is_empty() || name.trim() != name || name.contains(['\n', '\r']) {
            return Err(Error::node("head", format!("the name of class {i}, {name:?}, is no line of a .names"))
                .hint("names must not be empty, begin or end in white space or break lines"));
        }
        text.push_str(name);
        text.push('\n');
    }
    Ok(text)
}
