//! COCO's two JSON documents: annotations (`instances_*.json`) and detections (`results.json`).

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, SeqAccess, Visitor};

use super::{Annotation, Category, GroundTruth, Image, ScoredBox};
use crate::{Error, Result};

impl GroundTruth {
    /// Reads an annotation document. `area` defaults to the box's, `iscrowd` to no; segmentations are not read.
    /// `path` appears in errors only.
    ///
    /// # Errors
    /// Names the list and the entry that is not as COCO defines it.
    pub fn from_json(bytes: &[u8], path: &str) -> Result<Self> {
        let document: Document = read(bytes, path, "expected COCO annotations: images, annotations and categories")?;
        Ok(Self {
            images: document.images.0,
            annotations: document.annotations.0.into_iter().map(Annotation::from).collect(),
            categories: document.categories.0,
        })
    }
}

/// Reads a detection document: a list of `{image_id, category_id, bbox, score}`. `path` appears in errors only.
///
/// # Errors
/// Names the entry that is not as COCO defines it.
pub fn detections_from_json(bytes: &[u8], path: &str) -> Result<Vec<ScoredBox>> {
    let help = "expected a list of COCO detections: image_id, category_id, bbox [x, y, width, height], score";
    read::<Entries<ScoredBox>>(bytes, path, help).map(|entries| entries.0)
}

fn read<T: DeserializeOwned>(bytes: &[u8], path: &str, help: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Json { path: path.into(), what: e.to_string(), help: help.into() })
}

#[derive(Deserialize)]
struct Document {
    images: Entries<Image>,
    annotations: Entries<RawAnnotation>,
    categories: Entries<Category>,
}

#[derive(Deserialize)]
struct RawAnnotation {
    image_id: i64,
    category_id: i64,
    bbox: [f64; 4],
    area: Option<f64>,
    #[serde(default)]
    iscrowd: Flag,
}

impl From<RawAnnotation> for Annotation {
    fn from(raw: RawAnnotation) -> Self {
        Self {
            image_id: raw.image_id,
            category_id: raw.category_id,
            bbox: raw.bbox,
            area: raw.area.unwrap_or(raw.bbox[2] * raw.bbox[3]),
            crowd: match raw.iscrowd {
                Flag::Bool(crowd) => crowd,
                Flag::Number(crowd) => crowd != 0,
            },
        }
    }
}

/// Tools write `iscrowd` as 0/1 or as false/true.
#[derive(Deserialize)]
#[serde(untagged)]
enum Flag {
    Bool(bool),
    Number(i64),
}

impl Default for Flag {
    fn default() -> Self {
        Self::Bool(false)
    }
}

/// What a list holds, for errors.
trait Named {
    const NAME: &'static str;
}

impl Named for Image {
    const NAME: &'static str = "images";
}
impl Named for RawAnnotation {
    const NAME: &'static str = "annotations";
}
impl Named for Category {
    const NAME: &'static str = "categories";
}
impl Named for ScoredBox {
    const NAME: &'static str = "detections";
}

/// A list whose errors say which entry they are about.
struct Entries<T>(Vec<T>);

impl<'de, T: Deserialize<'de> + Named> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Named> Visitor<'de> for List<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a list of {}", T::NAME)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                loop {
                    match list.next_element() {
                        Ok(Some(entry)) => entries.push(entry),
                        Ok(None) => return Ok(Entries(entries)),
                        Err(e) => return Err(A::Error::custom(format!("{}[{}]: {e}", T::NAME, entries.len()))),
                    }
                }
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_entry() {
        let good = r#"{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}"#;
        for (bad, says) in [
            (
                r#"{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1], "score": 0.5}"#,
                "detections[1]: invalid length 3",
            ),
            (r#"{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}"#, "detections[1]: missing field `score`"),
            (r#"{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": NaN}"#, "detections[1]: "),
        ] {
            let error = detections_from_json(format!("[{good}, {bad}]").as_bytes(), "results.json").unwrap_err();
            assert!(error.to_string().starts_with(&format!("`results.json`: {says}")), "{error}");
        }
    }

    #[test]
    fn fills_in_area_and_crowd() {
        let text = br#"{"images": [{"id": 7}], "categories": [{"id": 1, "name": "cell"}], "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 1}]}"#;
        let truth = GroundTruth::from_json(text, "instances.json").unwrap();
        let read: Vec<_> = truth.annotations.iter().map(|a| (a.area, a.crowd)).collect();
        assert_eq!(read, [(12.0, false), (5.5, true)]);
    }
}
