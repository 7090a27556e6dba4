//! Detection losses with analytic gradients on the raw head maps: plain functions of maps and labels.
//!
//! Every loss takes the maps as the head reads them, dense and (N, H, W, C), and gives back its value and its gradient in
//! the same layout; the executor carries the gradient on from there.

mod assign;
mod bce;
pub mod distill;
mod e2e;
mod iou;
pub mod probe;
mod simota;
pub mod v5;
pub mod v8;
pub mod yolox;

use assign::Object;
use data::Target;
pub use distill::Distill;
pub use e2e::E2eLoss;
pub use eval::RawMap;
use graph::{DflHead, Error, Head, Result};
pub use v5::V5Loss;
pub use v8::V8Loss;
pub use yolox::YoloxLoss;

/// A loss and its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct LossValue {
    /// What is minimised: the sum of the parts times the images of the batch, as the YOLO trainers define it; of YOLOX's
    /// times the batch's share of [`yolox::NOMINAL`] images; of end-to-end heads the mixture [`E2eLoss`] says.
    pub total: f32,
    /// Name and value of each part, gains included, the factor of the batch size not.
    pub parts: [(&'static str, f32); 3],
}

/// A loss with its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOutput {
    pub value: LossValue,
    /// Derivative of [`LossValue::total`] by every value of every map, in the layout of the maps.
    pub grads: Vec<Vec<f32>>,
}

