//! `predict`: draws what a detector finds.

use std::collections::HashSet;
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
use crate::{files, runs, ui};

/// One image of `predict --json`.
#[derive(Serialize)]
struct Found {
    image: String,
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
    if let Some(out) = &args.out {
        lie_elsewhere(&images, out)?;
    }
    let mut detector = Detector::open(&args.model.model, args.model.weights.as_deref(), args.imgsz)?;
    let nms = NmsConfig { conf: args.conf as f32, iou: args.iou as f32, multi_label: false, ..NmsConfig::default() };
    let mut out = Drawn::new(runs::folder(args.out.as_deref(), "predict", false)?, args.save_txt);
    let bar = ui::bar("Predicting", images.len(), "images");
    let (mut all, mut unread) = (vec![], vec![]);
    for path in &images {
        bar.inc(1);
        let mut image = match picture::decode(path) {
            Ok(image) => image,
            Err(error) => {
                ui::warn(&error);
                unread.push(path);
                continue;
            }
        };
        let found = look(&mut detector, path, &image, &nms)?;
        draw(&mut image, &found.detections);
        let file = out.name(path);
        write_image(&image, &file)?;
        if args.save_txt {
            write_whole(&file.with_extension("txt"), labels(&found).as_bytes())?;
        }
        all.push((file, found));
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
    ui::note(format_args!("{} images in `{}`", all.len(), out.folder.display()));
    all_read(&unread, images.len())
}

/// An error where some of `all` images could not be read.
fn all_read(unread: &[&PathBuf], all: usize) -> miette::Result<Exit> {
    let Some(first) = unread.first() else { return Ok(Exit::Done) };
    let what = format!("{} of {all} images cannot be read, first `{}`", unread.len(), first.display());
    Err(Error::failed(what, "JPEG, PNG, BMP and WebP are read; leave out what is damaged or of another kind"))
}

/// Refuses `out` where one of `images` lies there, which might be written over.
fn lie_elsewhere(images: &[PathBuf], out: &Path) -> miette::Result<()> {
    let Some(image) = images.iter().find(|image| files::same(files::folder_of(image), out)) else { return Ok(()) };
    let what = format!("`{}` is where `{}` lies, which would be written over", out.display(), image.display());
    Err(Error::usage(what, "give another folder with `--out`"))
}

/// What `detector` finds in the image at `path`.
fn look(detector: &mut Detector, path: &Path, image: &RgbImage, nms: &NmsConfig) -> miette::Result<Found> {
    let (canvas, placed) = data::letterbox(image, detector.imgsz as u32, detector.fit);
    let found = detector.detect(&canvas, 1, nms)?.swap_remove(0).into_iter().map(|d| Box {
        class: d.class,
        name: detector.names[d.class].clone(),
        confidence: d.score,
        xyxy: placed.to_image(d.bbox),
    });
    let detections = found.collect();
    Ok(Found { image: path.display().to_string(), size: [image.width(), image.height()], detections })
}

/// The images among `sources`, and those in the folders among them, by name.
fn images(sources: &[PathBuf]) -> miette::Result<Vec<PathBuf>> {
    let mut images = vec![];
    for source in sources {
        if !source.exists() {
            let what = format!("there is no `{}`", source.display());
            return Err(Error::failed(what, "give images, or folders of images"));
        }
        if !source.is_dir() {
            images.push(source.clone());
            continue;
        }
        let entries = source.read_dir().map_err(|e| Error::io("list", source, &e))?;
        let files = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| p.is_file());
        let (others, mut inside): (Vec<PathBuf>, Vec<PathBuf>) =
            files.filter(|p| is_read(p) || data::is_unread(p)).partition(|p| data::is_unread(p));
        if let Some(first) = others.iter().min() {
            let (count, folder, first) = (others.len(), source.display(), first.display());
            ui::warn(format_args!("{count} images in `{folder}` are of kinds that are not read, such as `{first}`"));
        }
        if inside.is_empty() {
            let what = format!("`{}` holds no images", source.display());
            return Err(Error::failed(what, "JPEG, PNG, BMP and WebP are read, by their extension"));
        }
        inside.sort();
        images.append(&mut inside);
    }
    Ok(images)
}

fn is_read(path: &Path) -> bool {
    ImageFormat::from_path(path).is_ok_and(|f| f.reading_enabled())
}

/// What is written, and which names are taken.
struct Drawn {
    folder: PathBuf,
    /// Whether a label file goes beside each image.
    labelled: bool,
    taken: HashSet<PathBuf>,
}

impl Drawn {
    fn new(folder: PathBuf, labelled: bool) -> Self {
        Self { folder, labelled, taken: HashSet::new() }
    }

    /// A file for `source`: its name, numbered where two sources share it, or would share their label file.
    fn name(&mut self, source: &Path) -> PathBuf {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let extension = source.extension().unwrap_or_default().to_string_lossy();
        let extension = if is_writable(source) { extension.as_ref() } else { "png" };
        let name = |n: usize| {
            self.folder.join(if n == 1 { format!("{stem}.{extension}") } else { format!("{stem}-{n}.{extension}") })
        };
        // Taken names are kept as what must differ.
        let key = |file: &Path| if self.labelled { file.with_extension("txt") } else { file.to_owned() };
        let file = (1..).map(name).find(|file| !self.taken.contains(&key(file))).unwrap_or_else(|| name(1));
        self.taken.insert(key(&file));
        file
    }
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
