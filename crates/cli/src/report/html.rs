//! The page around the drawings.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::markup::{escape, page, section};
use super::plots;
use super::{LayerChannels, Picture, ReportData, StageRow};
use crate::ui;

/// The whole report as one HTML file.
pub fn render(data: &ReportData) -> String {
    let summary = &data.summary;
    let title = escape(&summary.model);
    let labels =
        if summary.agreement { " · no labels: mAP is agreement with the detector the run started from" } else { "" };
    let px = |side: usize| format!("{side}×{side} px");
    let size = match summary.stages.first().map(|dense| dense.imgsz) {
        Some(dense) if dense != summary.imgsz => format!("{}, dense {}", px(summary.imgsz), px(dense)),
        _ => px(summary.imgsz),
    };
    let lead = format!(
        "{} · split <code>{}</code> · {size} · seed {}{labels}",
        escape(&summary.data),
        escape(&summary.split),
        summary.seed,
    );
    let mut body = String::new();
    content(&mut body, data);
    page("compression report", &title, &lead, &body)
}

fn content(page: &mut String, data: &ReportData) {
    let summary = &data.summary;
    if let [first, .., last] = &summary.stages[..] {
        tiles(page, first, last);
    }
    if !summary.stages.is_empty() {
        section(
            page,
            "Stages",
            "Each row is the detector after that stage; the small figures compare with the first row.",
        );
        stage_table(page, &summary.stages);
        page.push_str("</section>\n");
    }
    super::targets::targets(page, data);
    super::targets::int8(page, data);
    if summary.stages.len() > 1 {
        section(page, "Accuracy from stage to stage", "The drop before healing is what pruning itself costs.");
        page.push_str(&plots::accuracy(&summary.stages));
        page.push_str("</section>\n");
    }
    if !data.channels.is_empty() {
        channels(page, &data.channels);
    }
    if !data.gammas.is_empty() {
        let hint = "Absolute values of the prunable BatchNorm scales after each epoch of sparse training; the height is the \
                    square root of the count, so that small groups stay visible.";
        section(page, "Scales under sparse training", hint);
        page.push_str(&plots::gammas(&data.gammas));
        page.push_str("</section>\n");
    }
    if !data.curves.is_empty() {
        curves(page, data);
    }
    if !data.images.is_empty() {
        section(page, "The same images, both detectors", "Left the dense detector, right the slim one.");
        page.push_str("<div class=\"pairs\">");
        for pair in &data.images {
            let caption = escape(&pair.caption);
            let _ = write!(
                page,
                "<figure><div class=\"pair\">{}{}</div><figcaption><span>{caption} · dense</span><span>slim</span>\
                 </figcaption></figure>",
                picture(&pair.dense, &format!("{caption}, boxes of the dense detector")),
                picture(&pair.slim, &format!("{caption}, boxes of the slim detector")),
            );
        }
        page.push_str("</div></section>\n");
    }
    if !data.notes.is_empty() {
        section(page, "Notes", "");
        page.push_str("<ul class=\"notes\">");
        for note in &data.notes {
            let _ = write!(page, "<li>{}</li>", escape(note));
        }
        page.push_str("</ul></section>\n");
    }
    if !data.recipe.is_empty() {
        section(
            page,
            "Recipe",
            "recipe.toml of this run; give it to <code>prunella compress --recipe</code> to repeat it.",
        );
        let _ = writeln!(page, "<pre>{}</pre></section>", escape(data.recipe.trim_end()));
    }
    if !data.environment.is_empty() {
        section(page, "Environment", "");
        page.push_str("<dl>");
        for (what, value) in &data.environment {
            let _ = write!(page, "<dt>{}</dt><dd>{}</dd>", escape(what), escape(value));
        }
        page.push_str("</dl></section>\n");
    }
}

/// The five figures a reader looks for first.
fn tiles(page: &mut String, first: &StageRow, last: &StageRow) {
    let left = |now: u64, was: u64| format!("{:.0} %", 100.0 * now as f64 / was.max(1) as f64);
    let change = last.map50_95 - first.map50_95;
    let tone = if change >= -0.005 { "good" } else { "bad" };
    let arrow = |was: String, now: String| format!("{was} → {now}");
    let tiles = [
        ("MACs left", left(last.macs, first.macs), arrow(ui::count(first.macs), ui::count(last.macs)), ""),
        (
            "Parameters left",
            left(last.params, first.params),
            arrow(ui::count(first.params), ui::count(last.params)),
            "",
        ),
        ("File left", left(last.bytes, first.bytes), arrow(ui::bytes(first.bytes), ui::bytes(last.bytes)), ""),
        (
            "Images a second",
            first.ms_per_image.zip(last.ms_per_image).map_or("–".into(), |(was, now)| format!("{:.2}×", was / now)),
            arrow(ui::fixed(first.ms_per_image, 1), format!("{} ms", ui::fixed(last.ms_per_image, 1))),
            "",
        ),
        ("mAP50-95", signed(change, 3), arrow(format!("{:.3}", first.map50_95), format!("{:.3}", last.map50_95)), tone),
    ];
    page.push_str("<div class=\"tiles\">");
    for (what, now, was, tone) in tiles {
        let _ = write!(
            page,
            "<div class=\"tile\"><div class=\"what\">{what}</div><div class=\"now {tone}\">{now}</div>\
             <div class=\"was\">{was}</div></div>"
        );
    }
    page.push_str("</div>\n");
}

