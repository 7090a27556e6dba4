//! Stage 2: remove channels that others can stand in for, and let the readers rewire themselves (METHOD.md, 3).
//!
//! The loss of a removal is measured where it is felt: at every dense convolution that reads the class, as the share of
//! that convolution's output variance (behind its BatchNorm) that can no longer be reproduced: by all its taps together where
//! their statistics are known, else with taps taken as uncorrelated. A share, because the scale of weights and activations
//! between two BatchNorms is arbitrary and losses of different layers must compare; or, where it has been measured, in units of
//! what the detector says in the end ([`crate::Sensitivity`]), which also knows which layers matter. Classes go greedily across
//! the whole graph, by loss per unit of budget saved.
//!
//! A residual branch may go whole ([`shortcut`]): its last channels with all that leads to them and away from them.
//!
//! [`Mode::Pairwise`] is the reading of the paper's abstract: one channel stands in for another. [`Mode::Span`] is ours: all
//! that stay stand in together. Selection and compensation are separate: what is written into the plan is computed afresh
//! from the statistics once the set of removed classes is known.

mod pairwise;
mod shortcut;
mod span;

use graph::{Conv, Graph, NodeId};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::budget::Tracker;
use crate::coupling::dense_readers;
use crate::importance::output_scale;
use crate::statistics::{ChannelStats, Statistics, observed};
use crate::{
    ClassId, Compensation, Coupling, Error, Latency, Limits, Multiple, Plan, Result, Row, Shortcut, Size, Stop, Target,
};
use shortcut::Candidate;
pub use shortcut::removable;

/// Names that a note lists.
const TOLD: usize = 3;

/// Samples ([`ChannelStats::count`]) a channel, and tap, below which [`Mode::Span`] is warned of fitting noise: with n samples and C channels
/// least squares does worse on new data by about the factor n / (n - C).
const SAMPLES_PER_FEATURE: u64 = 10;

/// The least ridge where taps stand in for one another: neighbouring pixels are nearly collinear.
const RIDGE_OF_TAPS: f64 = 1e-4;

/// The settings of stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Similarity {
    pub mode: Mode,
    /// Least rho^2 between a removed channel and its stand-in, in every tensor where it is read ([`Mode::Pairwise`] only).
    pub threshold: f64,
    /// Added to the diagonal of the covariance as a share of each channel's own variance ([`Mode::Span`] only): keeps
    /// coefficients small where channels are nearly collinear.
    pub ridge: f64,
    /// No least count by default: what a removal costs is known in one unit for all layers, and a layer that is not needed may go to
    /// its last channel.
    pub limits: Limits,
    /// Residual branches may go whole ([`Mode::Span`] only). What they added on average goes with them, so the weights have to be
    /// refitted afterwards (`train::reconstruct`).
    pub shortcuts: bool,
}

impl Default for Similarity {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            threshold: 0.8,
            ridge: 1e-5,
            limits: Limits { multiple: Multiple::Vectors, ..Limits::NONE },
            shortcuts: true,
        }
    }
}

/// Who stands in for a removed channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The one kept channel it correlates with most.
    Pairwise,
    /// All kept channels, by least squares.
    #[default]
    Span,
}

impl Similarity {
    /// # Errors
    /// A value is out of its range.
    pub fn check(&self) -> Result<()> {
        self.limits.check()?;
        if !(0.0..=1.0).contains(&self.threshold) {
            let what = format!("is {}, not a squared correlation in [0, 1]", self.threshold);
            return Err(Error::Setting { option: "threshold", what, help: "0.8 asks for channels that are close kin" });
        }
        if !(self.ridge > 0.0 && self.ridge < 1.0) {
            let what = format!("is {}, not a share in (0, 1)", self.ridge);
            return Err(Error::Setting { option: "ridge", what, help: "1e-5 leaves every fit that matters alone" });
        }
        Ok(())
    }
}

/// Plans the removal of the most replaceable classes until `target` is met. The plan's [`Stop`] says whether it was.
///
/// # Errors
/// Bad settings; statistics that do not cover [`observed`] or are not finite; a graph whose shapes do not fit.
pub fn plan(
    graph: &Graph,
    coupling: &Coupling,
    statistics: &Statistics,
    settings: &Similarity,
    target: &Target,
) -> Result<Plan> {
    let mut search = Search::new(graph, coupling, statistics, settings, None, target.latency.as_deref())?;
    let stop = loop {
        if target.met(search.tracker.size()) {
            break Stop::Met;
        }
        match search.cheapest(target) {
            Ok(Step::Channels { set, count }) => (0..count).for_each(|_| {
                let class = search.cheapest_class(set);
                search.remove(class);
            }),
            Ok(Step::Branch(branch)) => search.shorten(branch),
            Err(stop) => break stop,
        }
    };
    search.finish(stop)
}

