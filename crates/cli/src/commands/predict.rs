//! `predict`: draws what a detector finds.

use std::path::{Path, PathBuf};

use data::draw::{Annotation, annotate};
use data::picture;
use eval::NmsConfig;
use graph::format::write_whole;
use image::{ImageFormat, RgbImage};
use serde::Serialize;

use crate::args::Predict;
use crate::detector::Detector;
use crate::exit::{Error, Exit};
use crate::{runs, ui};

/// One image of `predict --json`.
#[derive(Serialize)]
struct Found {
    image: PathBuf,
    /// (width, height) in pixels.
    size: [u32; 2],
    detections: Vec<Box>,
}

/// One detected object.
#[derive(Serialize)]
struct Box {
    class: usize,
    name: String,
    confidence: f32,
    /// Left, top, right, bottom in pixels of the image.
    xyxy: [f32; 4],
}

/// Runs the command.
pub fn run(args: &Predict) -> miette::Result<Exit> {
    let images = images(&args.sources)?;
    let mut detector = Detector::open(&args.model.model, args.model.weights.as_deref(), args.imgsz)?;
    let nms = NmsConfig { conf: args.conf as f32, iou: args.iou as f32, multi_label: false, ..NmsConfig::default() };
    let out = runs::folder(args.out.as_deref(), "predict", false)?;
    let bar = ui::bar("Predicting", images.len(), "images");
    let mut all = vec![];
    for path in images {
        let mut image = picture::decode(&path)?;
        let (canvas, placed) = data::letterbox(&image, detector.imgsz as u32, detector.fit);
        let boxes = detector.detect(&canvas, 1, &nms)?.swap_remove(0).into_iter().map(|d| Box {
            class: d.class,
            name: detector.names[d.class].clone(),
            confidence: d.score,
            xyxy: placed.to_image(d.bbox),
        });
        let found = Found { size: [image.width(), image.height()], detections: boxes.collect(), image: path };
        draw(&mut image, &found.detections);
        let file = free_name(&out, &found.image, &all);
        write_image(&image, &file)?;
        if args.save_txt {
            write_whole(&file.with_extension("txt"), labels(&found).as_bytes())?;
        }
        all.push((file, found));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let found: Vec<&Found> = all.iter().map(|(_, found)| found).collect();
    if args.json {
        ui::print_json(&found);
    } else {
        for (file, found) in &all {
            ui::print(format_args!("{}: {}\n", file.display(), summary(&found.detections, &detector.names)));
        }
    }
    ui::note(format_args!("{} images in `{}`", all.len(), out.display()));
    Ok(Exit::Done)
}

/// The images among `sources`, and those in the folders among them, by name.
fn images(sources: &[PathBuf]) -> miette::Result<Vec<PathBuf>> {
    let mut images = vec![];
    for source in sources {
        if !source.is_dir() {
            images.push(source.clone());
            continue;
        }
        let entries = source.read_dir().map_err(|e| Error::io("list", source, &e))?;
        let mut inside: Vec<PathBuf> =
            entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| is_image(p)).collect();
        if inside.is_empty() {
            let what = format!("`{}` holds no images", source.display());
            return Err(Error::failed(what, "JPEG, PNG, BMP and WebP are read, by their extension"));
        }
        inside.sort();
        images.append(&mut inside);
    }
    Ok(images)
}

fn is_image(path: &Path) -> bool {
    ImageFormat::from_path(path).is_ok_and(|f| f.reading_enabled()) && path.is_file()
}

/// `source`'s name in `out`, numbered where two sources share it.
fn free_name(out: &Path, source: &Path, taken: &[(PathBuf, Found)]) -> PathBuf {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let extension = source.extension().unwrap_or_default().to_string_lossy();
    let extension = if is_writable(source) { extension.as_ref() } else { "png" };
    let name =
        |n: usize| out.join(if n == 1 { format!("{stem}.{extension}") } else { format!("{stem}-{n}.{extension}") });
    (1..).map(name).find(|file| taken.iter().all(|(t, _)| t != file)).unwrap_or_else(|| name(1))
}

fn is_writable(path: &Path) -> bool {
    ImageFormat::from_path(path).is_ok_and(|f| f.writing_enabled())
}

fn write_image(image: &RgbImage, file: &Path) -> miette::Result<()> {
    let failed = |e: image::ImageError| Error::failed(format!("cannot encode `{}`: {e}", file.display()), "report it");
    let mut bytes = std::io::Cursor::new(vec![]);
    image.write_to(&mut bytes, ImageFormat::from_path(file).map_err(failed)?).map_err(failed)?;
    Ok(write_whole(file, bytes.get_ref())?)
}

fn draw(image: &mut RgbImage, boxes: &[Box]) {
    let annotations: Vec<Annotation> = boxes
        .iter()
        .map(|b| Annotation { xyxy: b.xyxy, class: b.class, text: format!("{} {:.2}", b.name, b.confidence) })
        .collect();
    annotate(image, &annotations);
}

/// YOLO's label lines: class, centre and size as shares of the image, confidence.
fn labels(found: &Found) -> String {
    let [width, height] = found.size.map(|s| s as f32);
    let line = |b: &Box| {
        let [x1, y1, x2, y2] = b.xyxy;
        let (x, y) = ((x1 + x2) / 2.0 / width, (y1 + y2) / 2.0 / height);
        format!("{} {x:.6} {y:.6} {:.6} {:.6} {:.6}\n", b.class, (x2 - x1) / width, (y2 - y1) / height, b.confidence)
    };
    found.detections.iter().map(line).collect()
}

/// `12 RBC, 1 WBC`.
fn summary(boxes: &[Box], names: &[String]) -> String {
    let count = |class: usize| boxes.iter().filter(|b| b.class == class).count();
    let parts: Vec<String> = (0..names.len())
        .filter(|&class| count(class) > 0)
        .map(|class| format!("{} {}", count(class), names[class]))
        .collect();
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}
