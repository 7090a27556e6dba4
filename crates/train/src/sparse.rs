//! Sparse training (METHOD.md, section 1): a proximal step on the scales of BatchNorm and a controller for its strength.
//!
//! How hard to press is not guessed. A share `target` of all prunable gammas is near zero exactly when the `target`-quantile
//! of their magnitudes is; unlike the share, which stays 0 for most of a run, that quantile moves from the first step on. So
//! the controller plans its descent to zero as a straight line over the run and adjusts lambda to follow it. Its clock is
//! the sum of learning rates, as one step takes at most `lr * lambda` off a gamma: warm-up, where nothing can move, hardly
//! passes. Once the share is reached lambda only holds it.

use graph::{Graph, Op};
use prune::Site;
use serde::{Deserialize, Serialize};

/// What to drive the gammas to, and how freely.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SparseConfig {
    /// Share of the prunable gammas that shall be near zero at the end, in 0..1.
    pub target: f32,
    /// Lambda never leaves this range.
    pub lambda: [f32; 2],
    /// A gamma is near zero below this fraction of the median magnitude at the start.
    pub near_zero: f32,
    /// The target shall be reached after this part of the run (by sum of learning rates); the rest consolidates.
    pub reach: f32,
    /// How often in a run lambda is reconsidered.
    pub decisions: usize,
    /// So many decisions in a row without movement at the largest lambda are an error.
    pub patience: usize,
}

impl Default for SparseConfig {
    fn default() -> Self {
        Self { target: 0.5, lambda: [1e-5, 10.0], near_zero: 0.01, reach: 0.8, decisions: 100, patience: 8 }
    }
}

/// Why sparse training cannot go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error, miette::Diagnostic)]
#[non_exhaustive]
pub enum SparseError {
    /// There is nothing to press.
    #[error("the detector has no prunable BatchNorm scale that is not zero already")]
    #[diagnostic(help("models whose BatchNorm is fused are pruned by filter norms, without sparse training"))]
    NoGammas,
    /// A setting makes no sense.
    #[error("sparse training: `{name}` is {value}, which is not {range}")]
    Setting { name: &'static str, value: f32, range: &'static str },
    /// Even if nothing resisted, the gammas could not get there.
    #[error(
        "the run is too short for sparse training: pressing {target:.0} % of the gammas to zero takes lambda {needed:.3}, \
         at most {limit:.3} is allowed"
    )]
    #[diagnostic(help("train for more epochs, raise the learning rate, or lower the target"))]
    TooShort { target: f32, needed: f32, limit: f32 },
    /// The gammas stay where they are.
    #[error(
        "the gammas do not respond: {share:.1} % of them are near zero, {target:.0} % are wanted, and at lambda {lambda:.3} \
         their quantile stays at {quantile:.4}"
    )]
    #[diagnostic(help(
        "check that the learning rate of BatchNorm is not zero, allow a larger lambda, or lower the target"
    ))]
    Stuck { share: f32, target: f32, lambda: f32, quantile: f32 },
}

/// A change of lambda, for the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub from: f32,
    pub to: f32,
    /// Share of gammas near zero.
    pub share: f32,
    /// The quantile that has to reach zero, and where the plan wants it now.
    pub quantile: f32,
    pub plan: f32,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "lambda {:.4e} -> {:.4e}: {:.1} % of the gammas near zero, quantile {:.4}, planned {:.4}",
            self.from,
            self.to,
            100.0 * self.share,
            self.quantile,
            self.plan
        )
    }
}

/// The distribution of |gamma| after an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GammaHistogram {
    pub epoch: usize,
    pub lambda: f32,
    /// Below this magnitude a gamma counts as near zero.
    pub near_zero: f32,
    /// Share of gammas near zero.
    pub share: f32,
    pub median: f32,
    pub max: f32,
    /// Upper end of the last bin: the largest magnitude at the start of the run, so that epochs can be compared.
    pub top: f32,
    /// Bins of equal width from 0 to `top`; the last also counts what lies above.
    pub counts: Vec<u32>,
}

/// Bins of a [`GammaHistogram`].
const BINS: usize = 50;

