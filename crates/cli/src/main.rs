//! `prunella`: the command line. Reads the arguments, runs one command, turns its outcome into an exit code.
//!
//! Exit codes: 0 done; 1 the command failed; 2 the arguments make no sense; 3 a check found problems (`data check`).

mod answers;
mod args;
mod commands;
mod detector;
mod exit;
mod family;
mod files;
mod int8;
mod onnx;
mod pipeline;
mod report;
mod runs;
mod score;
mod speed;
mod splits;
mod training;
mod ui;

fn main() -> std::process::ExitCode {
    let cli = args::parse();
    ui::set_quiet(cli.global.quiet);
    match commands::run(&cli) {
        Ok(exit) => exit.into(),
        Err(report) => {
            ui::print_error(report.as_ref());
            exit::Exit::of(&report).into()
        }
    }
}
