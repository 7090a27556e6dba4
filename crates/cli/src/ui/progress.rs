//! Progress bars on stderr, with rate and time left; hidden where stderr is no terminal or `--quiet` was given.

use std::io::Write;
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::fit::wrapped;
use super::{is_quiet, told};

/// All bars there are: several jobs may show one each.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes a line to stderr above whatever bars there are, or several where a terminal is narrower. Where nobody reads stderr any more,
/// work goes on unheard.
pub fn line(text: impl std::fmt::Display) {
    let columns = console::Term::stderr().size_checked().map(|(_, columns)| usize::from(columns));
    let text = columns.map_or_else(|| text.to_string(), |columns| wrapped(&text.to_string(), columns));
    let _ = BARS.suspend(|| writeln!(std::io::stderr(), "{text}"));
}

/// A bar over `len` things called `unit`; its message stands at the end of the line.
pub fn bar(what: &str, len: usize, unit: &str) -> ProgressBar {
    let template = format!("{{prefix:>12}} {{bar:28}} {{pos}}/{{len}} {unit}  {{rate}}  {{eta}} left  {{wide_msg}}");
    let style = ProgressStyle::with_template(&template).expect("a constant template").progress_chars("━╸─");
    let style = style.with_key("rate", |state: &ProgressState, w: &mut dyn std::fmt::Write| {
        // The first things tell little of the rest: they may have been ready.
        let known = state.elapsed().as_secs_f64() >= 1.0;
        let _ = w.write_str(&rate(if known { state.per_sec() } else { 0.0 }));
    });
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

/// `per_second` things a second in few digits; below one, what each takes.
fn rate(per_second: f64) -> String {
    match per_second {
        r if r >= 10.0 => format!("{r:.0}/s"),
        r if r >= 1.0 => format!("{r:.1}/s"),
        r if r > 0.0 => format!("{:.1} s each", 1.0 / r),
        _ => "–".into(),
    }
}

fn shown(bar: ProgressBar) -> ProgressBar {
    if is_quiet() { bar } else { BARS.add(bar) }
}

fn finish(bar: ProgressBar, style: ProgressStyle, what: &str) -> ProgressBar {
    bar.set_style(style);
    bar.set_prefix(told(what));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_few_digits() {
        let rates = [1234.56, 12.3456, 3.2468, 0.4, 0.0, f64::NAN].map(rate);
        assert_eq!(rates, ["1235/s", "12/s", "3.2/s", "2.5 s each", "–", "–"]);
    }
}
