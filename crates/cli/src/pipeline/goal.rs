//! What a detector has to come down to: the budget in absolute numbers, and how far what came out is from it.

use std::path::Path;
use std::sync::Arc;

use graph::Graph;
use graph::format::to_bytes;
use prune::budget::Limit;
use prune::{Amount, Budget, Coupling, Criterion, Importance, Latency, Plan, Size, Target, similarity, surgery};

use super::cut::{Cut, apply, by_importance};
use crate::exit::Error;
use crate::report::TargetRow;
use crate::speed::{Speed, WHOLE_TURNS, side_by_side};
use crate::ui;

/// A prediction of time that is further off than this share is worth a warning.
const CLOSE: f64 = 0.1;

/// A plan that comes out further from the time or the file it was made for than this share is made again, so often at most.
const EXACT: f64 = 0.02;
const AGAIN: usize = 3;

/// Files and counts of channels come down in steps, whole branches at a time: plans for them are tried so often at most.
const TRIED: usize = 8;

/// A budget as the planners take it, and what people want to know beside it.
pub struct Goal {
    pub target: Target,
    /// As it was asked for.
    budget: Budget,
    /// What is cut.
    dense: Graph,
    /// Where a file is to be of some size: bytes of it that are no values, its header, when every branch that may go has gone ...
    header: u64,
    /// ... and how many more those of the dense detector are.
    longer: u64,
}

/// What shares of a budget are of: `graph` on images of its own size, by the times of `latency`.
///
/// # Errors
/// The shapes of the graph do not fit.
pub fn size_of(graph: &Graph, latency: Option<&Latency>) -> miette::Result<Size> {
    Ok(Size::timed(graph, &Coupling::of(graph)?, latency)?)
}

impl Goal {
    /// What `budget`, of which shares are of `dense`, asks of detectors cut from it; `latency` is what times are read from.
    ///
    /// # Errors
    /// As for [`Goal::of`].
    #[cfg(test)]
    pub fn new(budget: &Budget, dense: &Graph, latency: Option<Arc<Latency>>) -> miette::Result<Self> {
        Self::of(budget, size_of(dense, latency.as_deref())?, dense, latency)
    }

    /// What `budget`, of which shares are of `dense`, asks of what is cut from `whole`, the same for images of another size or of
    /// its own; and, where it is of time, the times of both as `time` finds them, those of `whole` last.
    ///
    /// # Errors
    /// As for [`Goal::of`], or a detector cannot be timed.
    pub fn timed(
        budget: &Budget,
        dense: &Graph,
        whole: &Graph,
        time: impl Fn(&Graph) -> miette::Result<Speed>,
    ) -> miette::Result<(Self, Vec<Speed>)> {
        let mut speeds = vec![];
        if budget.latency.is_some() {
            speeds.push(time(dense)?);
            if whole.meta.imgsz != dense.meta.imgsz {
                speeds.push(time(whole)?);
            }
        }
        let reference = size_of(dense, speeds.first().map(|speed| &speed.latency))?;
        let latency = speeds.last().map(|speed| Arc::new(speed.latency.clone()));
        Ok((Self::of(budget, reference, whole, latency)?, speeds))
    }

    /// What `budget`, of which shares are of `reference`, asks of detectors cut from `dense`, which may be meant for images of
    /// another size; `latency` is what its times are read from.
    ///
    /// # Errors
    /// The budget names no limit or one out of its range, or a file no detector fits.
    pub fn of(budget: &Budget, reference: Size, dense: &Graph, latency: Option<Arc<Latency>>) -> miette::Result<Self> {
        let (mut header, mut longer) = (0, 0);
        let asked_for = *budget;
        let mut budget = asked_for;
        if let Some(amount) = budget.bytes {
            let (whole, bare) = (file(dense)?, bare(dense)?);
            header = file(&bare)?.saturating_sub(values(&bare)?);
            longer = whole.saturating_sub(reference.bytes + header);
            let asked = match amount {
                Amount::Share(share) if share > 0.0 && share <= 1.0 => share * whole as f64,
                // The planner has the words for it.
                Amount::Share(_) => f64::NAN,
                Amount::Absolute(bytes) => bytes,
            };
            if asked <= header as f64 {
                let what = format!(
                    "{} hold no detector like this: its file describes itself in {} alone",
                    ui::bytes(asked as u64),
                    ui::bytes(header)
                );
                return Err(Error::failed(what, "ask for a larger file"));
            }
            if asked.is_finite() {
                budget.bytes = Some(Amount::Absolute((asked - header as f64).floor()));
            }
        }
        let target = budget.timed_target(reference, latency)?;
        Ok(Self { target, budget: asked_for, dense: dense.clone(), header, longer })
    }

