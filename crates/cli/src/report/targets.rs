//! The parts of the page about targets (asked for, predicted, measured; where the time goes; which cuts were tried) and eight bits.

use std::fmt::Write;

use super::markup::{escape, section};
use super::{Left, ReportData};
use crate::ui;

/// Writes the sections there is anything to say in.
pub fn targets(page: &mut String, data: &ReportData) {
    let summary = &data.summary;
    if !summary.targets.is_empty() {
        section(
            page,
            "Targets",
            "Predicted by the plan, measured on the slim detector in turns with the dense one; what it is off by counts both alike.",
        );
        head(page, &["target", "dense", "asked", "predicted", "measured", "off by"]);
        for row in &summary.targets {
            let value = |v: f64| if row.unit == "bytes" { ui::bytes(v as u64) } else { format!("{v:.2} {}", row.unit) };
            let [dense, asked] = [row.dense, row.asked].map(value);
            let [predicted, measured] = [row.predicted, row.measured].map(value);
            let off = format!("{:+.1} %", 100.0 * row.off());
            line(page, &[&escape(&row.what), &dense, &asked, &predicted, &measured, &off]);
        }
        page.push_str("</tbody></table></div>");
        if !data.times.is_empty() {
            head(page, &["predicted ms by kind of operator", "dense", "slim"]);
            for time in &data.times {
                line(page, &[&escape(&time.kind), &format!("{:.2}", time.before), &format!("{:.2}", time.after)]);
            }
            page.push_str("</tbody></table></div>");
        }
        page.push_str("</section>\n");
    }
    if let Some(trials) = &summary.trials {
        let hint = format!("Each judged after reconstruction and before healing; mAP50-95 was {:.4}.", trials.dense);
        section(page, "Cuts tried", &hint);
        // The first column only where there are several sizes.
        let from = usize::from(trials.trials.iter().all(|trial| trial.imgsz == trials.trials[0].imgsz));
        head(page, &["images", "MACs kept", "mAP50-95", "drop"][from..]);
        for trial in &trials.trials {
            let size = format!("{px}×{px} px", px = trial.imgsz);
            let drop = trial.map50_95.map(|map| trials.dense - map);
            let macs = format!("{:.3}", trial.macs);
            line(page, &[&size, &macs, &ui::fixed(trial.map50_95, 4), &ui::fixed(drop, 4)].map(String::as_str)[from..]);
        }
        page.push_str("</tbody></table></div></section>\n");
    }
    if !summary.sizes.is_empty() {
        let hint = format!(
            "Each judged after the cut and before healing, which gives back about half of what the cut took and nothing of what the size took; {px}×{px} px were taken.",
            px = summary.imgsz
        );
        section(page, "Sizes of images tried", &hint);
        head(page, &["images", "parameters", "MACs", "mAP50-95 before the cut", "after it"]);
        for trial in &summary.sizes {
            let size = format!("{px}×{px} px", px = trial.imgsz);
            let [params, macs] = [|left: &Left| left.params, |left: &Left| left.macs]
                .map(|what| trial.left.as_ref().map_or("–".into(), |left| ui::count(what(left))));
            let [dense, slim] = [|left: &Left| left.dense, |left: &Left| left.map50_95]
                .map(|what| ui::fixed(trial.left.as_ref().map(what), 4));
            line(page, &[&size, &params, &macs, &dense, &slim]);
        }
        page.push_str("</tbody></table></div></section>\n");
    }
}

/// Writes what eight bits cost, where they were asked for.
pub fn int8(page: &mut String, data: &ReportData) {
    let Some(outcome) = &data.summary.int8 else { return };
    let hint = format!(
        "The slim detector as slim-int8.onnx: scales from {} training images, accuracy on {} validation images.",
        outcome.calibration_images, outcome.validation_images
    );
    section(page, "Eight bits", &hint);
    head(page, &["weights and maps", "file", "mAP50", "mAP50-95"]);
    for (name, file) in outcome.files() {
        line(page, &[name, &ui::bytes(file.bytes), &ui::fixed(file.map50, 4), &ui::fixed(file.map50_95, 4)]);
    }
    page.push_str("</tbody></table></div></section>\n");
}

fn head(page: &mut String, columns: &[&str]) {
    page.push_str("<div class=\"scroll\"><table><thead><tr>");
    columns.iter().for_each(|column| {
        let _ = write!(page, "<th>{column}</th>");
    });
    page.push_str("</tr></thead><tbody>");
}

/// One row; cells are HTML.
fn line(page: &mut String, cells: &[&str]) {
    page.push_str("<tr>");
    cells.iter().for_each(|cell| {
        let _ = write!(page, "<td>{cell}</td>");
    });
    page.push_str("</tr>");
}
