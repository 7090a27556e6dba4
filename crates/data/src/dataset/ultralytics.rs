//! Ultralytics' form: a `data.yaml` naming folders or lists of images, and a text file of boxes beside each image.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use saphyr::{LoadableYamlNode, Yaml};
use saphyr_parser::{Event, Parser};

use super::{
    Dataset, Format, Item, LabelBox, OpenOptions, Split, accept, asked, files_in, is_image, is_unread, read_text,
};
use crate::problem::{Kind, Problem};
use crate::{Error, Result, picture};

/// The yaml of a folder: `data.yaml` or `dataset.yaml`.
pub(super) fn yaml_in(folder: &Path) -> Option<PathBuf> {
    ["data.yaml", "data.yml", "dataset.yaml", "dataset.yml"].iter().map(|n| folder.join(n)).find(|p| p.is_file())
}

pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Dataset> {
    let file = if path.is_dir() {
        yaml_in(path).ok_or_else(|| Error::dataset(path, "holds no data.yaml"))?
    } else {
        path.to_owned()
    };
    let text = read_text(&file)?;
    check_depth(&text, &file)?;
    let documents = Yaml::load_from_str(&text)
        .map_err(|e| Error::format(&file, Some(e.marker().line()), format!("not valid YAML: {}", e.info())))?;
    let yaml = documents.first().ok_or_else(|| Error::format(&file, None, "is empty"))?;
    let names = names(yaml, &file)?;
    let roots = roots(yaml, &file);

    let stated = |split: &str| yaml.as_mapping_get(split).filter(|v| !v.is_null());
    let known: Vec<&str> = ["train", "val", "test"].into_iter().filter(|split| stated(split).is_some()).collect();
    if known.is_empty() {
        return Err(Error::format(&file, None, "names no split").hint("expected the keys `train`, `val` or `test`"));
    }
    let mut splits = BTreeMap::new();
    for split in asked(path, &known, options)? {
        let Some(value) = stated(split) else { continue };
        let places = match value {
            Yaml::Sequence(list) => list.iter().map(Yaml::as_str).collect(),
            other => other.as_str().map(|place| vec![place]),
        }
        .ok_or_else(|| Error::format(&file, None, format!("`{split}` must be a path or a list of paths")))?;
        let (mut images, mut problems) = (Vec::new(), Vec::new());
        for place in places {
            match find(&roots, place) {
                Some(folder) if folder.is_dir() => {
                    let files = files_below(&folder)?;
                    if options.lenient {
                        problems.extend(strays(&files)?);
                    }
                    images.extend(files.into_iter().filter(|p| is_image(p)));
                }
                Some(list) => images.extend(listed(&list)?),
                // A test split is often named and seldom shipped.
                None if split == "test" => {}
                None => {
                    let looked: Vec<_> = roots.iter().map(|r| format!("`{}`", r.join(place).display())).collect();
                    return Err(Error::format(&file, None, format!("`{split}: {place}` is not there"))
                        .hint(format!("looked at {}", looked.join(" and "))));
                }
            }
        }
        // A number of classes of its own is told with the first split; findings are told of all together.
        if splits.is_empty() {
            problems.extend(class_count(yaml, &file, names.len()));
        }
        let mut read = read_split(&images, names.len(), options)?;
        read.problems.extend(problems);
        splits.insert(split.to_owned(), read);
    }
    let category_ids = (0..names.len() as u64).collect();
    Ok(Dataset { path: path.to_owned(), format: Format::Ultralytics, names, category_ids, splits })
}

/// Refuses lists and maps nested so deeply that reading them would overflow the stack.
fn check_depth(text: &str, file: &Path) -> Result<()> {
    const DEEPEST: usize = 64;
    let mut depth = 0;
    // Where it is no YAML the loader says so.
    for (event, place) in Parser::new_from_str(text).map_while(Result::ok) {
        match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
            Event::SequenceEnd | Event::MappingEnd => depth -= 1,
            _ => {}
        }
        if depth > DEEPEST {
            return Err(Error::format(file, Some(place.start.line()), "lists and maps are nested too deeply"));
        }
    }
    Ok(())
}

