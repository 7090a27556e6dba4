//! Images and boxes: datasets in the three usual forms, letterbox, augmentation and a prefetching loader.
//!
//! [`open`] reads a [`Dataset`], [`doctor::check`] says what is wrong with it, a [`Loader`] turns a split into batches.

mod augment;
mod dataset;
pub mod doctor;
pub mod draw;
mod error;
mod hsv;
mod letterbox;
mod loader;
pub mod picture;
pub mod problem;
pub mod synth;
mod target;
mod warp;

pub use augment::Augment;
pub use dataset::{Dataset, Format, Item, LabelBox, OpenOptions, Split, is_unread, open, recognise, unlabelled};
pub use error::{Error, Result};
pub use letterbox::{FILL, Fit, Letterbox, letterbox};
pub use loader::{Batch, Epoch, Loader, LoaderConfig, Mode};
pub use target::Target;
