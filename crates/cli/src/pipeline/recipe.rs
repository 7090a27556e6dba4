//! The recipe of a run: every setting of `compress`, echoed into the run's folder as recipe.toml.

use std::path::{Path, PathBuf};

use data::OpenOptions;
use graph::Graph;
use prune::{Budget, Criterion, Importance, Similarity};
use serde::{Deserialize, Serialize};
use train::TrainConfig;

use super::cut::{CALIBRATION_IMAGES, Cut};
use crate::answers;
use crate::runs;
use crate::speed::Speed;

/// Optimiser steps a training should have at least. YOLOv5's step every 64 images is a hundred steps in 25 epochs of a dataset
/// of 205, and both the dense detector and the healed one come out better after six times as many (docs/results).
const STEPS: usize = 600;
/// Images a step at least.
const SMALLEST_STEP: usize = 8;

/// What `compress` does, from which detector, on which data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    pub model: PathBuf,
    /// Weights of a Darknet `.cfg`.
    pub weights: Option<PathBuf>,
    /// A dataset, or any folder of images, which the detector itself then labels.
    pub data: PathBuf,
    /// Form of the dataset's labels, where its path does not say.
    pub data_format: Option<data::Format>,
    /// Folder of its images (COCO and VOC), where it is not the usual one.
    pub images: Option<PathBuf>,
    pub seed: u64,
    /// Share of the removal that stage 2 does, in 0..=1. All of it by default: with images at hand a constant is only the
    /// poorest of the stand-ins that stage 2 weighs, and its cuts lose less (docs/results).
    pub similarity_share: f64,
    /// Training images that stage 2 learns channel statistics from.
    pub calibration_images: usize,
    /// Sizes that images may have for the slim detector, in pixels: of several the one at which what the budget leaves promises
    /// most; none is that of the dense one. Shares of a budget are of the dense detector at its own size.
    pub sizes: Vec<usize>,
    /// Refit what is left to the uncut detector's maps, convolution by convolution, before anything is trained.
    pub reconstruct: bool,
    /// Rounds of cutting and healing that share the epochs between them.
    pub rounds: usize,
    /// Forget the weights after the cut and train the architecture that is left from nothing.
    pub restart: bool,
    /// Passes over the training images, 1024 of them at most, in which BatchNorm statistics are estimated anew.
    pub recalibration_epochs: usize,
    /// Instead of a budget: how much of mAP50-95 on `val` the cut may cost before healing.
    pub max_drop: Option<f64>,
    /// Where the budget is of time: take a multiple that is measured to be faster, whatever the limits say.
    pub multiple_by_speed: bool,
    /// Write the slim detector in eight bits too, and measure that.
    pub int8: bool,
    pub budget: Budget,
    pub importance: Importance,
    pub similarity: Similarity,
    /// Fine-tuning before anything is cut; skipped where the detector knows the dataset's classes, or with 0 epochs.
    pub dense: TrainConfig,
    /// Sparse training; skipped with 0 epochs, which is the default: where epochs are few it costs more accuracy than the
    /// cut it prepares (docs/results). Its target share is set from the budget.
    pub sparse: TrainConfig,
    /// Fine-tuning after the cut; skipped with 0 epochs. It follows the uncut detector's answers as well as the labels.
    pub heal: TrainConfig,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            weights: None,
            data: PathBuf::new(),
            data_format: None,
            images: None,
            seed: 0,
            similarity_share: 1.0,
            calibration_images: CALIBRATION_IMAGES,
            sizes: vec![],
            reconstruct: true,
            rounds: 1,
            restart: false,
            recalibration_epochs: 2,
            max_drop: None,
            multiple_by_speed: true,
            int8: false,
            budget: Budget::default(),
            importance: Importance { criterion: Criterion::OutputError, ..Importance::default() },
            similarity: Similarity::default(),
            dense: TrainConfig::default(),
            sparse: TrainConfig { epochs: 0, ..TrainConfig::yolov5() },
            heal: TrainConfig { distill: 1.0, ..TrainConfig::default() },
        }
    }
}

