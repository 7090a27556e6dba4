//! `--max-drop`: the largest cut that costs no more accuracy than allowed, found by cutting and looking.
//!
//! What is judged is the detector as it is after the cut and reconstruction, before any healing: healing takes hours, and
//! gives back more the more has been lost, so the cut found is on the careful side.

use crate::exit::Error;
use crate::report::{Trial, Trials};
use crate::ui;

/// The smallest share of the multiply-accumulates that is tried.
const LEAST: f64 = 0.05;
/// Halvings of the interval between a cut that costs too much and one that does not: shares are found to within 0.03.
const HALVINGS: usize = 5;

/// Bisects for the smallest share of the multiply-accumulates whose cut costs at most `max_drop` of mAP50-95 (a fraction, not a
/// share of what there was).
///
/// `known` holds trials of an earlier, killed search; `cut` gives the accuracy after a cut, or none where there is no such
/// cut; `keep` is shown all trials after each.
///
/// # Errors
/// Even the smallest cut tried costs more, or a cut fails.
pub fn search(
    max_drop: f64,
    mut known: Trials,
    mut cut: impl FnMut(f64) -> miette::Result<Option<f64>>,
    mut keep: impl FnMut(&Trials) -> miette::Result<()>,
) -> miette::Result<(f64, Trials)> {
    let least = known.dense - max_drop;
    let mut try_one = |macs: f64| -> miette::Result<bool> {
        let trial = match known.trials.iter().copied().find(|trial| trial.macs == macs) {
            Some(trial) => trial,
            None => {
                let trial = Trial { macs, map50_95: cut(macs)? };
                known.trials.push(trial);
                keep(&known)?;
                trial
            }
        };
        let good = trial.map50_95.is_some_and(|map| map >= least);
        let map = ui::fixed(trial.map50_95, 4);
        let verdict = if good { "within the drop" } else { "too much" };
        ui::note(format_args!("{:.3} of the MACs: mAP50-95 {map} before healing, {least:.4} allowed: {verdict}", macs));
        Ok(good)
    };
    let (mut bad, mut good) = (LEAST, 1.0);
    if try_one(LEAST)? {
        return Ok((LEAST, known));
    }
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(bad, good);
        if try_one(middle)? { good = middle } else { bad = middle }
    }
    if good == 1.0 {
        let what =
            format!("every cut tried, down to {bad:.3} of the MACs kept, costs more than {max_drop} of mAP50-95");
        return Err(Error::failed(what, "allow a larger `--max-drop`, or give a budget such as `--macs 0.8` and heal"));
    }
    Ok((good, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A detector that loses as the square of what is gone, and cannot be cut below 0.2.
    fn after(macs: f64) -> Option<f64> {
        (macs >= 0.2).then_some(0.6 - 0.4 * (1.0 - macs) * (1.0 - macs))
    }

    fn fresh() -> Trials {
        Trials { dense: 0.6, trials: vec![] }
    }

    #[test]
    fn the_largest_cut_within_the_drop_is_found() {
        let (found, trials) = search(0.1, fresh(), |macs| Ok(after(macs)), |_| Ok(())).unwrap();
        assert!((0.5..0.5 + 0.95 / 32.0).contains(&found), "{found}");
        assert_eq!(trials.trials.len(), HALVINGS + 1);
        assert!(after(found).unwrap() >= 0.5);
        let (all, _) = search(0.9, fresh(), |_| Ok(Some(0.5)), |_| Ok(())).unwrap();
        assert_eq!(all, LEAST);
    }

    #[test]
    fn a_killed_search_repeats_nothing() {
        let mut kept = fresh();
        let (found, whole) = search(0.1, fresh(), |macs| Ok(after(macs)), |_| Ok(())).unwrap();
        let mut cuts = 0;
        let killed = search(
            0.1,
            fresh(),
            |macs| {
                cuts += 1;
                if cuts == 4 { Err(Error::failed("killed", "")) } else { Ok(after(macs)) }
            },
            |trials| {
                kept = trials.clone();
                Ok(())
            },
        );
        assert!(killed.is_err() && kept.trials.len() == 3);
        let mut again = 0;
        let count = |macs| {
            again += 1;
            Ok(after(macs))
        };
        assert_eq!(search(0.1, kept, count, |_| Ok(())).unwrap(), (found, whole));
        assert_eq!(again, HALVINGS + 1 - 3);
    }

    #[test]
    fn a_drop_that_nothing_keeps_to_is_an_error() {
        let error = search(0.0, fresh(), |_| Ok(Some(0.1)), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("costs more than 0"), "{error}");
    }
}
