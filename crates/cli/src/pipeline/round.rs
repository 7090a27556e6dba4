//! A round: a cut in both stages, mended by reconstruction, then healed.
//!
//! One is the rule. Where there are several, each cuts what the one before has healed by the same factor and is healed for its
//! share of the epochs: iterative pruning (Han et al., "Learning both weights and connections", 2015) at equal budget.

use graph::Graph;
use prune::{Latency, Plan, Target, surgery};
use serde::{Deserialize, Serialize};
use train::TrainConfig;

use super::{Goal, Healing, Pipeline, Recipe, Stage, cut, standing};
use crate::exit::Error;
use crate::report::StageRow;
use crate::speed::Speed;
use crate::training::Counter;
use crate::{runs, ui};

/// Share of the dense detector's mAP50-95 from which what healing starts from is worth keeping: healing is to begin again rather than
/// to lose it, and may go a part of the way only.
const WORTH_KEEPING: f64 = 0.5;

/// Shares of the healed weights in the averages that are tried, the others being those that healing started from.
const SHARES: [f32; 3] = [0.25, 0.5, 0.75];

/// An average of what healing started from and what it ended at.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Average {
    /// Share of the latter.
    share: f32,
    map50_95: f64,
}

/// Which round of how many, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    number: usize,
    of: usize,
}

impl Round {
    /// All rounds in order.
    pub fn all(of: usize) -> impl Iterator<Item = Self> {
        (1..=of).map(move |number| Self { number, of })
    }

    /// The one there is where everything is cut at once.
    fn only() -> Self {
        Self { number: 1, of: 1 }
    }

    fn is_last(self) -> bool {
        self.number == self.of
    }

    /// What a stage or plan of this round is called; the last round's are called like an only one's.
    pub fn name(self, what: &str) -> String {
        if self.is_last() { what.into() } else { format!("{what}-{}", self.number) }
    }

    /// This round's epochs of `all`.
    fn epochs(self, all: usize) -> usize {
        all * self.number / self.of - all * (self.number - 1) / self.of
    }

    /// What this round has to come down to on the way from `goal`'s size of `from`.
    fn target(self, goal: &Goal, from: &Graph) -> miette::Result<Target> {
        let left = self.of - self.number;
        Ok(goal.target.part_of_the_way(goal.size(from)?, 1.0 / (left + 1) as f64))
    }
}

/// What rounds have in common.
pub struct Cutter<'a> {
    pub pipeline: &'a Pipeline<'a>,
    /// The pipeline's recipe, with what was measured for it.
    pub recipe: &'a Recipe,
    /// What healing follows.
    pub dense: &'a Graph,
    pub goal: Goal,
    /// The times `goal` goes by, where it is of time.
    pub speed: Option<Speed>,
    pub rows: Vec<Stage>,
}