impl LossOutput {
    /// `factor` is what the sum of the parts is multiplied with.
    fn new(parts: [(&'static str, f64); 3], factor: f64, grads: Vec<Vec<f32>>) -> Self {
        let total = parts.iter().map(|(_, v)| v).sum::<f64>() * factor;
        Self { value: LossValue { total: total as f32, parts: parts.map(|(n, v)| (n, v as f32)) }, grads }
    }

    /// Multiplies total and gradients with `factor`; the parts stay as they are.
    fn scale(&mut self, factor: f32) {
        self.value.total *= factor;
        self.grads.iter_mut().flatten().for_each(|g| *g *= factor);
    }

    /// Adds `other`, such as a distillation term: its total, gradients and parts.
    ///
    /// # Panics
    /// If the two are not of the same head and maps.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.grads.len(), other.grads.len(), "losses of different heads");
        self.value.total += other.value.total;
        for ((name, a), (other, b)) in self.value.parts.iter_mut().zip(other.value.parts) {
            assert_eq!(*name, other, "losses of different heads");
            *a += b;
        }
        for (a, b) in self.grads.iter_mut().zip(&other.grads) {
            assert_eq!(a.len(), b.len(), "losses of different maps");
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
    }
}

/// The loss that trains a head.
#[derive(Clone, Debug, PartialEq)]
pub enum Criterion {
    V5(V5Loss),
    V8(V8Loss),
    EndToEnd(E2eLoss),
    Yolox(YoloxLoss),
}

impl Criterion {
    /// The loss of the family `head` belongs to, with the gains its authors' trainer uses for images of `imgsz` pixels.
    ///
    /// # Errors
    /// The head reads maps that cannot be trained: see [`V5Loss::evaluate`].
    pub fn of(head: &Head, imgsz: usize) -> Result<Self> {
        match head {
            Head::Anchor(h) => {
                v5::check(h)?;
                Ok(Self::V5(V5Loss::default().scaled(h.classes, imgsz, h.levels.len())))
            }
            Head::Dfl(DflHead { extra: Some(extra), .. }) => Err(Error::node(
                "head",
                format!("a head that tells {} cannot be trained here: no loss is written for them", extra.name()),
            )
            .hint("`prunella prune` cuts it without training; export it as .pt and fine-tune that with Ultralytics")),
            Head::Dfl(h) if h.end_to_end => Ok(Self::EndToEnd(E2eLoss::of(h))),
            Head::Dfl(h) => Ok(Self::V8(V8Loss::of(h))),
            Head::Yolox(_) => Ok(Self::Yolox(YoloxLoss::default())),
        }
    }

    /// The same with boxes counting `boxes` times as much in losses of heads with anchors, and anchors learning objects within a factor of
    /// `anchor_t` of their own sides (see [`V5Loss::anchor_t`]); other losses as they are. YOLOv5's numbers, 1 and 4, were
    /// chosen on COCO's eighty classes; what a detector of few classes lacks is mostly where its boxes end, and a slim one
    /// has less to say with fewer anchors an object (docs/results/bccd-yolov5n.md).
    #[must_use]
    pub fn tuned(mut self, boxes: f32, anchor_t: f32) -> Self {
        if let Self::V5(loss) = &mut self {
            loss.box_gain *= boxes;
            loss.anchor_t = anchor_t;
        }
        self
    }

    /// The same, of which only where boxes end counts: not whether something is there, and what.
    #[must_use]
    pub fn boxes_alone(mut self) -> Self {
        match &mut self {
            Self::V5(loss) => (loss.obj_gain, loss.cls_gain) = (0.0, 0.0),
            Self::V8(loss) => loss.cls_gain = 0.0,
            Self::EndToEnd(loss) => (loss.one_to_one.cls_gain, loss.one_to_many.cls_gain) = (0.0, 0.0),
            Self::Yolox(loss) => (loss.obj_gain, loss.cls_gain) = (0.0, 0.0),
        }
        self
    }

    /// Value and gradient on `maps`, the raw maps `head` reads.
    ///
    /// # Errors
    /// `head` is not the kind this loss is for, or a target's image or class does not exist.
    ///
    /// # Panics
    /// If `maps` are not the maps the head reads.
    pub fn evaluate(&self, head: &Head, maps: &[RawMap], targets: &[Target]) -> Result<LossOutput> {
        match (self, head) {
            (Self::V5(loss), Head::Anchor(h)) => loss.evaluate(h, maps, targets),
            (Self::V8(loss), Head::Dfl(h)) => loss.evaluate(h, maps, targets),
            (Self::EndToEnd(loss), Head::Dfl(h)) => loss.evaluate(h, maps, targets),
            (Self::Yolox(loss), Head::Yolox(h)) => loss.evaluate(h, maps, targets),
            _ => Err(Error::node("head", "the loss is for another kind of head")),
        }
    }

    /// Readies it for epoch `epoch` of `epochs`, counted from 0.
    pub fn at(&mut self, epoch: usize, epochs: usize) {
        if let Self::EndToEnd(loss) = self {
            loss.at(epoch, epochs);
        }
    }

    /// Names of the parts, for the columns of `results.csv`.
    pub fn parts(&self) -> [&'static str; 3] {
        match self {
            Self::V5(_) => v5::PARTS,
            Self::V8(loss) => loss.parts(),
            Self::EndToEnd(loss) => loss.one_to_one.parts(),
            Self::Yolox(_) => yolox::PARTS,
        }
    }
}

/// Refuses what would index past the maps: labels come from files.
fn check_targets(targets: &[Target], images: usize, classes: usize) -> Result<()> {
    for t in targets {
        if t.class >= classes {
            return Err(Error::node("head", format!("a label has class {}, the head knows {classes}", t.class))
                .hint("the data set has more classes than the detector: fit the head to its names first"));
        }
        if t.image >= images {
            return Err(Error::node("head", format!("a label is of image {}, the batch has {images}", t.image)));
        }
    }
    Ok(())
}

/// The objects of every image of a batch, whose images are `size` (W, H) pixels.
fn objects(targets: &[Target], images: usize, size: [f32; 2]) -> Vec<Vec<Object>> {
    let mut objects = vec![Vec::new(); images];
    for target in targets {
        let [x, y, w, h] = target.bbox;
        let [x, y, w, h] = [x * size[0], y * size[1], w * size[0], h * size[1]];
        let corners = [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0];
        objects[target.image].push(Object { class: target.class, corners });
    }
    objects
}

/// The gradients of `maps`, one a map, cut up: of every image its part of each.
fn by_image<'a>(grads: &'a mut [Vec<f32>], maps: &[RawMap]) -> Vec<Vec<&'a mut [f32]>> {
    let images = maps.first().map_or(0, |map| map.n);
    let mut by_image: Vec<Vec<&mut [f32]>> = (0..images).map(|_| Vec::with_capacity(maps.len())).collect();
    for (grad, map) in grads.iter_mut().zip(maps) {
        let parts = grad.chunks_exact_mut(map.h * map.w * map.c);
        by_image.iter_mut().zip(parts).for_each(|(list, grad)| list.push(grad));
    }
    by_image
}

/// All values of one image in `map`.
fn image<'a>(map: &RawMap<'a>, image: usize) -> &'a [f32] {
    let len = map.h * map.w * map.c;
    &map.data[image * len..(image + 1) * len]
}

/// The channels of one cell of one image in `map`.
fn cell<'a>(map: &RawMap<'a>, image: usize, index: usize) -> &'a [f32] {
    &self::image(map, image)[index * map.c..(index + 1) * map.c]
}

/// Checks a level's map against the head's channels; returns (N, H, W).
fn dims(map: &RawMap, channels: usize) -> [usize; 3] {
    assert_eq!(map.c, channels, "channels of a map that enters the head");
    assert_eq!(map.data.len(), map.n * map.h * map.w * map.c, "values of a map that enters the head");
    [map.n, map.h, map.w]
}
