//! COCO mean average precision, number for number what pycocotools' `COCOeval` gives for boxes.
//!
//! Reference: <https://github.com/cocodataset/cocoapi>, `PythonAPI/pycocotools/cocoeval.py`. Two departures: an annotation
//! whose id is 0 counts as every other (there, a match with it is taken for none), and detections whose score or box is
//! not finite are dropped and counted.

mod curve;
mod matching;
mod parse;
mod result;

use rayon::prelude::*;
use serde::Deserialize;

use crate::{Error, Result};
use matching::{ClassInput, Det, Gt};

pub use curve::{BestF1, CurvePoint};
pub use parse::detections_from_json;
pub use result::{ClassResult, Dropped, MapResult, STAT_NAMES};

/// What is in a set of images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroundTruth {
    pub images: Vec<Image>,
    pub annotations: Vec<Annotation>,
    pub categories: Vec<Category>,
}

/// An image of the set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Image {
    pub id: i64,
}

/// A class of objects.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Category {
    pub id: i64,
    pub name: String,
}

/// A labelled object.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    pub image_id: i64,
    pub category_id: i64,
    /// x, y of the top left corner, width, height in pixels.
    pub bbox: [f64; 4],
    /// In pixels; COCO's is the segmentation's and decides the area range.
    pub area: f64,
    /// A crowd: detections within it count neither for nor against.
    pub crowd: bool,
}

/// A detected object.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ScoredBox {
    pub image_id: i64,
    pub category_id: i64,
    /// x, y of the top left corner, width, height in pixels.
    pub bbox: [f64; 4],
    pub score: f64,
}

/// Evaluates `detections` against `truth`.
///
/// Boxes of categories or annotations of images that `truth` does not list are left out, as in pycocotools, and counted
/// in [`MapResult::dropped`].
///
/// # Errors
/// If a detection names an image that `truth` does not list.
pub fn evaluate(truth: &GroundTruth, detections: &[ScoredBox]) -> Result<MapResult> {
    let images = Index::new(truth.images.iter().map(|image| image.id));
    let categories = Index::new(truth.categories.iter().map(|category| category.id));
    let mut classes: Vec<ClassInput> = categories.0.iter().map(|_| ClassInput::default()).collect();
    let mut dropped = Dropped::default();

    for annotation in &truth.annotations {
        match (images.find(annotation.image_id), categories.find(annotation.category_id)) {
            (Some(image), Some(class)) => classes[class].truth.push(Gt::new(image, annotation)),
            _ => dropped.annotations += 1,
        }
    }
    for (entry, detection) in detections.iter().enumerate() {
        let image_id = detection.image_id;
        let image = images.find(image_id).ok_or(Error::UnknownImage { entry, image_id })?;
        if !detection.score.is_finite() || detection.bbox.iter().any(|side| !side.is_finite()) {
            dropped.not_finite += 1;
            continue;
        }
        match categories.find(detection.category_id) {
            Some(class) => classes[class].detections.push(Det::new(image, detection)),
            None => dropped.unknown_category += 1,
        }
    }
    let curves: Vec<_> = classes.into_par_iter().map(|class| curve::evaluate_class(class.matched())).collect();
    let names = categories.0.iter().map(|id| {
        let category = truth.categories.iter().find(|category| category.id == *id);
        category.map_or_else(String::new, |category| category.name.clone())
    });
    Ok(MapResult::new(names.collect(), curves, dropped))
}

/// Sorted ids: the order in which pycocotools goes through images and categories, which decides between equal scores.
struct Index(Vec<i64>);

impl Index {
    fn new(ids: impl Iterator<Item = i64>) -> Self {
        let mut ids: Vec<i64> = ids.collect();
        ids.sort_unstable();
        ids.dedup();
        Self(ids)
    }

    fn find(&self, id: i64) -> Option<usize> {
        self.0.binary_search(&id).ok()
    }
}
