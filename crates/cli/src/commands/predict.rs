//! `predict`: draws what a detector finds.

use crate::args::Predict;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Predict) -> miette::Result<Exit> {
    Err(Error::failed("`predict` is not built into this version yet", "a later version will have it"))
}
