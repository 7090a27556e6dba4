//! How much a detector minds errors within: what makes losses of different layers comparable.

use std::collections::BTreeMap;

use graph::NodeId;

/// Mean squares of gradients, an image each. Empty where none was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivity {
    /// By dense convolution, (O): how much an error in each of its outputs, summed over the positions of an image, changes what the
    /// detector says. The diagonal of the Gauss-Newton matrix, where the gradients are those of probes of its answers.
    pub outputs: BTreeMap<NodeId, Vec<f64>>,
    /// By BatchNorm, (C): how much the detection loss minds a factor on each of its outputs,
    /// `(gamma dL/dgamma + beta dL/dbeta)^2` (Molchanov et al. 2019).
    pub gates: BTreeMap<NodeId, Vec<f64>>,
}
