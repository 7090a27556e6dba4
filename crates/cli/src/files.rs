//! Files that commands write: in a folder that is there, under a name they can be loaded by, never over what was given.

use std::io;
use std::path::Path;

use graph::format::UNFINISHED;

use crate::exit::Error;

/// Whether both paths lead to one file that is there.
pub fn same(a: &Path, b: &Path) -> bool {
    a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

/// Whether `path` ends in `.{extension}`, in capitals or not.
pub fn ends_in(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// Refuses a name for `--out` that does not end in `.{extension}`; `more` goes on from there.
pub fn named(out: &Path, extension: &str, more: &str) -> miette::Result<()> {
    if ends_in(out, extension) {
        return Ok(());
    }
    let what = format!("`{}` is no name the file could be loaded by", out.display());
    Err(Error::usage(what, format!("give `--out` a name that ends in .{extension}{more}")))
}

/// Refuses a name for `--out` that no native file could be loaded by.
pub fn native(out: &Path) -> miette::Result<()> {
    named(out, "safetensors", "; `prunella export` writes others")
}

/// Refuses to write over `model`, which is read.
pub fn spares(out: &Path, model: &Path) -> miette::Result<()> {
    if same(out, model) {
        return Err(Error::usage(format!("`{}` is the model itself", out.display()), "give another file with `--out`"));
    }
    Ok(())
}

/// Tries whether files can be written into `folder`: better found now than after hours.
pub fn try_folder(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!("{UNFINISHED}probe"));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(&probe)
}

/// Fails where `out` cannot be written for want of its folder.
pub fn has_folder(out: &Path) -> miette::Result<()> {
    try_folder(folder_of(out)).map_err(|e| Error::io("write", out, &e))
}

/// The folder that `file` lies in.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_in_what_files_are_loaded_by() {
        for good in ["a.safetensors", "x/b.0.SafeTensors"] {
            assert!(native(Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["a.onnx", "a", "a.pt", "safetensors", ".safetensors"] {
            assert!(native(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
