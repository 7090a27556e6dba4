//! The commands: each reads its arguments, calls the rooms, prints what came of it.

mod analyze;
mod bench;
mod compare;
mod compress;
mod data;
mod demo;
mod export;
mod info;
mod new;
mod predict;
mod prune;
mod train;
mod val;

use crate::args::{Cli, Command};
use crate::exit::{Error, Exit};

/// Bytes of stack of a thread that commands run on: as much as a program's first thread has.
const STACK: usize = 8 << 20;

/// Runs the command that was asked for.
pub fn run(cli: &Cli) -> miette::Result<Exit> {
    // None given: one a core.
    let threads = cli.global.threads.unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build_global();
    pool.map_err(|e| Error::failed(format!("cannot start the threads: {e}"), "give fewer `--threads`"))?;
    // On one of them: a thread from outside is put to sleep and woken again for every kernel.
    rayon::scope(|_| cli.global.device.scope(|| command(&cli.command)))
}

fn command(command: &Command) -> miette::Result<Exit> {
    match command {
        Command::Info(args) => info::run(args),
        Command::New(args) => new::run(args),
        Command::Val(args) => val::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Train(args) => train::run(args),
        Command::Prune(args) => prune::run(args),
        Command::Compress(args) => compress::run(args),
        Command::Analyze(args) => analyze::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Export(args) => export::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Data(args) => data::run(args),
        Command::Demo(args) => demo::run(args),
    }
}