/// Plans the removal of exactly `classes`, compensated by the settings' mode.
///
/// # Errors
/// As [`plan`]; and where a class is pinned or does not exist.
pub fn replace(
    graph: &Graph,
    coupling: &Coupling,
    statistics: &Statistics,
    settings: &Similarity,
    classes: &[ClassId],
) -> Result<Plan> {
    let mut search = Search::new(graph, coupling, statistics, settings, Some(classes), None)?;
    for &id in classes {
        let class = coupling.classes.get(id).ok_or_else(|| Error::plan(format!("there is no class {id}")))?;
        if let Some(pin) = class.pinned {
            return Err(Error::plan(format!("class {id} has to stay: {}", pin.reason(graph))));
        }
        if !search.tracker.removed()[id] {
            search.remove(id);
        }
    }
    search.finish(Stop::Given)
}

/// Plans the removal of the `count` most replaceable classes of set number `set`, and nothing else: what that group alone can
/// spare. Fewer go where fewer may.
///
/// # Errors
/// As [`plan`].
pub fn plan_set(
    graph: &Graph,
    coupling: &Coupling,
    statistics: &Statistics,
    settings: &Similarity,
    set: usize,
    count: usize,
) -> Result<Plan> {
    let classes = &coupling.sets[set].classes;
    let mut search = Search::new(graph, coupling, statistics, settings, Some(classes), None)?;
    for _ in 0..count.min(search.candidates(set).count().saturating_sub(1)) {
        let class = search.cheapest_class(set);
        search.remove(class);
    }
    search.finish(Stop::Given)
}

/// A tensor as dense convolutions that read it hear it, while channels of it go. Positions are channels of the tensor, or taps of them.
trait Port: Send {
    /// What removing these channels, on top of what is gone, would cost.
    fn price(&self, positions: &[usize]) -> Price;
    /// Takes them out.
    fn remove(&mut self, positions: &[usize]);
}

/// The cost of a removal: the share of the readers' output variance that is lost, summed over readers.
#[derive(Clone, Copy, Debug)]
struct Price {
    loss: f64,
    /// False where what is lost is more than the mode permits.
    allowed: bool,
}

/// Whose loss a port tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listener {
    /// The tensor.
    node: NodeId,
    /// One convolution that reads it with several taps at once, or all others together.
    readers: Vec<NodeId>,
    /// Positions of the port for each channel.
    taps: usize,
}

impl Listener {
    /// Everyone who listens to a tensor of which channels may go.
    fn all(graph: &Graph, coupling: &Coupling, statistics: &Statistics, mode: Mode) -> Vec<Self> {
        let mut all = vec![];
        for node in observed(graph, coupling) {
            let apart = |&(id, _): &(NodeId, &Conv)| mode == Mode::Span && statistics.by_reader.contains_key(&id);
            let (apart, together): (Vec<_>, Vec<_>) = dense_readers(graph, coupling, node).partition(apart);
            if !together.is_empty() {
                all.push(Self { node, readers: together.iter().map(|(id, _)| *id).collect(), taps: 1 });
            }
            let taps = |conv: &Conv| conv.kernel().iter().product();
            all.extend(apart.into_iter().map(|(id, conv)| Self { node, readers: vec![id], taps: taps(conv) }));
        }
        all
    }

