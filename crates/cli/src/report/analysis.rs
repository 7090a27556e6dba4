//! What an analysis came to: each group's worth, as a table and as bars.

use std::fmt::Write;

use serde::Serialize;

use super::markup::{escape, page};
use crate::ui::{self, Column, Table};

/// analysis.json: every group that may lose channels, the most sensitive first.
#[derive(Clone, Debug, Serialize)]
pub struct Analysis {
    pub model: String,
    pub data: String,
    pub split: String,
    pub imgsz: usize,
    /// Share of its channels each group lost.
    pub rate: f64,
    /// mAP50-95 with all channels.
    pub map50_95: f64,
    pub groups: Vec<Group>,
}

/// One group of coupled channels with a share of them gone and made up for, all other groups whole.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub group: usize,
    /// The convolutions that make its channels.
    pub layers: Vec<String>,
    pub channels: usize,
    pub removed: usize,
    /// Share of the detector's multiply-accumulates.
    pub macs_saved: f64,
    /// Share of the detector's parameters.
    pub params_saved: f64,
    /// Loss stage 2 predicts, in its own unit.
    pub predicted: f64,
    pub map50_95: f64,
    pub drop: f64,
}

impl Group {
    fn name(&self) -> String {
        match &self.layers[..] {
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} +{}", rest.len()),
            [] => format!("group {}", self.group),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// For the terminal.
pub fn table(analysis: &Analysis) -> String {
    let mut table = Table::new([
        Column::text("group").gives_way(),
        Column::number("channels"),
        Column::number("removed"),
        Column::number("MACs saved"),
        Column::number("mAP50-95"),
        Column::number("drop"),
    ]);
    for g in &analysis.groups {
        table.row([
            g.name(),
            g.channels.to_string(),
            g.removed.to_string(),
            percent(g.macs_saved),
            ui::fixed(Some(g.map50_95), 4),
            ui::fixed(Some(g.drop), 4),
        ]);
    }
    format!("{table}\nmAP50-95 {:.4} with all channels", analysis.map50_95)
}

/// The page.
pub fn render(analysis: &Analysis) -> String {
    let lead = format!(
        "{} · split <code>{}</code> · {px}×{px} px · {} of each group's channels removed, one group at a time",
        escape(&analysis.data),
        escape(&analysis.split),
        percent(analysis.rate),
        px = analysis.imgsz
    );
    let mut body = format!(
        "<section><h2>What each group is worth</h2><p class=\"hint\">Fall of mAP50-95 from {:.3} when that group alone loses \
         channels and the others make up for them, without training; beside it the multiply-accumulates that saves.</p>\
         <div class=\"channels\">",
        analysis.map50_95
    );
    let most = analysis.groups.iter().map(|g| g.drop).fold(1e-9, f64::max);
    for g in &analysis.groups {
        let _ = write!(
            body,
            "<div class=\"layer\"><code title=\"{}\">&lrm;{}</code><span class=\"bar\"><i style=\"width:0\"></i>\
             <i style=\"width:{:.2}%\"></i></span><b>{:.3} · {}</b></div>",
            escape(&g.layers.join(", ")),
            escape(&g.name()),
            100.0 * g.drop.max(0.0) / most,
            g.drop,
            percent(g.macs_saved),
        );
    }
    body.push_str("</div></section>\n");
    page("sensitivity", &escape(&analysis.model), &lead, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_by_their_layers() {
        let group = |layers: &[&str]| Group {
            group: 7,
            layers: layers.iter().map(|l| (*l).into()).collect(),
            channels: 8,
            removed: 4,
            macs_saved: 0.03,
            params_saved: 0.02,
            predicted: 1.0,
            map50_95: 0.4,
            drop: 0.1,
        };
        let analysis = Analysis {
            model: "m".into(),
            data: "d".into(),
            split: "val".into(),
            imgsz: 320,
            rate: 0.5,
            map50_95: 0.5,
            groups: vec![group(&["a.conv"]), group(&["a.conv", "b<1>"])],
        };
        let text = table(&analysis);
        assert!(text.contains("a.conv +1") && text.contains("3.0 %") && text.contains("0.1000"), "{text}");
        let page = render(&analysis);
        assert!(page.contains("b&lt;1&gt;") && page.contains("width:100.00%"), "{page}");
    }
}
