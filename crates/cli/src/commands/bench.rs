//! `bench`: how fast a detector runs and trains.

use crate::args::Bench;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Bench) -> miette::Result<Exit> {
    Err(Error::failed("`bench` is not built into this version yet", "a later version will have it"))
}
