//! What a run leaves for people and programs: the slim detector, summary.json, the stage table and report.html.

use graph::format::onnx::ExportOptions;
use graph::format::{save, write_whole};
use graph::{Graph, Op};

use super::round::Round;
use super::{Pipeline, Stage, with_images_of};
use crate::int8::{CALIBRATION_IMAGES, Int8};
use crate::onnx::export_verified;
use crate::report::{
    KindTime, LayerChannels, PrCurve, PrPanel, ReportData, SizeTrial, StageRow, Summary, TargetRow, Trials, mean_curve,
    render, resized,
};
use crate::speed::Speed;
use crate::ui::{Column, Table};
use crate::{runs, ui};

/// Stages whose precision-recall curves the report draws, beside the last one's.
const DRAWN: [&str; 3] = ["dense", "recalibrated", "healed"];
/// Kinds of operators whose times the report lists.
const DEAREST: usize = 12;

/// What came of the targets: asked, predicted and measured; by which times; by which trials of cuts and of sizes.
pub(super) struct Targets {
    pub rows: Vec<TargetRow>,
    pub speed: Option<Speed>,
    pub trials: Option<Trials>,
    pub sizes: Vec<SizeTrial>,
}

impl Pipeline<'_> {
    pub(super) fn finish(
        &self,
        dense: &Graph,
        slim: &Graph,
        stages: Vec<Stage>,
        targets: Targets,
    ) -> miette::Result<Summary> {
        let recipe = self.recipe;
        save(slim, &self.out.join("slim.safetensors"))?;
        let options = ExportOptions { imgsz: [self.imgsz; 2], batch: 1, dynamic_batch: false };
        export_verified(slim, &self.out.join("slim.onnx"), &options)?;
        let int8 = match recipe.int8 {
            true => {
                let images = CALIBRATION_IMAGES;
                let job = Int8 { graph: slim, dataset: self.dataset, images, options };
                Some(job.write(&self.out.join("slim-int8.onnx"))?)
            }
            false => None,
        };
        let summary = Summary {
            model: recipe.model.display().to_string(),
            data: recipe.data.display().to_string(),
            agreement: recipe.has_no_labels(),
            split: self.dataset.answering("val").into(),
            imgsz: self.imgsz,
            seed: recipe.seed,
            stages: stages.iter().map(|s| s.row.clone()).collect(),
            targets: targets.rows,
            trials: targets.trials,
            sizes: targets.sizes,
            int8,
        };
        let report = ReportData {
            summary: summary.clone(),
            channels: channels(dense, slim),
            gammas: self.gammas()?,
            curves: panels(&stages),
            images: super::pictures::pairs(self, dense, slim)?,
            times: match &targets.speed {
                Some(speed) => times(speed, &with_images_of(dense, self.imgsz), slim)?,
                None => vec![],
            },
            notes: self.notes()?,
            recipe: toml::to_string(recipe).unwrap_or_default(),
            environment: environment(),
        };
        write_whole(&self.out.join("report.html"), render(&report).as_bytes())?;
        runs::write_json(&self.out.join("summary.json"), &summary)?;
        Ok(summary)
    }

    /// Remarks of the planners.
    fn notes(&self) -> miette::Result<Vec<String>> {
        let mut notes = vec![];
        let rounds = Round::all(self.recipe.rounds);
        for name in rounds.flat_map(|round| ["importance", "similarity", "rest"].map(|name| round.name(name))) {
            let file = self.out.join("plans").join(format!("{name}.json"));
            if file.is_file() {
                let plan: prune::Plan = runs::read_json(&file)?;
                notes.push(format!("{} – {} channel classes removed", plan.method, plan.removals.len()));
                notes.extend(plan.notes);
            }
        }
        Ok(notes)
    }
}

/// Predicted milliseconds by kind of operator, the dearest ones.
fn times(speed: &Speed, dense: &Graph, slim: &Graph) -> miette::Result<Vec<KindTime>> {
    let after = speed.latency.parts(slim)?;
    let now = |kind: &str| after.iter().find(|(k, _)| k == kind).map_or(0, |(_, nanos)| *nanos);
    let ms = |nanos: u64| nanos as f64 / 1e6;
    let parts = speed.latency.parts(dense)?.into_iter().take(DEAREST);
    Ok(parts.map(|(kind, nanos)| KindTime { before: ms(nanos), after: ms(now(&kind)), kind }).collect())
}

