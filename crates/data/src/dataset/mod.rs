//! What a dataset is, whichever of the three usual forms it came in, and how a path is recognised as one.

mod coco;
mod ultralytics;
mod voc;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::problem::{Kind, Problem};
use crate::{Error, Result};

/// The form a dataset's labels are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// A `data.yaml` and one text file of boxes per image.
    Ultralytics,
    /// COCO's instances JSON.
    Coco,
    /// Pascal VOC's XML, one file per image.
    Voc,
}

/// What the path alone does not say.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The form of the labels; recognised from the path where `None`.
    pub format: Option<Format>,
    /// The folder of the images (COCO and VOC), where it is not in its usual place.
    pub images: Option<PathBuf>,
    /// The only split to read, by a name it answers to (see [`Dataset::split`]): the labels and images of others may be
    /// broken then. All of them where `None`.
    pub split: Option<String>,
    /// Note malformed label lines as [`Problem`]s instead of failing at the first. For the doctor: a run should not
    /// train on a dataset whose labels it could not read.
    pub lenient: bool,
}

/// Images with their boxes, in splits.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The path it was opened from.
    pub path: PathBuf,
    pub format: Format,
    /// Class names; a box's class indexes them.
    pub names: Vec<String>,
    /// COCO's category id of each class, for writing results; for the other forms 0, 1, 2…
    pub category_ids: Vec<u64>,
    /// By name: "train", "val", "test", as far as there are any.
    pub splits: BTreeMap<String, Split>,
}

/// The images of one split, and what was left out of it on reading.
#[derive(Clone, Debug, Default)]
pub struct Split {
    pub items: Vec<Item>,
    /// Boxes and images skipped or mended while reading.
    pub problems: Vec<Problem>,
}

impl Split {
    /// How many boxes were left out on reading.
    pub fn skipped(&self) -> usize {
        self.problems.iter().filter(|p| p.kind.skips_box()).count()
    }

    /// How many images are listed and not there, and the first of them.
    pub fn missing(&self) -> Option<(usize, &str)> {
        let missing = || self.problems.iter().filter(|p| p.kind == Kind::MissingImage);
        missing().next().map(|first| (missing().count(), first.place.as_str()))
    }
}

/// One image and its boxes.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub image: PathBuf,
    /// COCO's image id, or a running number within the split.
    pub id: u64,
    /// Width and height in pixels, as the labels say or as the file's header does.
    pub size: (u32, u32),
    pub boxes: Vec<LabelBox>,
}

/// One labelled object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelBox {
    pub class: usize,
    /// Left, top, right, bottom in pixels of the original image.
    pub xyxy: [f32; 4],
    /// In square pixels: COCO's `area` (that of the mask), else width times height.
    pub area: f64,
    /// A COCO crowd region: not trained on, ignored in matching.
    pub crowd: bool,
    /// VOC's mark for objects that are neither trained on nor counted.
    pub difficult: bool,
}

impl LabelBox {
    /// Whether it is to be learnt: neither a crowd nor marked difficult.
    pub fn counts(&self) -> bool {
        !self.crowd && !self.difficult
    }
}

impl Dataset {
    /// The split of that name. A dataset of a single split also answers to "val", so that a bare folder of labelled
    /// images can be evaluated.
    ///
    /// # Errors
    /// If there is none, naming those that there are.
    pub fn split(&self, name: &str) -> Result<&Split> {
        self.splits
            .get(self.answering(name))
            .ok_or_else(|| no_split(&self.path, name, self.splits.keys().map(String::as_str)))
    }

    /// The true name of the split that [`Self::split`] gives for `name`.
    pub fn answering<'a>(&'a self, name: &'a str) -> &'a str {
        answering(self.splits.keys().map(String::as_str), name)
    }
}

/// The one of `splits` that answers to `name`, if it is among them.
fn answering<'a>(mut splits: impl Iterator<Item = &'a str>, name: &'a str) -> &'a str {
    match (splits.next(), splits.next()) {
        (Some(single), None) if name == "val" => single,
        _ => name,
    }
}

/// The error of the dataset at `path`, which has other `splits` than the one called `name`.
fn no_split<'a>(path: &Path, name: &str, splits: impl Iterator<Item = &'a str>) -> Error {
    let mut known: Vec<_> = splits.map(|split| format!("`{split}`")).collect();
    known.sort();
    Error::dataset(path, format!("has no split `{name}`")).hint(format!("it has {}", known.join(", ")))
}