impl Cutter<'_> {
    /// What round `round` makes of `whole`.
    ///
    /// # Errors
    /// The budget cannot be met; a stage cannot be made, measured or written.
    pub fn run(&mut self, round: Round, whole: &Graph) -> miette::Result<Graph> {
        let (cut, plans) = self.cut(round, whole)?;
        if round.is_last() {
            self.goal.must_meet(&cut)?;
        }
        let (mended, standing) = self.mend(round, whole, &plans, cut)?;
        self.heal(round, mended, standing)
    }

    fn stage(
        &mut self,
        round: Round,
        name: &str,
        make: impl FnOnce() -> miette::Result<Graph>,
    ) -> miette::Result<Graph> {
        self.pipeline.stage(&mut self.rows, &round.name(name), make)
    }

    /// mAP50-95 of the last stage.
    fn standing(&self) -> f64 {
        standing(self.rows.last())
    }

    fn cut(&mut self, round: Round, whole: &Graph) -> miette::Result<(Graph, Vec<Plan>)> {
        let recipe = self.recipe;
        let target = round.target(&self.goal, whole)?;
        let calibration = &self.pipeline.calibration;
        let by_importance = |graph| cut::by_importance(graph, &recipe.importance, Some(calibration));
        let (mut slim, mut plans) = (whole.clone(), vec![]);
        if recipe.similarity_share < 1.0 {
            let first = match recipe.similarity_share > 0.0 {
                true => self.pipeline.plan(&round.name("importance"), || {
                    by_importance(whole)?(&target.before_similarity(self.goal.size(whole)?, recipe.similarity_share))
                })?,
                false => self.plan(round, "importance", whole, &target, || by_importance(whole))?,
            };
            self.stage(round, "masked", || Ok(surgery::mask(whole, &first.uncompensated())?))?;
            slim = self.stage(round, "folded", || cut::apply(whole, &first))?;
            plans.push(first);
        }
        if recipe.similarity_share > 0.0 {
            let second = self.plan(round, "similarity", &slim, &target, || {
                cut::by_similarity(&slim, &recipe.similarity, calibration)
            })?;
            slim = self.stage(round, "replaced", || cut::apply(&slim, &second))?;
            plans.push(second);
        }
        if round.is_last() && !self.goal.met(&slim)? {
            let rest = self.plan(round, "rest", &slim, &target, || by_importance(&slim))?;
            ui::note("Similarity alone did not reach the budget; importance removed the rest");
            slim = self.stage(round, "trimmed", || cut::apply(&slim, &rest))?;
            plans.push(rest);
        }
        Ok((slim, plans))
    }

    /// Figures of what a cut in one round leaves of `whole` before healing; nothing where the budget cannot be met.
    ///
    /// # Errors
    /// A stage cannot be made, measured or written.
    pub fn unhealed(mut self, whole: &Graph) -> miette::Result<Option<StageRow>> {
        let round = Round::only();
        let (cut, plans) = self.cut(round, whole)?;
        if !self.goal.met(&cut)? {
            return Ok(None);
        }
        self.reconstructed(round, whole, &plans, cut)?;
        Ok(self.rows.pop().map(|stage| stage.row))
    }

    /// `slim`, cut from `whole` by `plans`, reconstructed where the recipe says so.
    fn reconstructed(&mut self, round: Round, whole: &Graph, plans: &[Plan], slim: Graph) -> miette::Result<Graph> {
        match self.recipe.reconstruct {
            true => {
                let calibration = &self.pipeline.calibration;
                self.stage(round, "reconstructed", || calibration.reconstruct(whole, plans, &slim))
            }
            false => Ok(slim),
        }
    }

    /// The plan `name` of what goes from `graph`, by what `planner` measures: towards the goal in the last round, else towards
    /// `target`.
    fn plan<P: Fn(&Target) -> miette::Result<Plan>>(
        &mut self,
        round: Round,
        name: &str,
        graph: &Graph,
        target: &Target,
        planner: impl FnOnce() -> miette::Result<P>,
    ) -> miette::Result<Plan> {
        let (goal, speed, out) = (&mut self.goal, &mut self.speed, self.pipeline.out);
        self.pipeline.plan(&round.name(name), || {
            let plan = planner()?;
            if !round.is_last() {
                return plan(target);
            }
            // Times corrected on the way are kept, because a resumed run has to plan by the times it was planned with.
            if speed.as_ref().is_some_and(|speed| speed.confirmed) {
                return plan(&goal.aimed());
            }
            let made = goal.reach(graph, plan)?;
            if let (Some(speed), Some(latency)) = (speed, &goal.target.latency) {
                (speed.latency, speed.confirmed) = (Latency::clone(latency), true);
                speed.keep(out)?;
            }
            Ok(made)
        })
    }

    /// What can be done for `slim`, cut from `whole` by `plans`, without training, and the mAP50-95 of that.
    fn mend(&mut self, round: Round, whole: &Graph, plans: &[Plan], slim: Graph) -> miette::Result<(Graph, f64)> {
        let (recipe, pipeline) = (self.recipe, self.pipeline);
        let mut slim = self.reconstructed(round, whole, plans, slim)?;
        // Healing needs the memory.
        pipeline.calibration.forget();
        if recipe.restart {
            slim = self.stage(round, "restarted", || Ok(graph::build::restarted(&slim, recipe.seed)?))?;
        }
        let standing = self.standing();
        if recipe.recalibration_epochs > 0 {
            let fresh = self.stage(round, "recalibrated", || {
                let all = pipeline.calibration.of_all();
                all.recalibrate(&slim, recipe.heal.augment, recipe.recalibration_epochs)
            })?;
            // After least squares the old statistics may be the better ones: they are what the fit was made with.
            if self.standing() > standing {
                return Ok((fresh, self.standing()));
            }
        }
        Ok((slim, standing))
    }

    /// `slim`, of mAP50-95 `standing`, after this round's epochs; or their average, or as it is where those made it worse.
    fn heal(&mut self, round: Round, slim: Graph, standing: f64) -> miette::Result<Graph> {
        let heal = &self.recipe.heal;
        let config = TrainConfig { epochs: round.epochs(heal.epochs), ..heal.clone() };
        // What was cut without regard to what it says has nothing to lose.
        let worth = super::standing(self.rows.first()) * WORTH_KEEPING;
        let worth_keeping = Some(standing).filter(|standing| *standing > worth);
        let healed = match config.epochs {
            0 => None,
            _ => Some(self.train(round, &slim, &config, worth_keeping)?),
        };
        if let Some(healed) = healed.as_ref().filter(|_| worth_keeping.is_some())
            && let Some(average) = self.average(round, &slim, healed, standing)?
        {
            return Ok(average);
        }
        // What is shipped stands last. A few epochs undo more of the reconstruction than they mend, and recalibration may have been the
        // worse.
        if self.standing() < standing {
            if healed.is_some() {
                ui::warn("healing made it worse, so what it started from is kept; give it more `--epochs`");
            }
            return self.stage(round, "kept", || Ok(slim));
        }
        Ok(healed.unwrap_or(slim))
    }

    /// `slim` trained by `config`; `standing` is its mAP50-95, where that is worth keeping.
    fn train(
        &mut self,
        round: Round,
        slim: &Graph,
        config: &TrainConfig,
        standing: Option<f64>,
    ) -> miette::Result<Graph> {
        let (pipeline, healing) = (self.pipeline, Healing { dense: self.dense, standing });
        self.stage(round, "healed", || Ok(pipeline.train(&round.name("heal"), slim, config, Some(healing))?.best))
    }

    /// The best average of `slim`, of mAP50-95 `standing`, and `healed` on `val`, where it is better than both.
    ///
    /// Reconstruction and training err in different ways, and nothing lies between what they end at: where both are good, an average
    /// is better (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022).
    fn average(&mut self, round: Round, slim: &Graph, healed: &Graph, standing: f64) -> miette::Result<Option<Graph>> {
        let (slim, healed) = (slim.for_training(), healed.for_training());
        let average = |share: f32| {
            let mut average = slim.clone().into_owned();
            average.mix(1.0 - share, &healed, share);
            average
        };
        let folder = self.pipeline.out.join(round.name("heal"));
        let file = folder.join("averages.json");
        let tried: Vec<Average> = if file.is_file() {
            runs::read_json(&file)?
        } else {
            let judge = &self.pipeline.judges[0];
            let score = |share| judge.score(&average(share), &mut Counter::default()).map(|map| map.map50_95);
            let tried = SHARES.map(|share| Ok(Average { share, map50_95: score(share)? }));
            let tried = tried.into_iter().collect::<miette::Result<_>>()?;
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
            runs::write_json(&file, &tried)?;
            tried
        };
        let best = tried.into_iter().max_by(|a, b| a.map50_95.total_cmp(&b.map50_95));
        let Some(Average { share, .. }) = best.filter(|best| best.map50_95 > standing.max(self.standing())) else {
            return Ok(None);
        };
        ui::note(format_args!("Better than either: {:.0} % of what healing did", 100.0 * share));
        self.stage(round, "averaged", || Ok(average(share))).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_share_the_epochs_and_the_last_has_the_names_of_an_only_one() {
        let all = |of| Round::all(of).collect::<Vec<_>>();
        let names = |of| all(of).iter().map(|r| r.name("healed")).collect::<Vec<_>>();
        assert_eq!(names(1), ["healed"]);
        assert_eq!(names(3), ["healed-1", "healed-2", "healed"]);
        for (of, epochs, want) in [(1, 25, vec![25]), (3, 25, vec![8, 8, 9]), (2, 1, vec![0, 1])] {
            assert_eq!(all(of).iter().map(|r| r.epochs(epochs)).collect::<Vec<_>>(), want);
        }
    }
}
