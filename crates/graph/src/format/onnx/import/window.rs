//! Which part of an axis an operator takes: the arithmetic of `Slice` and `Split`.

use super::attributes::axis;
use super::problem::Problem;
use crate::format::onnx::proto::NodeProto;

/// Indices `start, start + step, ...` of an axis, `len` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: usize,
    pub step: usize,
    pub len: usize,
}

/// What `Slice` takes of every axis of `shape`; `numbers` are those of an attribute, or else of an input.
pub fn ranges(
    shape: &[usize],
    mut numbers: impl FnMut(&str, usize) -> Result<Option<Vec<i64>>, Problem>,
) -> Result<Vec<Range>, Problem> {
    let (starts, ends) = (numbers("starts", 1)?, numbers("ends", 2)?);
    let (axes, steps) = (numbers("axes", 3)?, numbers("steps", 4)?);
    let (Some(starts), Some(ends)) = (starts, ends) else { return Err("is not told its bounds".into()) };
    if starts.len() > shape.len() || ends.len() != starts.len() {
        return Err(format!("takes {} ranges of {} axes", starts.len(), shape.len()).into());
    }
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if axes.len() != starts.len() || steps.len() != starts.len() {
        return Err("has bounds, axes and steps of different number".into());
    }
    let mut all: Vec<Range> = shape.iter().map(|&len| Range { start: 0, step: 1, len }).collect();
    for (i, &a) in axes.iter().enumerate() {
        let at = axis(a, shape.len())?;
        let size = shape[at] as i64;
        let bound = |v: i64| (if v < 0 { v.saturating_add(size) } else { v }).clamp(0, size);
        let (start, end) = (bound(starts[i]), bound(ends[i]));
        let Some(step) = usize::try_from(steps[i]).ok().filter(|&s| s > 0) else {
            return Err(format!("steps by {}", steps[i]).into());
        };
        let len = (end - start).max(0) as usize;
        all[at] = Range { start: start as usize, step, len: len.div_ceil(step) };
    }
    Ok(all)
}

/// The lengths `Split` cuts an axis of `size` into; `stated` where the node says them itself.
pub fn split_sizes(node: &NodeProto, size: usize, stated: Option<Vec<i64>>) -> Result<Vec<usize>, Problem> {
    let sizes: Option<Vec<usize>> = match stated {
        Some(stated) => stated.iter().map(|&s| usize::try_from(s).ok()).collect(),
        None => {
            // The last part is smaller where it does not come out even.
            let parts = node.output.len().max(1);
            let each = size.div_ceil(parts);
            Some((0..parts).map(|i| each.min(size.saturating_sub(i * each))).collect())
        }
    };
    let total = |sizes: &Vec<usize>| sizes.iter().fold(0_usize, |sum, &s| sum.saturating_add(s));
    match sizes {
        Some(sizes) if total(&sizes) == size && sizes.len() == node.output.len() => Ok(sizes),
        _ => Err(format!("does not cut {size} into {} parts", node.output.len()).into()),
    }
}
