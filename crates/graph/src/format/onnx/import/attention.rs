//! Attention, which files write out as reshapes, transposes, two products and a softmax: followed step by step until it is
//! one operator, or until it turns out to be something else.

use std::collections::VecDeque;

use super::attributes::axis;
use super::body::{Body, Value};
use super::problem::Problem;
use super::window::{Range, ranges, split_sizes};
use crate::format::onnx::proto::NodeProto;
use crate::{Attention, NodeId, Op, Shape};

/// How far the factor of the scores may be from `1 / sqrt(key)`, as a share of it.
const FACTOR_TOLERANCE: f64 = 1e-4;

/// Most heads: a file may join maps to more channels than it has bytes, and every head becomes a node.
const MOST_HEADS: usize = 1024;

/// Most axes a step of attention has.
const MOST_AXES: usize = 5;

/// A map on its way through attention, and how it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Turned {
    step: Step,
    axes: Vec<Axis>,
    /// What it is multiplied with; after the softmax what the scores were.
    factor: f32,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Channels of a map. How many, and of which heads, its axes say; the first is `start`.
    Part { of: NodeId, start: usize },
    /// Products of queries with keys.
    Scores(Pairs),
    /// Their softmax over the keys.
    Shares(Pairs),
    /// Values mixed by it, those of the first head from channel `values` on.
    Mixed { pairs: Pairs, values: usize },
}

/// Queries and keys of every head, within every area.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pairs {
    of: NodeId,
    heads: usize,
    /// Channels from one head to the next.
    each: usize,
    areas: usize,
    /// First channels of the first head's queries and keys.
    starts: [usize; 2],
    /// Channels of either.
    key: usize,
}

/// What one axis counts, slowest first; nothing where it has one entry.
type Axis = Vec<Run>;

/// Every `stride`th of something, `len` of them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    kind: Kind,
    stride: usize,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Image,
    Channel,
    /// Of a map, row by row.
    Position,
    /// A position that is attended to.
    Attended,
}

