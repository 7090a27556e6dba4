//! A plan: what will be removed, what that is expected to cost, and how the readers of a removed channel make up for it.
//!
//! Both stages answer with the same object; surgery, `--dry-run`, the report and the audit read it. It names nodes, not
//! indices, so that it can be stored beside a run and read by people.

use std::collections::HashMap;
use std::fmt;

use graph::{Branch, Graph, NodeId, Op};
use serde::{Deserialize, Serialize};

use crate::budget::Tracker;
use crate::{ClassId, Coupling, Error, Result, Size};

/// What will be removed and how it is compensated. An empty plan changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// How it was made, in words: the stage and its settings.
    pub method: String,
    /// (H, W) of the images for which constants account for zero padding, and costs are counted.
    pub imgsz: [usize; 2],
    /// Coupled classes, in the order of removal.
    pub removals: Vec<Removal>,
    /// Residual branches that go whole, in the order of removal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortcuts: Vec<Shortcut>,
    /// One for every tensor that loses channels and is read by dense convolutions.
    pub compensations: Vec<Compensation>,
    /// One for every convolution that loses output channels.
    pub layers: Vec<Layer>,
    pub before: Size,
    /// Predicted; equal to what is counted on the result.
    pub after: Size,
    /// Why removal ended.
    pub stop: Stop,
    /// What the reader should know, such as layers scored by another rule.
    pub notes: Vec<String>,
}

/// One coupled class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Removal {
    /// What it was ranked by, in the unit of the method: importance in stage 1, predicted loss in stage 2.
    pub score: f32,
    /// (dense convolution, output channel) of all its members.
    pub members: Vec<(String, usize)>,
}

/// A residual branch that goes whole: what it is added to goes on without it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shortcut {
    /// Predicted loss, in the unit of [`Removal::score`].
    pub score: f32,
    /// The addition that goes with it.
    pub add: String,
}

/// How the dense convolutions that read one tensor make up for the channels it loses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compensation {
    /// The node whose output it is.
    pub tensor: String,
    /// The dense convolutions that read it.
    pub consumers: Vec<String>,
    pub rows: Vec<Row>,
}

/// `x[channel] ~ sum over stand-ins of coefficient * x[kept channel] + constant`. Channel numbers are those before surgery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub channel: usize,
    pub stand_ins: Vec<(usize, f32)>,
    pub constant: f32,
}

/// Output channels of one convolution before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    pub node: String,
    pub before: usize,
    pub after: usize,
}

/// Why removal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The budget is met.
    Met,
    /// Every layer is down to what the limits let it keep; the budget is not met.
    Limits,
    /// No channel is left that another can stand in for within the threshold; the budget is not met.
    Threshold,
    /// The classes to remove were given; there was no budget.
    Given,
}

impl Plan {
    /// Puts a plan together from the classes a stage has removed from `tracker`, in that order, with their scores.
    pub(crate) fn assemble(
        graph: &Graph,
        coupling: &Coupling,
        tracker: &Tracker<'_>,
        removed: &[(ClassId, f64)],
        before: Size,
    ) -> Self {
        let name = |node: NodeId| graph.nodes[node].name.clone();
        let removals = removed.iter().map(|&(class, score)| Removal {
            score: score as f32,
            members: coupling.classes[class].members.iter().map(|s| (name(s.node), s.channel)).collect(),
        });
        let convs = (0..graph.nodes.len()).filter(|&id| matches!(graph.nodes[id].op, Op::Conv(_)));
        let layers = convs.map(|id| {
            let channels = coupling.channels(id);
            let after = channels.iter().filter(|&&class| !tracker.removed()[class]).count();
            Layer { node: name(id), before: channels.len(), after: if tracker.is_gone(id) { 0 } else { after } }
        });
        Self {
            method: String::new(),
            imgsz: graph.meta.imgsz,
            removals: removals.collect(),
            shortcuts: vec![],
            compensations: vec![],
            layers: layers.filter(|layer| layer.after < layer.before).collect(),
            before,
            after: tracker.size(),
            stop: Stop::Met,
            notes: vec![],
        }
    }

    /// A plan that removes nothing from `graph`.
    ///
    /// # Errors
    /// The graph's shapes do not fit.
    pub fn empty(graph: &Graph) -> Result<Self> {
        let coupling = Coupling::of(graph)?;
        let tracker = Tracker::new(graph, &coupling, None)?;
        Ok(Self::assemble(graph, &coupling, &tracker, &[], tracker.size()))
    }

    /// The same removals with nothing to make up for them: every removed channel counts as zero.
    pub fn uncompensated(&self) -> Self {
        let mut plan = self.clone();
        for row in plan.compensations.iter_mut().flat_map(|c| &mut c.rows) {
            row.stand_ins.clear();
            row.constant = 0.0;
        }
        plan
    }

