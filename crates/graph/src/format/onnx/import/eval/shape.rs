//! Operators that move values about, or compute shapes.

use super::broadcast::Odometer;
use super::reduce::around;
use super::{Array, Call, Data, Problem};
use crate::format::onnx::import::attributes::axis;
use crate::format::onnx::import::window::{ranges, split_sizes};

pub(super) fn constant_of_shape(call: &mut Call) -> Result<Array, Problem> {
    let dims: Option<Vec<usize>> = call.input(0)?.as_ints()?.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = dims.ok_or_else(|| Problem::new("fills a negative size"))?;
    let len = call.budget.take(&shape)?;
    let value = match call.node.any("value").and_then(|a| a.t.as_deref()) {
        Some(tensor) => Array::decode(tensor)?.data,
        None => Data::Floats(vec![0.0]),
    };
    let data = match value {
        Data::Floats(v) => Data::Floats(vec![*v.first().ok_or("fills with nothing")?; len]),
        Data::Ints(v) => Data::Ints(vec![*v.first().ok_or("fills with nothing")?; len]),
    };
    Ok(Array { shape, data })
}

pub(super) fn range(call: &mut Call) -> Result<Array, Problem> {
    let mut all = [0; 3];
    for (i, value) in all.iter_mut().enumerate() {
        let &[v] = call.input(i)?.as_ints()? else { return Err("counts by other than whole numbers".into()) };
        *value = v;
    }
    let [start, limit, step] = all;
    let span = limit.checked_sub(start).ok_or("counts too far")?;
    let count = match step {
        0 => return Err("counts by 0".into()),
        _ => span.checked_div(step).ok_or("counts too far")? + i64::from(span % step != 0),
    };
    let count = usize::try_from(count).unwrap_or(0);
    call.budget.take(&[count])?;
    Ok(Array::ints((0..count as i64).map(|i| start + i * step).collect()))
}

/// `x` with the same values in another shape.
fn reshaped(call: &mut Call, shape: Vec<usize>) -> Result<Array, Problem> {
    let x = call.input(0)?;
    if call.budget.take(&shape)? != x.len() {
        return Err(format!("makes {shape:?} of {:?}", x.shape).into());
    }
    Ok(Array { shape, data: x.data.clone() })
}

pub(super) fn reshape(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let wanted = call.numbers("shape", 1)?.ok_or("is not told its shape")?;
    let literal = call.node.int("allowzero") == Some(1);
    let wrong = || Problem::new(format!("makes {wanted:?} of {:?}", x.shape));
    let mut open = None;
    let mut shape = Vec::with_capacity(wanted.len());
    for (i, &d) in wanted.iter().enumerate() {
        shape.push(match d {
            0 if !literal => *x.shape.get(i).ok_or_else(wrong)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            d => usize::try_from(d).map_err(|_| wrong())?,
        });
    }
    if let Some(open) = open {
        let rest = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).filter(|&n| n > 0).ok_or_else(wrong)?;
        shape[open] = x.len() / rest;
    }
    reshaped(call, shape)
}

pub(super) fn flatten(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let at = match call.node.int("axis").unwrap_or(1) {
        all if all == x.shape.len() as i64 => x.shape.len(),
        other => axis(other, x.shape.len())?,
    };
    let shape = vec![x.shape[..at].iter().product(), x.shape[at..].iter().product()];
    reshaped(call, shape)
}

pub(super) fn squeeze(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let mut drop: Vec<bool> = x.shape.iter().map(|&d| d == 1).collect();
    if let Some(axes) = call.numbers("axes", 1)? {
        let named = axes.iter().map(|&a| axis(a, x.shape.len())).collect::<Result<Vec<_>, _>>()?;
        if named.iter().any(|&a| x.shape[a] != 1) {
            return Err(format!("drops axes {axes:?} of {:?}", x.shape).into());
        }
        drop.fill(false);
        named.iter().for_each(|&a| drop[a] = true);
    }
    let shape = x.shape.iter().zip(&drop).filter(|(_, drop)| !**drop).map(|(&d, _)| d).collect();
    reshaped(call, shape)
}

pub(super) fn unsqueeze(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let axes = call.numbers("axes", 1)?.ok_or("is not told its axes")?;
    if axes.len() > 8 {
        return Err(format!("adds {} axes", axes.len()).into());
    }
    let total = x.shape.len() + axes.len();
    let mut new = vec![false; total];
    for &a in &axes {
        new[axis(a, total)?] = true;
    }
    let mut old = x.shape.iter();
    let shape = new.iter().map(|&one| if one { Some(1) } else { old.next().copied() }).collect::<Option<_>>();
    reshaped(call, shape.ok_or("adds one axis twice")?)
}