    /// What it hears, as the search follows it.
    fn port(
        &self,
        graph: &Graph,
        coupling: &Coupling,
        statistics: &Statistics,
        settings: &Similarity,
    ) -> Result<Box<dyn Port>> {
        let stats = self.hears(graph, coupling, statistics)?;
        let mut gram = vec![0.0; stats.channels().pow(2)];
        for (id, conv) in dense_readers(graph, coupling, self.node).filter(|(id, _)| self.readers.contains(id)) {
            let minds = statistics.sensitivity.of(graph, coupling, id)?;
            let scale = match minds {
                Some(minds) => minds.iter().map(|f| f.sqrt()).collect(),
                None => output_scale(graph, coupling, id),
            };
            let own = reader_gram(conv, &scale, self.taps);
            // Where no loss has been measured every reader counts alike.
            let variance: f64 = match minds {
                Some(_) => 1.0,
                None => own.iter().zip(&stats.cov).map(|(g, s)| g * s).sum(),
            };
            if variance > 0.0 {
                gram.iter_mut().zip(&own).for_each(|(sum, g)| *sum += g / variance);
            }
        }
        let ridge = if self.taps > 1 { settings.ridge.max(RIDGE_OF_TAPS) } else { settings.ridge };
        Ok(match settings.mode {
            Mode::Pairwise => Box::new(pairwise::Pairs::new(stats, gram, settings.threshold)),
            Mode::Span => Box::new(span::Span::new(graph, self.node, stats, gram, ridge)?),
        })
    }

    fn hears<'a>(&self, graph: &Graph, coupling: &Coupling, statistics: &'a Statistics) -> Result<&'a ChannelStats> {
        match self.readers[..] {
            [reader] if self.taps > 1 => statistics.of_reader(graph, coupling, reader),
            _ => statistics.of(graph, coupling, self.node),
        }
    }
}

/// What the search may do next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Take the `count` cheapest classes of a set.
    Channels { set: usize, count: usize },
    /// Take a branch out whole: an index in [`Search::branches`].
    Branch(usize),
}

/// The state of the greedy search.
struct Search<'a> {
    graph: &'a Graph,
    coupling: &'a Coupling,
    statistics: &'a Statistics,
    settings: &'a Similarity,
    before: Size,
    tracker: Tracker<'a>,
    removed: Vec<(ClassId, f64)>,
    ports: Vec<Box<dyn Port>>,
    /// Of every port.
    listeners: Vec<Listener>,
    /// (port, positions there) of every class.
    places: Vec<Vec<(usize, Vec<usize>)>>,
    /// Of every class; current for those not removed and not pinned.
    prices: Vec<Price>,
    /// The residual branches that are there and may go whole.
    branches: Vec<Candidate>,
    shortcuts: Vec<Shortcut>,
}

impl<'a> Search<'a> {
    /// A search among all classes, or among `only` these: the prices of others are not to be relied on then.
    fn new(
        graph: &'a Graph,
        coupling: &'a Coupling,
        statistics: &'a Statistics,
        settings: &'a Similarity,
        only: Option<&[ClassId]>,
        latency: Option<&'a Latency>,
    ) -> Result<Self> {
        settings.check()?;
        let mut listeners = Listener::all(graph, coupling, statistics, settings.mode);
        if let Some(only) = only {
            listeners.retain(|listener| coupling.channels(listener.node).iter().any(|class| only.contains(class)));
        }
        // Of damaged maps the first is named; gradients behind it are damaged too.
        listeners.iter().try_for_each(|listener| listener.hears(graph, coupling, statistics).map(drop))?;
        let open = |listener: &Listener| listener.port(graph, coupling, statistics, settings);
        let ports = listeners.par_iter().map(open).collect::<Result<Vec<_>>>()?;
        let mut places: Vec<Vec<(usize, Vec<usize>)>> = vec![Vec::new(); coupling.classes.len()];
        for (port, &Listener { node, taps, .. }) in listeners.iter().enumerate() {
            for (channel, &class) in coupling.channels(node).iter().enumerate() {
                let here = channel * taps..(channel + 1) * taps;
                match places[class].last_mut() {
                    Some((last, positions)) if *last == port => positions.extend(here),
                    _ => places[class].push((port, here.collect())),
                }
            }
        }
        let tracker = Tracker::new(graph, coupling, latency)?;
        let prices = vec![Price { loss: f64::INFINITY, allowed: false }; places.len()];
        let before = tracker.size();
        let branches = match (settings.shortcuts, settings.mode) {
            (true, Mode::Span) => shortcut::candidates(graph, coupling, &listeners, &ports),
            _ => vec![],
        };
        let mut search = Self {
            graph,
            coupling,
            statistics,
            settings,
            before,
            tracker,
            removed: vec![],
            ports,
            listeners,
            places,
            prices,
            branches,
            shortcuts: vec![],
        };
        (0..search.prices.len()).for_each(|class| search.reprice(class));
        Ok(search)
    }