/// With a real minus sign, as wide as a plus.
fn signed(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    match text.trim_matches(['0', '.']).is_empty() {
        true => format!("±{text}"),
        false if value < 0.0 => format!("−{text}"),
        false => format!("+{text}"),
    }
}

fn stage_table(page: &mut String, stages: &[StageRow]) {
    page.push_str("<div class=\"scroll\"><table><thead><tr><th>stage</th>");
    let resized = super::resized(stages);
    if resized {
        page.push_str("<th>images</th>");
    }
    page.push_str("<th>parameters</th><th>MACs</th><th>file</th><th>mAP50</th><th>mAP50-95</th>");
    let tested = stages.iter().any(|s| s.test.is_some());
    if tested {
        page.push_str("<th>test mAP50</th><th>test mAP50-95</th>");
    }
    page.push_str("<th>ms/image</th></tr></thead><tbody>");
    let first = &stages[0];
    for (i, row) in stages.iter().enumerate() {
        let small = |text: String| if i == 0 { "<small></small>".into() } else { format!("<small>{text}</small>") };
        let share = |now: u64, was: u64| small(format!("{:.1} %", 100.0 * now as f64 / was.max(1) as f64));
        let map = |now: f64, was: f64| format!("{now:.3}{}", small(signed(now - was, 3)));
        let test = match row.test {
            Some(test) => format!("<td>{:.3}</td><td>{:.3}</td>", test.map50, test.map50_95),
            None if tested => "<td>–</td><td>–</td>".into(),
            None => String::new(),
        };
        let images = if resized { format!("<td>{px}×{px} px</td>", px = row.imgsz) } else { String::new() };
        let _ = write!(
            page,
            "<tr{}><td><span class=\"swatch\" style=\"background:{}\"></span>{}</td>{images}<td>{}{}</td><td>{}{}</td><td>{}{}</td>\
             <td>{}</td><td>{}</td>{test}<td>{}</td></tr>",
            if i + 1 == stages.len() { " class=\"last\"" } else { "" },
            plots::stage_colour(i, stages.len()),
            escape(&row.stage),
            ui::count(row.params),
            share(row.params, first.params),
            ui::count(row.macs),
            share(row.macs, first.macs),
            ui::bytes(row.bytes),
            share(row.bytes, first.bytes),
            map(row.map50, first.map50),
            map(row.map50_95, first.map50_95),
            ui::fixed(row.ms_per_image, 1),
        );
    }
    page.push_str("</tbody></table></div>");
}

fn channels(page: &mut String, layers: &[LayerChannels]) {
    section(page, "Channels of each layer", "Output channels of every convolution, before and after.");
    page.push_str(
        "<p class=\"legend\"><span><i class=\"swatch\" style=\"background:var(--slim)\"></i>kept</span>\
         <span><i class=\"swatch\" style=\"background:var(--dense)\"></i>removed</span></p><div class=\"channels\">",
    );
    let widest = layers.iter().map(|l| l.before).max().unwrap_or(1).max(1) as f64;
    for layer in layers {
        let percent = |n: usize| 100.0 * n as f64 / widest;
        let name = escape(&layer.name);
        // The mark keeps the dots of a name in place in a cell that is cut on its left.
        let _ = write!(
            page,
            "<div class=\"layer\"><code title=\"{name}\">&lrm;{name}</code><span class=\"bar\"><i style=\"width:{:.2}%\"></i>\
             <i style=\"width:{:.2}%\"></i></span><b>{} → {}</b></div>",
            percent(layer.before),
            percent(layer.after),
            layer.before,
            layer.after,
        );
    }
    page.push_str("</div></section>\n");
}

fn curves(page: &mut String, data: &ReportData) {
    section(page, "Precision and recall", "At IoU 0.5.");
    page.push_str("<p class=\"legend\">");
    let stages = &data.summary.stages;
    for (i, stage) in stages.iter().enumerate() {
        if data.curves.iter().any(|p| p.curves.iter().any(|c| c.stage == stage.stage)) {
            let colour = plots::stage_colour(i, stages.len());
            let name = escape(&stage.stage);
            let _ = write!(page, "<span><i class=\"swatch\" style=\"background:{colour}\"></i>{name}</span>");
        }
    }
    page.push_str("</p><div class=\"panels\">");
    for panel in &data.curves {
        page.push_str(&plots::precision_recall(panel, stages));
    }
    page.push_str("</div></section>\n");
}

fn picture(picture: &Picture, alt: &str) -> String {
    format!("<img alt=\"{alt}\" src=\"data:{};base64,{}\">", picture.mime, STANDARD.encode(&picture.bytes))
}
