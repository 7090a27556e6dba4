//! How much a detector minds errors within: what makes losses of different layers comparable.

use std::collections::BTreeMap;

use graph::{Graph, NodeId};

use crate::{Coupling, Error, Result};

/// Mean squares of gradients. Empty where none was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivity {
    /// By convolution, (O): how much an error in each of its outputs, summed over the positions of an image, changes what the detector
    /// says, on average over images. The diagonal of the Gauss-Newton matrix, where the gradients are those of probes of its answers.
    pub outputs: BTreeMap<NodeId, Vec<f64>>,
    /// By BatchNorm, (C): how much the detection loss of a batch minds a factor on each of its outputs,
    /// `(gamma dL/dgamma + beta dL/dbeta)^2` (Molchanov et al. 2019), on average over batches.
    pub gates: BTreeMap<NodeId, Vec<f64>>,
}

impl Sensitivity {
    /// How much errors in the outputs of convolution `id` are minded, (O); `None` where that was not measured.
    pub(crate) fn of(&self, graph: &Graph, coupling: &Coupling, id: NodeId) -> Result<Option<&[f64]>> {
        let Some(minds) = self.outputs.get(&id) else { return Ok(None) };
        let (node, outputs) = (graph.nodes[id].name.clone(), coupling.channels(id).len());
        if minds.len() != outputs {
            return Err(Error::Statistics {
                node,
                what: format!("{} sensitivities for {outputs} outputs", minds.len()),
            });
        }
        if minds.iter().any(|f| !f.is_finite()) {
            return Err(Error::NotFinite { what: "the gradient at", node });
        }
        Ok(Some(minds))
    }
}
