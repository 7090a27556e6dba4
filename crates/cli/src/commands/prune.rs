//! `prune`: removes channels once, without training.

use crate::args::Prune;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Prune) -> miette::Result<Exit> {
    Err(Error::failed("`prune` is not built into this version yet", "a later version will have it"))
}
