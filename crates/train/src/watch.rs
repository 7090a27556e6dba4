//! What a running job tells whoever watches it; the command line draws bars from it, tests ignore it.

use std::time::Duration;

/// State after one training batch.
#[derive(Clone, Debug)]
pub struct BatchReport<'a> {
    /// Epoch, from 0, of how many.
    pub epoch: usize,
    pub epochs: usize,
    /// Batch within the epoch, from 0, of how many.
    pub batch: usize,
    pub batches: usize,
    /// Images of this batch.
    pub images: usize,
    /// Running mean of each loss part over the epoch.
    pub losses: &'a [(&'static str, f64)],
    /// How long this batch had to be waited for.
    pub waited: Duration,
}

/// State after one epoch and its evaluation.
#[derive(Clone, Debug)]
pub struct EpochReport<'a> {
    pub epoch: usize,
    pub epochs: usize,
    /// Mean of each loss part over the epoch.
    pub losses: &'a [(&'static str, f64)],
    pub map50: f64,
    pub map50_95: f64,
    pub seconds: f64,
}

/// Whoever watches. Every method does nothing unless overridden.
pub trait Watch {
    /// A batch has been trained on.
    fn batch(&mut self, _report: &BatchReport) {}
    /// An epoch has ended.
    fn epoch(&mut self, _report: &EpochReport) {}
    /// `done` of `total` images have been worked on in `task` (evaluation, calibration).
    fn images(&mut self, _task: &str, _done: usize, _total: usize) {}
    /// Something worth a line in the log, such as a change of lambda.
    fn note(&mut self, _text: &str) {}
}

/// Watches nothing.
pub struct Quiet;

impl Watch for Quiet {}
