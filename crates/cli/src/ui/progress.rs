//! Progress bars on stderr, with rate and time left; hidden where stderr is no terminal or `--quiet` was given.

use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::is_quiet;

/// All bars there are: several jobs may show one each.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes a line to stderr above whatever bars there are.
pub fn line(text: impl std::fmt::Display) {
    BARS.suspend(|| eprintln!("{text}"));
}

/// A bar over `len` things called `unit`; its message stands at the end of the line.
pub fn bar(what: &str, len: usize, unit: &str) -> ProgressBar {
    let template = format!("{{prefix:>12}} {{bar:28}} {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} left  {{wide_msg}}");
    let style = ProgressStyle::with_template(&template).expect("a constant template").progress_chars("━╸─");
    finish(shown(ProgressBar::with_draw_target(Some(len as u64), ProgressDrawTarget::hidden())), style, what)
}

/// A sign of life for something whose end is not known.
pub fn spinner(what: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>12} {spinner} {elapsed}  {wide_msg}").expect("a constant template");
    let bar = finish(shown(ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())), style, what);
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}

fn shown(bar: ProgressBar) -> ProgressBar {
    if is_quiet() { bar } else { BARS.add(bar) }
}

fn finish(bar: ProgressBar, style: ProgressStyle, what: &str) -> ProgressBar {
    bar.set_style(style);
    bar.set_prefix(what.to_owned());
    bar
}
