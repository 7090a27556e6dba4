//! Pascal VOC's form: an XML per image, split lists in `ImageSets/Main`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Dataset, Format, Item, LabelBox, OpenOptions, Split, accept, asked, files_in, is_image, read_text};
use crate::problem::{Kind, Problem};
use crate::{Error, Result, picture};

/// Most bytes of an XML tag or comment; VOC's tags have a few letters.
const LONGEST_TAG: usize = 1 << 16;

/// An annotation as written, its class still a name.
struct Parsed {
    image: Option<PathBuf>,
    xml: PathBuf,
    size: (u32, u32),
    objects: Vec<(String, LabelBox)>,
    problems: Vec<Problem>,
}

/// Whether a folder looks like VOC: `Annotations` with XML in it, or XML files beside images.
pub(super) fn is_tree(folder: &Path) -> bool {
    files_in(&annotations_of(folder)).is_ok_and(|files| files.iter().any(|p| p.extension().is_some_and(|e| e == "xml")))
}

fn annotations_of(folder: &Path) -> PathBuf {
    let usual = folder.join("Annotations");
    if usual.is_dir() { usual } else { folder.to_owned() }
}

pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Dataset> {
    let annotations = annotations_of(path);
    let usual = path.join("JPEGImages");
    let images = options.images.clone().unwrap_or(if usual.is_dir() { usual } else { path.to_owned() });
    let by_stem: HashMap<String, PathBuf> = files_in(&images)?
        .into_iter()
        .filter(|p| is_image(p))
        .filter_map(|p| Some((p.file_stem()?.to_str()?.to_owned(), p)))
        .collect();

    let lists = split_lists(path, &annotations)?;
    let known: Vec<&str> = lists.iter().map(|(split, _)| split.as_str()).collect();
    let wanted = asked(path, &known, options)?;
    let listed = listed_names(path)?;
    let mut parsed = BTreeMap::new();
    // Without a list the classes are those of all annotations.
    for (split, ids) in lists.iter().filter(|(split, _)| listed.is_none() || wanted.contains(&split.as_str())) {
        let read = ids
            .par_iter()
            .map(|id| match by_stem.get(id) {
                Some(image) => parse(&annotations.join(format!("{id}.xml")), image, options.lenient),
                None => Ok(without_image(images.join(id), &annotations.join(format!("{id}.xml")))),
            })
            .collect::<Result<Vec<_>>>()?;
        parsed.insert(split.as_str(), read);
    }
    let names = listed.unwrap_or_else(|| names_seen(&parsed));
    parsed.retain(|split, _| wanted.contains(split));
    let splits = parsed.into_iter().map(|(name, read)| (name.to_owned(), build(read, &names))).collect();
    let category_ids = (0..names.len() as u64).collect();
    Ok(Dataset { path: path.to_owned(), format: Format::Voc, names, category_ids, splits })
}

/// The ids of each split: `ImageSets/Main/{train,val,test}.txt`, else every annotation as "val".
fn split_lists(path: &Path, annotations: &Path) -> Result<Vec<(String, Vec<String>)>> {
    let mut lists = Vec::new();
    for split in ["train", "val", "test"] {
        let list = path.join("ImageSets/Main").join(format!("{split}.txt"));
        if list.is_file() {
            // The per-class lists of VOC carry a flag after the id.
            let ids =
                read_text(&list)?.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect();
            lists.push((split.to_owned(), ids));
        }
    }
    if lists.is_empty() {
        let files = files_in(annotations)?;
        let xml = files.iter().filter(|p| p.extension().is_some_and(|e| e == "xml"));
        lists.push(("val".into(), xml.filter_map(|p| Some(p.file_stem()?.to_str()?.to_owned())).collect()));
    }
    Ok(lists)
}

/// The classes that `classes.txt` or `labels.txt` beside the data lists.
fn listed_names(path: &Path) -> Result<Option<Vec<String>>> {
    let Some(list) = ["classes.txt", "labels.txt"].iter().map(|n| path.join(n)).find(|p| p.is_file()) else {
        return Ok(None);
    };
    Ok(Some(read_text(&list)?.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()))
}

