//! The doctor: what is wrong with a dataset, told before anyone trains on it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use rayon::prelude::*;
use serde::Serialize;

use crate::dataset::{Dataset, Item};
use crate::problem::{Kind, Problem};
use crate::{Error, picture};

/// What [`check`] found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub splits: BTreeMap<String, Count>,
    /// Usable boxes of each class over all splits, in class order.
    pub classes: Vec<(String, usize)>,
    pub findings: BTreeMap<Kind, Finding>,
}

/// How much is in a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub images: usize,
    pub boxes: usize,
    /// Boxes left out on reading.
    pub skipped: usize,
}

/// All problems of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Finding {
    pub count: usize,
    /// The first [`EXAMPLES`] of them.
    pub examples: Vec<Problem>,
}

/// How many problems of a kind a report quotes.
pub const EXAMPLES: usize = 10;

impl Report {
    /// How many problems of that kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.findings.get(&kind).map_or(0, |f| f.count)
    }

    fn add(&mut self, problem: Problem) {
        let finding = self.findings.entry(problem.kind).or_default();
        finding.count += 1;
        if finding.examples.len() < EXAMPLES {
            finding.examples.push(problem);
        }
    }
}

/// Examines every label and decodes every image. Open the dataset leniently to have malformed lines reported as well.
pub fn check(dataset: &Dataset) -> Report {
    let mut report = Report::default();
    let mut per_class = vec![0; dataset.names.len()];
    let mut first_seen: HashMap<u64, (&str, String)> = HashMap::new();
    for (name, split) in &dataset.splits {
        let boxes = split.items.iter().map(|i| i.boxes.len()).sum();
        let count = Count { images: split.items.len(), boxes, skipped: split.skipped() };
        report.splits.insert(name.clone(), count);
        split.problems.iter().for_each(|p| report.add(p.clone()));
        match (split.items.is_empty(), boxes) {
            (true, _) => report.add(Problem::new(Kind::EmptySplit, name, "")),
            (false, 0) => report.add(Problem::new(Kind::NoBoxes, name, "")),
            _ => {}
        }
        for item in &split.items {
            item.boxes.iter().for_each(|b| per_class[b.class] += 1);
            labels(item).into_iter().for_each(|p| report.add(p));
        }
        let looked: Vec<_> = split.items.par_iter().map(pixels).collect();
        for (item, (hash, problem)) in split.items.iter().zip(looked) {
            problem.into_iter().for_each(|p| report.add(p));
            let Some(hash) = hash else { continue };
            let place = item.image.display().to_string();
            match first_seen.get(&hash) {
                Some((other, twin)) if other == name => {
                    report.add(Problem::new(Kind::DuplicateImage, place, format!("same as {twin}")));
                }
                Some((other, twin)) => {
                    report.add(Problem::new(Kind::Leak, place, format!("in `{name}`, same as {twin} in `{other}`")));
                }
                None => {
                    first_seen.insert(hash, (name, place));
                }
            }
        }
    }
    if dataset.splits.contains_key("train") && !dataset.splits.contains_key("val") {
        let detail = match dataset.answering("val") {
            "train" => "without a split `val`, `train` stands in for it",
            _ => "",
        };
        report.add(Problem::new(Kind::NoVal, dataset.path.display().to_string(), detail));
    }
    for (name, &count) in dataset.names.iter().zip(&per_class) {
        if count == 0 {
            report.add(Problem::new(Kind::EmptyClass, name, ""));
        }
    }
    report.classes = dataset.names.iter().cloned().zip(per_class).collect();
    report
}

fn labels(item: &Item) -> Vec<Problem> {
    let place = || item.image.display().to_string();
    let mut found = Vec::new();
    if item.boxes.is_empty() {
        found.push(Problem::new(Kind::Unlabelled, place(), ""));
    }
    for (i, a) in item.boxes.iter().enumerate() {
        if item.boxes[..i].iter().any(|b| a.class == b.class && a.xyxy == b.xyxy) {
            found.push(Problem::new(Kind::DuplicateBox, place(), format!("class {} at {:?}", a.class, a.xyxy)));
        }
    }
    found
}

/// Hash of the file's bytes and what is wrong with its pixels.
fn pixels(item: &Item) -> (Option<u64>, Option<Problem>) {
    let problem = |kind, detail: String| Some(Problem::new(kind, item.image.display().to_string(), detail));
    let file = match std::fs::read(&item.image) {
        Ok(file) => file,
        Err(e) => return (None, problem(Kind::Unreadable, Error::io("read", &item.image, e).to_string())),
    };
    let mut hasher = DefaultHasher::new();
    file.hash(&mut hasher);
    let found = match picture::decode_whole(&item.image, &file) {
        Err(e) => problem(Kind::Unreadable, e.to_string()),
        Ok(image) if image.dimensions() != item.size => {
            let (w, h) = image.dimensions();
            problem(Kind::SizeMismatch, format!("{w} x {h}, the labels say {} x {}", item.size.0, item.size.1))
        }
        Ok(_) if picture::is_cut_short(&file) => problem(Kind::CutShort, "the file has no end; copy it again".into()),
        Ok(_) => None,
    };
    (Some(hasher.finish()), found)
}
