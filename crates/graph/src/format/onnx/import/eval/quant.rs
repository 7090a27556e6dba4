//! Weights kept as whole numbers.

use super::Call;
use crate::format::onnx::import::array::Array;
use crate::format::onnx::import::attributes::axis;
use crate::format::onnx::import::problem::Problem;

/// `(x - zero) * scale`, one scale for all or one for each index of an axis.
pub fn dequantize(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let values = x.as_ints()?;
    let scales = call.input(1)?.as_floats()?;
    let zeros = call.optional(2).map(Array::as_ints).transpose()?;
    if call.node.int("block_size").unwrap_or(0) != 0 {
        return Err(Problem::new("has a scale for each block of an axis")
            .hint("scales for a whole tensor or for each filter can be read; quantise the model so"));
    }
    if zeros.is_some_and(|z| z.len() != scales.len()) {
        return Err(format!("has {} scales and {} zeros", scales.len(), zeros.map_or(0, <[i64]>::len)).into());
    }
    // One scale stands for all, whatever its axis is said to be.
    let inner = match scales.len() {
        1 => values.len(),
        n => {
            let axis = axis(call.node.int("axis").unwrap_or(1), x.shape.len())?;
            if x.shape[axis] != n {
                return Err(format!("has {n} scales for axis {axis} of a tensor of {:?}", x.shape).into());
            }
            x.shape[axis + 1..].iter().product()
        }
    };
    call.budget.take(&x.shape)?;
    let of = |i: usize| {
        let k = i / inner.max(1) % scales.len();
        (scales[k], zeros.map_or(0, |z| z[k]))
    };
    let value = |(i, &q): (usize, &i64)| {
        let (scale, zero) = of(i);
        q.saturating_sub(zero) as f32 * scale
    };
    Ok(Array::floats(x.shape.clone(), values.iter().enumerate().map(value).collect()))
}
