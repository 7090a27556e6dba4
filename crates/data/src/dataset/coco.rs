//! COCO's form: one JSON of images, annotations and categories per split.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Dataset, Format, Item, LabelBox, OpenOptions, Split, accept, asked, files_in};
use crate::problem::{Kind, Problem};
use crate::{Error, Result};

#[derive(Deserialize)]
struct File {
    images: Vec<Image>,
    #[serde(default)]
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

/// A file that is asked for its classes alone.
#[derive(Deserialize)]
struct Classes {
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: String,
    width: u32,
    height: u32,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(default)]
    id: u64,
    image_id: u64,
    category_id: u64,
    bbox: [f64; 4],
    area: Option<f64>,
    #[serde(default)]
    iscrowd: Option<Flag>,
}

/// Tools write `iscrowd` as 0/1 or as false/true.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Flag {
    Bool(bool),
    Number(f64),
}

impl Flag {
    fn is_set(self) -> bool {
        match self {
            Self::Bool(set) => set,
            Self::Number(value) => value != 0.0,
        }
    }
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    name: String,
}

/// The annotation files of a folder: its own, those in `annotations/`, and Roboflow's one per split folder.
pub(super) fn jsons_in(folder: &Path) -> Vec<PathBuf> {
    let named = |p: &Path| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.ends_with(".json")
            && (name.starts_with("instances") || name == "annotations.json" || name.ends_with(".coco.json"))
    };
    let mut found = Vec::new();
    for place in [".", "annotations", "train", "valid", "val", "test"] {
        let place = if place == "." { folder.to_owned() } else { folder.join(place) };
        found.extend(files_in(&place).unwrap_or_default().into_iter().filter(|p| named(p)));
    }
    found
}

pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Dataset> {
    let files = if path.is_dir() { jsons_in(path) } else { vec![path.to_owned()] };
    let named: Vec<&str> = files.iter().map(|f| if files.len() == 1 { "val" } else { split_name(f) }).collect();
    let wanted = asked(path, &named, options)?;
    let read = files.iter().zip(&named).map(|(file, name)| match wanted.contains(name) {
        true => read(file),
        // Classes are numbered over all the files.
        false => read(file).map(|Classes { categories }| File { images: vec![], annotations: vec![], categories }),
    });
    let read = read.collect::<Result<Vec<_>>>()?;

    // Classes are the categories in the order of their ids, over all the files.
    let mut categories: BTreeMap<u64, String> = BTreeMap::new();
    for (file, content) in files.iter().zip(&read) {
        for category in &content.categories {
            let known = categories.entry(category.id).or_insert_with(|| category.name.clone());
            if *known != category.name {
                let what = format!("category {} is `{}` here and `{known}` elsewhere", category.id, category.name);
                return Err(Error::format(file, None, what));
            }
        }
    }
    if categories.is_empty() {
        return Err(Error::dataset(path, "holds no COCO categories"));
    }
    let class_of: HashMap<u64, usize> = categories.keys().enumerate().map(|(class, &id)| (id, class)).collect();

    let mut splits: BTreeMap<String, Split> = BTreeMap::new();
    for ((file, name), content) in files.iter().zip(named).zip(read).filter(|((_, name), _)| wanted.contains(name)) {
        let split = build(file, content, &class_of, options)?;
        if splits.insert(name.to_owned(), split).is_some() {
            return Err(Error::dataset(path, format!("two annotation files for the split `{name}`"))
                .hint("give the one JSON to use instead of the folder"));
        }
    }
    let category_ids = categories.keys().copied().collect();
    let names = categories.into_values().collect();
    Ok(Dataset { path: path.to_owned(), format: Format::Coco, names, category_ids, splits })
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let bytes = std::fs::read(file).map_err(|e| Error::io("read", file, e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::format(file, Some(e.line()), e.to_string())
            .hint("expected COCO's instances JSON: `images`, `annotations` with `bbox`, `categories`")
    })
}

/// The split a file is for, by its name or else its folder's.
fn split_name(file: &Path) -> &'static str {
    let parts = [file.file_stem(), file.parent().and_then(|p| p.file_name())];
    for part in parts.into_iter().flatten().filter_map(|p| p.to_str()) {
        for split in ["train", "val", "test"] {
            if part.contains(split) {
                return split;
            }
        }
    }
    "val"
}

/// Where the images of a file may be.
fn image_folders(file: &Path, options: &OpenOptions) -> Vec<PathBuf> {
    if let Some(folder) = &options.images {
        return vec![folder.clone()];
    }
    let beside = file.parent().unwrap_or(Path::new("")).to_owned();
    let above = beside.parent().map(Path::to_owned);
    // instances_val2017 -> val2017
    let subset =
        file.file_stem().and_then(|s| s.to_str()).and_then(|s| s.strip_prefix("instances_")).unwrap_or_default();
    let mut folders = Vec::new();
    for root in [Some(beside), above].into_iter().flatten() {
        if !subset.is_empty() {
            folders.push(root.join("images").join(subset));
            folders.push(root.join(subset));
        }
        folders.push(root.join("images"));
        folders.push(root);
    }
    folders
}

fn build(file: &Path, content: File, class_of: &HashMap<u64, usize>, options: &OpenOptions) -> Result<Split> {
    let folders = image_folders(file, options);
    let mut split = Split::default();
    let mut at: HashMap<u64, usize> = HashMap::new();
    let mut missing: HashSet<u64> = HashSet::new();
    for image in content.images {
        if at.contains_key(&image.id) {
            let what = format!("image {} is listed twice; `{}` is left out", image.id, image.file_name);
            split.problems.push(Problem::new(Kind::Malformed, file.display().to_string(), what));
            continue;
        }
        let found = folders.iter().map(|f| f.join(&image.file_name)).find(|p| p.is_file());
        let Some(found) = found else {
            let listed = format!("listed in {}", file.display());
            split.problems.push(Problem::new(Kind::MissingImage, image.file_name, listed));
            missing.insert(image.id);
            continue;
        };
        at.insert(image.id, split.items.len());
        split.items.push(Item { image: found, id: image.id, size: (image.width, image.height), boxes: Vec::new() });
    }
    if split.items.is_empty() && !missing.is_empty() && !options.lenient {
        return Err(Error::format(file, None, "none of its images was found").hint(format!(
            "looked in {}; name the folder of the images",
            folders.iter().map(|f| format!("`{}`", f.display())).collect::<Vec<_>>().join(", ")
        )));
    }
    for annotation in content.annotations {
        let place = format!("{}, annotation {}", file.display(), annotation.id);
        let Some(&index) = at.get(&annotation.image_id) else {
            if !missing.contains(&annotation.image_id) {
                let what = format!("image {} is not listed", annotation.image_id);
                split.problems.push(Problem::new(Kind::Malformed, place, what));
            }
            continue;
        };
        let Some(&class) = class_of.get(&annotation.category_id) else {
            let what = format!("category {} is not listed", annotation.category_id);
            split.problems.push(Problem::new(Kind::ClassRange, place, what));
            continue;
        };
        let [x, y, w, h] = annotation.bbox;
        let item = &mut split.items[index];
        let found = LabelBox {
            class,
            xyxy: [x as f32, y as f32, (x + w) as f32, (y + h) as f32],
            area: annotation.area.unwrap_or(w * h),
            crowd: annotation.iscrowd.is_some_and(Flag::is_set),
            difficult: false,
        };
        item.boxes.extend(accept(found, item.size, &place, &mut split.problems));
    }
    Ok(split)
}