/// The part of a [`Sparsifier`] that changes, to be stored and resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SparseState {
    /// Median-relative threshold, quantile and largest magnitude, all of the start of the run.
    near_zero: f32,
    start: f32,
    top: f32,
    lambda: f32,
    /// Sum of learning rates so far.
    travelled: f32,
    /// `travelled` and quantile at the last decision, and the sum of `lr * lambda` since.
    decided: f32,
    quantile: f32,
    pressed: f32,
    /// Which part of what is pressed off stays off; the loss pushes the rest back.
    yield_: f32,
    idle: usize,
}

/// The proximal step and its controller.
#[derive(Clone, Debug)]
pub struct Sparsifier {
    config: SparseConfig,
    sites: Vec<Site>,
    /// Sum of learning rates over the run.
    travel: f32,
    state: SparseState,
}

impl Sparsifier {
    /// For the gammas of `graph` at `sites` (a BatchNorm node and its channel each) in a run whose learning rates sum to
    /// `travel`: see [`crate::schedule::Schedule::travel`].
    ///
    /// # Errors
    /// A setting is out of range, there are no gammas, or the run is too short.
    ///
    /// # Panics
    /// If a site is no channel of a BatchNorm.
    pub fn new(config: SparseConfig, graph: &Graph, sites: Vec<Site>, travel: f32) -> Result<Self, SparseError> {
        config.check()?;
        let mut sizes = magnitudes(graph, &sites);
        sizes.sort_by(f32::total_cmp);
        let alive = &sizes[sizes.partition_point(|&g| g == 0.0)..];
        if alive.is_empty() {
            return Err(SparseError::NoGammas);
        }
        let near_zero = config.near_zero * alive[alive.len() / 2];
        let start = quantile(&mut sizes.clone(), config.target);
        let needed = start / (config.reach * travel);
        if needed.is_nan() || needed > config.lambda[1] {
            return Err(SparseError::TooShort { target: 100.0 * config.target, needed, limit: config.lambda[1] });
        }
        let state = SparseState {
            near_zero,
            start,
            top: alive[alive.len() - 1],
            lambda: needed.max(config.lambda[0]),
            travelled: 0.0,
            decided: 0.0,
            quantile: start,
            pressed: 0.0,
            yield_: 1.0,
            idle: 0,
        };
        Ok(Self { config, sites, travel, state })
    }

    /// Takes up a stored state.
    pub fn resume(&mut self, state: SparseState) {
        self.state = state;
    }

    /// The state, to be stored.
    pub fn state(&self) -> &SparseState {
        &self.state
    }

    /// To be called after each step of the optimiser, with the learning rate it used for BatchNorm's scales: shrinks the
    /// gammas and, where a decision is due, reconsiders lambda. Returns what has changed.
    ///
    /// # Errors
    /// [`SparseError::Stuck`].
    pub fn step(&mut self, graph: &mut Graph, lr: f32) -> Result<Option<Change>, SparseError> {
        proximal_step(graph, &self.sites, lr * self.state.lambda);
        self.state.travelled += lr;
        self.state.pressed += lr * self.state.lambda;
        if self.state.travelled - self.state.decided < self.travel / self.config.decisions as f32 {
            return Ok(None);
        }
        self.decide(graph)
    }

    /// Share of gammas near zero.
    fn share(&self, graph: &Graph) -> f32 {
        let near = magnitudes(graph, &self.sites).iter().filter(|&&g| g < self.state.near_zero).count();
        near as f32 / self.sites.len() as f32
    }

    /// The distribution of the gammas.
    pub fn histogram(&self, graph: &Graph, epoch: usize) -> GammaHistogram {
        let mut sizes = magnitudes(graph, &self.sites);
        let mut counts = vec![0; BINS];
        for g in &sizes {
            counts[((g / self.state.top * BINS as f32) as usize).min(BINS - 1)] += 1;
        }
        GammaHistogram {
            epoch,
            lambda: self.state.lambda,
            near_zero: self.state.near_zero,
            share: self.share(graph),
            median: quantile(&mut sizes, 0.5),
            max: sizes.iter().copied().fold(0.0, f32::max),
            top: self.state.top,
            counts,
        }
    }

