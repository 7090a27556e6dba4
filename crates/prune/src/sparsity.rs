//! Which BatchNorm scales sparse training pushes towards zero.

use crate::{Coupling, Site};

/// The (BatchNorm, channel) pairs whose gamma belongs to a class that may be removed, in order of node and channel: the
/// sum of METHOD.md, 1 runs over them. Pressing any other gamma would cost accuracy and free nothing.
pub fn prunable_gammas(coupling: &Coupling) -> Vec<Site> {
    let free = coupling.classes.iter().filter(|class| class.pinned.is_none());
    let mut gammas: Vec<Site> = free.flat_map(|class| class.norms.iter().copied()).collect();
    gammas.sort_unstable();
    gammas
}
