//! The method and its kin (METHOD.md, section 6) as recipes: what each does differently from ours.

use prune::{Criterion, Fill, Mode, Multiple};

use super::Recipe;

/// One way to make a detector smaller.
pub struct Method {
    /// What it is called on the command line and in tables.
    pub name: &'static str,
    /// What it is, in words.
    pub about: &'static str,
    /// Turns our recipe into its own.
    set: fn(&mut Recipe),
}

impl Method {
    /// The method of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        METHODS.iter().find(|m| m.name == name)
    }

    /// `recipe` by this method, keeping a share `macs` of the multiply-accumulates.
    pub fn keeping(&self, recipe: &Recipe, macs: f64) -> Recipe {
        let mut own = recipe.clone();
        own.budget.macs = Some(macs);
        (self.set)(&mut own);
        own
    }
}

/// The name of [`METHODS`]' first, which removes nothing.
pub const LONGER: &str = "longer";

/// Stage 2's share of the removal where both stages are at work.
const BOTH: f64 = 0.8;

/// All of them; the first prunes nothing and trains on instead, the last is ours.
pub const METHODS: &[Method] = &[
    Method {
        name: LONGER,
        about: "nothing removed, trained for as many epochs",
        set: |r| {
            plain(r, Criterion::BnScale);
            r.budget = prune::Budget { macs: Some(1.0), ..prune::Budget::default() };
            // Following itself would hold it where it is.
            r.heal.distill = 0.0;
        },
    },
    Method {
        name: "scratch",
        about: "the architecture ours leaves, trained from nothing for as many epochs",
        set: |r| {
            r.reconstruct = false;
            r.recalibration_epochs = 0;
            r.restart = true;
            r.heal.epochs *= 2;
        },
    },
    Method { name: "random", about: "channels at random", set: |r| plain(r, Criterion::Random { seed: r.seed }) },
    Method { name: "l1", about: "L1 norm of filters (Li 2017)", set: |r| plain(r, Criterion::L1Filter) },
    Method {
        name: "merging",
        about: "L1 norm, and removed filters merged into those most like them (Kim 2020)",
        set: |r| {
            plain(r, Criterion::L1Filter);
            r.importance.fill = Fill::Merged;
        },
    },
    Method { name: "fpgm", about: "geometric median of filters (He 2019)", set: |r| plain(r, Criterion::Fpgm) },
    Method {
        name: "depgraph",
        about: "norms over all coupled weights (DepGraph, Fang 2023)",
        set: |r| plain(r, Criterion::GroupNorm),
    },
    Method {
        name: "lamp",
        about: "norms over all coupled weights, as shares of what is left of their layer (LAMP, Lee 2021)",
        set: |r| plain(r, Criterion::Lamp),
    },
    Method { name: "bn-scale", about: "BatchNorm scales (Liu 2017)", set: |r| plain(r, Criterion::BnScale) },
    Method {
        name: "bn-scale-folded",
        about: "BatchNorm scales, constants folded into the readers",
        set: |r| {
            plain(r, Criterion::BnScale);
            r.importance.fill = Fill::Constant;
        },
    },
    Method {
        name: "taylor",
        about: "first-order loss of the BatchNorm gates (Molchanov 2019)",
        set: |r| plain(r, Criterion::Taylor),
    },
    Method {
        name: "stage1",
        about: "our stage 1 alone: predicted loss, constants folded",
        set: |r| {
            plain(r, Criterion::OutputError);
            r.importance.fill = Fill::Constant;
        },
    },
    Method {
        name: "pairwise",
        about: "both stages, one stand-in a channel",
        set: |r| {
            r.similarity_share = BOTH;
            r.similarity.mode = Mode::Pairwise;
            // The budget decides, not the threshold: otherwise stage 1 would do most of the work.
            r.similarity.threshold = 0.0;
            unmended(r);
        },
    },
    Method {
        name: "span",
        about: "both stages, all kept channels stand in",
        set: |r| {
            r.similarity_share = BOTH;
            unmended(r);
        },
    },
    Method {
        name: "stage1-reconstructed",
        about: "our stage 1 alone, then reconstruction",
        set: |r| {
            plain(r, Criterion::OutputError);
            r.importance.fill = Fill::Constant;
            r.reconstruct = true;
        },
    },
    Method {
        name: "both-reconstructed",
        about: "both stages, all kept channels stand in, then reconstruction",
        set: |r| r.similarity_share = BOTH,
    },
    Method { name: "rounds", about: "ours in two rounds, each healed for half of the epochs", set: |r| r.rounds = 2 },
    Method { name: "prunella", about: "stage 2, all kept channels stand in, then reconstruction", set: |_| {} },
];

/// No reconstruction, and so no branch that goes whole.
fn unmended(recipe: &mut Recipe) {
    recipe.reconstruct = false;
    recipe.similarity.shortcuts = false;
}

/// Pruning as it is usually published: rank, cut, train.
fn plain(recipe: &mut Recipe, criterion: Criterion) {
    recipe.importance.criterion = criterion;
    recipe.importance.limits.multiple = Multiple::ANY;
    recipe.importance.fill = Fill::Nothing;
    recipe.similarity_share = 0.0;
    recipe.reconstruct = false;
    recipe.recalibration_epochs = 0;
}