/// `names` as a list or as a map from index to name; `nc` alone gives "0", "1", …
fn names(yaml: &Yaml<'_>, file: &Path) -> Result<Vec<String>> {
    let text = |v: &Yaml<'_>| match v.as_str() {
        Some(s) => Some(s.to_owned()),
        None => v.as_integer().map(|i| i.to_string()),
    };
    let bad = || Error::format(file, None, "`names` must be a list of names or a map 0: name, 1: name, …");
    match yaml.as_mapping_get("names") {
        Some(Yaml::Sequence(list)) => list.iter().map(|v| text(v).ok_or_else(bad)).collect(),
        Some(Yaml::Mapping(map)) => {
            let by_index = map
                .iter()
                .map(|(k, v)| Some((usize::try_from(k.as_integer()?).ok()?, text(v)?)))
                .collect::<Option<BTreeMap<_, _>>>()
                .ok_or_else(bad)?;
            if by_index.keys().enumerate().any(|(i, &k)| i != k) {
                return Err(Error::format(file, None, "the indices in `names` must run 0, 1, 2, … without a gap"));
            }
            Ok(by_index.into_values().collect())
        }
        Some(_) => Err(bad()),
        None => match yaml.as_mapping_get("nc").map(Yaml::as_integer) {
            Some(Some(n @ 1..=100_000)) => Ok((0..n).map(|i| i.to_string()).collect()),
            Some(_) => Err(Error::format(file, None, "`nc` must be the whole number of classes, at most 100000")),
            None => Err(Error::format(file, None, "has no `names`").hint("add the class names: `names: [cat, dog]`")),
        },
    }
}

/// What is wrong with `nc` beside `names`, which count.
fn class_count(yaml: &Yaml<'_>, file: &Path, names: usize) -> Option<Problem> {
    let stated = yaml.as_mapping_get("nc").and_then(|v| v.as_integer()).filter(|&n| n != names as i64)?;
    let detail = format!("`nc` is {stated}, the names are {names}");
    Some(Problem::new(Kind::ClassCount, file.display().to_string(), detail))
}

/// Where the split paths may start from: `path` (absolute or beside the yaml), then the yaml's own folder, because
/// a `path` written on another machine rarely holds here.
fn roots(yaml: &Yaml<'_>, file: &Path) -> Vec<PathBuf> {
    let beside = file.parent().unwrap_or(Path::new("")).to_owned();
    let mut roots = Vec::new();
    if let Some(path) = yaml.as_mapping_get("path").and_then(|v| v.as_str()) {
        roots.push(beside.join(path));
    }
    roots.push(beside);
    roots
}

/// Roboflow writes `../train/images` for a folder that lies beside the yaml: tried last.
fn find(roots: &[PathBuf], place: &str) -> Option<PathBuf> {
    let stripped = place.strip_prefix("../");
    let candidates = [Some(place), stripped].into_iter().flatten();
    candidates.flat_map(|p| roots.iter().map(move |r| r.join(p))).find(|p| p.exists())
}

/// The images that a `.txt` lists one a line, relative to its own folder.
fn listed(list: &Path) -> Result<Vec<PathBuf>> {
    if !list.is_file() {
        return Err(Error::dataset(list, "is neither a folder nor a file that lists images"));
    }
    let folder = list.parent().unwrap_or(Path::new(""));
    let lines = read_text(list)?;
    Ok(lines.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| folder.join(l)).collect())
}

/// All files in a folder and the folders below.
pub(super) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(folder, &mut HashSet::new(), &mut found)?;
    Ok(found)
}

