//! Attention, which files write out as reshapes, two products and a softmax: followed step by step until it is one operator,
//! or until it turns out to be something else.

use super::attributes::axis;
use super::body::{Body, Value};
use super::problem::Problem;
use super::window::{Range, ranges, split_sizes};
use crate::format::onnx::proto::NodeProto;
use crate::{Attention, NodeId, Op};

/// How far the factor of the scores may be from `1 / sqrt(key)`, as a share of it.
const FACTOR_TOLERANCE: f64 = 1e-4;

/// Most heads: a file may join maps to more channels than it has bytes, and every head becomes a node.
const MOST_HEADS: usize = 1024;

/// A map on its way through attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Channels of every head by position: (N, heads, channels, H * W).
    Part(Part),
    /// Products of all queries with all keys: (N, heads, H * W, H * W).
    Scores { queries: Part, keys: Part },
    /// Their softmax over the keys.
    Shares { queries: Part, keys: Part },
    /// Values mixed by it: (N, heads, channels, H * W).
    Mixed { queries: Part, keys: Part, values: Part },
}

/// A step and how it lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turned {
    step: Step,
    /// Its last two axes have changed places.
    turned: bool,
    /// What it is multiplied with; after the softmax what the scores were.
    factor: f32,
}

/// Channels `start..start + len` of each of the `heads` equal parts of a map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    of: NodeId,
    heads: usize,
    start: usize,
    len: usize,
}

