//! The finished runs of a comparison, timed in turns and averaged over seeds.

use std::path::{Path, PathBuf};

use runtime::Stopwatch;

use crate::exit::Error;
use crate::pipeline::{METHODS, Method};
use crate::report::compare::{Entry, Spread};
use crate::report::{StageRow, Summary};
use crate::runs;
use crate::speed::in_turns;

/// Turns of all slim detectors on the stopwatch, and runs a turn.
const TURNS: [usize; 2] = [9, 5];

/// A run that has been finished.
pub struct Finished {
    pub seed: u64,
    method: &'static Method,
    /// Share of the multiply-accumulates kept; none where nothing was removed.
    macs: Option<f64>,
    folder: PathBuf,
    summary: Summary,
}

/// Every finished run in the folder of a comparison, of this call or an earlier one: methods in their order, larger budgets first, then
/// larger images.
pub fn finished(out: &Path) -> miette::Result<Vec<Finished>> {
    let mut all = vec![];
    for (seed_name, seed_folder) in folders(out)? {
        let Some(seed) = seed_name.strip_prefix("seed").and_then(|s| s.parse().ok()) else { continue };
        for (name, folder) in folders(&seed_folder)? {
            let (method, macs) = named(&name);
            let file = folder.join("summary.json");
            let (Some(method), true) = (Method::named(method), file.is_file()) else { continue };
            let summary = runs::read_json(&file)?;
            all.push(Finished { seed, method, macs, folder, summary });
        }
    }
    let place = |m: &Method| METHODS.iter().position(|other| other.name == m.name);
    // Folders are listed in no particular order.
    let largest_first = |a: &Finished, b: &Finished| b.macs.unwrap_or(1.0).total_cmp(&a.macs.unwrap_or(1.0));
    all.sort_by(|a, b| {
        let by_size = || b.summary.imgsz.cmp(&a.summary.imgsz);
        let by_budget = || largest_first(a, b);
        place(a.method).cmp(&place(b.method)).then_with(by_budget).then_with(by_size).then(a.seed.cmp(&b.seed))
    });
    Ok(all)
}

/// Method and share kept of the run in a folder of that `name`; the size of its images is in its summary.
fn named(name: &str) -> (&str, Option<f64>) {
    let (start, end) = name.rsplit_once('-').unwrap_or((name, ""));
    match (end.parse(), end.strip_suffix("px").is_some_and(|size| size.parse::<usize>().is_ok())) {
        (Ok(macs), _) => (start, Some(macs)),
        (_, true) => named(start),
        _ => (name, None),
    }
}

/// The folders within one, by name.
fn folders(within: &Path) -> miette::Result<Vec<(String, PathBuf)>> {
    let listing = std::fs::read_dir(within).map_err(|e| Error::io("read", within, &e))?;
    Ok(listing
        .filter_map(|entry| {
            let entry = entry.ok().filter(|e| e.path().is_dir())?;
            Some((entry.file_name().into_string().ok()?, entry.path()))
        })
        .collect())
}

/// Milliseconds of an image through each run's slim.onnx in the embedded runtime: medians of turns, so that whatever else the
/// machine does meets all of them alike.
pub fn times(finished: &[Finished]) -> miette::Result<Vec<f64>> {
    let mut stopwatch = Stopwatch::new(rayon::current_num_threads());
    let mut models = vec![];
    for run in finished {
        let file = run.folder.join("slim.onnx");
        let bytes = std::fs::read(&file).map_err(|e| Error::io("read", &file, &e))?;
        models.push(stopwatch.model(&file.display().to_string(), bytes)?);
    }
    Ok(in_turns(&stopwatch, &models, TURNS)?.into_iter().map(|ns| ns / 1e6).collect())
}

/// One entry a method, budget and size of images: means over seeds.
pub fn entries(runs: &[Finished], times: &[f64]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = vec![];
    for Finished { method, macs, summary, .. } in runs {
        let imgsz = summary.imgsz;
        if entries.iter().any(|e| e.method == method.name && e.macs_kept == *macs && e.imgsz == imgsz) {
            continue;
        }
        let same = |r: &Finished| r.method.name == method.name && r.macs == *macs && r.summary.imgsz == imgsz;
        let of: Vec<&Summary> = runs.iter().filter(|r| same(r)).map(|r| &r.summary).collect();
        let ms: Vec<f64> = runs.iter().zip(times).filter(|(r, _)| same(r)).map(|(_, ms)| *ms).collect();
        let spread = |value: &dyn Fn(&Summary) -> Option<f64>| {
            Spread::of(&of.iter().filter_map(|s| value(s)).collect::<Vec<_>>())
        };
        let last = |f: fn(&StageRow) -> f64| move |s: &Summary| s.stages.last().map(f);
        entries.push(Entry {
            method: method.name.into(),
            about: method.about.into(),
            macs_kept: *macs,
            imgsz,
            params: spread(&last(|r| r.params as f64)),
            macs: spread(&last(|r| r.macs as f64)),
            ms: Spread::of(&ms),
            unhealed: spread(&|s| unhealed(&s.stages)),
            map50: spread(&last(|r| r.map50)),
            map50_95: spread(&last(|r| r.map50_95)),
            test: spread(&|s| s.stages.last().and_then(|r| r.test.map(|t| t.map50_95))),
        });
    }
    entries
}

/// mAP50-95 of what healing started from: the last stage before it, or the one before that where recalibration did harm and
/// was dropped.
fn unhealed(stages: &[StageRow]) -> Option<f64> {
    let before: Vec<&StageRow> = stages.iter().take_while(|r| r.stage != "healed").collect();
    match before[..] {
        [.., kept, last] if last.stage == "recalibrated" => Some(kept.map50_95.max(last.map50_95)),
        [.., last] => Some(last.map50_95),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_say_what_is_in_them() {
        let all =
            ["longer", "stage1-reconstructed-0.25", "prunella-0.05", "prunella-0.05-224px", "bn-scale", "l1-0.5-px"];
        let told = all.map(named);
        let quarter = Some(0.25);
        assert_eq!(told[..3], [("longer", None), ("stage1-reconstructed", quarter), ("prunella", Some(0.05))]);
        assert_eq!(told[3..], [("prunella", Some(0.05)), ("bn-scale", None), ("l1-0.5-px", None)]);
    }
}