/// Output channels of every convolution before and after.
fn channels(dense: &Graph, slim: &Graph) -> Vec<LayerChannels> {
    let width = |g: &Graph, name: &str| {
        g.nodes.iter().find(|n| n.name == name).and_then(|n| match &n.op {
            Op::Conv(c) => Some(c.out_channels()),
            _ => None,
        })
    };
    let layer = |n: &graph::Node| {
        Some(LayerChannels { name: n.name.clone(), before: width(dense, &n.name)?, after: width(slim, &n.name)? })
    };
    dense.nodes.iter().filter_map(layer).collect()
}

/// One panel for all classes together, one for each class.
fn panels(stages: &[Stage]) -> Vec<PrPanel> {
    let last = stages.len().saturating_sub(1);
    let stages = stages.iter().enumerate();
    let drawn: Vec<&Stage> =
        stages.filter(|(i, s)| *i == last || DRAWN.contains(&s.row.stage.as_str())).map(|(_, s)| s).collect();
    let Some(first) = drawn.first() else { return vec![] };
    let seen: Vec<usize> =
        (0..first.curves.len()).filter(|&c| drawn.iter().any(|s| !s.curves[c].1.is_empty())).collect();
    let panel = |title: &str, points: &dyn Fn(&Stage) -> Vec<[f64; 2]>| PrPanel {
        title: title.into(),
        curves: drawn.iter().map(|s| PrCurve { stage: s.row.stage.clone(), points: points(s) }).collect(),
    };
    let all = |s: &Stage| mean_curve(&seen.iter().map(|&c| s.curves[c].1.clone()).collect::<Vec<_>>());
    let mut panels = vec![panel("all classes", &all)];
    // Eighty small panels help nobody.
    for &c in seen.iter().take(11) {
        panels.push(panel(&first.curves[c].0, &|s| s.curves[c].1.clone()));
    }
    panels
}

fn environment() -> Vec<(String, String)> {
    let threads = rayon::current_num_threads().to_string();
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    let kernels = train::net::Isa::current().name().to_string();
    let version = env!("CARGO_PKG_VERSION").to_string();
    [("Prunella", version), ("threads", threads), ("kernels", kernels), ("system", system)]
        .map(|(k, v)| (k.to_string(), v))
        .into()
}

/// The stages as a table for the terminal.
pub fn stage_table(stages: &[StageRow]) -> String {
    let mut columns = vec![
        Column::text("stage"),
        Column::number("params"),
        Column::number("MACs"),
        Column::number("file"),
        Column::number("mAP50"),
        Column::number("mAP50-95"),
    ];
    let tested = stages.iter().any(|s| s.test.is_some());
    if tested {
        columns.extend([Column::number("test 50"), Column::number("test 50-95")]);
    }
    columns.push(Column::number("ms"));
    let resized = resized(stages);
    if resized {
        columns.insert(1, Column::number("imgsz"));
    }
    let mut table = Table::new(columns);
    for s in stages {
        let mut cells = vec![
            s.stage.clone(),
            ui::count(s.params),
            ui::count(s.macs),
            ui::bytes(s.bytes),
            ui::fixed(Some(s.map50), 4),
            ui::fixed(Some(s.map50_95), 4),
        ];
        if tested {
            cells.extend([ui::fixed(s.test.map(|t| t.map50), 4), ui::fixed(s.test.map(|t| t.map50_95), 4)]);
        }
        cells.push(ui::fixed(s.ms_per_image, 1));
        if resized {
            cells.insert(1, s.imgsz.to_string());
        }
        table.row(cells);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_is_drawn() {
        let stage = |name: &str| Stage {
            row: StageRow {
                stage: name.into(),
                imgsz: 1,
                params: 1,
                macs: 1,
                bytes: 1,
                map50: 0.5,
                map50_95: 0.5,
                test: None,
                ms_per_image: None,
            },
            curves: vec![("a".into(), vec![[0.5, 1.0]])],
        };
        let drawn = |names: &[&str]| {
            let panels = panels(&names.iter().map(|name| stage(name)).collect::<Vec<_>>());
            panels.iter().map(|p| p.curves.iter().map(|c| c.stage.clone()).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(&["dense", "replaced", "healed"]), [["dense", "healed"]; 2]);
        assert_eq!(drawn(&["dense", "recalibrated", "healed", "kept"])[0].last().map(String::as_str), Some("kept"));
        assert_eq!(drawn(&["dense", "reconstructed"])[0], ["dense", "reconstructed"]);
        assert!(drawn(&[]).is_empty());
    }
}