/// The classes in the order in which they first appear in the train split, then in the others.
fn names_seen(parsed: &BTreeMap<&str, Vec<Parsed>>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for read in ["train", "val", "test"].iter().filter_map(|s| parsed.get(*s)) {
        for (name, _) in read.iter().flat_map(|p| &p.objects) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    names
}

fn build(read: Vec<Parsed>, names: &[String]) -> Split {
    let mut split = Split::default();
    for (id, parsed) in read.into_iter().enumerate() {
        let place = parsed.xml.display().to_string();
        split.problems.extend(parsed.problems);
        let Some(image) = parsed.image else { continue };
        let mut item = Item { image, id: id as u64, size: parsed.size, boxes: Vec::new() };
        for (name, found) in parsed.objects {
            match names.iter().position(|n| *n == name) {
                Some(class) => {
                    item.boxes.extend(accept(LabelBox { class, ..found }, parsed.size, &place, &mut split.problems));
                }
                None => {
                    split.problems.push(Problem::new(Kind::ClassRange, &place, format!("class `{name}` is not listed")))
                }
            }
        }
        split.items.push(item);
    }
    split
}

/// The annotation `xml` of an image that is not there under the name `image`, whatever its ending.
fn without_image(image: PathBuf, xml: &Path) -> Parsed {
    let detail = format!("{} has no image of its name", xml.display());
    let problems = vec![Problem::new(Kind::MissingImage, image.display().to_string(), detail)];
    Parsed { image: None, xml: xml.to_owned(), size: (0, 0), objects: Vec::new(), problems }
}

fn parse(xml: &Path, image: &Path, lenient: bool) -> Result<Parsed> {
    let mut parsed = Parsed {
        image: Some(image.to_owned()),
        xml: xml.to_owned(),
        size: (0, 0),
        objects: Vec::new(),
        problems: Vec::new(),
    };
    if let Err(e) = parse_into(xml, image, &mut parsed) {
        if !lenient {
            return Err(e);
        }
        let kind = if matches!(e, Error::Image { .. }) { Kind::Unreadable } else { Kind::Malformed };
        parsed.problems.push(Problem::new(kind, xml.display().to_string(), e.to_string()));
        parsed.image = None;
    }
    Ok(parsed)
}

fn parse_into(xml: &Path, image: &Path, parsed: &mut Parsed) -> Result<()> {
    let text = read_text(xml)?;
    // The time a tag takes grows with the square of its attributes.
    if text.split('<').any(|tag| tag.find('>').unwrap_or(tag.len()) > LONGEST_TAG) {
        return Err(Error::format(xml, None, format!("has a tag of more than {LONGEST_TAG} bytes")));
    }
    let document = roxmltree::Document::parse(&text)
        .map_err(|e| Error::format(xml, Some(e.pos().row as usize), format!("not valid XML: {e}")))?;
    let root = document.root_element();
    if !root.has_tag_name("annotation") {
        let what = format!("holds <{}>, not <annotation>", root.tag_name().name());
        return Err(Error::format(xml, None, what).hint("it is no annotation of VOC's; leave it out"));
    }
    let child = |node: roxmltree::Node<'_, '_>, tag: &str| {
        node.children().find(|c| c.has_tag_name(tag)).and_then(|c| c.text()).map(|t| t.trim().to_owned())
    };
    let number = |node: roxmltree::Node<'_, '_>, tag: &str| {
        let line = Some(document.text_pos_at(node.range().start).row as usize);
        let text = child(node, tag)
            .ok_or_else(|| Error::format(xml, line, format!("<{}> has no <{tag}>", node.tag_name().name())))?;
        text.parse::<f32>().map_err(|_| {
            Error::format(xml, line, format!("<{tag}> is `{text}`, not a number")).hint("mend the file or leave it out")
        })
    };
    // Some tools write a size of nought; then the image itself is asked.
    let written = root.children().find(|c| c.has_tag_name("size"));
    let written = written.and_then(|s| Some((child(s, "width")?.parse().ok()?, child(s, "height")?.parse().ok()?)));
    parsed.size = match written {
        Some((w, h)) if w > 0 && h > 0 => (w, h),
        _ => picture::size(image)?,
    };
    for object in root.children().filter(|c| c.has_tag_name("object")) {
        let line = Some(document.text_pos_at(object.range().start).row as usize);
        let name = child(object, "name").ok_or_else(|| Error::format(xml, line, "<object> has no <name>"))?;
        let corners = object
            .children()
            .find(|c| c.has_tag_name("bndbox"))
            .ok_or_else(|| Error::format(xml, line, "<object> has no <bndbox>"))?;
        // The corners are taken as they are, without VOC's shift by one.
        let xyxy =
            [number(corners, "xmin")?, number(corners, "ymin")?, number(corners, "xmax")?, number(corners, "ymax")?];
        let area = f64::from(xyxy[2] - xyxy[0]) * f64::from(xyxy[3] - xyxy[1]);
        let difficult = child(object, "difficult").is_some_and(|t| t == "1");
        parsed.objects.push((name, LabelBox { class: 0, xyxy, area, crowd: false, difficult }));
    }
    Ok(())
}
