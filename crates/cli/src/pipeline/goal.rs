//! What a detector has to come down to: the budget in absolute numbers, and how far what came out is from it.

use std::path::Path;
use std::sync::Arc;

use graph::Graph;
use graph::format::to_bytes;
use prune::budget::Limit;
use prune::{Amount, Budget, Coupling, Latency, Size, Target};

use crate::exit::Error;
use crate::report::TargetRow;
use crate::speed::side_by_side;
use crate::ui;

/// A prediction of time that is further off than this share is worth a warning.
const CLOSE: f64 = 0.1;

/// A budget as the planners take it, and what people want to know beside it.
pub struct Goal {
    pub target: Target,
    /// Bytes of the native file that are no values: its header.
    header: u64,
}

impl Goal {
    /// What `budget` asks of detectors cut from `reference`; `latency` is what times are read from.
    ///
    /// # Errors
    /// The budget names no limit or one out of its range, or a file no detector fits.
    pub fn new(budget: &Budget, reference: &Graph, latency: Option<Arc<Latency>>) -> miette::Result<Self> {
        let size = Size::timed(reference, &Coupling::of(reference)?, latency.as_deref())?;
        let file = to_bytes(reference, Path::new("(dense)"))?.len() as u64;
        let header = file.saturating_sub(size.bytes);
        let mut budget = *budget;
        if let Some(amount) = budget.bytes {
            let asked = match amount {
                Amount::Share(share) if share > 0.0 && share <= 1.0 => share * file as f64,
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
        Ok(Self { target: budget.timed_target(size, latency)?, header })
    }

    /// `graph` in the units of the goal.
    pub fn size(&self, graph: &Graph) -> miette::Result<Size> {
        Ok(Size::timed(graph, &Coupling::of(graph)?, self.target.latency.as_deref())?)
    }

    /// True where `graph` is small and fast enough.
    pub fn met(&self, graph: &Graph) -> miette::Result<bool> {
        Ok(self.target.met(self.size(graph)?))
    }

    /// An error where `graph`, from which nothing more can go, is not small enough: it says what could be reached.
    pub fn must_meet(&self, graph: &Graph) -> miette::Result<()> {
        let size = self.size(graph)?;
        let missed: Vec<String> = self
            .target
            .limits(size)
            .filter(|l| l.now > l.limit)
            .map(|l| format!("{} instead of {}", self.words(&l, l.now), self.words(&l, l.limit)))
            .collect();
        if missed.is_empty() {
            return Ok(());
        }
        let what = format!(
            "the budget cannot be met: with every layer down to the channels it has to keep, {} is the least there is",
            missed.join(", ")
        );
        Err(Error::failed(what, "keep more, or allow narrower layers with a smaller `--min-channels` or `--multiple`"))
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

    /// What was asked for, what the plan says, what `slim` is; times are measured anew, in turns with `dense`.
    ///
    /// # Errors
    /// A detector cannot be run.
    pub fn outcome(&self, dense: &Graph, slim: &Graph) -> miette::Result<Vec<TargetRow>> {
        let size = self.size(slim)?;
        let row = |what: &str, unit: &str, limit: f64, predicted: f64, measured: f64, dense: f64| TargetRow {
            what: what.into(),
            unit: unit.into(),
            asked: limit,
            predicted,
            measured,
            dense,
        };
        let mut rows = vec![];
        for limit in self.target.limits(size) {
            match limit.unit {
                "bytes" => {
                    let file =
                        |graph: &Graph| Ok::<_, graph::Error>(to_bytes(graph, Path::new("(slim)"))?.len() as f64);
                    let whole = |values: u64| (values + self.header) as f64;
                    rows.push(row("file", "bytes", whole(limit.limit), whole(limit.now), file(slim)?, file(dense)?));
                }
                "latency" => {
                    let ms = side_by_side(&[dense, slim])?;
                    let of = |nanos: u64| nanos as f64 / 1e6;
                    rows.push(row("latency", "ms", of(limit.limit), of(limit.now), ms[1], ms[0]));
                }
                _ => {}
            }
        }
        for row in &rows {
            tell(row);
        }
        Ok(rows)
    }
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
    let off = row.measured / row.predicted - 1.0;
    if off.abs() > CLOSE {
        ui::warn(format_args!(
            "the {} measured is {:.0} % {} the one predicted; was the machine busy?",
            row.what,
            100.0 * off.abs(),
            if off > 0.0 { "above" } else { "below" }
        ));
    }
}
