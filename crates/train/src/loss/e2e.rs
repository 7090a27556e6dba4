//! The loss of end-to-end heads (YOLOv10, YOLO26): YOLOv8's twice, for the branches that tell every object once and, where the
//! detector has them, for those that learn it at many points.
//!
//! Consistent dual assignments are those of Wang et al., "YOLOv10: Real-Time End-to-End Object Detection", NeurIPS 2024; that
//! one-to-many counts less from epoch to epoch, and that small objects get more room, are YOLO26's.

use data::Target;
use graph::{DflHead, Result};

use super::{LossOutput, RawMap, V8Loss};

/// What one-to-many counts in the first epoch and in the last; one-to-one counts what is missing to 1.
const SHARES: [f32; 2] = [0.8, 0.1];

/// Two losses and how they are mixed.
#[derive(Clone, Debug, PartialEq)]
pub struct E2eLoss {
    /// Of the branches that predict: every object chooses seven points and is learned at the best that is left to it.
    pub one_to_one: V8Loss,
    pub one_to_many: V8Loss,
    /// What one-to-many counts, in 0..=1. A head without those branches is trained by one-to-one alone.
    pub share: f32,
}

impl E2eLoss {
    /// The loss for `head` in the first epoch.
    pub fn of(head: &DflHead) -> Self {
        let one_to_many = V8Loss { enlarge: true, ..V8Loss::of(head) };
        let one_to_one = V8Loss { topk: 7, keep: Some(1), ..one_to_many.clone() };
        Self { one_to_one, one_to_many, share: SHARES[0] }
    }

    /// Sets the mixture for epoch `epoch` of `epochs`, counted from 0.
    pub fn at(&mut self, epoch: usize, epochs: usize) {
        let left = 1.0 - epoch as f32 / epochs.saturating_sub(1).max(1) as f32;
        self.share = left.max(0.0) * (SHARES[0] - SHARES[1]) + SHARES[1];
    }

    /// Value and gradient for the raw maps of `head`: box and class map of every level and, if it has them, those of its
    /// one-to-many branches. The parts are one-to-one's: what is minimised changes from epoch to epoch, they compare.
    ///
    /// # Errors
    /// As [`V8Loss::evaluate`].
    ///
    /// # Panics
    /// If `maps` are not the maps the head reads.
    pub fn evaluate(&self, head: &DflHead, maps: &[RawMap], targets: &[Target]) -> Result<LossOutput> {
        let (one, many) = maps.split_at(head.pairs());
        let mut out = self.one_to_one.evaluate(head, one, targets)?;
        if head.one_to_many {
            out.scale(1.0 - self.share);
            let mut many = self.one_to_many.evaluate(head, many, targets)?;
            many.scale(self.share);
            out.value.total += many.value.total;
            out.grads.append(&mut many.grads);
        }
        Ok(out)
    }
}
