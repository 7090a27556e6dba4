//! What can be wrong with a dataset, and where: what reading notes and the doctor reports.

use serde::Serialize;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// An image is listed and not there; it is left out.
    MissingImage,
    /// An image does not decode.
    Unreadable,
    /// An image ends before its last row: an error wherever it is used.
    CutShort,
    /// An image has another size than its labels say.
    SizeMismatch,
    /// A label line or file is not what its format demands; it is left out.
    Malformed,
    /// A box's class does not exist; the box is left out.
    ClassRange,
    /// A box has no area (or a coordinate that is no number); it is left out.
    NoArea,
    /// A box lies wholly outside its image; it is left out.
    Outside,
    /// A box reaches over its image's border by more than a pixel; it is cut.
    OverBorder,
    /// The same box of the same class stands twice in an image.
    DuplicateBox,
    /// The same file content stands twice in a split.
    DuplicateImage,
    /// The same file content stands in two splits: what is measured on one was trained on in the other.
    Leak,
    /// An image in the folder of a split is of a kind that is not read; it is left out.
    UnreadImage,
    /// A label file belongs to no image.
    StrayLabel,
    /// The number of classes that is stated is not that of their names, which counts.
    ClassCount,
    /// A class has no box in any split.
    EmptyClass,
    /// A split has no images.
    EmptySplit,
    /// No image of a split has a box: there is nothing to learn or to judge by.
    NoBoxes,
    /// There are images to train on and no split `val` to judge by.
    NoVal,
    /// An image has no boxes: fine if it is meant as background.
    Unlabelled,
}

impl Kind {
    /// Whether a box was left out for this.
    pub fn skips_box(self) -> bool {
        matches!(self, Self::Malformed | Self::ClassRange | Self::NoArea | Self::Outside)
    }

    /// In words, for a person.
    pub fn text(self) -> &'static str {
        match self {
            Self::MissingImage => "image is missing",
            Self::Unreadable => "image does not decode",
            Self::CutShort => "image is cut short",
            Self::SizeMismatch => "image size differs from the labels'",
            Self::Malformed => "label is malformed",
            Self::ClassRange => "class does not exist",
            Self::NoArea => "box has no area",
            Self::Outside => "box lies outside the image",
            Self::OverBorder => "box reaches over the border",
            Self::DuplicateBox => "box stands twice",
            Self::DuplicateImage => "image stands twice in a split",
            Self::Leak => "image stands in two splits",
            Self::UnreadImage => "image is of a kind that is not read",
            Self::StrayLabel => "label file has no image",
            Self::ClassCount => "number of classes differs from their names'",
            Self::EmptyClass => "class has no boxes",
            Self::EmptySplit => "split has no images",
            Self::NoBoxes => "split has no boxes",
            Self::NoVal => "there is no split to judge by",
            Self::Unlabelled => "image has no boxes",
        }
    }
}

/// One thing wrong, and where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    pub kind: Kind,
    /// The file, with line or annotation where there is one.
    pub place: String,
    /// What was found there; may be empty.
    pub detail: String,
}

impl Problem {
    pub(crate) fn new(kind: Kind, place: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind, place: place.into(), detail: detail.into() }
    }
}
