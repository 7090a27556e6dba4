//! `data`: looks at datasets.

use crate::args::Data;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Data) -> miette::Result<Exit> {
    Err(Error::failed("`data` is not built into this version yet", "a later version will have it"))
}
