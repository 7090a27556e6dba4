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

/// Runs the command that was asked for.
pub fn run(cli: &Cli) -> miette::Result<Exit> {
    if let Some(threads) = cli.global.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|e| Error::failed(format!("cannot start {threads} threads: {e}"), "give fewer `--threads`"))?;
    }
    cli.global.device.scope(|| command(&cli.command))
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