    /// `graph` in the units of the goal. A header longer than the shortest is so many bytes more.
    pub fn size(&self, graph: &Graph) -> miette::Result<Size> {
        let size = Size::timed(graph, &Coupling::of(graph)?, self.target.latency.as_deref())?;
        match self.target.bytes {
            Some(_) => Ok(Size { bytes: file(graph)?.saturating_sub(self.header), ..size }),
            None => Ok(size),
        }
    }

    /// Refuses a budget that `cut` cannot meet, before anything is trained: what is left when every branch and every channel
    /// that may go has gone is too large.
    ///
    /// # Errors
    /// It cannot be met; the error says what could be.
    pub fn within_reach(&self, cut: Cut) -> miette::Result<()> {
        let (limits, shortcuts) = cut.reach();
        let whole = match shortcuts {
            true => bare(&self.dense)?,
            false => self.dense.clone(),
        };
        let all = Importance { criterion: Criterion::L1Filter, limits, ..Importance::default() };
        let nothing = |limit: Option<u64>| limit.map(|_| 0);
        let Target { params, macs, channels, bytes, nanos, .. } = self.target;
        let [params, macs, channels, bytes, nanos] = [params, macs, channels, bytes, nanos].map(nothing);
        let target = Target { params, macs, channels, bytes, nanos, ..self.target.clone() };
        let least = apply(&whole, &by_importance(&whole, &all, None)?(&target)?)?;
        let mut size = self.size(&least)?;
        if let (Some(limit), Some(latency)) = (self.target.nanos, &self.target.latency)
            && size.nanos > limit
        {
            // Operators in a network take other times than alone, and by how much depends on what is cut.
            let [dense_ms, least_ms] = self.times(&least)?;
            size.nanos = (latency.total(&self.dense)? as f64 * least_ms / dense_ms) as u64;
        }
        self.must_be(size)
    }

    /// True where `graph` is small and fast enough.
    pub fn met(&self, graph: &Graph) -> miette::Result<bool> {
        Ok(self.target.met(self.size(graph)?))
    }

    /// What plans are made for: the target, and where it limits the time, so far below it that a plan which comes out exactly enough
    /// is within it; where it limits the file, so that it is within it if no branch goes.
    pub fn aimed(&self) -> Target {
        let nanos = self.target.nanos.map(|limit| (limit as f64 * (1.0 - EXACT)) as u64);
        let bytes = self.target.bytes.map(|limit| limit.saturating_sub(self.longer).max(1));
        Target { nanos, bytes, ..self.target.clone() }
    }

    /// What `plan` makes of the target: where a time is asked for, planned again with corrected times until what is left of
    /// `graph` takes the time it was planned to take, which is within the one asked for. Operators in a network do not take
    /// what they take alone, and by how much differs between the dense network and what a cut leaves.
    ///
    /// # Errors
    /// `plan` fails, or what it leaves cannot be run.
    pub fn reach(&mut self, graph: &Graph, plan: impl Fn(&Target) -> miette::Result<Plan>) -> miette::Result<Plan> {
        let mut aimed = self.aimed();
        let mut made = plan(&aimed)?;
        for _ in 0..AGAIN {
            let Some(corrected) = self.corrected(&aimed, graph, &made)? else { break };
            aimed.latency = Some(Arc::new(corrected));
            made = plan(&aimed)?;
        }
        self.target.latency.clone_from(&aimed.latency);
        // Where a branch goes, channels that were counted may be no longer there to be counted.
        for _ in 0..TRIED {
            let (Some(aim), Some(limit)) = (aimed.channels, self.target.channels) else { break };
            let over = self.size(&surgery::apply(graph, &made)?)?.channels.saturating_sub(limit);
            if over == 0 {
                break;
            }
            aimed.channels = Some(aim.saturating_sub(over));
            made = plan(&aimed)?;
        }
        self.filled(aimed, graph, made, plan)
    }

