//! What a comparison came to: a table, and a page with the frontier of accuracy against size.

use std::fmt::Write;

use serde::Serialize;

use super::markup::{escape, page};
use super::plots::{Cloud, Point, frontier, standalone};
use crate::ui::{self, Column, Table};

/// compare.json: every method at every budget, on images of every size.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub model: String,
    pub data: String,
    /// Of the dense detector's images.
    pub imgsz: usize,
    /// Of dense training; none where the detector knew the classes.
    pub dense_epochs: usize,
    /// Of healing.
    pub epochs: usize,
    pub seeds: Vec<u64>,
    pub entries: Vec<Entry>,
}

/// One method at one budget on images of one size, over all seeds. Accuracy is mAP50-95 on the validation split unless it says otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub method: String,
    pub about: String,
    /// Share of the multiply-accumulates to keep; none where nothing was removed.
    pub macs_kept: Option<f64>,
    /// Height and width of its images in pixels.
    pub imgsz: usize,
    pub params: Spread,
    pub macs: Spread,
    /// An image in the embedded runtime.
    pub ms: Spread,
    /// Before healing.
    pub unhealed: Spread,
    pub map50: Spread,
    pub map50_95: Spread,
    /// On the test split.
    pub test: Spread,
}

/// Mean and standard deviation over seeds; NaN where there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    pub deviation: f64,
    pub count: usize,
}

impl Spread {
    /// Of `values`; the deviation is the unbiased one, nought for a single value.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Self { mean, deviation: (squares / (count.max(2) - 1) as f64).sqrt(), count }
    }

    fn text(&self) -> String {
        match self.count {
            0 => "–".into(),
            1 => format!("{:.3}", self.mean),
            _ => format!("{:.3} ±{:.3}", self.mean, self.deviation),
        }
    }
}

/// What a column of the table says of an entry.
type Cell = fn(&Entry) -> String;

/// What entries are listed by, after the method: the size of images only where there are several.
fn columns(comparison: &Comparison) -> Vec<(&'static str, Cell)> {
    let mut columns: Vec<(&str, Cell)> = vec![
        ("MACs", |e| ui::count(e.macs.mean as u64)),
        ("params", |e| ui::count(e.params.mean as u64)),
        ("ms", |e| ui::fixed(Some(e.ms.mean), 1)),
        ("unhealed", |e| e.unhealed.text()),
        ("mAP50", |e| e.map50.text()),
        ("mAP50-95", |e| e.map50_95.text()),
        ("test 50-95", |e| e.test.text()),
    ];
    if has_sizes(comparison) {
        columns.insert(0, ("imgsz", |e| e.imgsz.to_string()));
    }
    columns
}

fn has_sizes(comparison: &Comparison) -> bool {
    comparison.entries.iter().any(|e| e.imgsz != comparison.imgsz)
}

/// For the terminal: budgets in turn, methods in their order.
pub fn table(comparison: &Comparison) -> String {
    let columns = columns(comparison);
    let headings = columns.iter().map(|(heading, _)| Column::number(heading));
    let mut table = Table::new(std::iter::once(Column::text("method")).chain(headings).collect::<Vec<_>>());
    for entry in sorted(comparison) {
        let cells = columns.iter().map(|(_, cell)| cell(entry));
        table.row(std::iter::once(entry.method.clone()).chain(cells));
    }
    table.to_string()
}

/// The larger budgets first, then methods as they came.
fn sorted(comparison: &Comparison) -> Vec<&Entry> {
    let mut entries: Vec<&Entry> = comparison.entries.iter().collect();
    let kept = |e: &Entry| e.macs_kept.unwrap_or(f64::INFINITY);
    entries.sort_by(|a, b| kept(b).total_cmp(&kept(a)));
    entries
}

/// What accuracy is plotted over.
struct Axis {
    label: &'static str,
    of: fn(&Entry) -> f64,
}

const AXES: [Axis; 3] = [
    Axis { label: "GMACs", of: |e| e.macs.mean / 1e9 },
    Axis { label: "million parameters", of: |e| e.params.mean / 1e6 },
    Axis { label: "ms an image", of: |e| e.ms.mean },
];

/// Names of the methods, in their order.
fn names(comparison: &Comparison) -> Vec<&str> {
    let mut names: Vec<&str> = comparison.entries.iter().map(|e| e.method.as_str()).collect();
    names.dedup();
    names
}

/// Accuracy over `axis`; a method's line goes through the best size of images at every budget.
fn plot(comparison: &Comparison, axis: &Axis, healed: bool) -> String {
    let accuracy = |e: &Entry| if healed { e.map50_95 } else { e.unhealed };
    let point = |e: &Entry| {
        let mut sizes = comparison.entries.iter().filter(|o| o.method == e.method && o.macs_kept == e.macs_kept);
        let Spread { mean: y, deviation, .. } = accuracy(e);
        Point {
            x: (axis.of)(e),
            y,
            deviation,
            is_best: sizes.all(|o| accuracy(o).mean.is_nan() || accuracy(o).mean <= y),
            about: format!("{}, {} px: {}", e.method, e.imgsz, accuracy(e).text()),
        }
    };
    let cloud = |name: &str| Cloud {
        name: name.into(),
        points: comparison.entries.iter().filter(|e| e.method == name).map(point).collect(),
    };
    frontier(axis.label, &names(comparison).into_iter().map(cloud).collect::<Vec<_>>())
}

/// The frontier of healed accuracy against multiply-accumulates, as an SVG file.
pub fn picture(comparison: &Comparison) -> String {
    standalone(&plot(comparison, &AXES[0], true))
}

