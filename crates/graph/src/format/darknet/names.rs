//! Class names: a `.names` file beside the `.cfg`, one name a line.

use std::path::{Path, PathBuf};

use crate::{Error, Graph, Result};

/// The names of `classes` classes: from the `.names` called as the `.cfg` is, else from the only one beside it, else
/// the classes' numbers.
pub(super) fn beside(cfg: &Path, classes: usize) -> Result<Vec<String>> {
    let Some(file) = find(cfg) else { return Ok((0..classes).map(|i| i.to_string()).collect()) };
    let bytes = std::fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
    let text = String::from_utf8_lossy(&bytes);
    let names: Vec<String> = text.trim_end().lines().map(|l| l.trim().to_owned()).collect();
    if names.len() != classes {
        let named = if text.trim_end().is_empty() { 0 } else { names.len() };
        return Err(Error::format(&file, format!("names {named} classes, `{}` has {classes}", cfg.display())).hint(
            "make it one name a line in the order of the classes, or remove it: classes then go by their numbers",
        ));
    }
    if let Some(blank) = names.iter().position(String::is_empty) {
        return Err(Error::format(&file, "the line is blank")
            .at(format!("line {}", blank + 1))
            .hint("every class needs a name; only the end of the file may be blank"));
    }
    Ok(names)
}

fn find(cfg: &Path) -> Option<PathBuf> {
    let own = cfg.with_extension("names");
    if own.is_file() {
        return Some(own);
    }
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