impl Body<'_> {
    /// What a node makes of a map or of a step of attention; `None` if that is no step of it.
    ///
    /// # Errors
    /// It is attention to its end, but not as any detector here has it.
    pub(super) fn attention(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Result<Option<Vec<Value>>, Problem> {
        let step = |i: usize| if let Some(Some(Value::Attention(x))) = inputs.get(i) { Some(*x) } else { None };
        let one = match (node.op_type.as_str(), step(0), step(1)) {
            ("Reshape", _, None) => return Ok(self.reshaped(node, inputs)?.map(|value| vec![value])),
            ("Split", Some(x), None) => return Ok(self.parts(node, x, inputs)?.map(steps)),
            ("Slice", Some(x), None) => self.part(node, x, inputs)?,
            ("Mul" | "Div", Some(x), None) => self.scaled(node, x, inputs, 1)?,
            ("Mul", None, Some(x)) => self.scaled(node, x, inputs, 0)?,
            ("Transpose", Some(x), None) if node.ints("perm") == Some(&[0, 1, 3, 2]) => {
                Some(Turned { turned: !x.turned, ..x })
            }
            ("Softmax", Some(x), None) if axis(node.int("axis").unwrap_or(1), 4)? == 3 => shares(x),
            ("MatMul", Some(a), Some(b)) => product(a, b),
            _ => None,
        };
        Ok(one.map(|x| steps(vec![x])))
    }

    /// A map by heads and positions, or the other way round.
    fn reshaped(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Result<Option<Value>, Problem> {
        let of = match inputs.first() {
            Some(Some(Value::Map(of))) => *of,
            Some(Some(Value::Attention(Turned { step: Step::Part(part), turned: false, factor: 1.0 }))) => part.of,
            Some(Some(Value::Attention(Turned { step: Step::Mixed { values, .. }, turned: false, .. }))) => values.of,
            _ => return Ok(None),
        };
        let map = self.shapes[of];
        let positions = map.h.saturating_mul(map.w);
        let before = match inputs.first() {
            Some(Some(Value::Map(_))) => [self.batch, map.c, map.h, map.w],
            Some(Some(Value::Attention(Turned { step: Step::Part(p) | Step::Mixed { values: p, .. }, .. }))) => {
                [self.batch, p.heads, p.len, positions]
            }
            _ => return Ok(None),
        };
        let wanted = match inputs.get(1) {
            Some(Some(Value::Const(_) | Value::Weights(_))) => self.constant(inputs, 1)?,
            _ => None,
        };
        let Some(after) = wanted.and_then(|w| axes(w.as_ints().ok()?, before)) else { return Ok(None) };
        let whole = |p: Part| [self.batch, p.heads.saturating_mul(p.len), map.h, map.w];
        match inputs.first() {
            Some(Some(Value::Map(_))) => {
                let [batch, heads, len, last] = after;
                let fits = batch == self.batch && heads.checked_mul(len) == Some(map.c) && last == positions;
                let part = Part { of, heads, start: 0, len };
                let step = Turned { step: Step::Part(part), turned: false, factor: 1.0 };
                Ok((fits && (1..=MOST_HEADS).contains(&heads)).then_some(Value::Attention(step)))
            }
            Some(Some(Value::Attention(Turned { step: Step::Part(part), .. }))) if after == whole(*part) => {
                self.gathered(node, *part).map(|id| Some(Value::Map(id)))
            }
            Some(Some(Value::Attention(Turned { step: Step::Mixed { queries, keys, values }, factor, .. })))
                if after == whole(*values) =>
            {
                let op = operator([*queries, *keys, *values], *factor, map.c)?;
                self.push(node, "", Op::Attention(op), vec![of]).map(|id| Some(Value::Map(id)))
            }
            _ => Ok(None),
        }
    }

    /// The channels of a part, head by head, as a map of their own.
    fn gathered(&mut self, node: &NodeProto, part: Part) -> Result<NodeId, Problem> {
        let each = self.shapes[part.of].c / part.heads;
        let mut pieces = Vec::with_capacity(part.heads);
        for head in 0..part.heads {
            let op = Op::Slice { start: head * each + part.start, len: part.len };
            pieces.push(self.push(node, &format!(".{head}"), op, vec![part.of])?);
        }
        match pieces[..] {
            [only] => Ok(only),
            _ => self.push(node, "", Op::Concat, pieces),
        }
    }

    /// `Split` of every head's channels.
    fn parts(&mut self, node: &NodeProto, x: Turned, inputs: &[Option<Value>]) -> Result<Option<Vec<Turned>>, Problem> {
        let Step::Part(part) = x.step else { return Ok(None) };
        if axis(node.int("axis").unwrap_or(0), 4)? != if x.turned { 3 } else { 2 } {
            return Ok(None);
        }
        let stated = match node.ints("split") {
            Some(sizes) => Some(sizes.to_vec()),
            None => self.constant(inputs, 1)?.map(|a| a.as_ints().map(<[i64]>::to_vec)).transpose()?,
        };
        let mut start = part.start;
        let cut = |len: usize| {
            let step = Step::Part(Part { start, len, ..part });
            start += len;
            Turned { step, ..x }
        };
        Ok(Some(split_sizes(node, part.len, stated)?.into_iter().map(cut).collect()))
    }

    /// `Slice` of every head's channels.
    fn part(&mut self, node: &NodeProto, x: Turned, inputs: &[Option<Value>]) -> Result<Option<Turned>, Problem> {
        let Step::Part(part) = x.step else { return Ok(None) };
        let map = self.shapes[part.of];
        let mut shape = [self.batch, part.heads, part.len, map.h.saturating_mul(map.w)];
        if x.turned {
            shape.swap(2, 3);
        }
        let mut numbers = [const { None }; 4];
        for (i, (slot, name)) in numbers.iter_mut().zip(["starts", "ends", "axes", "steps"]).enumerate() {
            *slot = match node.ints(name) {
                Some(values) => Some(values.to_vec()),
                None => self.constant(inputs, i + 1)?.map(|a| a.as_ints().map(<[i64]>::to_vec)).transpose()?,
            };
        }
        let [starts, ends, axes, steps] = numbers;
        let all = ranges(&shape, starts, ends, axes, steps)?;
        let channels = if x.turned { 3 } else { 2 };
        let others = (0..4).filter(|&i| i != channels);
        let whole = others.into_iter().all(|i| all[i] == Range { start: 0, step: 1, len: shape[i] });
        let Range { start, step, len } = all[channels];
        let taken = Step::Part(Part { start: part.start + start, len, ..part });
        Ok((whole && step == 1 && len > 0).then_some(Turned { step: taken, ..x }))
    }

    /// Multiplied with, or divided by, the single number of input `i`.
    fn scaled(
        &mut self,
        node: &NodeProto,
        x: Turned,
        inputs: &[Option<Value>],
        i: usize,
    ) -> Result<Option<Turned>, Problem> {
        let number = match inputs.get(i) {
            Some(Some(Value::Const(_) | Value::Weights(_))) => self.constant(inputs, i)?,
            _ => None,
        };
        let Some(by) = number.filter(|a| a.len() == 1).and_then(|a| a.as_floats().ok()?.first().copied()) else {
            return Ok(None);
        };
        let factor = if node.op_type == "Div" { x.factor / by } else { x.factor * by };
        // Of queries, keys or their products: further on it would be another factor.
        Ok(matches!(x.step, Step::Part(_) | Step::Scores { .. }).then_some(Turned { factor, ..x }))
    }
}

fn steps(steps: Vec<Turned>) -> Vec<Value> {
    steps.into_iter().map(Value::Attention).collect()
}

/// The four axes `wanted` says, an axis left open among them, of as many values as `before` has.
fn axes(wanted: &[i64], before: [usize; 4]) -> Option<[usize; 4]> {
    let wanted: [i64; 4] = wanted.try_into().ok()?;
    let product = |axes: &[usize]| axes.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    let (mut after, mut open) = ([1; 4], None);
    for (i, &d) in wanted.iter().enumerate() {
        match d {
            0 => after[i] = before[i],
            -1 if open.is_none() => open = Some(i),
            d => after[i] = usize::try_from(d).ok()?,
        }
    }
    if let Some(open) = open {
        after[open] = product(&before)?.checked_div(product(&after)?)?;
    }
    (product(&after)? == product(&before)?).then_some(after)
}

fn shares(x: Turned) -> Option<Turned> {
    match x {
        Turned { step: Step::Scores { queries, keys }, turned: false, factor } => {
            // What the scores are multiplied with is kept, to be looked at in the end.
            Some(Turned { step: Step::Shares { queries, keys }, turned: false, factor })
        }
        _ => None,
    }
}

/// Queries times keys, or values times shares.
fn product(a: Turned, b: Turned) -> Option<Turned> {
    let (step, turned) = match (a.step, b.step) {
        (Step::Part(queries), Step::Part(keys)) if a.turned && !b.turned => (Step::Scores { queries, keys }, false),
        (Step::Part(values), Step::Shares { queries, keys }) if !a.turned && b.turned && a.factor == 1.0 => {
            (Step::Mixed { queries, keys, values }, false)
        }
        (Step::Shares { queries, keys }, Step::Part(values)) if !a.turned && b.turned && b.factor == 1.0 => {
            (Step::Mixed { queries, keys, values }, true)
        }
        _ => return None,
    };
    Some(Turned { step, turned, factor: a.factor * b.factor })
}

/// The operator that mixes so, where there is one.
fn operator([queries, keys, values]: [Part; 3], factor: f32, channels: usize) -> Result<Attention, Problem> {
    let op = Attention { heads: queries.heads, key: queries.len, value: values.len, areas: 1 };
    let [q, k, v] = op.starts(0);
    let one = |part: Part, start: usize, len: usize| part == Part { of: queries.of, heads: op.heads, start, len };
    let laid = one(queries, q, op.key) && one(keys, k, op.key) && one(values, v, op.value);
    if !laid || op.heads.saturating_mul(op.head_channels()) != channels {
        return Err(Problem::new(
            "ends an attention whose queries, keys and values do not follow each other head by head",
        )
        .hint("export it as YOLOv10, YOLO11 or YOLO26 is"));
    }
    if (f64::from(factor) / op.scale() - 1.0).abs() > FACTOR_TOLERANCE {
        return Err(Problem::new(format!("ends an attention whose scores are multiplied with {factor}"))
            .hint(format!("with keys of {} channels only {} has a counterpart here", op.key, op.scale())));
    }
    Ok(op)
}