impl Recipe {
    /// Reads a recipe.
    pub fn load(path: &Path) -> miette::Result<Self> {
        runs::read_toml(path)
    }

    /// Whether the data are images alone.
    pub fn has_no_labels(&self) -> bool {
        answers::is_bare(&self.data, self.data_format)
    }

    /// How to read the dataset.
    pub fn form(&self) -> OpenOptions {
        OpenOptions { format: self.data_format, images: self.images.clone(), ..OpenOptions::default() }
    }

    /// The sizes to choose from.
    pub fn sizes(&self) -> Vec<usize> {
        if self.sizes.is_empty() { vec![self.dense.imgsz] } else { self.sizes.clone() }
    }

    /// Both cuts.
    pub fn cut(&self) -> Cut<'_> {
        let Self { importance, similarity, similarity_share, .. } = self;
        Cut { importance, similarity, similarity_share: *similarity_share }
    }

    /// Sets the multiple of both stages to the one measured to be faster, where there is one and it is wanted.
    pub fn round_by(&mut self, speed: Option<&Speed>) {
        if let Some(multiple) = speed.filter(|_| self.multiple_by_speed).and_then(Speed::faster) {
            self.importance.limits.multiple = multiple;
            self.similarity.limits.multiple = multiple;
        }
    }

    /// Applies `change` to all three trainings.
    pub fn each_training(&mut self, mut change: impl FnMut(&mut TrainConfig)) {
        change(&mut self.dense);
        change(&mut self.sparse);
        change(&mut self.heal);
    }

    /// No dense training where `model` knows the classes `names` of the dataset, unless it has never been trained.
    pub fn skip_dense(&mut self, model: &Graph, names: &[String]) {
        self.dense.epochs = self.dense_epochs(model, names);
    }

    /// The epochs that are left of dense training then.
    pub fn dense_epochs(&self, model: &Graph, names: &[String]) -> usize {
        if model.meta.names == names && !model.is_untrained() { 0 } else { self.dense.epochs }
    }

    /// Has every training on `images` images step more often than the recipe says, where steps would be few.
    pub fn step_often(&mut self, images: usize) {
        self.each_training(|t| {
            while t.nominal_batch / 2 >= SMALLEST_STEP && t.epochs * images < STEPS * t.nominal_batch {
                t.nominal_batch /= 2;
            }
            t.batch = t.batch.min(t.nominal_batch);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_training_is_for_classes_or_weights_that_are_new() {
        let names = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let fresh = graph::build::Yolov5 { names: names(["a", "b"]), imgsz: 64, width: 0.25, depth: 0.33, seed: 1 };
        let fresh = fresh.build().unwrap();
        let mut trained = fresh.clone();
        let norm = trained.nodes.iter_mut().find_map(|n| match &mut n.op {
            graph::Op::BatchNorm(norm) => Some(norm),
            _ => None,
        });
        norm.unwrap().mean[0] = 0.1;
        let epochs = |model: &Graph, classes: [&str; 2]| {
            let mut recipe = Recipe::default();
            recipe.skip_dense(model, &names(classes));
            recipe.dense.epochs
        };
        assert_eq!([epochs(&trained, ["a", "b"]), epochs(&trained, ["a", "c"])], [0, 25]);
        assert_eq!(epochs(&fresh, ["a", "b"]), 25);
    }

    #[test]
    fn steps_are_small_where_there_would_be_few() {
        let mut recipe = Recipe::default();
        recipe.each_training(|t| t.epochs = 25);
        let stepping = |images: usize, batch: usize| {
            let mut recipe = recipe.clone();
            recipe.each_training(|t| t.batch = batch);
            recipe.step_often(images);
            (recipe.heal.nominal_batch, recipe.heal.batch)
        };
        assert_eq!(stepping(100_000, 16), (64, 16), "a large dataset has steps enough");
        assert_eq!(stepping(800, 16), (32, 16), "625 steps of 32");
        assert_eq!(stepping(205, 16), (8, 8));
        assert_eq!(stepping(205, 4), (8, 4), "a batch asked for is never made larger");
        assert_eq!(stepping(1, 16), (8, 8), "but BatchNorm needs some images");
    }
}
