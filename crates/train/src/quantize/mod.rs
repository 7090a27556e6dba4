//! A detector in eight bits, its scales found on images.
//!
//! Channels are made alike in size where that changes nothing ([`equalise`]). Where a map's bytes should begin and end is read off histograms of its values
//! ([`histogram`], [`range`]); what rounding does to the mean of every convolution's output is then taken off its bias
//! ([`correct`]), after Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019).

mod correct;
mod equalise;
mod histogram;
mod range;

use std::collections::BTreeMap;

use graph::quant::{Affine, Quantized, folded, moves, sites};
use graph::{Act, Error, Graph, NodeId, Op};

use crate::calibrate::Images;
use crate::net::{Infer, tapped};
use histogram::Histogram;
use range::Seen;

/// `graph` in eight bits. `batches` gives the images that show what its maps hold, from the training split, fitted as for
/// validation; it is called three times, and what the first call gives is not looked at where no channel may change.
///
/// # Errors
/// The graph does not fit `imgsz`, a map or a weight is not finite, or reading a batch fails.
pub fn quantize<E: From<Error>, I: Iterator<Item = Result<Images, E>>>(
    graph: &Graph,
    imgsz: [usize; 2],
    batches: impl Fn() -> I,
) -> Result<Quantized, E> {
    let (graph, _) = folded(graph);
    let graph = equalise::equalised(graph, imgsz, batches())?;
    let seen = observe(&graph, imgsz, batches())?;
    let maps = maps(&graph, &seen)?;
    let rounded = Quantized::new(graph, maps)?;
    correct::correct_biases(&rounded, imgsz, batches())
}

/// The bytes of every map of `graph`, by node.
fn maps(graph: &Graph, seen: &BTreeMap<NodeId, Histogram>) -> graph::Result<Vec<Option<Affine>>> {
    let sites = sites(graph);
    let readers = graph.consumers();
    let mut alike: BTreeMap<NodeId, Vec<Seen>> = BTreeMap::new();
    for (&id, histogram) in seen {
        let act = match graph.only_reader(&readers, id) {
            Some((_, Op::Act(act))) => *act,
            _ => Act::Identity,
        };
        if let Some(first) = sites[id] {
            alike.entry(first).or_default().push(Seen { histogram, act });
        }
    }
    let mut affine = BTreeMap::new();
    for (&first, maps) in &alike {
        // An image is bytes to begin with.
        let image = maps.len() == 1 && matches!(graph.nodes[first].op, Op::Input { .. });
        let [low, high] = if image { [0.0, 1.0] } else { range::least_squares(maps) };
        let found = Affine::covering(low, high).map_err(|what| Error::node(&graph.nodes[first].name, what))?;
        affine.insert(first, found);
    }
    Ok(sites.iter().map(|site| site.and_then(|first| affine.get(&first).copied())).collect())
}

/// Histograms of the maps of `graph` that become bytes and hold values no other map has.
fn observe<E: From<Error>>(
    graph: &Graph,
    imgsz: [usize; 2],
    batches: impl Iterator<Item = Result<Images, E>>,
) -> Result<BTreeMap<NodeId, Histogram>, E> {
    let sites = sites(graph);
    let (tapped, origin) = tapped(graph, imgsz, |id| sites[id].is_some() && !moves(&graph.nodes[id].op))?;
    let mut infer = Infer::new(&tapped, imgsz)?;
    let mut seen: BTreeMap<NodeId, Histogram> = BTreeMap::new();
    for batch in batches {
        let batch = batch?;
        let mut wrong = None;
        infer.run_observed(&batch.data, batch.n, |at, map| {
            if let Some(id) = origin[at]
                && let Err(what) = seen.entry(id).or_default().add(map)
            {
                wrong.get_or_insert(Error::node(&graph.nodes[id].name, what));
            }
        })?;
        if let Some(wrong) = wrong {
            return Err(wrong.into());
        }
    }
    Ok(seen)
}