/// The page.
pub fn render(comparison: &Comparison) -> String {
    let c = comparison;
    let seeds: Vec<String> = c.seeds.iter().map(u64::to_string).collect();
    let trained = match c.dense_epochs {
        0 => String::new(),
        epochs => format!("{epochs} dense, "),
    };
    let lead = format!(
        "{} · {px}×{px} px · epochs: {trained}{} healing · seeds {}",
        escape(&c.data),
        c.epochs,
        seeds.join(", "),
        px = c.imgsz
    );
    let mut body = String::new();
    let (names, columns) = (names(c), columns(c));
    let sizes = if has_sizes(c) { "; lines go through the best size of images at each budget" } else { "" };
    for (title, healed) in [("After healing", true), ("Before any healing", false)] {
        let _ = write!(
            body,
            "<section><h2>{title}</h2><p class=\"hint\">mAP50-95 on the validation split over size and time; bars are one \
             standard deviation over seeds{sizes}.</p><div class=\"panels\">"
        );
        for axis in &AXES {
            body.push_str(&plot(c, axis, healed));
        }
        body.push_str("</div></section>\n");
    }
    body.push_str(
        "<section><h2>Figures</h2><p class=\"hint\"></p><div class=\"scroll\"><table><thead><tr><th>method</th>",
    );
    columns.iter().for_each(|(heading, _)| body.push_str(&format!("<th>{heading}</th>")));
    body.push_str("</tr></thead><tbody>");
    for entry in sorted(c) {
        let _ = write!(body, "<tr><td title=\"{}\">{}</td>", escape(&entry.about), escape(&entry.method));
        columns.iter().for_each(|(_, cell)| body.push_str(&format!("<td>{}</td>", cell(entry))));
        body.push_str("</tr>");
    }
    body.push_str("</tbody></table></div></section>\n<section><h2>Methods</h2><p class=\"hint\"></p><dl>");
    for name in names {
        let about = c.entries.iter().find(|e| e.method == name).map_or("", |e| &e.about);
        let _ = write!(body, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(about));
    }
    body.push_str("</dl></section>\n");
    page("comparison", &escape(&c.model), &lead, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_unbiased() {
        let spread = Spread::of(&[1.0, 2.0, 3.0]);
        assert_eq!((spread.mean, spread.deviation, spread.count), (2.0, 1.0, 3));
        assert_eq!(Spread::of(&[0.5]).text(), "0.500");
        assert_eq!(Spread::of(&[]).text(), "–");
    }

    #[test]
    fn the_page_shows_every_method_and_escapes_what_it_is_given() {
        let one = |method: &str, macs: f64| Entry {
            method: method.into(),
            about: "a <method>".into(),
            macs_kept: Some(macs),
            imgsz: 320,
            params: Spread::of(&[1e6]),
            macs: Spread::of(&[macs * 1e9]),
            ms: Spread::of(&[3.0]),
            unhealed: Spread::of(&[0.1]),
            map50: Spread::of(&[0.5]),
            map50_95: Spread::of(&[0.3, 0.4]),
            test: Spread::of(&[]),
        };
        let mut comparison = Comparison {
            model: "a&b.pt".into(),
            data: "d".into(),
            imgsz: 320,
            dense_epochs: 0,
            epochs: 2,
            seeds: vec![0, 1],
            entries: vec![one("l1", 0.25), one("l1", 0.5), one("prunella", 0.5)],
        };
        let page = render(&comparison);
        assert!(page.contains("a&amp;b.pt") && page.contains("a &lt;method&gt;") && !page.contains("<method>"));
        assert_eq!(page.matches("<svg").count(), 6);
        assert!(page.contains("epochs: 2 healing") && !page.contains("dense, "), "nothing dense was trained");
        comparison.dense_epochs = 25;
        assert!(render(&comparison).contains("epochs: 25 dense, 2 healing"));
        assert!(picture(&comparison).starts_with("<svg viewBox=") && picture(&comparison).contains("<style>"));
        let table = table(&comparison);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert!(rows[0].starts_with("l1") && rows[0].contains("500M") && rows[2].contains("250M"), "{table}");
        assert!(rows[0].contains("0.350 ±0.071"), "{table}");
        assert!(!page.contains("imgsz") && !table.contains("imgsz") && !page.contains("fill:none"));

        // On smaller images a quarter is worth more.
        let small = Entry { imgsz: 224, map50_95: Spread::of(&[0.38]), ..one("l1", 0.25) };
        comparison.entries.insert(1, small);
        let (page, table) = (render(&comparison), super::table(&comparison));
        let row = table.lines().find(|line| line.contains("224")).unwrap_or_else(|| panic!("{table}"));
        assert!(row.starts_with("l1") && row.contains("250M") && row.contains("0.380"), "{table}");
        let marks = |about: &str, healed: bool| -> Vec<bool> {
            let half = page.split("Before any healing").nth(usize::from(!healed)).unwrap_or("");
            let marks = half.split("<circle").filter(|mark| mark.contains(&format!("<title>{about}")));
            marks.map(|mark| !mark.contains("fill:none")).collect()
        };
        assert_eq!([marks("l1, 320 px: 0.350", true), marks("l1, 224 px: 0.380", true)].map(|m| m.len()), [6, 3]);
        assert_eq!(marks("l1, 224 px: 0.380", true), [true; 3], "the line goes through it");
        assert_eq!(marks("l1, 320 px: 0.350", true).iter().filter(|best| **best).count(), 3, "and of the others, half");
    }
}