/// Those of `splits` that `options` ask for.
fn asked<'a>(path: &Path, splits: &[&'a str], options: &'a OpenOptions) -> Result<Vec<&'a str>> {
    let Some(name) = &options.split else { return Ok(splits.to_vec()) };
    let one = answering(splits.iter().copied(), name);
    match splits.contains(&one) {
        true => Ok(vec![one]),
        false => Err(no_split(path, name, splits.iter().copied())),
    }
}

/// Opens the dataset at `path`: a `data.yaml`, a COCO JSON, or a folder holding either or a VOC tree.
///
/// Boxes that cannot be trained on (no area, outside the image, a class that does not exist) and images that are
/// missing are left out and noted in [`Split::problems`].
///
/// # Errors
/// If the form is not recognised, a file is unreadable or malformed (naming file and line), or nothing is left.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Dataset> {
    if !path.exists() {
        return Err(Error::dataset(path, "there is no such file or folder"));
    }
    let format = match options.format {
        Some(format) => format,
        None => recognise(path).ok_or_else(|| {
            Error::dataset(path, "not recognised as a dataset").hint(
                "give a data.yaml, a COCO JSON, or a folder with a data.yaml, an instances*.json (or annotations/) or VOC's \
                 Annotations and JPEGImages; or name the format",
            )
        })?,
    };
    if let (Format::Ultralytics, Some(images)) = (format, &options.images) {
        let what = format!("names its images itself, `{}` is not looked into", images.display());
        return Err(Error::dataset(path, what).hint("leave out the folder of images: it is for COCO and VOC"));
    }
    let dataset = match format {
        Format::Ultralytics => ultralytics::open(path, options)?,
        Format::Coco => coco::open(path, options)?,
        Format::Voc => voc::open(path, options)?,
    };
    let within =
        options.split.as_ref().map_or(String::new(), |name| format!(" in split `{}`", dataset.answering(name)));
    let images: usize = dataset.splits.values().map(|s| s.items.len()).sum();
    if images == 0 && !options.lenient {
        let seen: usize = dataset.splits.values().map(|s| s.problems.len()).sum();
        let what = match seen {
            0 => format!("holds no images{within}"),
            _ => format!("no usable image is left{within} ({seen} problems)"),
        };
        return Err(Error::dataset(path, what).hint("run `prunella data check` on it to see what is wrong"));
    }
    let boxes: usize = dataset.splits.values().flat_map(|s| &s.items).map(|i| i.boxes.len()).sum();
    if boxes == 0 && !options.lenient {
        return Err(Error::dataset(path, format!("no image has a usable box{within}"))
            .hint("are the labels where they are looked for? run `prunella data check` on it to see"));
    }
    Ok(dataset)
}