    /// `made` or, where branches that went leave less for a file to describe, what `plan` makes of the bytes that frees.
    fn filled(
        &self,
        aimed: Target,
        graph: &Graph,
        mut made: Plan,
        plan: impl Fn(&Target) -> miette::Result<Plan>,
    ) -> miette::Result<Plan> {
        let (Some(limit), Some(mut aim)) = (self.target.bytes, aimed.bytes) else { return Ok(made) };
        let whole = limit + self.header;
        let mut left = surgery::apply(graph, &made)?;
        // With more room a branch may stay, and is described again.
        let mut too_much = None;
        for _ in 0..TRIED {
            let values = values(&left)?;
            let free = whole.saturating_sub(file(&left)?);
            let next = too_much.map_or(values + free, |much: u64| values + much.saturating_sub(values) / 2);
            if next <= aim || (free as f64) < EXACT * whole as f64 {
                break;
            }
            let tried = plan(&Target { bytes: Some(next), ..aimed.clone() })?;
            let slim = surgery::apply(graph, &tried)?;
            if file(&slim)? > whole {
                too_much = Some(next);
                continue;
            }
            (aim, made, left) = (next, tried, slim);
        }
        Ok(made)
    }

    /// The times that `plan` of `graph`, made for `aimed`, should have been made by; nothing where it came out exactly enough or
    /// no time is aimed at.
    fn corrected(&self, aimed: &Target, graph: &Graph, plan: &Plan) -> miette::Result<Option<Latency>> {
        let (Some(aim), Some(latency)) = (aimed.nanos, &aimed.latency) else { return Ok(None) };
        let slim = surgery::apply(graph, plan)?;
        let [dense_ms, slim_ms] = self.times(&slim)?;
        // In turns, so that a machine that has become slower since the table was measured is not held against the plan.
        let measured = latency.total(&self.dense)? as f64 * slim_ms / dense_ms;
        let (aim, predicted) = (aim as f64, latency.total(&slim)? as f64);
        let free = measured <= aim && predicted < aim * (1.0 - EXACT);
        if free || (measured / predicted - 1.0).abs() <= EXACT {
            return Ok(None);
        }
        Ok(latency.corrected(&self.dense, &slim, measured)?)
    }

    /// Milliseconds of the dense detector and of `slim`, in turns.
    fn times(&self, slim: &Graph) -> miette::Result<[f64; 2]> {
        let ms = side_by_side(&[&self.dense, slim], WHOLE_TURNS)?;
        Ok([ms[0], ms[1]])
    }

    /// An error where `graph`, from which nothing more can go, is not small enough: it says what could be reached.
    pub fn must_meet(&self, graph: &Graph) -> miette::Result<()> {
        self.must_be(self.size(graph)?)
    }

    fn must_be(&self, size: Size) -> miette::Result<()> {
        let missed: Vec<String> = self
            .target
            .limits(size)
            .filter(|l| l.now > l.limit)
            .map(|l| format!("{} instead of {}", self.words(&l, l.now), self.asked(&l)))
            .collect();
        if missed.is_empty() {
            return Ok(());
        }
        let what = format!(
            "the budget cannot be met: with every layer down to the channels it has to keep, it comes to {}",
            missed.join(", ")
        );
        Err(Error::failed(what, "keep more, or allow narrower layers with a smaller `--min-channels` or `--multiple`"))
    }

    /// The limit as it was given on the command line.
    fn asked(&self, limit: &Limit) -> String {
        let Budget { params, macs, rate, bytes, latency } = self.budget;
        let (amount, unit) = match limit.unit {
            "bytes" => (bytes, "B"),
            "latency" => (latency, "ms"),
            "rate" => (rate.map(Amount::Share), ""),
            "params" => (params.map(Amount::Share), ""),
            _ => (macs.map(Amount::Share), ""),
        };
        match amount {
            Some(Amount::Absolute(value)) => format!("`--{} {value}{unit}`", limit.unit),
            Some(Amount::Share(share)) => format!("`--{} {share}`", limit.unit),
            None => self.words(limit, limit.limit),
        }
    }

    /// `value` of a unit as it would be given on the command line.
    fn words(&self, limit: &Limit, value: u64) -> String {
        let share = value as f64 / limit.reference.max(1) as f64;
        match limit.unit {
            "bytes" => format!("`--bytes {}B`", value + self.header),
            // Rounded up: as asked for, it can be reached.
            "latency" => format!("`--latency {:.2}ms`", (value as f64 / 1e4).ceil() / 100.0),
            "rate" => format!("`--rate {:.3}`", ((1.0 - share) * 1e3).floor() / 1e3),
            unit => format!("`--{unit} {:.3}`", (share * 1e3).ceil() / 1e3),
        }
    }