    fn decide(&mut self, graph: &Graph) -> Result<Option<Change>, SparseError> {
        let (config, travel) = (&self.config, self.travel);
        let share = self.share(graph);
        let now = quantile(&mut magnitudes(graph, &self.sites), config.target);
        let state = &mut self.state;
        let plan = |travelled: f32| state.start * (1.0 - travelled / (config.reach * travel)).max(0.0);
        let stride = state.travelled - state.decided;
        let moved = state.quantile - now;

        // A gamma that has arrived cannot move further, so only the way down tells how much is yielded.
        if state.pressed > 0.0 && share < config.target {
            let seen = (moved / state.pressed).clamp(0.05, 2.0);
            state.yield_ = 0.7 * state.yield_ + 0.3 * seen;
        }
        let from = state.lambda;
        let wanted = if share < config.target {
            let ahead = now - plan(state.travelled + stride);
            (ahead / (state.yield_ * stride)).clamp(from / 2.0, from * 2.0)
        } else if share > config.target + 0.02 {
            from * 0.8
        } else {
            from
        };
        let to = wanted.clamp(config.lambda[0], config.lambda[1]);
        let change = Change { from, to, share, quantile: now, plan: plan(state.travelled) };

        // At the limit, short of the target, and what was pressed off has come back.
        let idle = from >= config.lambda[1] && share < config.target && moved < 0.05 * state.pressed;
        state.idle = if idle { state.idle + 1 } else { 0 };
        if state.idle >= config.patience {
            let [share, target] = [share, config.target].map(|s| 100.0 * s);
            return Err(SparseError::Stuck { share, target, lambda: from, quantile: now });
        }
        (state.lambda, state.decided, state.quantile, state.pressed) = (to, state.travelled, now, 0.0);
        Ok((to != from).then_some(change))
    }
}

impl SparseConfig {
    fn check(&self) -> Result<(), SparseError> {
        let open = |v: f32| v > 0.0 && v < 1.0;
        let settings = [
            ("target", self.target, open(self.target), "between 0 and 1"),
            ("near_zero", self.near_zero, open(self.near_zero), "between 0 and 1"),
            ("reach", self.reach, self.reach > 0.0 && self.reach <= 1.0, "above 0 and at most 1"),
            ("lambda", self.lambda[0], self.lambda[0] > 0.0 && self.lambda[0] <= self.lambda[1], "a range above 0"),
            ("decisions", self.decisions as f32, self.decisions > 0, "above 0"),
            ("patience", self.patience as f32, self.patience > 0, "above 0"),
        ];
        match settings.into_iter().find(|(_, _, good, _)| !good) {
            Some((name, value, _, range)) => Err(SparseError::Setting { name, value, range }),
            None => Ok(()),
        }
    }
}

/// `gamma <- sign(gamma) max(|gamma| - amount, 0)` at every site: the proximal operator of `amount * |gamma|`.
///
/// # Panics
/// If a site is no channel of a BatchNorm.
fn proximal_step(graph: &mut Graph, sites: &[Site], amount: f32) {
    for site in sites {
        let Op::BatchNorm(bn) = &mut graph.nodes[site.node].op else { panic!("node {} is no BatchNorm", site.node) };
        let gamma = &mut bn.gamma[site.channel];
        *gamma = (gamma.abs() - amount).max(0.0).copysign(*gamma);
    }
}

/// |gamma| at every site.
fn magnitudes(graph: &Graph, sites: &[Site]) -> Vec<f32> {
    let gamma = |site: &Site| match &graph.nodes[site.node].op {
        Op::BatchNorm(bn) => bn.gamma[site.channel].abs(),
        _ => panic!("node {} is no BatchNorm", site.node),
    };
    sites.iter().map(gamma).collect()
}

/// The value that a share `q` of `values`, of which there is one at least, does not exceed. Reorders them.
fn quantile(values: &mut [f32], q: f32) -> f32 {
    let rank = ((q * values.len() as f32).ceil() as usize).clamp(1, values.len()) - 1;
    *values.select_nth_unstable_by(rank, f32::total_cmp).1
}

#[cfg(test)]
mod tests {
    use graph::{BatchNorm, Family, Meta, Node};

    use super::*;

    const CHANNELS: usize = 200;