/// The images in `folder` and the folders below as the split "train" of a dataset of the classes `names`, without boxes and without
/// looking for any.
///
/// Where `lenient`, images that cannot be read are left out and noted in [`Split::problems`].
///
/// # Errors
/// There are none, or one cannot be read, naming it.
pub fn unlabelled(folder: &Path, names: &[String], lenient: bool) -> Result<Dataset> {
    let files = ultralytics::files_below(folder)?;
    let unread = files.iter().filter(|p| is_unread(p));
    let mut problems: Vec<Problem> =
        unread.map(|p| Problem::new(Kind::UnreadImage, p.display().to_string(), "")).collect();
    let images: Vec<PathBuf> = files.into_iter().filter(|p| is_image(p)).collect();
    if images.is_empty() {
        return Err(
            Error::dataset(folder, "holds no images").hint("JPEG, PNG, BMP and WebP are read, by their extension")
        );
    }
    let sizes: Vec<Result<(u32, u32)>> = images.par_iter().map(|image| crate::picture::size(image)).collect();
    let mut items = vec![];
    for (id, (image, size)) in images.into_iter().zip(sizes).enumerate() {
        match size {
            Ok(size) => items.push(Item { size, image, id: id as u64, boxes: vec![] }),
            Err(e) if lenient => {
                problems.push(Problem::new(Kind::Unreadable, image.display().to_string(), e.to_string()));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(Dataset {
        path: folder.to_owned(),
        format: Format::Ultralytics,
        names: names.to_vec(),
        category_ids: (0..names.len() as u64).collect(),
        splits: BTreeMap::from([("train".to_owned(), Split { items, problems })]),
    })
}

/// The form of the dataset at `path`, as far as that shows it.
pub fn recognise(path: &Path) -> Option<Format> {
    if path.is_file() {
        return match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Some(Format::Ultralytics),
            "json" => Some(Format::Coco),
            _ => None,
        };
    }
    if ultralytics::yaml_in(path).is_some() {
        Some(Format::Ultralytics)
    } else if !coco::jsons_in(path).is_empty() {
        Some(Format::Coco)
    } else if voc::is_tree(path) {
        Some(Format::Voc)
    } else {
        None
    }
}

/// How far, in pixels, a box may reach over the border before it is noted: annotation tools round.
const BORDER_SLACK: f32 = 1.0;

/// Checks a box against its image: `Ok` with the box (cut to the image if it reached out by more than
/// [`BORDER_SLACK`], which is noted), or `None` after noting why it cannot be used.
fn accept(mut found: LabelBox, size: (u32, u32), place: &str, problems: &mut Vec<Problem>) -> Option<LabelBox> {
    let [x1, y1, x2, y2] = found.xyxy;
    let text = || format!("({x1}, {y1}) to ({x2}, {y2}) in an image of {} x {}", size.0, size.1);
    if !found.xyxy.iter().all(|v| v.is_finite()) || x2 <= x1 || y2 <= y1 {
        problems.push(Problem::new(Kind::NoArea, place, text()));
        return None;
    }
    let (w, h) = (size.0 as f32, size.1 as f32);
    if x1 >= w || y1 >= h || x2 <= 0.0 || y2 <= 0.0 {
        problems.push(Problem::new(Kind::Outside, place, text()));
        return None;
    }
    if x1 < -BORDER_SLACK || y1 < -BORDER_SLACK || x2 > w + BORDER_SLACK || y2 > h + BORDER_SLACK {
        problems.push(Problem::new(Kind::OverBorder, place, text()));
        found.xyxy = [x1.max(0.0), y1.max(0.0), x2.min(w), y2.min(h)];
    }
    Some(found)
}

/// Whether the file name ends like an image we can read.
fn is_image(path: &Path) -> bool {
    ends_in(path, &["jpg", "jpeg", "png", "bmp", "webp"])
}

/// Whether the file name ends like an image that others read and we do not.
pub fn is_unread(path: &Path) -> bool {
    ends_in(path, &["tif", "tiff", "gif", "heic", "heif", "avif", "jp2", "jxl", "dng", "mpo"])
}

fn ends_in(path: &Path, endings: &[&str]) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e.to_ascii_lowercase().as_str()))
}

/// The files of a folder in order of name.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let listing = std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut files = listing
        .map(|entry| entry.map(|e| e.path()).map_err(|e| Error::io("list", folder, e)))
        .collect::<Result<Vec<_>>>()?;
    files.retain(|p| p.is_file());
    files.sort();
    Ok(files)
}

/// The text of a file, without the byte order mark that some editors begin it with.
fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut text = String::from_utf8(bytes).map_err(|_| Error::format(path, None, "is not text (UTF-8)"))?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(xyxy: [f32; 4]) -> LabelBox {
        LabelBox { class: 0, xyxy, area: 1.0, crowd: false, difficult: false }
    }

    /// In an image of 100 x 50: what is found and what is said of it.
    #[test]
    fn boxes_are_taken_cut_or_refused() {
        let tried = |xyxy: [f32; 4]| {
            let mut problems = vec![];
            let found = accept(label(xyxy), (100, 50), "here", &mut problems);
            (found.map(|b| b.xyxy), problems.first().map(|p| p.kind))
        };
        let whole = [0.0, 0.0, 100.0, 50.0];
        assert_eq!(tried(whole), (Some(whole), None));
        let hair = [-0.9, -0.9, 100.9, 50.9];
        assert_eq!(tried(hair), (Some(hair), None), "a pixel of slack");
        for (side, by) in [(0, -1.5), (1, -1.5), (2, 1.5), (3, 1.5)] {
            let mut over = whole;
            over[side] += by;
            assert_eq!(tried(over), (Some(whole), Some(Kind::OverBorder)), "{over:?}");
        }
        for none in [[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 9.0, 5.0], [5.0, 5.0, f32::NAN, 9.0], [9.0, 5.0, 5.0, 9.0]] {
            assert_eq!(tried(none), (None, Some(Kind::NoArea)), "{none:?}");
        }
        for outside in [[100.0, 5.0, 110.0, 9.0], [5.0, 50.0, 9.0, 60.0], [-9.0, 5.0, 0.0, 9.0], [5.0, -9.0, 9.0, 0.0]]
        {
            assert_eq!(tried(outside), (None, Some(Kind::Outside)), "{outside:?}");
        }
    }

    #[test]
    fn neither_crowds_nor_what_is_difficult_counts() {
        let of = |crowd, difficult| LabelBox { crowd, difficult, ..label([0.0; 4]) }.counts();
        assert_eq!([of(false, false), of(true, false), of(false, true), of(true, true)], [true, false, false, false]);
    }
}
