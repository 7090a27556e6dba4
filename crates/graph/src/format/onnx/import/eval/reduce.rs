//! Operators that sum along an axis.

use super::{Array, Call, Problem};
use crate::format::onnx::import::attributes::axis;

/// Sizes before, at and after `axis`.
pub(super) fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

/// `Softmax`; before opset 13 over all axes from the given one on.
pub(super) fn softmax(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let values = x.as_floats()?;
    let at = call.axis(if call.opset < 13 { 1 } else { -1 }, x.shape.len())?;
    call.budget.take(&x.shape)?;
    let [outer, n, inner] = match call.opset {
        ..13 => [x.shape[..at].iter().product(), x.shape[at..].iter().product(), 1],
        _ => around(&x.shape, at),
    };
    let mut out = values.to_vec();
    for o in 0..outer {
        for i in 0..inner {
            let place = |k: usize| (o * n + k) * inner + i;
            let largest = (0..n).map(|k| values[place(k)]).fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for k in 0..n {
                out[place(k)] = (values[place(k)] - largest).exp();
                sum += out[place(k)];
            }
            (0..n).for_each(|k| out[place(k)] /= sum);
        }
    }
    Ok(Array::floats(x.shape.clone(), out))
}

/// `ReduceSum` along one axis.
pub(super) fn sum(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let values = x.as_floats()?;
    let axes = call.numbers("axes", 1)?;
    let Some(&[one]) = axes.as_deref() else { return Err("sums along other than one axis".into()) };
    let at = axis(one, x.shape.len())?;
    let [outer, n, inner] = around(&x.shape, at);
    let mut shape = x.shape.clone();
    shape[at] = 1;
    if call.node.int("keepdims") == Some(0) {
        shape.remove(at);
    }
    call.budget.take(&x.shape)?;
    let mut out = vec![0.0; call.budget.take(&shape)?];
    for o in 0..outer {
        for k in 0..n {
            let from = &values[(o * n + k) * inner..][..inner];
            out[o * inner..][..inner].iter_mut().zip(from).for_each(|(sum, v)| *sum += v);
        }
    }
    Ok(Array::floats(shape, out))
}

/// `Conv` with a kernel of one pixel and one group: how Ultralytics takes the mean of a distribution.
pub(super) fn pointwise_conv(call: &mut Call) -> Result<Array, Problem> {
    let (x, w) = (call.input(0)?, call.input(1)?);
    let simple = ["strides", "dilations"].iter().all(|a| call.node.ints(a).is_none_or(|v| v.iter().all(|&v| v == 1)))
        && call.node.ints("pads").is_none_or(|v| v.iter().all(|&v| v == 0))
        && call.node.int("group").is_none_or(|g| g == 1);
    let (&[n, c, h, wide], &[o, i, 1, 1], true) = (x.shape.as_slice(), w.shape.as_slice(), simple) else {
        return Err(format!("convolves {:?} with {:?} in the decoding", x.shape, w.shape).into());
    };
    if i != c {
        return Err(format!("weight expects {i} channels, the input has {c}").into());
    }
    call.budget.take(&x.shape)?;
    let (values, weights) = (x.as_floats()?, w.as_floats()?);
    let bias = call.optional(2).map(Array::as_floats).transpose()?;
    if bias.is_some_and(|b| b.len() != o) {
        return Err("has not one bias a filter".into());
    }
    let (shape, plane) = (vec![n, o, h, wide], h * wide);
    let mut out = vec![0.0; call.budget.take(&shape)?];
    call.budget.take(&[n, o, c, plane])?;
    for image in 0..n {
        for f in 0..o {
            let row = &mut out[(image * o + f) * plane..][..plane];
            row.fill(bias.map_or(0.0, |b| b[f]));
            for k in 0..c {
                let from = &values[(image * c + k) * plane..][..plane];
                row.iter_mut().zip(from).for_each(|(sum, v)| *sum += weights[f * c + k] * v);
            }
        }
    }
    Ok(Array::floats(shape, out))
}
