//! `--max-drop`: the largest cut that costs no more accuracy than allowed, found by cutting and looking.
//!
//! What is judged is the detector as it is after the cut and reconstruction, before any healing: healing takes hours, and
//! gives back more the more has been lost, so the cut found is on the careful side.

use crate::exit::Error;
use crate::report::{Trial, Trials};
use crate::ui;

/// The smallest share of the multiply-accumulates that is tried.
const LEAST: f64 = 0.05;
/// Steps from there to all of them: what is found is exact to one, 0.03.
const STEPS: usize = 32;

/// A cut that keeps to the drop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Share of the multiply-accumulates kept.
    pub macs: f64,
    /// Height and width of the images in pixels.
    pub imgsz: usize,
}

/// Bisects for the smallest share of the multiply-accumulates whose cut costs at most `max_drop` of mAP50-95 (a fraction, not a
/// share of what there was), on images of any of `sizes`; of equal ones it takes the first size.
///
/// `known` holds trials of an earlier, killed search; `at` readies the cuts on images of a size, which give the accuracy at a
/// share, or none where there is no such cut; `keep` is shown all trials after each.
///
/// # Errors
/// Even the smallest cut tried costs more, or a cut fails.
pub fn search<Cut: FnMut(f64) -> miette::Result<Option<f64>>>(
    sizes: &[usize],
    max_drop: f64,
    mut known: Trials,
    mut at: impl FnMut(usize) -> miette::Result<Cut>,
    mut keep: impl FnMut(&Trials) -> miette::Result<()>,
) -> miette::Result<(Found, Trials)> {
    let share = |step: usize| LEAST + step as f64 * (1.0 - LEAST) / STEPS as f64;
    let least = known.dense - max_drop;
    // The smallest step that is known to be good, and the size it is good at.
    let mut best: Option<(usize, usize)> = None;
    for &imgsz in sizes {
        let mut cut = None;
        let mut is_good = |step: usize| -> miette::Result<bool> {
            let macs = share(step);
            let known_one = known.trials.iter().copied().find(|trial| (trial.imgsz, trial.macs) == (imgsz, macs));
            let trial = match known_one {
                Some(trial) => trial,
                None => {
                    let cut = match &mut cut {
                        Some(cut) => cut,
                        none => none.insert(at(imgsz)?),
                    };
                    let trial = Trial { imgsz, macs, map50_95: cut(macs)? };
                    known.trials.push(trial);
                    keep(&known)?;
                    trial
                }
            };
            let good = trial.map50_95.is_some_and(|map| map >= least);
            let map = ui::fixed(trial.map50_95, 4);
            let verdict = if good { "within the drop" } else { "too much" };
            let images = if sizes.len() > 1 { format!(" on {imgsz} px") } else { String::new() };
            ui::note(format_args!(
                "{macs:.3} of the MACs{images}: mAP50-95 {map} before healing, {least:.4} allowed: {verdict}"
            ));
            Ok(good)
        };
        let mut good = match best {
            // Nothing smaller is tried.
            Some((0, _)) => break,
            Some((step, _)) if is_good(step - 1)? => step - 1,
            Some(_) => continue,
            None => STEPS,
        };
        if good > 0 && is_good(0)? {
            good = 0;
        }
        let mut bad = 0;
        while good > bad + 1 {
            let middle = usize::midpoint(bad, good);
            if is_good(middle)? { good = middle } else { bad = middle }
        }
        if good < STEPS {
            best = Some((good, imgsz));
        }
    }
    match best {
        Some((step, imgsz)) => Ok((Found { macs: share(step), imgsz }, known)),
        None => {
            let least = share(STEPS - 1);
            let what =
                format!("every cut tried, down to {least:.3} of the MACs kept, costs more than {max_drop} of mAP50-95");
            let help = "allow a larger `--max-drop`, or give a budget such as `--macs 0.8` and heal";
            Err(Error::failed(what, help))
        }
    }
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

    /// The search on images of one size.
    fn alone(
        max_drop: f64,
        known: Trials,
        mut cut: impl FnMut(f64) -> miette::Result<Option<f64>>,
        keep: impl FnMut(&Trials) -> miette::Result<()>,
    ) -> miette::Result<(f64, Trials)> {
        let cut = std::cell::RefCell::new(&mut cut);
        let found = search(&[320], max_drop, known, |_| Ok(|macs| (cut.borrow_mut())(macs)), keep);
        found.map(|(found, trials)| (found.macs, trials))
    }

    #[test]
    fn the_largest_cut_within_the_drop_is_found() {
        let (found, trials) = alone(0.1, fresh(), |macs| Ok(after(macs)), |_| Ok(())).unwrap();
        assert!((0.5..0.5 + 0.95 / 32.0).contains(&found), "{found}");
        assert_eq!(trials.trials.len(), 6);
        assert!(after(found).unwrap() >= 0.5);
        let (all, trials) = alone(0.9, fresh(), |_| Ok(Some(0.5)), |_| Ok(())).unwrap();
        assert_eq!((all, trials.trials.len()), (LEAST, 1));
    }

    #[test]
    fn of_several_sizes_the_one_that_needs_least_is_found() {
        // Smaller images cost accuracy of their own and leave more of the channels.
        let on = |imgsz: usize| {
            let side = imgsz as f64 / 320.0;
            move |macs: f64| Ok(after((macs / (side * side)).min(1.0)).map(|map| map - 0.3 * (1.0 - side)))
        };
        let least = |imgsz: usize| alone(0.1, fresh(), on(imgsz), |_| Ok(())).unwrap().0;
        let readied = std::cell::RefCell::new(vec![]);
        let found = |sizes: &[usize], known: Trials| {
            let at = |imgsz| {
                readied.borrow_mut().push(imgsz);
                Ok(on(imgsz))
            };
            search(sizes, 0.1, known, at, |_| Ok(())).unwrap()
        };
        let (best, trials) = found(&[320, 256, 160], fresh());
        assert_eq!(best, Found { macs: least(256), imgsz: 256 });
        assert!(least(256) < least(320));
        assert_eq!(readied.take(), [320, 256, 160]);
        // Of 160 pixels one look tells that they lose too much.
        assert_eq!(trials.trials.iter().filter(|trial| trial.imgsz == 160).count(), 1);
        assert_eq!(found(&[320, 256, 160], trials.clone()), (best, trials));
        assert!(readied.take().is_empty(), "all is known");
        // Where no other needs less, it is the first.
        assert_eq!(found(&[256, 256, 320], fresh()).0, best);
        // A size at which nothing keeps to the drop is passed over.
        assert_eq!(found(&[64, 256], fresh()).0, best);
    }

    #[test]
    fn a_killed_search_repeats_nothing() {
        let mut kept = fresh();
        let (found, whole) = alone(0.1, fresh(), |macs| Ok(after(macs)), |_| Ok(())).unwrap();
        let mut cuts = 0;
        let killed = alone(
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
        assert_eq!(alone(0.1, kept, count, |_| Ok(())).unwrap(), (found, whole));
        assert_eq!(again, 3);
    }

    #[test]
    fn a_drop_that_nothing_keeps_to_is_an_error() {
        let error = alone(0.0, fresh(), |_| Ok(Some(0.1)), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("costs more than 0"), "{error}");
    }
}
