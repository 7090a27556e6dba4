//! `export`: writes a detector for another runtime and runs it there.

use crate::args::Export;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Export) -> miette::Result<Exit> {
    Err(Error::failed("`export` is not built into this version yet", "a later version will have it"))
}