    fn reprice(&mut self, class: ClassId) {
        if self.coupling.classes[class].pinned.is_some() || self.tracker.removed()[class] {
            return;
        }
        let mut sum = Price { loss: 0.0, allowed: true };
        for (port, positions) in &self.places[class] {
            let price = self.ports[*port].price(positions);
            sum.loss += price.loss;
            sum.allowed &= price.allowed;
        }
        self.prices[class] = sum;
    }

    /// Classes of a set that are still there and may go.
    fn candidates(&self, set: usize) -> impl Iterator<Item = ClassId> {
        let there = |&class: &ClassId| !self.tracker.removed()[class] && self.coupling.classes[class].pinned.is_none();
        self.coupling.sets[set].classes.iter().copied().filter(there)
    }

    /// The next step: the least loss per unit of budget saved. A step of several classes costs the sum of what each costs by
    /// itself, less than what they cost one after the other. Priced so, wide layers would be spared and narrow ones go to their last
    /// channels, which cost more than any linear stand-in tells (docs/results/bccd-yolov5n.md).
    fn cheapest(&mut self, target: &Target) -> Result<Step, Stop> {
        let mut best: Option<(f64, Step)> = None;
        let mut stop = Stop::Limits;
        let now = self.tracker.size();
        let mut offer = |loss: f64, progress: f64, step: Step| {
            let rate = loss / progress;
            if progress > 0.0 && best.is_none_or(|(least, _)| rate < least) {
                best = Some((rate, step));
            }
        };
        for (id, branch) in self.branches.iter().enumerate() {
            let saved = self.tracker.saving_of(&branch.branch);
            offer(branch.loss, target.progress(saved, now) + branch.layers(target), Step::Branch(id));
        }
        for (id, set) in self.coupling.sets.iter().enumerate() {
            let kept = self.tracker.kept(id);
            let Some(next) = self.settings.limits.next_down(set.classes.len(), kept) else { continue };
            let step = kept - next;
            let prices = self.candidates(id).map(|class| self.prices[class]);
            let mut losses: Vec<f64> = prices.filter(|p| p.allowed).map(|p| p.loss).collect();
            if losses.len() < step {
                if self.candidates(id).count() >= step {
                    stop = Stop::Threshold;
                }
                continue;
            }
            losses.select_nth_unstable_by(step - 1, f64::total_cmp);
            let saved = self.tracker.saving(id, step);
            offer(losses[..step].iter().sum(), target.progress(saved, now), Step::Channels { set: id, count: step });
        }
        best.map(|(_, step)| step).ok_or(stop)
    }

    /// The cheapest class of a set. Within a step of several, one that is not allowed any more comes last.
    fn cheapest_class(&self, set: usize) -> ClassId {
        let order = |&a: &ClassId, &b: &ClassId| {
            let (x, y) = (self.prices[a], self.prices[b]);
            y.allowed.cmp(&x.allowed).then(x.loss.total_cmp(&y.loss))
        };
        self.candidates(set).min_by(order).expect("a step is no longer than its set")
    }

    fn remove(&mut self, class: ClassId) {
        self.removed.push((class, self.prices[class].loss));
        self.tracker.remove(class);
        let places = std::mem::take(&mut self.places[class]);
        let mut dirty: Vec<ClassId> = Vec::new();
        for (port, positions) in &places {
            if let Some(branch) = self.branches.iter_mut().find(|branch| branch.port == *port) {
                branch.lose(self.ports[*port].price(positions).loss);
            }
            self.ports[*port].remove(positions);
            dirty.extend(self.coupling.channels(self.listeners[*port].node));
        }
        dirty.sort_unstable();
        dirty.dedup();
        dirty.into_iter().for_each(|class| self.reprice(class));
    }

    fn shorten(&mut self, branch: usize) {
        let Candidate { branch, loss, .. } = self.branches.swap_remove(branch);
        self.tracker.shorten(&branch);
        self.shortcuts.push(Shortcut { score: loss as f32, add: self.graph.nodes[branch.add].name.clone() });
        // Branches within it have gone with it.
        self.branches.retain(|other| !branch.covers(other.branch.add));
    }