/// Adds the files of [`files_below`] to `found`; links may lead back to where it has been.
fn walk(folder: &Path, seen: &mut HashSet<PathBuf>, found: &mut Vec<PathBuf>) -> Result<()> {
    if !seen.insert(folder.canonicalize().map_err(|e| Error::io("list", folder, e))?) {
        return Ok(());
    }
    found.extend(files_in(folder)?);
    let listing = std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut below: Vec<_> = listing.filter_map(|e| e.ok()).map(|e| e.path()).filter(|p| p.is_dir()).collect();
    // A folder goes by its own name before it goes by a link's, for its labels lie where that name says.
    below.sort_by_key(|p| (p.is_symlink(), p.clone()));
    below.iter().try_for_each(|p| walk(p, seen, found))
}

/// What is not read among `files`, those of a split, and in the folders of their labels: images of other kinds, label files of no
/// image.
fn strays(files: &[PathBuf]) -> Result<Vec<Problem>> {
    let (unread, pictures): (Vec<&PathBuf>, Vec<_>) =
        files.iter().filter(|p| is_image(p) || is_unread(p)).partition(|p| is_unread(p));
    let expected: BTreeSet<PathBuf> = pictures.iter().chain(&unread).map(|p| label_of(p)).collect();
    let folders: BTreeSet<&Path> = expected.iter().filter_map(|p| p.parent()).collect();
    let mut problems: Vec<Problem> =
        unread.iter().map(|p| Problem::new(Kind::UnreadImage, p.display().to_string(), "")).collect();
    for folder in folders.into_iter().filter(|f| f.is_dir()) {
        let text = |p: &PathBuf| p.extension().is_some_and(|e| e == "txt");
        // Annotation tools leave the names of the classes among the labels.
        let names = |p: &PathBuf| p.file_name().is_some_and(|name| name == "classes.txt");
        let labels = files_in(folder)?.into_iter().filter(|p| text(p) && !names(p) && !expected.contains(p));
        problems.extend(labels.map(|p| Problem::new(Kind::StrayLabel, p.display().to_string(), "")));
    }
    Ok(problems)
}

/// The label file of an image: the last folder called `images` replaced by `labels`, the ending by `.txt`.
pub(super) fn label_of(image: &Path) -> PathBuf {
    let mut parts: Vec<_> = image.iter().collect();
    let folders = parts.len().saturating_sub(1);
    if let Some(at) = parts[..folders].iter().rposition(|p| *p == "images") {
        parts[at] = "labels".as_ref();
    }
    parts.iter().collect::<PathBuf>().with_extension("txt")
}

fn read_split(images: &[PathBuf], classes: usize, options: &OpenOptions) -> Result<Split> {
    // Boxes are fractions of the image, so every header is read: in parallel, for this is most of the time.
    let read: Vec<_> = images
        .par_iter()
        .enumerate()
        .map(|(id, image)| read_item(id as u64, image, classes, options.lenient))
        .collect::<Result<_>>()?;
    let mut split = Split::default();
    for (item, problems) in read {
        split.items.extend(item);
        split.problems.extend(problems);
    }
    Ok(split)
}

