//! What tests of whole trainings share.

use train::watch::{EpochReport, Watch};

/// Notes the loss of every epoch.
#[derive(Default)]
pub struct Losses(pub Vec<f64>);

impl Watch for Losses {
    fn epoch(&mut self, report: &EpochReport) {
        self.0.push(report.losses.iter().map(|(_, value)| value).sum());
    }
}
