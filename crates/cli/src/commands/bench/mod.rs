//! `bench`: how fast a detector runs and trains here.

mod infer;
mod train;

use crate::args::Bench;
use crate::exit::Exit;

/// Runs before the clock starts: they fill caches and the pool of buffers.
const WARMUP: usize = 2;

/// Runs the command.
pub fn run(args: &Bench) -> miette::Result<Exit> {
    match args {
        Bench::Infer(args) => infer::run(args),
        Bench::Train(args) => train::run(args),
    }
}