    fn finish(self, stop: Stop) -> Result<Plan> {
        let mut plan = Plan::assemble(self.graph, self.coupling, &self.tracker, &self.removed, self.before);
        plan.compensations = self.compensations()?;
        plan.shortcuts = self.shortcuts.clone();
        plan.stop = stop;
        plan.notes.extend(self.thin_statistics());
        plan.method = match self.settings.mode {
            Mode::Pairwise => {
                format!("stage 2, similarity: one stand-in a channel, rho^2 >= {}", self.settings.threshold)
            }
            Mode::Span => "stage 2, similarity: all kept channels stand in together".into(),
        };
        Ok(plan)
    }

    /// A warning where least squares over all that is heard has few samples to go by: it fits them better than new images.
    fn thin_statistics(&self) -> Option<String> {
        let thin = |listener: &&Listener| {
            let stats = listener.hears(self.graph, self.coupling, self.statistics);
            stats.is_ok_and(|stats| stats.count < SAMPLES_PER_FEATURE * stats.channels() as u64)
        };
        let name = |listener: &Listener| {
            let who = if listener.taps > 1 { listener.readers[0] } else { listener.node };
            self.graph.nodes[who].name.as_str()
        };
        let names: Vec<&str> = self.listeners.iter().filter(thin).map(name).collect();
        (self.settings.mode == Mode::Span && !names.is_empty()).then(|| {
            let few = "fewer than 10 samples a channel; calibrate on more images";
            let (told, more) = names.split_at(names.len().min(TOLD));
            let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            format!("{few}: {}{more}", told.join(", "))
        })
    }

    /// How the readers of every tensor that loses channels make up for them.
    fn compensations(&self) -> Result<Vec<Compensation>> {
        let removed = self.tracker.removed();
        let rows = |&node: &NodeId| -> Result<Compensation> {
            let stats = self.statistics.of(self.graph, self.coupling, node)?;
            let gone = self.coupling.positions(node, |class| removed[class]);
            let kept = self.coupling.positions(node, |class| !removed[class]);
            let rows = match self.settings.mode {
                _ if gone.is_empty() => vec![],
                Mode::Pairwise => pairwise::rows(stats, &gone, &kept),
                Mode::Span => span::rows(self.graph, node, stats, &gone, &kept, self.settings.ridge)?,
            };
            let consumers = dense_readers(self.graph, self.coupling, node);
            let consumers = consumers.map(|(id, _)| self.graph.nodes[id].name.clone()).collect();
            Ok(Compensation { tensor: self.graph.nodes[node].name.clone(), consumers, rows })
        };
        let mut there: Vec<NodeId> = self.listeners.iter().map(|listener| listener.node).collect();
        there.dedup();
        there.retain(|&node| !self.tracker.is_gone(node));
        let mut all = there.par_iter().map(rows).collect::<Result<Vec<_>>>()?;
        all.retain(|compensation| !compensation.rows.is_empty());
        Ok(all)
    }
}

/// The row that puts `sum of coefficient * stand-in` in place of `channel`: the constant makes the means agree.
fn row(stats: &ChannelStats, channel: usize, stand_ins: Vec<(usize, f32)>) -> Row {
    let explained: f64 = stand_ins.iter().map(|&(j, a)| f64::from(a) * stats.mean[j]).sum();
    Row { channel, stand_ins, constant: (stats.mean[channel] - explained) as f32 }
}

/// How strongly a dense convolution listens to each pair of what it reads: `sum_o f_o w_o w_o'`, row-major, where `f_o` is the square of
/// `scale`: how much the detector minds an error in output o. Of all taps at once, (I kh kw)^2, where each is a position of its own (`taps`
/// of them for a channel); else of channels, (I)^2, and the sum over taps.
fn reader_gram(conv: &Conv, scale: &[f64], taps: usize) -> Vec<f64> {
    let [inputs, kh, kw] = [1, 2, 3].map(|axis| conv.weight.shape[axis]);
    // Positions of the filter that are summed over.
    let apart = kh * kw / taps;
    let width = inputs * taps;
    let mut gram = vec![0.0; width * width];
    let mut w = vec![0.0; width];
    for (o, scale) in scale.iter().enumerate() {
        let filter = conv.weight.outer(o);
        for tap in 0..apart {
            w.iter_mut().zip(filter.iter().skip(tap).step_by(apart)).for_each(|(w, v)| *w = scale * f64::from(*v));
            for (row, &wi) in gram.chunks_mut(width).zip(&w) {
                row.iter_mut().zip(&w).for_each(|(g, wj)| *g += wi * wj);
            }
        }
    }
    gram
}
