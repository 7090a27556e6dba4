//! Images and boxes: datasets in the three usual forms, letterbox, augmentation and a prefetching loader.

mod target;

pub use target::Target;
