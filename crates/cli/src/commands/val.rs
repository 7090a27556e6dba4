//! `val`: mAP of a detector on a dataset, or of a file of detections.

use std::path::Path;

use data::OpenOptions;
use eval::NmsConfig;
use eval::coco::{self, GroundTruth, MapResult, STAT_NAMES};
use serde::Serialize;

use crate::args::Val;
use crate::detector::Detector;
use crate::exit::{Error, Exit};
use crate::score::{class_map, score};
use crate::training::{tell_left_out, tell_split};
use crate::ui::{self, Column, Table};

/// Runs the command.
pub fn run(args: &Val) -> miette::Result<Exit> {
    let outcome = match (&args.detections, &args.model) {
        (Some(file), _) => Outcome { map: score_file(file, &args.data.data)?, run: None },
        (None, Some(model)) => score_model(model, args)?,
        (None, None) => return Err(Error::usage("nothing to evaluate", "give `--model` or `--detections`")),
    };
    if args.json {
        ui::print_json(&outcome);
    } else {
        ui::print(outcome.table());
    }
    Ok(Exit::Done)
}

/// What `val --json` prints.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    map: MapResult,
    #[serde(flatten)]
    run: Option<Run>,
}

/// How the detections came about.
#[derive(Serialize)]
struct Run {
    model: String,
    data: String,
    split: String,
    images: usize,
    /// Boxes of the split left out on reading.
    skipped: usize,
    /// Side of the square images the detector was shown, pixels.
    imgsz: usize,
    conf: f64,
    iou: f64,
    /// In the detector, suppression included; reading images is not.
    ms_per_image: f64,
}

fn score_model(model: &Path, args: &Val) -> miette::Result<Outcome> {
    let options = OpenOptions { split: Some(args.split.clone()), ..args.data.form.options() };
    let dataset = data::open(&args.data.data, &options)?;
    tell_left_out(&dataset, &[&args.split]);
    tell_split(&dataset, &args.split);
    let mut detector = Detector::open(model, args.weights.as_deref(), args.imgsz)?;
    let nms = NmsConfig { conf: args.conf as f32, iou: args.iou as f32, ..NmsConfig::default() };
    let classes = class_map(&detector.names, &dataset)?;
    let score = score(&mut detector, &classes, &dataset, &args.split, args.batch, &nms)?;
    let run = Run {
        model: model.display().to_string(),
        data: args.data.data.display().to_string(),
        split: dataset.answering(&args.split).into(),
        skipped: dataset.split(&args.split)?.skipped(),
        images: score.images,
        imgsz: detector.imgsz,
        conf: args.conf,
        iou: args.iou,
        ms_per_image: score.detecting.as_secs_f64() * 1e3 / score.images as f64,
    };
    Ok(Outcome { map: score.map, run: Some(run) })
}

fn score_file(detections: &Path, truth: &Path) -> miette::Result<MapResult> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| Error::io("read", path, &e));
    if truth.extension().is_none_or(|e| !e.eq_ignore_ascii_case("json")) {
        let what = format!("`{}` is no COCO JSON", truth.display());
        return Err(Error::usage(what, "with `--detections`, `--data` is the instances JSON the file belongs to"));
    }
    let truth = GroundTruth::from_json(&read(truth)?, &truth.display().to_string())?;
    let detections = coco::detections_from_json(&read(detections)?, &detections.display().to_string())?;
    Ok(coco::evaluate(&truth, &detections)?)
}

impl Outcome {
    fn table(&self) -> String {
        let mut table = Table::new([
            Column::text("class").gives_way(),
            Column::number("images"),
            Column::number("objects"),
            Column::number("precision"),
            Column::number("recall"),
            Column::number("mAP50"),
            Column::number("mAP50-95"),
        ]);
        let map = &self.map;
        let seen: Vec<_> = map.per_class.iter().filter(|c| c.instances > 0).collect();
        for class in &seen {
            table.row([
                class.name.clone(),
                class.images.to_string(),
                class.instances.to_string(),
                ui::fixed(class.precision, 3),
                ui::fixed(class.recall, 3),
                ui::fixed(class.ap50, 4),
                ui::fixed(class.ap50_95, 4),
            ]);
        }
        let mean = |value: fn(&coco::ClassResult) -> Option<f64>| {
            let values: Vec<f64> = seen.iter().filter_map(|c| value(c)).collect();
            ui::fixed((!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64), 3)
        };
        table.total([
            "all".into(),
            self.run.as_ref().map_or(String::new(), |r| r.images.to_string()),
            seen.iter().map(|c| c.instances).sum::<usize>().to_string(),
            mean(|c| c.precision),
            mean(|c| c.recall),
            ui::fixed(Some(map.map50), 4),
            ui::fixed(Some(map.map50_95), 4),
        ]);
        let mut text = format!("{table}\n");
        let stats: Vec<String> = STAT_NAMES.iter().zip(map.stats).map(|(name, v)| format!("{name} {v:.4}")).collect();
        text.push_str(&format!("{}\n{}\n", stats[..6].join("  "), stats[6..].join("  ")));
        text.push_str(&format!("precision and recall at confidence {:.3}, the best mean F1\n", map.best_confidence));
        let unseen = map.per_class.len() - seen.len();
        if unseen > 0 {
            text.push_str(&format!("{unseen} classes without objects are not listed\n"));
        }
        if let Some(run) = &self.run {
            text.push_str(&format!("{:.1} ms an image at {s}×{s}\n", run.ms_per_image, s = run.imgsz));
        }
        text
    }
}