    /// Gammas spread over 0.5..1.5 with both signs.
    fn graph() -> (Graph, Vec<Site>) {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [8, 8] };
        let mut graph = Graph::new(meta, CHANNELS);
        let mut bn = BatchNorm::identity(CHANNELS, 1e-3, 0.03);
        for (i, g) in bn.gamma.iter_mut().enumerate() {
            *g = (0.5 + i as f32 / CHANNELS as f32) * if i % 3 == 0 { -1.0 } else { 1.0 };
        }
        graph.nodes.push(Node { name: "bn".into(), op: Op::BatchNorm(bn), inputs: vec![0] });
        (graph, (0..CHANNELS).map(|channel| Site { node: 1, channel }).collect())
    }

    fn gammas(graph: &mut Graph) -> &mut Vec<f32> {
        match &mut graph.nodes[1].op {
            Op::BatchNorm(bn) => &mut bn.gamma,
            _ => unreachable!(),
        }
    }

    /// A run on a loss that pulls every gamma back to its start with a force of its own, up to `pull`.
    struct Run {
        share: f32,
        changes: Vec<Change>,
        graph: Graph,
        sparsifier: Sparsifier,
    }

    fn run(target: f32, pull: f32, steps: usize, rates: impl Fn(f32) -> f32) -> Result<Run, SparseError> {
        let (mut graph, sites) = graph();
        let home = gammas(&mut graph).clone();
        let lr = |i: usize| rates(i as f32 / steps as f32);
        let travel = (0..steps).map(lr).sum();
        let config = SparseConfig { target, ..Default::default() };
        let mut sparsifier = Sparsifier::new(config, &graph, sites, travel)?;
        let mut changes = Vec::new();
        for i in 0..steps {
            for (k, (g, home)) in gammas(&mut graph).iter_mut().zip(&home).enumerate() {
                let force = pull * ((k * 37 % CHANNELS) as f32 / CHANNELS as f32);
                *g -= lr(i) * force * (*g - home);
            }
            changes.extend(sparsifier.step(&mut graph, lr(i))?);
        }
        Ok(Run { share: sparsifier.share(&graph), changes, graph, sparsifier })
    }

    #[test]
    fn quantiles_are_values_that_a_share_does_not_exceed() {
        let of = |q: f32| quantile(&mut [5.0, 1.0, 4.0, 2.0, 3.0], q);
        assert_eq!([0.01, 0.2, 0.21, 0.5, 0.6, 0.99].map(of), [1.0, 1.0, 2.0, 3.0, 3.0, 5.0]);
    }

    #[test]
    fn what_is_gone_at_the_start_does_not_say_what_is_near_zero() {
        let (mut graph, sites) = graph();
        gammas(&mut graph)[..120].fill(0.0);
        let sparsifier = Sparsifier::new(SparseConfig { target: 0.9, ..SparseConfig::default() }, &graph, sites, 10.0);
        // The median of the eighty that are left.
        let median = (0.5f32 + 160.0 / 200.0) * 0.01;
        let mut sparsifier = sparsifier.expect("there is something to press");
        assert!((sparsifier.state().near_zero - median).abs() < 1e-6, "{:?}", sparsifier.state());
        // More than there was at the start is counted in the last bin; the strength keeps to its range.
        gammas(&mut graph)[199] = 100.0;
        assert_eq!(sparsifier.histogram(&graph, 0).counts.iter().sum::<u32>(), CHANNELS as u32);
        let least = SparseConfig { lambda: [1.0, 10.0], ..SparseConfig::default() };
        let sites = sparsifier.sites.clone();
        sparsifier = Sparsifier::new(least, &graph, sites, 1000.0).expect("long enough");
        assert_eq!(sparsifier.state().lambda, 1.0);
    }

    #[test]
    fn a_reach_beyond_the_run_is_refused() {
        for reach in [0.0, 1.5, f32::NAN] {
            let (graph, sites) = graph();
            let config = SparseConfig { reach, ..SparseConfig::default() };
            let error = Sparsifier::new(config, &graph, sites, 10.0).expect_err("no part of a run");
            assert!(error.to_string().contains("`reach`"), "{error}");
        }
    }

    #[test]
    fn proximal_step_shrinks_and_stops_at_zero() {
        let (mut graph, sites) = graph();
        gammas(&mut graph)[..3].copy_from_slice(&[-1.0, 0.3, 0.1]);
        proximal_step(&mut graph, &sites[..3], 0.2);
        let got = gammas(&mut graph);
        assert!((got[0] + 0.8).abs() < 1e-6 && (got[1] - 0.1).abs() < 1e-6 && got[2] == 0.0, "{:?}", &got[..3]);
        assert_eq!(got[4], 0.52, "other gammas stay");
    }

    #[test]
    fn the_target_is_met_under_any_resistance_and_schedule() {
        let constant = |_: f32| 0.01f32;
        let warm_and_decaying = |x: f32| if x < 0.1 { 0.1 * x } else { 0.01 * (1.01 - x) };
        for target in [0.3, 0.5, 0.8] {
            for pull in [0.0, 0.1, 1.0, 4.0] {
                for (name, rates) in [("constant", &constant as &dyn Fn(f32) -> f32), ("real", &warm_and_decaying)] {
                    let case = format!("target {target}, pull {pull}, {name} rate");
                    let run = run(target, pull, 2000, rates).unwrap_or_else(|e| panic!("{case}: {e}"));
                    println!("{case}: share {:.3}, lambda {:.4}", run.share, run.sparsifier.state.lambda);
                    assert!(run.share >= target - 0.03, "{case}: only {} are near zero", run.share);
                    assert!(run.share < target + 0.15, "{case}: {} are near zero", run.share);
                }
            }
        }
    }

    #[test]
    fn every_change_of_lambda_is_reported() {
        let run = run(0.5, 1.0, 500, |_| 0.01).unwrap();
        assert!(run.changes.windows(2).all(|w| w[0].to == w[1].from));
        assert_eq!(run.changes.last().unwrap().to, run.sparsifier.state.lambda);
        assert!(run.changes[0].to_string().contains("lambda"), "{}", run.changes[0]);
    }

    #[test]
    fn gammas_that_do_not_respond_are_an_error() {
        let (mut graph, sites) = graph();
        let still = gammas(&mut graph).clone();
        let config = SparseConfig { lambda: [1e-3, 0.2], ..Default::default() };
        let mut sparsifier = Sparsifier::new(config, &graph, sites, 10.0).unwrap();
        let outcome = (0..1000).find_map(|_| {
            let result = sparsifier.step(&mut graph, 0.01).err();
            gammas(&mut graph).copy_from_slice(&still);
            result
        });
        let message = outcome.expect("nobody noticed").to_string();
        assert!(message.contains("do not respond") && message.contains("0.200"), "{message}");
    }

    #[test]
    fn a_run_that_cannot_get_there_is_refused_at_once() {
        let (graph, sites) = graph();
        let err = Sparsifier::new(SparseConfig::default(), &graph, sites.clone(), 0.01).unwrap_err();
        assert!(matches!(err, SparseError::TooShort { .. }), "{err}");
        assert!(matches!(
            Sparsifier::new(SparseConfig { target: 1.5, ..Default::default() }, &graph, sites, 10.0).unwrap_err(),
            SparseError::Setting { name: "target", .. }
        ));
        assert_eq!(Sparsifier::new(SparseConfig::default(), &graph, vec![], 10.0).unwrap_err(), SparseError::NoGammas);
    }

    #[test]
    fn a_stored_state_goes_on_as_if_nothing_had_been() {
        let run = run(0.5, 1.0, 300, |_| 0.01).unwrap();
        let (mut a, mut b) = (run.sparsifier.clone(), run.sparsifier.clone());
        let stored = serde_json::to_string(a.state()).unwrap();
        b.state.lambda = 9.0;
        b.resume(serde_json::from_str(&stored).unwrap());
        let (mut ga, mut gb) = (run.graph.clone(), run.graph);
        for _ in 0..20 {
            a.step(&mut ga, 0.01).unwrap();
            b.step(&mut gb, 0.01).unwrap();
        }
        assert_eq!(ga, gb);
    }

    #[test]
    fn the_histogram_counts_every_gamma() {
        let run = run(0.5, 0.5, 1000, |_| 0.01).unwrap();
        let h = run.sparsifier.histogram(&run.graph, 7);
        assert_eq!((h.epoch, h.counts.iter().sum::<u32>() as usize), (7, CHANNELS));
        assert!(h.counts[0] as f32 >= h.share * CHANNELS as f32, "near zero is the first bin: {h:?}");
        assert!((h.top - 1.495).abs() < 1e-3, "top stays that of the start: {}", h.top);
    }
}
