//! How much is to go: budgets, the sizes they are measured in, and a tracker that prices each removal as it is made.

use std::sync::Arc;

use graph::{Branch, Graph, NodeId, Op, Shape, cost};
use serde::{Deserialize, Serialize};

use crate::coupling::is_dense;
use crate::latency::Table;
use crate::surgery::{BiasHome, bias_home};
use crate::{ClassId, Coupling, Error, Latency, Result};

/// The size of a network in the units budgets are given in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Trainable values, as [`cost::Cost::params`].
    pub params: u64,
    /// Multiply-accumulates for one image of the network's own size, as [`cost::Cost::macs`].
    pub macs: u64,
    /// Output channels of dense convolutions that may be removed.
    pub channels: u64,
    /// Bytes of all values in the native file, four each: weights, biases, BatchNorms with their running statistics. The
    /// file's header comes on top.
    #[serde(default)]
    pub bytes: u64,
    /// Nanoseconds for one image by a table of times; 0 where there is no table.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nanos: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Size {
    /// Measures a graph for one image of `graph.meta.imgsz`.
    ///
    /// # Errors
    /// The graph's shapes do not fit.
    pub fn of(graph: &Graph, coupling: &Coupling) -> Result<Self> {
        Self::timed(graph, coupling, None)
    }

    /// The same with the time that `latency` gives.
    ///
    /// # Errors
    /// The graph's shapes do not fit, or `latency` is not of this network.
    pub fn timed(graph: &Graph, coupling: &Coupling, latency: Option<&Latency>) -> Result<Self> {
        let cost = cost::total(graph, graph.meta.imgsz)?;
        let free = coupling.classes.iter().filter(|c| c.pinned.is_none());
        let channels = free.map(|c| c.members.len() as u64).sum();
        let values = graph.nodes.iter().flat_map(|n| n.op.weights()).map(|(_, values)| values.len() as u64);
        let nanos = latency.map_or(Ok(0), |latency| latency.total(graph))?;
        Ok(Self { params: cost.params, macs: cost.macs, channels, bytes: 4 * values.sum::<u64>(), nanos })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            params: self.params + other.params,
            macs: self.macs + other.macs,
            channels: self.channels + other.channels,
            bytes: self.bytes + other.bytes,
            nanos: self.nanos + other.nanos,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            params: self.params.saturating_sub(other.params),
            macs: self.macs.saturating_sub(other.macs),
            channels: self.channels.saturating_sub(other.channels),
            bytes: self.bytes.saturating_sub(other.bytes),
            nanos: self.nanos.saturating_sub(other.nanos),
        }
    }
}

/// How much of something to keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Amount {
    /// A share of the reference's, in (0, 1].
    Share(f64),
    /// As much as this, in the unit of what it is an amount of.
    Absolute(f64),
}

/// What the user asks for, relative to a reference network (usually the dense one). At least one limit must be given;
/// where several are, all must be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Share of the parameters to keep, in (0, 1].
    pub params: Option<f64>,
    /// Share of the multiply-accumulates to keep, in (0, 1].
    pub macs: Option<f64>,
    /// Share of the prunable channels to remove, in [0, 1): the pruning rate.
    pub rate: Option<f64>,
    /// Bytes of the values in the native file.
    pub bytes: Option<Amount>,
    /// Milliseconds for one image.
    pub latency: Option<Amount>,
}

impl Budget {
    /// The budget in absolute numbers, without a table of times.
    ///
    /// # Errors
    /// No limit is given, one is out of its range, or one is of time.
    pub fn target(&self, reference: Size) -> Result<Target> {
        self.timed_target(reference, None)
    }