    /// What was asked for, what the plan says, what `slim` is; times are measured anew, in turns with the dense detector.
    ///
    /// # Errors
    /// A detector cannot be run.
    pub fn outcome(&self, slim: &Graph) -> miette::Result<Vec<TargetRow>> {
        let size = self.size(slim)?;
        let row = |what: &str, unit: &str, [asked, predicted, measured]: [f64; 3], [dense, reference]: [f64; 2]| {
            TargetRow { what: what.into(), unit: unit.into(), asked, predicted, measured, dense, reference }
        };
        let mut rows = vec![];
        for limit in self.target.limits(size) {
            match limit.unit {
                "bytes" => {
                    let whole = |values: u64| (values + self.header) as f64;
                    let figures = [whole(limit.limit), whole(limit.now), file(slim)? as f64];
                    rows.push(row("file", "bytes", figures, [file(&self.dense)? as f64; 2]));
                }
                "latency" => {
                    let ms = self.times(slim)?;
                    let of = |nanos: u64| nanos as f64 / 1e6;
                    let figures = [of(limit.limit), of(limit.now), ms[1]];
                    let planned = self.target.latency.as_ref().map_or(Ok(limit.reference), |l| l.total(&self.dense))?;
                    rows.push(row("latency", "ms", figures, [ms[0], of(planned)]));
                }
                _ => {}
            }
        }
        rows.iter().for_each(tell);
        Ok(rows)
    }
}

/// `graph` without the branches that may go whole.
fn bare(graph: &Graph) -> miette::Result<Graph> {
    Ok(graph.without_branches(&similarity::removable(graph, &Coupling::of(graph)?)))
}

/// Bytes of the values of `graph`.
fn values(graph: &Graph) -> miette::Result<u64> {
    Ok(Size::of(graph, &Coupling::of(graph)?)?.bytes)
}

/// Bytes of the native file of `graph`.
fn file(graph: &Graph) -> miette::Result<u64> {
    Ok(to_bytes(graph, Path::new("(detector)"))?.len() as u64)
}

/// Says how a prediction came out.
fn tell(row: &TargetRow) {
    let value = |v: f64| if row.unit == "bytes" { ui::bytes(v as u64) } else { format!("{v:.2} {}", row.unit) };
    ui::note(format_args!(
        "{}: {} asked for, {} predicted, {} measured; {} before",
        row.what,
        value(row.asked),
        value(row.predicted),
        value(row.measured),
        value(row.dense)
    ));
    // A file is what it is.
    if row.unit == "bytes" {
        return;
    }
    let (pace, off) = (row.pace() - 1.0, row.off());
    let percent = |share: f64| format!("{:.0} %", 100.0 * share.abs());
    if pace.abs() > CLOSE {
        let (by, than) = (percent(pace), if pace > 0.0 { "slower" } else { "faster" });
        ui::warn(format_args!("the machine is {by} {than} now than when its times were measured; was it busy?"));
    }
    if off.abs() > CLOSE {
        let (by, than) = (percent(off), if off > 0.0 { "above" } else { "below" });
        ui::warn(format_args!("the {} measured is {by} {than} the one predicted; was the machine busy?", row.what));
    }
}

#[cfg(test)]
mod tests {
    use graph::build::Yolov5;

    use super::*;
    use crate::pipeline::with_images_of;

    #[test]
    fn shares_are_of_the_dense_detector_at_its_own_size() {
        let dense = Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.25, depth: 0.33, seed: 1 }.build().unwrap();
        let small = with_images_of(&dense, 32);
        let of = |budget: Budget| Goal::of(&budget, size_of(&dense, None).unwrap(), &small, None).unwrap();
        // A quarter of the pixels.
        let goal = of(Budget { macs: Some(0.25), ..Budget::default() });
        assert!(goal.met(&small).unwrap() && !goal.met(&dense).unwrap());
        assert!(!of(Budget { macs: Some(0.249), ..Budget::default() }).met(&small).unwrap());
        // As many parameters as ever.
        assert!(!of(Budget { params: Some(0.999), ..Budget::default() }).met(&small).unwrap());
    }
}
