//! `--imgsz` with several sizes: the one at which what the budget leaves promises most, found by cutting at each and looking.
//!
//! Smaller images cost fewer multiply-accumulates, so that at the same budget more channels are left; which is worth more
//! depends on the detector, on the objects and on how hard is cut. What is looked at is the detector as it is before any healing.

use graph::Graph;
use prune::{Amount, Budget};

use crate::exit::Error;
use crate::report::{Left, SizeTrial};
use crate::speed::Speed;
use crate::ui;

/// Share of the multiply-accumulates up to which smaller images are worth a trial (docs/results/bccd-yolov5n.md, "Which size of images").
const SMALL: f64 = 0.15;
/// The same of the time. Fewer channels save less of that than of multiply-accumulates; smaller images save as much of both.
const SHORT: f64 = 0.4;
/// What else is suggested then, in shares of a side.
const SMALLER: [f64; 2] = [0.8, 0.7];

/// `graph`, meant for images of `imgsz`.
pub fn with_images_of(graph: &Graph, imgsz: usize) -> Graph {
    let mut other = graph.clone();
    other.meta.imgsz = [imgsz; 2];
    other
}

/// Tells of smaller images where `budget` is so small for `graph`, whose times are `speed`, that they may be worth more than channels.
///
/// # Errors
/// The graph has no head, or the times are not its own.
pub fn suggest(budget: &Budget, graph: &Graph, speed: Option<&Speed>) -> miette::Result<()> {
    let latency = match (budget.latency, speed) {
        (Some(Amount::Share(share)), _) => Some(share),
        (Some(Amount::Absolute(ms)), Some(speed)) => Some(ms * 1e6 / speed.latency.total(graph)? as f64),
        _ => None,
    };
    if !budget.macs.is_some_and(|share| share <= SMALL) && !latency.is_some_and(|share| share <= SHORT) {
        return Ok(());
    }
    let own = graph.meta.imgsz[0];
    let stride = graph.head()?.0.strides().into_iter().max().unwrap_or(1);
    let smaller = SMALLER.map(|share| (own as f64 * share) as usize / stride * stride);
    let mut sizes: Vec<usize> = std::iter::once(own).chain(smaller).filter(|&size| size > 0).collect();
    sizes.dedup();
    if sizes.len() > 1 {
        let listed: Vec<String> = sizes.iter().map(usize::to_string).collect();
        ui::note(format_args!(
            "With so small a budget smaller images may be worth more than channels; try `--imgsz {}`",
            listed.join(",")
        ));
    }
    Ok(())
}

/// mAP50-95 to expect of what is `left`, `healed` or not. Healing gives back about half of what a cut took, and nothing of what smaller
/// images took (docs/results/bccd-yolov5n.md, "Which size of images").
fn promise(left: Left, healed: bool) -> f64 {
    if healed { f64::midpoint(left.dense, left.map50_95) } else { left.map50_95 }
}

/// Tries every size in `sizes` that is not among the trials `known`, and gives the one that promises most, `healed` or not; of equal
/// ones the first.
///
/// `cut` gives what the cut on images of a size leaves, or nothing where the budget cannot be met; `keep` is shown all trials
/// after each.
///
/// # Errors
/// A cut fails, or the budget can be met with none of the sizes.
pub fn best_size(
    sizes: &[usize],
    healed: bool,
    mut known: Vec<SizeTrial>,
    mut cut: impl FnMut(usize) -> miette::Result<Option<Left>>,
    mut keep: impl FnMut(&[SizeTrial]) -> miette::Result<()>,
) -> miette::Result<(usize, Vec<SizeTrial>)> {
    let mut best: Option<(usize, f64)> = None;
    for &imgsz in sizes {
        let trial = match known.iter().find(|trial| trial.imgsz == imgsz) {
            Some(&trial) => trial,
            None => {
                let trial = SizeTrial { imgsz, left: cut(imgsz)? };
                known.push(trial);
                keep(&known)?;
                trial
            }
        };
        match trial.left {
            Some(left) => {
                ui::note(format_args!(
                    "{imgsz} px: {} parameters and {} MACs are left, mAP50-95 {:.4} before the cut, {:.4} after it",
                    ui::count(left.params),
                    ui::count(left.macs),
                    left.dense,
                    left.map50_95
                ));
                let promise = promise(left, healed);
                if best.is_none_or(|(_, most)| promise > most) {
                    best = Some((imgsz, promise));
                }
            }
            None => ui::note(format_args!("{imgsz} px: the budget cannot be met")),
        }
    }
    match best {
        Some((imgsz, _)) => {
            ui::note(format_args!("{imgsz} px promise most"));
            Ok((imgsz, known))
        }
        None => {
            let listed = ui::listed(&sizes.iter().map(usize::to_string).collect::<Vec<_>>(), sizes.len());
            let what = format!("the budget cannot be met with images of any of these sizes: {listed}");
            Err(Error::failed(what, "keep more, or allow smaller images"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Best at 256 pixels, out of reach above 300.
    fn left(imgsz: usize) -> Option<Left> {
        let map50_95 = 0.5 - (imgsz as f64 - 256.0).abs() / 1000.0;
        (imgsz <= 300).then_some(Left { params: 1, macs: 1, dense: 0.5, map50_95 })
    }

    #[test]
    fn the_most_accurate_size_is_taken_and_no_trial_made_twice() {
        let mut kept = vec![];
        let (size, trials) = best_size(
            &[320, 256, 192],
            true,
            vec![],
            |size| Ok(left(size)),
            |all| {
                kept.push(all.to_vec());
                Ok(())
            },
        )
        .unwrap();
        assert_eq!((size, trials.len(), kept.len()), (256, 3, 3));
        assert_eq!(trials[0], SizeTrial { imgsz: 320, left: None });
        // Resumed after the second.
        let mut again = vec![];
        let resumed = best_size(
            &[320, 256, 192],
            true,
            kept[1].clone(),
            |size| {
                again.push(size);
                Ok(left(size))
            },
            |_| Ok(()),
        );
        assert_eq!((resumed.unwrap(), again), ((256, trials), vec![192]));
    }

    #[test]
    fn what_a_cut_took_may_come_back_and_what_the_size_took_may_not() {
        // A quarter of YOLOv5n on BCCD, seed 0, which heals to 0.614 and 0.609.
        let measured = |imgsz| {
            let (dense, map50_95) = if imgsz == 320 { (0.620, 0.603) } else { (0.611, 0.607) };
            Ok(Some(Left { params: 1, macs: 1, dense, map50_95 }))
        };
        let best = |healed| best_size(&[320, 256], healed, vec![], measured, |_| Ok(())).unwrap().0;
        assert_eq!([best(true), best(false)], [320, 256]);
    }

    #[test]
    fn out_of_reach_at_every_size_is_an_error() {
        let error = best_size(&[640, 320], false, vec![], |size| Ok(left(size)), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("any of these sizes: 640, 320"), "{error}");
    }
}
