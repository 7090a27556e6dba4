//! `data`: looks at datasets.

use data::OpenOptions;
use data::doctor::{self, Report};
use data::problem::Kind;

use crate::answers;
use crate::args::{Data, DataCheck};
use crate::exit::Exit;
use crate::ui::{self, Column, Table};

/// Runs the command.
pub fn run(args: &Data) -> miette::Result<Exit> {
    match args {
        Data::Check(args) => check(args),
    }
}

fn check(args: &DataCheck) -> miette::Result<Exit> {
    let options = OpenOptions { lenient: true, ..args.form.options() };
    // A folder without images is told what a dataset looks like.
    let images = match answers::is_bare(&args.data, options.format) {
        true => answers::open(&args.data, &options, &[]).ok(),
        false => None,
    };
    let is_bare = images.is_some();
    let dataset = match images {
        Some(images) => images,
        None => data::open(&args.data, &options)?,
    };
    let spinner = ui::spinner("Checking");
    let mut report = doctor::check(&dataset);
    spinner.finish_and_clear();
    if is_bare {
        ui::note(format_args!("`{}` is no dataset; its images are checked, without labels", args.data.display()));
        report.findings.retain(|kind, _| !matches!(kind, Kind::Unlabelled | Kind::NoBoxes | Kind::NoVal));
    }
    if args.json {
        ui::print_json(&report);
    } else {
        ui::print(text(&report));
    }
    // An image without boxes may well be meant as background.
    let wrong = report.findings.keys().any(|&kind| kind != Kind::Unlabelled);
    Ok(if wrong { Exit::Problems } else { Exit::Done })
}

fn text(report: &Report) -> String {
    let mut splits = Table::new([
        Column::text("split"),
        Column::number("images"),
        Column::number("boxes"),
        Column::number("left out"),
    ]);
    for (name, count) in &report.splits {
        let numbers = [count.images, count.boxes, count.skipped].map(|n| n.to_string());
        splits.row(std::iter::once(name.clone()).chain(numbers));
    }
    let mut classes = Table::new([Column::text("class").gives_way(), Column::number("boxes")]);
    for (name, boxes) in &report.classes {
        classes.row([name.clone(), boxes.to_string()]);
    }
    let mut text = format!("{splits}\n{classes}\n");
    if report.findings.is_empty() {
        text.push_str("nothing is wrong\n");
    }
    for (kind, finding) in &report.findings {
        text.push_str(&format!("{}: {}\n", kind.text(), finding.count));
        for example in &finding.examples {
            let detail = if example.detail.is_empty() { String::new() } else { format!(": {}", example.detail) };
            text.push_str(&format!("  {}{detail}\n", example.place));
        }
        let more = finding.count - finding.examples.len();
        if more > 0 {
            text.push_str(&format!("  and {more} more\n"));
        }
    }
    text
}
