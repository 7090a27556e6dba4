//! Splits of a dataset as commands need them: with images, with boxes, a few images of many.

use data::{Dataset, Item};

use crate::exit::Error;

/// The images of `split`.
///
/// # Errors
/// The dataset has no such split, or it is empty.
pub fn images<'a>(dataset: &'a Dataset, split: &str) -> miette::Result<&'a [Item]> {
    let items = &dataset.split(split)?.items;
    match items.is_empty() {
        true => Err(lacks(dataset, split, "images")),
        false => Ok(items),
    }
}

/// The images of `split`, some of which show something.
///
/// # Errors
/// As [`images`], or there is no box to learn or to be judged by.
pub fn labelled<'a>(dataset: &'a Dataset, split: &str) -> miette::Result<&'a [Item]> {
    let items = images(dataset, split)?;
    match items.iter().flat_map(|item| &item.boxes).any(|b| b.counts()) {
        true => Ok(items),
        false => Err(lacks(dataset, split, "labelled boxes")),
    }
}

fn lacks(dataset: &Dataset, split: &str, what: &str) -> miette::Report {
    let what = format!("split `{}` of `{}` has no {what}", dataset.answering(split), dataset.path.display());
    Error::failed(what, "run `prunella data check` on it to see what is there")
}

/// Images to cut or to find scales by: those of training, or of validation where there are no others.
pub fn to_calibrate_on(dataset: &Dataset) -> miette::Result<&[Item]> {
    let split = if dataset.splits.contains_key("train") { "train" } else { "val" };
    images(dataset, split)
}

/// `most` of `items` at most, evenly spread: datasets often come sorted.
pub fn spread(items: &[Item], most: usize) -> Vec<Item> {
    let most = most.min(items.len());
    (0..most).map(|i| items[i * items.len() / most].clone()).collect()
}

#[cfg(test)]
mod tests {
    use data::{LabelBox, Split};

    use super::*;

    #[test]
    fn a_split_without_images_or_boxes_is_named() {
        let b = LabelBox { class: 0, xyxy: [0.0, 0.0, 1.0, 1.0], area: 1.0, crowd: true, difficult: false };
        let item = Item { image: "1.png".into(), id: 0, size: (2, 2), boxes: vec![b] };
        let split = |items| Split { items, problems: vec![] };
        let splits = [("train".to_owned(), split(vec![item])), ("val".to_owned(), split(vec![]))].into();
        let (path, format) = ("pets.yaml".into(), data::Format::Ultralytics);
        let dataset = Dataset { path, format, names: vec!["a".into()], category_ids: vec![0], splits };
        let told =
            |found: miette::Result<&[Item]>| found.map_or_else(|e| e.to_string(), |items| items.len().to_string());
        assert_eq!(told(images(&dataset, "val")), "split `val` of `pets.yaml` has no images");
        assert_eq!(told(images(&dataset, "train")), "1");
        assert_eq!(told(labelled(&dataset, "train")), "split `train` of `pets.yaml` has no labelled boxes");
    }
}