    /// The budget in absolute numbers; `latency` is what times are read from.
    ///
    /// # Errors
    /// No limit is given, one is out of its range, or one is of time and there is no table of times.
    pub fn timed_target(&self, reference: Size, latency: Option<Arc<Latency>>) -> Result<Target> {
        let share = |option, value: Option<f64>, of: u64| match value {
            Some(v) if !(v > 0.0 && v <= 1.0) => Err(Error::Setting {
                option,
                what: format!("is {v}, not a share in (0, 1]"),
                help: "give the share to keep (`params`, `macs`, `bytes`, `latency`) or to remove (`rate`), such as 0.5",
            }),
            value => Ok(value.map(|v| (v * of as f64).round() as u64)),
        };
        let amount = |option, value: Option<Amount>, of: u64, unit: f64| match value {
            None => Ok(None),
            Some(Amount::Share(v)) => share(option, Some(v), of),
            Some(Amount::Absolute(v)) if v.is_finite() && v > 0.0 => Ok(Some((v * unit).round() as u64)),
            Some(Amount::Absolute(v)) => {
                let help = "give how much to keep, more than nothing";
                Err(Error::Setting { option, what: format!("is {v}"), help })
            }
        };
        if self.latency.is_some() && latency.is_none() {
            let help = "measure it on this machine";
            return Err(Error::Setting { option: "latency", what: "has no table of times".into(), help });
        }
        let target = Target {
            params: share("params", self.params, reference.params)?,
            macs: share("macs", self.macs, reference.macs)?,
            channels: share("rate", self.rate.map(|r| 1.0 - r), reference.channels)?,
            bytes: amount("bytes", self.bytes, reference.bytes, 1.0)?,
            nanos: amount("latency", self.latency, reference.nanos, 1e6)?,
            reference,
            latency,
        };
        if target.limits(reference).next().is_none() {
            return Err(Error::Setting {
                option: "budget",
                what: "names no limit".into(),
                help: "give at least one of `params`, `macs`, `rate`, `bytes` and `latency`",
            });
        }
        Ok(target)
    }
}

/// A budget in absolute numbers: the size a network must come down to, in each unit that is limited.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The network the limits are shares of; it only weighs the units against each other.
    pub reference: Size,
    pub params: Option<u64>,
    pub macs: Option<u64>,
    pub channels: Option<u64>,
    pub bytes: Option<u64>,
    pub nanos: Option<u64>,
    /// What times are read from.
    pub latency: Option<Arc<Latency>>,
}

/// One unit of a budget: what there is, what is allowed, what there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The budget's name for it.
    pub unit: &'static str,
    pub now: u64,
    pub limit: u64,
    pub reference: u64,
}

impl Target {
    /// True where `size` is within every limit.
    pub fn met(&self, size: Size) -> bool {
        self.limits(size).all(|l| l.now <= l.limit)
    }

    /// What stage 1 has to reach so that stage 2 is left with the share `similarity` (0..=1) of the way from `now`.
    pub fn before_similarity(&self, now: Size, similarity: f64) -> Self {
        self.before(now, |now, limit| {
            limit + (now.saturating_sub(limit) as f64 * similarity.clamp(0.0, 1.0)).round() as u64
        })
    }

    /// What a network of size `now` has to reach first, where it goes the way in steps that each take the same share of what is left:
    /// `part` (0..=1) is one step's of all.
    pub fn part_of_the_way(&self, now: Size, part: f64) -> Self {
        self.before(now, |now, limit| {
            let now = now.max(limit) as f64;
            let share = limit as f64 / now.max(1.0);
            (now * share.powf(part)).round() as u64
        })
    }

    /// Every limit as `stop` has it on the way, from what there is now and the limit itself.
    fn before(&self, now: Size, stop: impl Fn(u64, u64) -> u64) -> Self {
        let part = |now: u64, limit: Option<u64>| limit.map(|limit| stop(now, limit));
        Self {
            reference: self.reference,
            params: part(now.params, self.params),
            macs: part(now.macs, self.macs),
            channels: part(now.channels, self.channels),
            bytes: part(now.bytes, self.bytes),
            nanos: part(now.nanos, self.nanos),
            latency: self.latency.clone(),
        }
    }

    /// How far `saved` gets a network of size `now` towards the limits it still exceeds: the sum of the shares of the
    /// reference that it saves. What is saved beyond a limit does not count, so that a large step is not taken for a small rest.
    pub(crate) fn progress(&self, saved: Size, now: Size) -> f64 {
        let missing = self.limits(now).map(|l| l.now.saturating_sub(l.limit));
        let counts = |(l, missing): (Limit, u64)| l.now.min(missing) as f64 / l.reference.max(1) as f64;
        self.limits(saved).zip(missing).map(counts).sum()
    }

    /// Every unit that is limited, as it is in `size`.
    pub fn limits(&self, size: Size) -> impl Iterator<Item = Limit> {
        let r = self.reference;
        let all = [
            ("params", size.params, self.params, r.params),
            ("macs", size.macs, self.macs, r.macs),
            ("rate", size.channels, self.channels, r.channels),
            ("bytes", size.bytes, self.bytes, r.bytes),
            ("latency", size.nanos, self.nanos, r.nanos),
        ];
        all.into_iter().filter_map(|(unit, now, limit, reference)| Some(Limit { unit, now, limit: limit?, reference }))
    }
}

