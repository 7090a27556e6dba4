//! Decoded boxes before suppression, whether our own head or a foreign runtime made them.

use rayon::prelude::*;

use crate::{Error, Result};

/// Every box a detector proposes: per image a dense (boxes, columns) matrix with the columns centre x, centre y, width,
/// height in canvas pixels, objectness if the head has one, class probabilities, and what the head tells beside: what each
/// prototype counts for a mask; x and y in canvas pixels of every keypoint, and of three values how visible it is (0..1); the
/// angle of the box in radians, about its centre.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// Row-major (images, boxes, columns).
    pub(crate) data: Vec<f32>,
    pub(crate) images: usize,
    pub(crate) classes: usize,
    pub(crate) objectness: bool,
    pub(crate) extra: usize,
}

impl Predictions {
    /// Number of images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Whether rows hold an objectness before the class probabilities.
    pub fn has_objectness(&self) -> bool {
        self.objectness
    }

    /// Columns after the class probabilities, see [`graph::Extra`].
    pub fn extra(&self) -> usize {
        self.extra
    }

    /// Values in a row: 5 + classes with objectness, 4 + classes without, and what is told beside.
    pub fn columns(&self) -> usize {
        4 + usize::from(self.objectness) + self.classes + self.extra
    }

    /// Boxes per image.
    pub fn boxes(&self) -> usize {
        self.data.len() / (self.images * self.columns()).max(1)
    }

    /// The (boxes, columns) matrix of one image, row-major.
    pub fn image(&self, image: usize) -> &[f32] {
        let len = self.boxes() * self.columns();
        &self.data[image * len..(image + 1) * len]
    }

    /// The rows of one image.
    pub fn rows(&self, image: usize) -> std::slice::ChunksExact<'_, f32> {
        self.image(image).chunks_exact(self.columns())
    }

    /// One row.
    pub fn row(&self, image: usize, index: usize) -> &[f32] {
        let columns = self.columns();
        &self.image(image)[index * columns..(index + 1) * columns]
    }
}

/// How an exported model lays out its boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// YOLOv5 exports: (N, boxes, 5 + classes) with objectness.
    Rows,
    /// YOLOv8 exports: (N, 4 + classes + extra, boxes) without objectness; `extra` is what is told beside.
    Columns { extra: usize },
}

/// Reads the decoded output of an exported model, of the given `shape` and row-major.
///
/// # Errors
/// If `shape` does not fit `layout`, `classes` or the number of values.
pub fn candidates_from_rows(values: &[f32], shape: [usize; 3], layout: Layout, classes: usize) -> Result<Predictions> {
    let (columns, expected) = match layout {
        Layout::Rows => (shape[2], format!("(images, boxes, 5 + {classes} classes)")),
        Layout::Columns { extra: 0 } => (shape[1], format!("(images, 4 + {classes} classes, boxes)")),
        Layout::Columns { extra } => (shape[1], format!("(images, 4 + {classes} classes + {extra}, boxes)")),
    };
    let (objectness, extra) = match layout {
        Layout::Rows => (true, 0),
        Layout::Columns { extra } => (false, extra),
    };
    let volume = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    if columns != 4 + usize::from(objectness) + classes + extra || volume != Some(values.len()) {
        return Err(Error::Shape { shape, values: values.len(), expected });
    }
    let data = match layout {
        Layout::Rows => values.to_vec(),
        Layout::Columns { .. } => {
            let boxes = shape[2];
            let mut data = vec![0.0; values.len()];
            let images = data.par_chunks_mut((columns * boxes).max(1)).zip(values.par_chunks((columns * boxes).max(1)));
            images.for_each(|(rows, matrix)| {
                for (i, row) in rows.chunks_exact_mut(columns).enumerate() {
                    row.iter_mut().enumerate().for_each(|(c, value)| *value = matrix[c * boxes + i]);
                }
            });
            data
        }
    };
    Ok(Predictions { data, images: shape[0], classes, objectness, extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_layouts() {
        let rows = candidates_from_rows(&[1.0, 2.0, 3.0, 4.0, 0.5, 0.9], [1, 1, 6], Layout::Rows, 1).unwrap();
        assert_eq!((rows.boxes(), rows.has_objectness(), rows.row(0, 0)[4]), (1, true, 0.5));
        // Two images of two boxes, one class: value = 100 * image + 10 * column + box.
        let values: Vec<f32> = (0..20).map(|i| (100 * (i / 10) + 10 * (i % 10 / 2) + i % 2) as f32).collect();
        let columns = candidates_from_rows(&values, [2, 5, 2], Layout::Columns { extra: 0 }, 1).unwrap();
        assert_eq!(columns.row(1, 1), [101.0, 111.0, 121.0, 131.0, 141.0]);
        let beside = candidates_from_rows(&values[..14], [1, 7, 2], Layout::Columns { extra: 2 }, 1).unwrap();
        assert_eq!((beside.columns(), beside.classes(), beside.row(0, 1)[6]), (7, 1, 111.0));
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() {
        for (shape, classes) in [([1, 1, 6], 2), ([1, 2, 6], 1), ([usize::MAX, 2, 6], 1)] {
            assert!(candidates_from_rows(&[0.0; 6], shape, Layout::Rows, classes).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn holds_no_boxes() {
        let none = candidates_from_rows(&[], [2, 0, 6], Layout::Rows, 1).unwrap();
        assert_eq!((none.images(), none.boxes(), none.rows(1).len()), (2, 0, 0));
    }
}