impl Run {
    const fn new(kind: Kind, len: usize) -> Self {
        Self { kind, stride: 1, len }
    }
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
        let step = |i: usize| if let Some(Some(Value::Attention(x))) = inputs.get(i) { Some(x.clone()) } else { None };
        let one = match (node.op_type.as_str(), step(0), step(1)) {
            ("Reshape", _, None) => self.reshaped(inputs)?,
            ("Split", Some(x), None) => return Ok(self.parts(node, &x, inputs)?.map(steps)),
            ("Slice", Some(x), None) => self.part(node, &x, inputs)?,
            ("Mul" | "Div", Some(x), None) => self.scaled(node, x, inputs, 1)?,
            ("Mul", None, Some(x)) => self.scaled(node, x, inputs, 0)?,
            ("Transpose", Some(x), None) => transposed(node, x),
            ("Softmax", Some(x), None) => {
                let at = axis(node.int("axis").unwrap_or(1), x.axes.len())?;
                shares(x, at)
            }
            ("MatMul", Some(a), Some(b)) => self.product(&a, &b),
            _ => None,
        };
        let Some(x) = one else { return Ok(None) };
        let map = self.map(node, &x)?;
        Ok(Some(vec![map.map_or(Value::Attention(x), Value::Map)]))
    }

    /// A map or a step of attention, its axes joined and cut.
    fn reshaped(&mut self, inputs: &[Option<Value>]) -> Result<Option<Turned>, Problem> {
        let x = match inputs.first() {
            Some(Some(Value::Attention(x))) => x.clone(),
            Some(Some(Value::Map(of))) => match lying(self.batch, self.shapes[*of]) {
                Some(axes) => Turned { step: Step::Part { of: *of, start: 0 }, axes, factor: 1.0 },
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let wanted = match inputs.get(1) {
            Some(Some(Value::Const(_) | Value::Weights(_))) => self.constant(inputs, 1)?,
            _ => None,
        };
        let sizes = wanted.and_then(|w| sizes(w.as_ints().ok()?, &x.axes));
        // Five axes at once are a head's anchors.
        let sizes = sizes.filter(|s| s.len() <= 4 || matches!(inputs.first(), Some(Some(Value::Attention(_)))));
        Ok(sizes.and_then(|sizes| regrouped(&x.axes, &sizes)).map(|axes| Turned { axes, ..x }))
    }

    /// The map that `x` is, where it lies as maps do.
    fn map(&mut self, node: &NodeProto, x: &Turned) -> Result<Option<NodeId>, Problem> {
        let of = match x.step {
            Step::Part { of, .. } | Step::Mixed { pairs: Pairs { of, .. }, .. } => of,
            Step::Scores(_) | Step::Shares(_) => return Ok(None),
        };
        let shape = self.shapes[of];
        let (Some(whole), [images, channels, rows, columns]) = (lying(self.batch, shape), &x.axes[..]) else {
            return Ok(None);
        };
        if [images, rows, columns] != [&whole[0], &whole[2], &whole[3]] {
            return Ok(None);
        }
        // Of several heads, and of each its channels.
        let (heads, each, len) = match channels[..] {
            [] => (1, 1, 1),
            [Run { kind: Kind::Channel, stride: 1, len }] => (1, len, len),
            [Run { kind: Kind::Channel, stride, len }] => (len, stride, 1),
            [Run { kind: Kind::Channel, stride, len: heads }, Run { kind: Kind::Channel, stride: 1, len }] => {
                (heads, stride, len)
            }
            _ => return Ok(None),
        };
        match x.step {
            Step::Part { start, .. } if x.factor == 1.0 && heads <= MOST_HEADS => {
                if (start, heads, len) == (0, 1, shape.c) {
                    return Ok(Some(of));
                }
                let mut pieces = Vec::with_capacity(heads);
                for head in 0..heads {
                    let suffix = if heads == 1 { String::new() } else { format!(".{head}") };
                    let op = Op::Slice { start: start + head * each, len };
                    pieces.push(self.push(node, &suffix, op, vec![of])?);
                }
                Ok(Some(match pieces[..] {
                    [only] => only,
                    _ => self.push(node, "", Op::Concat, pieces)?,
                }))
            }
            Step::Mixed { pairs, values } if heads == pairs.heads && (heads == 1 || each == pairs.each) => {
                let op = operator(pairs, [values, len], x.factor, shape.c)?;
                self.push(node, "", Op::Attention(op), vec![of]).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// `Split` of every head's channels.
    fn parts(
        &mut self,
        node: &NodeProto,
        x: &Turned,
        inputs: &[Option<Value>],
    ) -> Result<Option<Vec<Turned>>, Problem> {
        let at = axis(node.int("axis").unwrap_or(0), x.axes.len())?;
        let Some(size) = channels(x, at) else { return Ok(None) };
        let stated = self.numbers_of(node, "split", inputs, 1)?;
        let mut start = 0;
        let lens = split_sizes(node, size, stated)?;
        if lens.contains(&0) {
            return Ok(None);
        }
        let cut = |len: usize| {
            start += len;
            taken(x, at, start - len, len)
        };
        Ok(Some(lens.into_iter().map(cut).collect()))
    }

    /// `Slice` of every head's channels.
    fn part(&mut self, node: &NodeProto, x: &Turned, inputs: &[Option<Value>]) -> Result<Option<Turned>, Problem> {
        let shape: Vec<usize> = x.axes.iter().map(size).collect();
        let all = ranges(&shape, |name, i| self.numbers_of(node, name, inputs, i))?;
        let cut = |i: &usize| all[*i] != Range { start: 0, step: 1, len: shape[*i] };
        let mut cuts = (0..shape.len()).filter(cut);
        Ok(match (cuts.next(), cuts.next()) {
            (None, _) => Some(x.clone()),
            (Some(at), None) if all[at].step == 1 && all[at].len > 0 && channels(x, at).is_some() => {
                Some(taken(x, at, all[at].start, all[at].len))
            }
            _ => None,
        })
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
        Ok(matches!(x.step, Step::Part { .. } | Step::Scores(_)).then_some(Turned { factor, ..x }))
    }

    /// Queries times keys, or values times shares: a sum over the last axis of `a` and the last but one of `b`.
    fn product(&self, a: &Turned, b: &Turned) -> Option<Turned> {
        let (apart, [rows, left]) = a.axes.split_last_chunk()?;
        let (same, [right, columns]) = b.axes.split_last_chunk()?;
        if apart != same {
            return None;
        }
        let attended = |axis: &Axis| axis.iter().map(|r| Run { kind: Kind::Attended, ..*r }).collect::<Axis>();
        let of = |kind: Kind, axis: &Axis| axis.iter().all(|r| r.kind == kind);
        let factor = a.factor * b.factor;
        let (step, columns) = match (a.step, b.step) {
            (Step::Part { of: map, start: queries }, Step::Part { of: other, start: keys }) => {
                let alike = map == other && left == right && rows == columns && of(Kind::Position, rows);
                let key = length(left).filter(|_| alike)?;
                let pairs = self.pairs(map, apart, rows)?;
                (Step::Scores(Pairs { starts: [queries, keys], key, ..pairs }), attended(columns))
            }
            (Step::Shares(pairs), Step::Part { of: map, start: values }) if map == pairs.of && b.factor == 1.0 => {
                (*left == attended(right) && of(Kind::Position, rows) && of(Kind::Channel, columns)).then_some(())?;
                (Step::Mixed { pairs, values }, columns.clone())
            }
            (Step::Part { of: map, start: values }, Step::Shares(pairs)) if map == pairs.of && a.factor == 1.0 => {
                (attended(left) == *right && of(Kind::Position, columns) && of(Kind::Channel, rows)).then_some(())?;
                (Step::Mixed { pairs, values }, columns.clone())
            }
            _ => return None,
        };
        Some(Turned { step, axes: apart.iter().cloned().chain([rows.clone(), columns]).collect(), factor })
    }

    /// Heads and areas of map `of`, where `apart` keeps apart those and the images alone, and `positions` are all of an area.
    fn pairs(&self, of: NodeId, apart: &[Axis], positions: &Axis) -> Option<Pairs> {
        let map = self.shapes[of];
        let count = |kind: Kind| {
            let mut found = apart.iter().flatten().filter(move |r| r.kind == kind);
            match (found.next(), found.next()) {
                (None, _) => Some(Run::new(kind, 1)),
                (Some(one), None) => Some(*one),
                _ => None,
            }
        };
        let (images, heads, areas) = (count(Kind::Image)?, count(Kind::Channel)?, count(Kind::Position)?);
        let area = (map.h * map.w).checked_div(areas.len)?;
        let whole = images.len == self.batch
            && area * areas.len == map.h * map.w
            && (areas.len == 1 || areas.stride == area)
            && *positions == axis_of(Run::new(Kind::Position, area))
            && apart.iter().flatten().all(|r| r.kind != Kind::Attended);
        let each = if heads.len == 1 { map.c } else { heads.stride };
        whole.then_some(Pairs { of, heads: heads.len, each, areas: areas.len, starts: [0; 2], key: 0 })
    }
}

fn steps(steps: Vec<Turned>) -> Vec<Value> {
    steps.into_iter().map(Value::Attention).collect()
}

/// Entries of an axis.
fn size(axis: &Axis) -> usize {
    axis.iter().map(|run| run.len).product()
}

/// An axis of one run.
fn axis_of(run: Run) -> Axis {
    if run.len == 1 { vec![] } else { vec![run] }
}

/// How many channels in a row an axis counts.
fn length(axis: &Axis) -> Option<usize> {
    match axis[..] {
        [] => Some(1),
        [Run { kind: Kind::Channel, stride: 1, len }] => Some(len),
        _ => None,
    }
}

/// The axes of a map, (N, C, H, W); `None` where it is empty.
fn lying(batch: usize, map: Shape) -> Option<Vec<Axis>> {
    let Shape { c, h, w } = map;
    let rows = Run { kind: Kind::Position, stride: w, len: h };
    let runs = [Run::new(Kind::Image, batch), Run::new(Kind::Channel, c), rows, Run::new(Kind::Position, w)];
    runs.iter().all(|r| r.len > 0).then(|| runs.map(axis_of).to_vec())
}

/// The sizes `wanted` says, an axis left open among them, for as many values as `before` has.
fn sizes(wanted: &[i64], before: &[Axis]) -> Option<Vec<usize>> {
    if wanted.len() > MOST_AXES {
        return None;
    }
    let mut after = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (i, &d) in wanted.iter().enumerate() {
        after.push(match d {
            0 => size(before.get(i)?),
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            d => usize::try_from(d).ok()?,
        });
    }
    let all: usize = before.iter().map(size).product();
    let known = after.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))?;
    if let Some(open) = open {
        after[open] = all.checked_div(known)?;
    }
    (after.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))? == all).then_some(after)
}