/// What every layer keeps whatever the scores say. The rules apply to each [`crate::Set`]: a whole layer, as a rule, or the
/// half of it that a slice takes. No set is ever emptied but with the whole residual branch it is in
/// ([`crate::Similarity::shortcuts`]).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Channels a set keeps at least (all, if it has fewer).
    pub min_channels: usize,
    /// Share of its channels a set keeps at least, in [0, 1].
    pub floor: f64,
    /// What is kept is one of these counts wherever something is removed.
    pub multiple: Multiple,
}

/// Which channel counts a set may come down to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Multiple {
    /// Multiples of 16, from 8 to 32 of 8, and 4 and less: what vectors of 16, 8 and 4 floats hold. Runtimes that keep channels in
    /// such blocks are slow with any other count: onnxruntime takes longer for half of Yolo-Fastest in odd counts than for all of
    /// it (docs/results/latency.md).
    #[default]
    Vectors,
    /// Multiples of this.
    #[serde(untagged)]
    Of(usize),
}

impl Multiple {
    /// Any count.
    pub const ANY: Self = Self::Of(1);

    fn allows(self, count: usize) -> bool {
        count.is_multiple_of(match self {
            Self::Vectors => match count {
                0..4 => 1,
                4..8 => 4,
                8..32 => 8,
                _ => 16,
            },
            Self::Of(multiple) => multiple,
        })
    }
}

impl Default for Limits {
    /// Eight channels and a tenth: a guard for rankings, whose scores of one layer are on another scale than the next one's.
    fn default() -> Self {
        Self { min_channels: 8, floor: 0.1, multiple: Multiple::Vectors }
    }
}

impl Limits {
    /// None but the one channel that every set keeps.
    pub const NONE: Self = Self { min_channels: 1, floor: 0.0, multiple: Multiple::ANY };

    /// # Errors
    /// A value is out of its range.
    pub fn check(&self) -> Result<()> {
        if self.multiple == Multiple::Of(0) {
            let help = "1 allows every count";
            return Err(Error::Setting { option: "multiple", what: "is 0".into(), help });
        }
        if !(0.0..=1.0).contains(&self.floor) {
            let what = format!("is {}, not a share in [0, 1]", self.floor);
            return Err(Error::Setting { option: "floor", what, help: "0.1 keeps a tenth of every layer" });
        }
        Ok(())
    }

    /// The fewest channels a set of `size` may keep.
    pub fn least(&self, size: usize) -> usize {
        let share = (self.floor * size as f64).ceil() as usize;
        let wanted = self.min_channels.max(share).max(1);
        (wanted..size).find(|&count| self.multiple.allows(count)).unwrap_or(size)
    }

    /// The next smaller count a set of `size` of which `kept` are left may come down to, if there is one.
    pub fn next_down(&self, size: usize, kept: usize) -> Option<usize> {
        (self.least(size)..kept).rev().find(|&count| self.multiple.allows(count))
    }
}

/// The size of a graph as classes are removed from it, kept up to date layer by layer.
pub(crate) struct Tracker<'a> {
    graph: &'a Graph,
    coupling: &'a Coupling,
    shapes: Vec<Shape>,
    /// Channels left of every node's output.
    count: Vec<usize>,
    /// Classes left of every set.
    kept: Vec<usize>,
    removed: Vec<bool>,
    /// The nodes that have gone with their residual branch.
    gone: Vec<bool>,
    /// The nodes of every set whose cost depends on it.
    touched: Vec<Vec<NodeId>>,
    /// What every node's time is read from; empty where times do not count.
    tables: Vec<Option<&'a Table>>,
    latency: Option<&'a Latency>,
    /// Dense convolutions that would be given a bias to hold what is folded into them.
    gains_bias: Vec<bool>,
    size: Size,
}

impl<'a> Tracker<'a> {
    pub(crate) fn new(graph: &'a Graph, coupling: &'a Coupling, latency: Option<&'a Latency>) -> Result<Self> {
        let shapes = graph.shapes(graph.meta.imgsz)?;
        let tables = latency.map_or(Ok(vec![]), |latency| latency.of(graph, &shapes))?;
        let gains_bias = (0..graph.nodes.len())
            .map(|id| is_dense(&graph.nodes[id].op) && bias_home(graph, coupling, id) == BiasHome::New)
            .collect();
        let touched = coupling.sets.iter().map(|set| {
            let near =
                set.carried.iter().flat_map(|&(n, _)| std::iter::once(n).chain(coupling.readers(n).iter().copied()));
            let mut nodes: Vec<NodeId> = near
                .filter(|&n| latency.is_some() || matches!(graph.nodes[n].op, Op::Conv(_) | Op::BatchNorm(_)))
                .collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes
        });
        Ok(Self {
            count: shapes.iter().map(|s| s.c).collect(),
            kept: coupling.sets.iter().map(|s| s.classes.len()).collect(),
            removed: vec![false; coupling.classes.len()],
            gone: vec![false; graph.nodes.len()],
            touched: touched.collect(),
            tables,
            latency,
            size: Size::timed(graph, coupling, latency)?,
            graph,
            coupling,
            shapes,
            gains_bias,
        })
    }

