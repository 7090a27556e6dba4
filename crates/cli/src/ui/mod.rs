//! What the user sees: data on stdout, everything else on stderr, colour only where a terminal shows it.

mod fit;
mod interrupt;
mod number;
mod progress;
mod table;

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use console::Style;
use miette::Diagnostic;

use crate::exit::{Error, Exit, io_hint};

pub use interrupt::on_interrupt;
pub use number::{bytes, count, fixed, listed};
pub use progress::{bar, spinner};
pub use table::{Column, Table};

thread_local! {
    /// What this thread is at, where others are at something else.
    static TASK: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Does `work`, all lines and bars of which say that they are of `task`.
pub fn of_task<T>(task: &str, work: impl FnOnce() -> T) -> T {
    TASK.set(Some(task.to_owned()));
    let done = work();
    TASK.set(None);
    done
}

/// `text`, after the task it is of.
fn told(text: impl Display) -> String {
    TASK.with_borrow(|task| task.as_ref().map_or_else(|| text.to_string(), |task| format!("{task}: {text}")))
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether notes and progress are kept from stderr. Errors and results are never.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// What [`set_quiet`] was told.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes a result to stdout. A reader that has gone away (`| head`) ends the program without a word; a disk that is full ends it
/// with an error.
pub fn print(text: impl Display) {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            print_error(Error::io("write", Path::new("stdout"), &error).as_ref());
            std::process::exit(Exit::Failed as i32);
        }
    }
}

/// Writes a result to stdout as indented JSON.
pub fn print_json(value: &impl serde::Serialize) {
    print(json(value));
}

/// `value` as indented JSON, with a line end.
pub fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("results have string keys only") + "\n"
}

/// Writes a line about what is going on to stderr.
pub fn note(text: impl Display) {
    if !is_quiet() {
        progress::line(told(text));
    }
}

/// Writes a line that tells of something not as it should be, but not in the way either.
pub fn warn(text: impl Display) {
    if !is_quiet() {
        let yellow = Style::new().for_stderr().yellow().bold();
        progress::line(format_args!("{} {}", yellow.apply_to("warning:"), told(text)));
    }
}

/// Writes a line that says what to do.
pub fn hint(text: impl Display) {
    if !is_quiet() {
        progress::line(hint_line(told(text)));
    }
}

fn hint_line(text: impl Display) -> String {
    format!("{} {text}", Style::new().for_stderr().cyan().bold().apply_to("hint:"))
}

/// Writes an error and what to do about it:
///
/// ```text
/// error: cannot read `best.pt`: No such file or directory
/// hint: check the path
/// ```
pub fn print_error(error: &dyn Diagnostic) {
    let red = Style::new().for_stderr().red().bold();
    let mut message = error.to_string();
    let (mut source, mut kind) = (error.source(), None);
    while let Some(inner) = source {
        kind = inner.downcast_ref::<io::Error>().map(io::Error::kind).or(kind);
        let text = inner.to_string();
        let text = text.trim_end();
        if !message.contains(text) {
            message = format!("{message}: {text}");
        }
        source = inner.source();
    }
    let mut lines = format!("{} {message}", red.apply_to("error:"));
    let help = error.help().map(|help| help.to_string()).or_else(|| io_hint(kind?).map(Into::into));
    if let Some(help) = help {
        lines += &format!("\n{}", hint_line(help));
    }
    progress::line(lines);
}

/// Columns the terminal behind stdout has; `None` where stdout is no terminal and nothing need be cut.
fn stdout_width() -> Option<usize> {
    console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns))
}