    /// Which classes of `graph` the plan removes.
    ///
    /// # Errors
    /// The plan was made for another graph: a node or channel is missing, a class would be torn apart, is pinned, or a
    /// tensor would be left without channels.
    pub(crate) fn resolve(&self, graph: &Graph, coupling: &Coupling) -> Result<Vec<bool>> {
        let size = Size::of(graph, coupling)?;
        if (size.params, size.channels) != (self.before.params, self.before.channels) {
            let (now, then) = (size.params, self.before.params);
            return Err(Error::plan(format!("it has {now} parameters, the graph of the plan had {then}")));
        }
        let ids: HashMap<&str, NodeId> = graph.nodes.iter().enumerate().map(|(id, n)| (n.name.as_str(), id)).collect();
        let mut removed = vec![false; coupling.classes.len()];
        for removal in &self.removals {
            let mut members = Vec::with_capacity(removal.members.len());
            for (node, channel) in &removal.members {
                let id = *ids.get(node.as_str()).ok_or_else(|| Error::plan(format!("there is no node `{node}`")))?;
                if *channel >= coupling.channels(id).len() {
                    return Err(Error::plan(format!("`{node}` has no channel {channel}")));
                }
                members.push(crate::Site { node: id, channel: *channel });
            }
            let Some(first) = members.first() else { return Err(Error::plan("a removal names no channel")) };
            let class = coupling.channels(first.node)[first.channel];
            let (node, channel) = &removal.members[0];
            if coupling.classes[class].members != members {
                return Err(Error::plan(format!("channel {channel} of `{node}` is coupled to other channels")));
            }
            if let Some(pin) = coupling.classes[class].pinned {
                let reason = pin.reason(graph);
                return Err(Error::plan(format!("channel {channel} of `{node}` has to stay: {reason}")));
            }
            removed[class] = true;
        }
        for (id, node) in graph.nodes.iter().enumerate() {
            let channels = coupling.channels(id);
            if !channels.is_empty() && channels.iter().all(|&class| removed[class]) {
                return Err(Error::plan(format!("it would leave `{}` without channels", node.name)));
            }
        }
        Ok(removed)
    }

    /// The branches of `graph` that go whole.
    ///
    /// # Errors
    /// The plan was made for another graph.
    pub(crate) fn branches(&self, graph: &Graph) -> Result<Vec<Branch>> {
        let all = graph.residual_branches();
        let find = |shortcut: &Shortcut| {
            let branch = all.iter().find(|branch| graph.nodes[branch.add].name == shortcut.add);
            branch.cloned().ok_or_else(|| Error::plan(format!("no residual branch ends in `{}`", shortcut.add)))
        };
        self.shortcuts.iter().map(find).collect()
    }
}

impl fmt::Display for Plan {
    /// The summary people read: what, how much, and layer by layer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |after: u64, before: u64| 100.0 * after as f64 / before.max(1) as f64;
        writeln!(f, "{}", self.method)?;
        for (unit, before, after) in [
            ("parameters", self.before.params, self.after.params),
            ("MACs", self.before.macs, self.after.macs),
            ("channels", self.before.channels, self.after.channels),
            ("value bytes", self.before.bytes, self.after.bytes),
        ] {
            writeln!(f, "  {unit:<11} {before:>14} -> {after:>14}  ({:.1} %)", share(after, before))?;
        }
        if self.before.nanos > 0 {
            let ms = |nanos: u64| nanos as f64 / 1e6;
            let (before, after) = (self.before.nanos, self.after.nanos);
            let (from, to) = (ms(before), ms(after));
            writeln!(f, "  {:<11} {from:>14.3} -> {to:>14.3}  ({:.1} %)", "ms", share(after, before))?;
        }
        match self.stop {
            Stop::Met | Stop::Given => {}
            Stop::Limits => writeln!(f, "  the budget is NOT met: every layer is down to its limit")?,
            Stop::Threshold => writeln!(f, "  the budget is NOT met: no similar channels are left")?,
        }
        let names: Vec<&str> = self.shortcuts.iter().map(|s| s.add.as_str()).collect();
        match names[..] {
            [] => {}
            [name] => writeln!(f, "  a residual branch goes whole: {name}")?,
            [..] => writeln!(f, "  {} residual branches go whole: {}", names.len(), names.join(", "))?,
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        let width = self.layers.iter().map(|l| l.node.len()).max().unwrap_or(0);
        for layer in &self.layers {
            writeln!(f, "  {:<width$} {:>5} -> {:>5}", layer.node, layer.before, layer.after)?;
        }
        Ok(())
    }
}
