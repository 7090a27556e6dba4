//! What of a recipe can be refused before anything is trained: values that make no sense, and aims that cannot be reached.

use graph::Graph;
use prune::{Coupling, Target};
use train::TrainConfig;
use train::sparse::SparseConfig;

use super::{Goal, Recipe, cut, sizes};
use crate::exit::Error;
use crate::speed::Speed;

impl Recipe {
    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// One is out of its range; the error names it.
    pub fn check(&self) -> miette::Result<()> {
        let refused =
            |what: String| Err(Error::usage(what, "correct it in the recipe, or leave it out for its default"));
        if self.rounds == 0 {
            return refused("`rounds` is 0; 1 cuts at once".into());
        }
        if self.calibration_images == 0 {
            return refused("`calibration_images` is 0; a cut has to look at some".into());
        }
        if !(0.0..=1.0).contains(&self.similarity_share) {
            return refused(format!("`similarity_share` is {}, not between 0 and 1", self.similarity_share));
        }
        self.importance.limits.check()?;
        self.similarity.check()?;
        for (name, training) in [("dense", &self.dense), ("sparse", &self.sparse), ("heal", &self.heal)] {
            if training.imgsz != self.heal.imgsz {
                let [own, other] = [training.imgsz, self.heal.imgsz];
                return refused(format!("`{name}.imgsz` is {own}, `heal.imgsz` {other}: a run has images of one size"));
            }
            if let Err(error) = training.check() {
                return refused(format!("in the recipe's `{name}`, {error}"));
            }
        }
        Ok(())
    }

    /// Sparse training of `graph` towards the share of its channels that stage 1 will remove on the way to `target`.
    pub fn sparse_towards(&self, graph: &Graph, target: &Target) -> miette::Result<TrainConfig> {
        let classes = Coupling::of(graph)?.classes;
        let prunable = classes.iter().filter(|c| c.pinned.is_none()).count();
        let removed = cut::by_importance(graph, &self.importance, None)?(target)?.removals.len();
        let share = (removed as f32 / prunable.max(1) as f32).clamp(0.01, 0.95);
        let mut config = self.sparse.clone();
        config.sparse = Some(SparseConfig { target: share, ..config.sparse.unwrap_or_default() });
        Ok(config)
    }

    /// Refuses a budget that no cut of `start` meets and sparse training on `images` images that is too short; the times that a budget of
    /// time goes by, which are those of `start` whatever its weights.
    ///
    /// # Errors
    /// As said; the error says what could be reached.
    pub fn reachable(&self, start: &Graph, images: usize) -> miette::Result<Vec<Speed>> {
        if self.max_drop.is_some() {
            return Ok(vec![]);
        }
        // What cannot be reached with the smallest images can be with none.
        let smallest = sizes::with_images_of(start, self.sizes.iter().copied().min().unwrap_or(start.meta.imgsz[0]));
        let (goal, speeds) = Goal::timed(&self.budget, start, &smallest, Speed::measure)?;
        let mut recipe = self.clone();
        recipe.round_by(speeds.last());
        goal.within_reach(recipe.cut())?;
        if recipe.sparse.epochs > 0 {
            let target = goal.target.before_similarity(goal.size(&smallest)?, recipe.similarity_share);
            recipe.sparse_towards(&smallest, &target)?.check_for(&smallest, images)?;
        }
        Ok(speeds)
    }
}

#[cfg(test)]
mod tests {
    use graph::build::Yolov5;
    use prune::{Amount, Budget};

    use super::*;

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_trained() {
        let start = Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.25, depth: 0.33, seed: 1 }.build().unwrap();
        let told = |change: &dyn Fn(&mut Recipe)| {
            let mut recipe = Recipe { budget: Budget { macs: Some(0.5), ..Budget::default() }, ..Recipe::default() };
            change(&mut recipe);
            let ready = recipe.check().and_then(|()| recipe.reachable(&start, 100).map(|_| ()));
            ready.map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert_eq!(told(&|_| ()), "");
        for (part, change) in [
            ("`--macs 0.001`", &(|r: &mut Recipe| r.budget.macs = Some(0.001)) as &dyn Fn(&mut Recipe)),
            ("`--rate 0.999`", &|r| r.budget.rate = Some(0.999)),
            ("hold no detector like this", &|r| r.budget.bytes = Some(Amount::Absolute(1e3))),
            ("`macs` is 5", &|r| r.budget.macs = Some(5.0)),
            ("too short for sparse training", &|r| r.sparse.epochs = 1),
            ("`similarity_share` is 2", &|r| r.similarity_share = 2.0),
            ("`calibration_images` is 0", &|r| r.calibration_images = 0),
            ("`ridge` is -1", &|r| r.similarity.ridge = -1.0),
            ("`dense.imgsz` is 320", &|r| r.dense.imgsz = 320),
            ("in the recipe's `heal`, `lr0` is -1", &|r| r.heal.schedule.lr0 = -1.0),
            ("in the recipe's `dense`, `nominal_batch` is 0", &|r| r.dense.nominal_batch = 0),
        ] {
            let error = told(change);
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
