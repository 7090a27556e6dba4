//! `val`: measures mAP.

use crate::args::Val;
use crate::exit::{Error, Exit};

/// Runs the command.
pub fn run(_args: &Val) -> miette::Result<Exit> {
    Err(Error::failed("`val` is not built into this version yet", "a later version will have it"))
}
