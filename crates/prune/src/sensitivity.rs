//! How much the detection loss minds: what makes losses of different layers comparable when data with labels are at hand.

use std::collections::BTreeMap;

use graph::NodeId;

/// Squares of the loss's gradients, averaged over images: the diagonal of the empirical Fisher information (Theis et al. 2018).
/// Empty where none was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivity {
    /// By dense convolution, (O): to an error in each of its outputs, summed over the positions of an image.
    pub outputs: BTreeMap<NodeId, Vec<f64>>,
    /// By BatchNorm, (C): to a factor on each of its outputs, `(gamma dL/dgamma + beta dL/dbeta)^2` (Molchanov et al. 2019).
    pub gates: BTreeMap<NodeId, Vec<f64>>,
}
