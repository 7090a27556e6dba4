//! `demo`: the whole method on a dataset made on the spot.

use crate::args::Demo;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Demo) -> miette::Result<Exit> {
    Err(Error::failed("`demo` is not built into this version yet", "a later version will have it"))
}
