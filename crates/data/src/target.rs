//! A labelled box as the losses read it.

/// One object of a training batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Index of the image within the batch.
    pub image: usize,
    pub class: usize,
    /// Centre x, centre y, width, height as fractions of the canvas the image was put on.
    pub bbox: [f32; 4],
}
