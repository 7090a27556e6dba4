//! `train`: fine-tunes a detector.

use crate::args::Train;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Train) -> miette::Result<Exit> {
    Err(Error::failed("`train` is not built into this version yet", "a later version will have it"))
}