/// The same values in the same order, axes of these sizes; `None` where one would end in the midst of a run it does not
/// divide.
fn regrouped(axes: &[Axis], sizes: &[usize]) -> Option<Vec<Axis>> {
    let mut runs: VecDeque<Run> = axes.iter().flatten().copied().collect();
    let mut after = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let (mut axis, mut left) = (Axis::new(), size);
        while left > 1 {
            let first = runs.front_mut()?;
            let run = if left % first.len == 0 {
                runs.pop_front()?
            } else if first.len % left == 0 {
                first.len /= left;
                Run { stride: first.stride * first.len, len: left, ..*first }
            } else {
                return None;
            };
            left /= run.len;
            match axis.last_mut() {
                Some(last) if last.kind == run.kind && last.stride == run.stride * run.len => {
                    (last.stride, last.len) = (run.stride, last.len * run.len);
                }
                _ => axis.push(run),
            }
        }
        after.push(axis);
    }
    runs.is_empty().then_some(after)
}

fn transposed(node: &NodeProto, x: Turned) -> Option<Turned> {
    let order: Vec<usize> = match node.ints("perm") {
        Some(order) => order.iter().map(|&i| usize::try_from(i).ok()).collect::<Option<_>>()?,
        None => (0..x.axes.len()).rev().collect(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    let all = sorted.iter().copied().eq(0..x.axes.len());
    all.then(|| Turned { axes: order.iter().map(|&i| x.axes[i].clone()).collect(), ..x })
}

/// How many channels axis `at` of a part counts; `None` where it counts anything else.
fn channels(x: &Turned, at: usize) -> Option<usize> {
    match (x.step, &x.axes[at][..]) {
        (Step::Part { .. }, [Run { kind: Kind::Channel, stride: 1, len }]) => Some(*len),
        _ => None,
    }
}

/// Channels `from..from + len` of axis `at`, which counts channels.
fn taken(x: &Turned, at: usize, from: usize, len: usize) -> Turned {
    let mut x = x.clone();
    if let Step::Part { start, .. } = &mut x.step {
        *start += from;
    }
    x.axes[at] = axis_of(Run::new(Kind::Channel, len));
    x
}

/// The softmax of scores, along the axis of what is attended to.
fn shares(x: Turned, at: usize) -> Option<Turned> {
    let over = !x.axes[at].is_empty() && x.axes[at].iter().all(|r| r.kind == Kind::Attended);
    match x.step {
        // What the scores are multiplied with is kept, to be looked at in the end.
        Step::Scores(pairs) if over => Some(Turned { step: Step::Shares(pairs), ..x }),
        _ => None,
    }
}

/// The operator that mixes so, where there is one: first channel and number of the values, all channels of the map.
fn operator(pairs: Pairs, [values, value]: [usize; 2], factor: f32, channels: usize) -> Result<Attention, Problem> {
    let Pairs { heads, each, areas, starts, key, .. } = pairs;
    let op = Attention { heads, key, value, areas };
    let laid = [starts[0], starts[1], values] == op.starts(0) && each == op.head_channels();
    if !laid || heads.saturating_mul(each) != channels {
        return Err(Problem::new(
            "ends an attention whose queries, keys and values do not follow each other head by head",
        )
        .hint("export it as YOLOv10, YOLO11, YOLO12 or YOLO26 is"));
    }
    if (f64::from(factor) / op.scale() - 1.0).abs() > FACTOR_TOLERANCE {
        return Err(Problem::new(format!("ends an attention whose scores are multiplied with {factor}"))
            .hint(format!("with keys of {} channels only {} has a counterpart here", op.key, op.scale())));
    }
    Ok(op)
}