/// Values of `x` at `offset` and steps of `strides` along every axis of `shape`.
fn strided(call: &mut Call, shape: Vec<usize>, offset: usize, strides: &Vec<usize>) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let len = call.budget.take(&shape)?;
    let mut index = Odometer::new(&shape, [strides]);
    let mut next = || offset + index.next()[0];
    let data = match &x.data {
        Data::Floats(v) => Data::Floats((0..len).map(|_| v[next()]).collect()),
        Data::Ints(v) => Data::Ints((0..len).map(|_| v[next()]).collect()),
    };
    Ok(Array { shape, data })
}

/// Values between neighbours along every axis.
fn steps(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}

pub(super) fn transpose(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let axes = x.shape.len();
    let order: Vec<usize> = match call.node.ints("perm") {
        Some(perm) => perm.iter().map(|&p| axis(p, axes)).collect::<Result<_, _>>()?,
        None => (0..axes).rev().collect(),
    };
    let mut seen = order.clone();
    seen.sort_unstable();
    if !seen.into_iter().eq(0..axes) {
        return Err(format!("orders {axes} axes as {order:?}").into());
    }
    let steps = steps(&x.shape);
    let strides = order.iter().map(|&a| steps[a]).collect();
    strided(call, order.iter().map(|&a| x.shape[a]).collect(), 0, &strides)
}

pub(super) fn slice(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let ranges = ranges(&x.shape, |name, i| call.numbers(name, i))?;
    let steps = steps(&x.shape);
    let offset = ranges.iter().zip(&steps).map(|(r, s)| r.start * s).sum();
    let strides = ranges.iter().zip(&steps).map(|(r, s)| r.step * s).collect();
    strided(call, ranges.iter().map(|r| r.len).collect(), offset, &strides)
}

pub(super) fn split(call: &mut Call) -> Result<Vec<Array>, Problem> {
    let x = call.input(0)?;
    let at = call.axis(0, x.shape.len())?;
    let sizes = split_sizes(call.node, x.shape[at], call.numbers("split", 1)?)?;
    let steps = steps(&x.shape);
    let mut start = 0;
    let mut parts = Vec::with_capacity(sizes.len());
    for size in sizes {
        let mut shape = x.shape.clone();
        shape[at] = size;
        parts.push(strided(call, shape, start * steps[at], &steps)?);
        start += size;
    }
    Ok(parts)
}

pub(super) fn concat(call: &mut Call) -> Result<Array, Problem> {
    let parts = (0..call.inputs.len()).map(|i| call.input(i)).collect::<Result<Vec<_>, _>>()?;
    let first = *parts.first().ok_or("joins nothing")?;
    let at = call.axis(0, first.shape.len())?;
    let mut shape = first.shape.clone();
    shape[at] = 0;
    for part in &parts {
        let fits = part.shape.len() == shape.len() && (0..shape.len()).all(|i| i == at || part.shape[i] == shape[i]);
        if !fits {
            return Err(format!("joins {:?} and {:?} along axis {at}", first.shape, part.shape).into());
        }
        shape[at] = shape[at].saturating_add(part.shape[at]);
    }
    let len = call.budget.take(&shape)?;
    let outer = shape[..at].iter().product::<usize>();
    let chunk = |part: &Array| part.len() / outer.max(1);
    let data = match first.data {
        Data::Floats(_) => {
            let all = parts.iter().map(|p| p.as_floats()).collect::<Result<Vec<_>, _>>()?;
            let mut out = Vec::with_capacity(len);
            for o in 0..outer {
                all.iter().zip(&parts).for_each(|(v, p)| out.extend_from_slice(&v[o * chunk(p)..][..chunk(p)]));
            }
            Data::Floats(out)
        }
        Data::Ints(_) => {
            let all = parts.iter().map(|p| p.as_ints()).collect::<Result<Vec<_>, _>>()?;
            let mut out = Vec::with_capacity(len);
            for o in 0..outer {
                all.iter().zip(&parts).for_each(|(v, p)| out.extend_from_slice(&v[o * chunk(p)..][..chunk(p)]));
            }
            Data::Ints(out)
        }
    };
    Ok(Array { shape, data })
}

pub(super) fn gather(call: &mut Call) -> Result<Array, Problem> {
    let (x, index) = (call.input(0)?, call.input(1)?);
    let at = call.axis(0, x.shape.len())?;
    let picks = index.as_ints()?.iter().map(|&i| axis(i, x.shape[at])).collect::<Result<Vec<_>, _>>()?;
    let shape = [&x.shape[..at], &index.shape, &x.shape[at + 1..]].concat();
    call.budget.take(&shape)?;
    let [outer, n, inner] = around(&x.shape, at);
    let places = (0..outer).flat_map(|o| picks.iter().map(move |&p| (o * n + p) * inner));
    let data = match &x.data {
        Data::Floats(v) => Data::Floats(places.flat_map(|p| v[p..p + inner].iter().copied()).collect()),
        Data::Ints(v) => Data::Ints(places.flat_map(|p| v[p..p + inner].iter().copied()).collect()),
    };
    Ok(Array { shape, data })
}