fn read_item(id: u64, image: &Path, classes: usize, lenient: bool) -> Result<(Option<Item>, Vec<Problem>)> {
    let shown = image.display().to_string();
    if !image.is_file() {
        return Ok((None, vec![Problem::new(Kind::MissingImage, shown, "")]));
    }
    let size = match picture::size(image) {
        Ok(size) => size,
        Err(e) if lenient => return Ok((None, vec![Problem::new(Kind::Unreadable, shown, e.to_string())])),
        Err(e) => return Err(e),
    };
    let mut boxes = Vec::new();
    let mut problems = Vec::new();
    let labels = label_of(image);
    let text = match labels.is_file() {
        true => read_text(&labels),
        false => Ok(String::new()),
    };
    let text = text.or_else(|e| match e {
        Error::Format { what, .. } if lenient => {
            problems.push(Problem::new(Kind::Malformed, labels.display().to_string(), what));
            Ok(String::new())
        }
        e => Err(e),
    })?;
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let place = format!("{}:{}", labels.display(), number + 1);
        match parse_line(line) {
            Ok((class, _)) if class >= classes => {
                problems.push(Problem::new(Kind::ClassRange, place, format!("class {class} of {classes}")));
            }
            Ok((class, unit)) => {
                let (w, h) = (size.0 as f32, size.1 as f32);
                let xyxy = [unit[0] * w, unit[1] * h, unit[2] * w, unit[3] * h];
                let area = f64::from(xyxy[2] - xyxy[0]) * f64::from(xyxy[3] - xyxy[1]);
                let found = LabelBox { class, xyxy, area, crowd: false, difficult: false };
                if let Some(found) = accept(found, size, &place, &mut problems) {
                    boxes.push(found);
                }
            }
            Err(what) if lenient => problems.push(Problem::new(Kind::Malformed, place, what)),
            Err(what) => {
                return Err(Error::format(&labels, Some(number + 1), what).hint(
                    "each line is `class cx cy width height` (fractions of the image) or `class x1 y1 x2 y2 x3 y3 …`; `prunella \
                     data check` lists every such line",
                ));
            }
        }
    }
    Ok((Some(Item { image: image.to_owned(), id, size, boxes }), problems))
}

/// Class and box (left, top, right, bottom as fractions) of a line: five numbers are a box, an odd count of seven or
/// more is an outline, whose bounding box is taken.
fn parse_line(line: &str) -> Result<(usize, [f32; 4]), String> {
    let mut fields = line.split_whitespace();
    let class = fields.next().unwrap_or_default();
    // Some exporters write the class as 3.0.
    let class = match class.parse::<f32>() {
        Ok(c) if c >= 0.0 && c.fract() == 0.0 => c as usize,
        _ => return Err(format!("the class is `{class}`, not a whole number from 0")),
    };
    let numbers = fields
        .map(|f| f.parse::<f32>().map_err(|_| format!("`{f}` is not a number")))
        .collect::<Result<Vec<_>, _>>()?;
    match numbers[..] {
        [cx, cy, w, h] => Ok((class, [cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0])),
        _ if numbers.len() >= 6 && numbers.len() % 2 == 0 => {
            let start = [f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY];
            let grow = |b: [f32; 4], p: &[f32]| [b[0].min(p[0]), b[1].min(p[1]), b[2].max(p[0]), b[3].max(p[1])];
            let bounds = numbers.chunks_exact(2).fold(start, grow);
            // Minima and maxima pass over what is no number.
            Ok((class, if numbers.iter().any(|n| n.is_nan()) { [f32::NAN; 4] } else { bounds }))
        }
        _ => Err(format!("{} numbers after the class, expected 4 (a box) or pairs (an outline)", numbers.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_images_folder_becomes_labels() {
        assert_eq!(
            label_of(Path::new("/images/set/images/train/a.b.jpg")),
            Path::new("/images/set/labels/train/a.b.txt")
        );
        assert_eq!(label_of(Path::new("set/images.jpg")), Path::new("set/images.txt"));
        assert_eq!(label_of(Path::new("set/images")), Path::new("set/images.txt"));
    }

    #[test]
    fn lines_are_boxes_or_outlines() {
        assert_eq!(parse_line("2 0.5 0.5 0.5 0.25"), Ok((2, [0.25, 0.375, 0.75, 0.625])));
        assert_eq!(parse_line("1.0 0.1 0.2 0.4 0.1 0.3 0.6"), Ok((1, [0.1, 0.1, 0.4, 0.6])));
        for bad in [
            "1.5 0.5 0.5 0.1 0.1",
            "0 0.5 0.5",
            "cat 0.5 0.5 0.1 0.1",
            "0 0.5 0.5 0.1",
            "0 0.5 x 0.1 0.1",
            "-1 0.5 0.5 0.1 0.1",
            "0 1 1 1 1 0.9",
        ] {
            assert!(parse_line(bad).is_err(), "{bad}");
        }
    }
}