    pub(crate) fn size(&self) -> Size {
        self.size
    }

    /// Which classes are gone.
    pub(crate) fn removed(&self) -> &[bool] {
        &self.removed
    }

    /// Whether a node has gone with its residual branch.
    pub(crate) fn is_gone(&self, node: NodeId) -> bool {
        self.gone[node]
    }

    /// Classes left in a set.
    pub(crate) fn kept(&self, set: usize) -> usize {
        self.kept[set]
    }

    /// What removing `classes` more classes of a set would save now.
    pub(crate) fn saving(&mut self, set: usize, classes: usize) -> Size {
        let before = self.cost_of(set);
        self.shift(set, |count, times| count - times * classes);
        let after = self.cost_of(set);
        self.shift(set, |count, times| count + times * classes);
        let members = &self.coupling.classes[self.coupling.sets[set].classes[0]].members;
        let there = members.iter().filter(|site| !self.gone[site.node]).count();
        Size { channels: (there * classes) as u64, ..before.minus(after) }
    }

    /// What a residual branch that goes whole would save now.
    pub(crate) fn saving_of(&self, branch: &Branch) -> Size {
        let free = |&&class: &&ClassId| !self.removed[class] && self.coupling.classes[class].pinned.is_none();
        let mut saved = Size::default();
        for &node in branch.nodes.iter().chain([&branch.add]).filter(|&&node| !self.gone[node]) {
            saved = saved.plus(self.cost(node));
            if is_dense(&self.graph.nodes[node].op) {
                saved.channels += self.coupling.channels(node).iter().filter(free).count() as u64;
            }
        }
        saved
    }

    /// Takes a residual branch out whole. Its classes are not removed: they have nowhere left to be.
    pub(crate) fn shorten(&mut self, branch: &Branch) {
        self.size = self.size.minus(self.saving_of(branch));
        branch.nodes.iter().chain([&branch.add]).for_each(|&node| self.gone[node] = true);
    }

    pub(crate) fn remove(&mut self, class: ClassId) {
        let set = self.coupling.classes[class].set;
        let saved = self.saving(set, 1);
        self.shift(set, |count, times| count - times);
        self.size = self.size.minus(saved);
        self.kept[set] -= 1;
        self.removed[class] = true;
    }

    fn shift(&mut self, set: usize, change: impl Fn(usize, usize) -> usize) {
        for &(node, times) in &self.coupling.sets[set].carried {
            self.count[node] = change(self.count[node], times);
        }
    }

    fn cost_of(&self, set: usize) -> Size {
        let there = self.touched[set].iter().filter(|&&node| !self.gone[node]);
        there.map(|&node| self.cost(node)).fold(Size::default(), Size::plus)
    }

