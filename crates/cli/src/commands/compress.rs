//! `compress`: the whole method, from a trained detector to a small one with its report.

use crate::args::Compress;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Compress) -> miette::Result<Exit> {
    Err(Error::failed("`compress` is not built into this version yet", "a later version will have it"))
}
