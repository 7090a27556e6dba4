//! What a comparison came to: a table, and a page with the frontier of accuracy against size.

use std::fmt::Write;

use serde::Serialize;

use super::markup::{escape, page};
use super::plots::{Cloud, frontier, standalone};
use crate::ui::{self, Column, Table};

/// compare.json: every method at every budget.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub model: String,
    pub data: String,
    pub imgsz: usize,
    /// Of dense training and of healing, each.
    pub epochs: usize,
    pub seeds: Vec<u64>,
    pub entries: Vec<Entry>,
}

/// One method at one budget, over all seeds. Accuracy is mAP50-95 on the validation split unless it says otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub method: String,
    pub about: String,
    /// Share of the multiply-accumulates to keep; none where nothing was removed.
    pub macs_kept: Option<f64>,
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

const HEADINGS: [&str; 7] = ["MACs", "params", "ms", "unhealed", "mAP50", "mAP50-95", "test 50-95"];

fn cells(e: &Entry) -> [String; 7] {
    [
        ui::count(e.macs.mean as u64),
        ui::count(e.params.mean as u64),
        ui::fixed(Some(e.ms.mean), 1),
        e.unhealed.text(),
        e.map50.text(),
        e.map50_95.text(),
        e.test.text(),
    ]
}

/// For the terminal: budgets in turn, methods in their order.
pub fn table(comparison: &Comparison) -> String {
    let columns = std::iter::once(Column::text("method")).chain(HEADINGS.map(Column::number));
    let mut table = Table::new(columns.collect::<Vec<_>>());
    for entry in sorted(comparison) {
        table.row(std::iter::once(entry.method.clone()).chain(cells(entry)));
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

fn plot(comparison: &Comparison, axis: &Axis, healed: bool) -> String {
    let point = |e: &Entry| {
        let y = if healed { e.map50_95 } else { e.unhealed };
        [(axis.of)(e), y.mean, y.deviation]
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
    let lead = format!(
        "{} · {px}×{px} px · {} epochs dense, {} healing · seeds {}",
        escape(&c.data),
        c.epochs,
        c.epochs,
        seeds.join(", "),
        px = c.imgsz
    );
    let mut body = String::new();
    let names = names(c);
    for (title, healed) in [("After healing", true), ("Before any healing", false)] {
        let _ = write!(
            body,
            "<section><h2>{title}</h2><p class=\"hint\">mAP50-95 on the validation split over size and time; bars are one \
             standard deviation over seeds.</p><div class=\"panels\">"
        );
        for axis in &AXES {
            body.push_str(&plot(c, axis, healed));
        }
        body.push_str("</div></section>\n");
    }
    body.push_str(
        "<section><h2>Figures</h2><p class=\"hint\"></p><div class=\"scroll\"><table><thead><tr><th>method</th>",
    );
    HEADINGS.iter().for_each(|h| body.push_str(&format!("<th>{h}</th>")));
    body.push_str("</tr></thead><tbody>");
    for entry in sorted(c) {
        let _ = write!(body, "<tr><td title=\"{}\">{}</td>", escape(&entry.about), escape(&entry.method));
        cells(entry).iter().for_each(|cell| body.push_str(&format!("<td>{cell}</td>")));
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
            params: Spread::of(&[1e6]),
            macs: Spread::of(&[macs * 1e9]),
            ms: Spread::of(&[3.0]),
            unhealed: Spread::of(&[0.1]),
            map50: Spread::of(&[0.5]),
            map50_95: Spread::of(&[0.3, 0.4]),
            test: Spread::of(&[]),
        };
        let comparison = Comparison {
            model: "a&b.pt".into(),
            data: "d".into(),
            imgsz: 320,
            epochs: 2,
            seeds: vec![0, 1],
            entries: vec![one("l1", 0.25), one("l1", 0.5), one("prunella", 0.5)],
        };
        let page = render(&comparison);
        assert!(page.contains("a&amp;b.pt") && page.contains("a &lt;method&gt;") && !page.contains("<method>"));
        assert_eq!(page.matches("<svg").count(), 6);
        assert!(picture(&comparison).starts_with("<svg viewBox=") && picture(&comparison).contains("<style>"));
        let table = table(&comparison);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert!(rows[0].starts_with("l1") && rows[0].contains("500M") && rows[2].contains("250M"), "{table}");
        assert!(rows[0].contains("0.350 ±0.071"), "{table}");
    }
}