    /// What one node costs now; its channels are not counted.
    fn cost(&self, node: NodeId) -> Size {
        let mut cost = Size::default();
        let out = self.count[node];
        let input = self.graph.nodes[node].inputs.first().copied();
        let inputs = input.map_or(0, |input| self.count[input]);
        if let (Some(latency), Some(table)) = (self.latency, self.tables.get(node).copied().flatten()) {
            cost.nanos = latency.nanos(table, inputs, out);
        }
        match &self.graph.nodes[node].op {
            Op::Conv(conv) => {
                let before = input.map_or(0, |input| self.shapes[input].c);
                let per_filter = if conv.is_depthwise() { 1 } else { inputs / conv.groups };
                let [kh, kw] = conv.kernel();
                let weights = out * per_filter * kh * kw;
                let bias = conv.bias.is_some() || (self.gains_bias[node] && inputs < before);
                let values = (weights + if bias { out } else { 0 }) as u64;
                cost.params = values;
                cost.bytes = 4 * values;
                cost.macs = (weights * self.shapes[node].h * self.shapes[node].w) as u64;
            }
            // Scale and shift are trained; mean and variance are stored with them.
            Op::BatchNorm(_) => {
                cost.params = 2 * out as u64;
                cost.bytes = 4 * 4 * out as u64;
            }
            _ => {}
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_becomes_absolute_numbers() {
        let reference = Size { params: 1000, macs: 500, channels: 40, bytes: 4000, nanos: 0 };
        let target = Budget { params: Some(0.5), rate: Some(0.25), ..Budget::default() }.target(reference).unwrap();
        assert_eq!((target.params, target.macs, target.channels), (Some(500), None, Some(30)));
        assert!(target.met(Size { params: 500, macs: 500, channels: 30, ..Size::default() }));
        assert!(!target.met(Size { params: 500, macs: 0, channels: 31, ..Size::default() }));
    }

    #[test]
    fn progress_is_a_share_of_what_there_was_and_ends_at_the_limit() {
        let reference = Size { params: 1000, macs: 500, ..Size::default() };
        let target = Budget { params: Some(0.5), macs: Some(0.8), ..Budget::default() }.target(reference).unwrap();
        let (now, saved) = (Size { params: 600, macs: 450, ..reference }, Size { params: 300, macs: 25, ..reference });
        assert!((target.progress(saved, now) - (0.1 + 0.05)).abs() < 1e-12, "100 of 1000 and 25 of 500");
        let met = Size { params: 400, ..now };
        assert!((target.progress(saved, met) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn impossible_budgets_are_refused() {
        for (budget, named) in [
            (Budget::default(), "budget"),
            (Budget { params: Some(0.0), ..Budget::default() }, "params"),
            (Budget { macs: Some(f64::NAN), ..Budget::default() }, "macs"),
            (Budget { rate: Some(1.0), ..Budget::default() }, "rate"),
            (Budget { bytes: Some(Amount::Share(1.5)), ..Budget::default() }, "bytes"),
            (Budget { bytes: Some(Amount::Absolute(0.0)), ..Budget::default() }, "bytes"),
            (Budget { latency: Some(Amount::Share(0.5)), ..Budget::default() }, "latency"),
        ] {
            let error = budget.target(Size::default()).unwrap_err().to_string();
            assert!(error.contains(named), "{budget:?}: {error}");
        }
    }

    #[test]
    fn stage_one_leaves_a_share_to_stage_two() {
        let now = Size { params: 1000, ..Size::default() };
        let target = Budget { params: Some(0.4), ..Budget::default() }.target(now).unwrap();
        assert_eq!(target.before_similarity(now, 0.25).params, Some(550));
        assert_eq!(target.before_similarity(now, 0.0), target);
    }

    #[test]
    fn two_equal_parts_of_the_way_are_the_way() {
        let now = Size { params: 1000, macs: 600, ..Size::default() };
        let target = Budget { params: Some(0.25), macs: Some(1.0), ..Budget::default() }.target(now).unwrap();
        let half = target.part_of_the_way(now, 0.5);
        assert_eq!((half.params, half.macs, half.bytes), (Some(500), Some(600), None));
        assert_eq!(target.part_of_the_way(Size { params: 500, macs: 600, ..now }, 1.0), target);
        assert_eq!(target.part_of_the_way(Size { params: 100, ..now }, 0.5).params, Some(250), "already there");
    }

    #[test]
    fn limits_say_how_far_down_a_set_may_go() {
        let limits = Limits { min_channels: 8, floor: 0.5, multiple: Multiple::Of(8) };
        assert_eq!(limits.least(40), 24);
        assert_eq!(limits.least(6), 6, "a small set stays whole");
        assert_eq!(limits.next_down(40, 40), Some(32));
        assert_eq!(limits.next_down(40, 24), None);
        assert_eq!(limits.next_down(42, 42), Some(40), "a set that is no multiple comes down to one");
    }

    #[test]
    fn counts_for_vectors_are_finer_the_fewer_there_are() {
        let limits = Limits { multiple: Multiple::Vectors, ..Limits::NONE };
        let all: Vec<usize> = std::iter::successors(Some(100), |&kept| limits.next_down(100, kept)).collect();
        assert_eq!(all, [100, 96, 80, 64, 48, 32, 24, 16, 8, 4, 3, 2, 1]);
        let guarded = Limits { min_channels: 5, floor: 0.1, ..limits };
        assert_eq!((guarded.least(30), guarded.least(100), guarded.least(6)), (8, 16, 6));
    }

    #[test]
    fn multiples_are_numbers_or_a_word_in_a_recipe() {
        for (limits, text) in [(Limits::NONE, "1"), (Limits::default(), "\"vectors\"")] {
            let json = serde_json::to_string(&limits).expect("JSON");
            assert!(json.contains(&format!("\"multiple\":{text}")), "{json}");
            assert_eq!(serde_json::from_str::<Limits>(&json).expect("reads"), limits);
        }
    }
}
