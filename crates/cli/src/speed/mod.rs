//! What a detector's operators take in the embedded runtime on this machine: the table that `--latency` plans by.
//!
//! Every kind of node ([`prune::latency::kind`]) runs alone, over a few channel counts; the whole detector runs with and
//! without its head. All models of a kind take turns, so that a disturbance hits all alike.

mod multiple;
mod probe;

use std::collections::BTreeMap;
use std::path::Path;

use graph::format::onnx::{ExportOptions, export, export_maps};
use graph::{Graph, Op};
use prune::Multiple;
use prune::latency::{Latency, Measured, Table, kind};
use runtime::{Stopwatch, Timed};
use serde::{Deserialize, Serialize};

use crate::runs;
use crate::ui;

pub use multiple::Gain;
use probe::Probe;

/// Turns that each model takes, and runs a turn.
const TURNS: [usize; 2] = [9, 3];
/// The same for whole detectors, of which there are few and on which everything is scaled.
pub const WHOLE_TURNS: [usize; 2] = [41, 3];

/// Times of a detector on this machine, and what channel counts they speak for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Threads that ran.
    pub threads: usize,
    /// Height and width of the images in pixels.
    pub imgsz: usize,
    pub latency: Latency,
    /// Whether a detector cut by these times has been timed, and they were corrected where it took another.
    #[serde(default)]
    pub confirmed: bool,
    /// What channel counts should be a multiple of; 1 where that makes no difference here.
    pub multiple: usize,
    /// What else they could have been a multiple of, and how much faster that is than counts around it.
    pub gains: Vec<Gain>,
}

impl Speed {
    /// The times of `graph`: those in the folder of the run, so that a resumed run plans by the same; measured, and kept
    /// there, where there are none.
    ///
    /// # Errors
    /// The detector cannot be run, or the file is damaged.
    pub fn kept(graph: &Graph, folder: &Path) -> miette::Result<Self> {
        let name = file_of(graph.meta.imgsz[0]);
        let file = folder.join(&name);
        if file.is_file() {
            let speed: Self = runs::read_json(&file)?;
            let threads = rayon::current_num_threads();
            if speed.threads != threads {
                ui::warn(format_args!("`{name}` was measured on {} threads, this run has {threads}", speed.threads));
            }
            return Ok(speed);
        }
        let speed = Self::measure(graph)?;
        speed.keep(folder)?;
        Ok(speed)
    }

    /// Writes the times into the folder of a run, from where [`Speed::kept`] reads them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, folder: &Path) -> miette::Result<()> {
        runs::write_json(&folder.join(file_of(self.imgsz)), self)
    }

    /// Measures `graph` on images of its own size.
    ///
    /// # Errors
    /// The runtime does not take it.
    pub fn measure(graph: &Graph) -> miette::Result<Self> {
        let threads = rayon::current_num_threads();
        let mut stopwatch = Stopwatch::new(threads);
        let kinds = kinds(graph)?;
        let bar = ui::bar("Timing", kinds.len(), "kinds of operators");
        let mut tables = BTreeMap::new();
        for (name, probe) in &kinds {
            tables.insert(name.clone(), table(&mut stopwatch, name, probe)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let [body, whole] = whole(&mut stopwatch, graph)?;
        let latency = Latency::fit(tables, graph, body.min(whole), (whole - body).max(0.0))?;
        let gains = multiple::gains(&mut stopwatch, &kinds, &latency.parts(graph)?)?;
        let imgsz = graph.meta.imgsz[0];
        let speed = Self { threads, imgsz, latency, confirmed: false, multiple: multiple::best(&gains), gains };
        ui::note(format_args!(
            "One image takes {:.2} ms on {threads} threads; {} kinds of operators were timed over their channel counts, {}",
            whole / 1e6,
            kinds.len(),
            speed.verdict()
        ));
        Ok(speed)
    }

    /// The multiple whose counts are faster than those beside them, if there is one.
    pub fn faster(&self) -> Option<Multiple> {
        (self.multiple > 1).then_some(Multiple::Of(self.multiple))
    }

    /// What the times say of multiples.
    fn verdict(&self) -> String {
        let gain = |g: &Gain| format!("{} by {:.0} %", g.multiple, 100.0 * g.gain);
        match self.multiple {
            1 => {
                let gains: Vec<String> = self.gains.iter().map(gain).collect();
                format!("and no multiple is faster than the counts beside it ({})", gains.join(", "))
            }
            multiple => format!("and multiples of {multiple} are faster than the counts beside them"),
        }
    }
}

/// The file in a run's folder that keeps the times for images of `imgsz`.
fn file_of(imgsz: usize) -> String {
    format!("latency-{imgsz}.json")
}

/// One node of every kind in `graph`, with the most channels any has.
fn kinds(graph: &Graph) -> miette::Result<BTreeMap<String, Probe>> {
    let shapes = graph.shapes(graph.meta.imgsz)?;
    let readers = graph.consumers();
    let mut kinds: BTreeMap<String, Probe> = BTreeMap::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        let Some(kind) = kind(graph, &readers, &shapes, id) else { continue };
        let input = shapes[node.inputs[0]];
        let probe = kinds.entry(kind).or_insert_with(|| Probe::of(&node.op, node.inputs.len(), input));
        probe.inputs = probe.inputs.max(input.c);
        probe.outputs = probe.outputs.max(shapes[id].c);
    }
    Ok(kinds)
}

/// Times of one kind over its channel counts.
fn table(stopwatch: &mut Stopwatch, name: &str, probe: &Probe) -> miette::Result<Table> {
    let (inputs, outputs) = probe.axes();
    let pairs: Vec<(usize, usize)> = inputs.iter().flat_map(|&i| outputs.iter().map(move |&o| (i, o))).collect();
    let nanos = timed(stopwatch, name, probe, &pairs)?;
    Ok(Table::try_from(Measured { inputs, outputs, nanos })?)
}

/// Nanoseconds of one operator of that kind at each pair of (input, output) channels, starting a run not counted: that has its
/// turns among them, so that it is as slow as they are where the machine is busy.
fn timed(stopwatch: &mut Stopwatch, name: &str, probe: &Probe, pairs: &[(usize, usize)]) -> miette::Result<Vec<f64>> {
    let copies: Vec<usize> = pairs.iter().map(|&(_, o)| probe.copies(o)).collect();
    let mut models = vec![stopwatch.model("start", probe::nothing()?)?];
    for (&(i, o), &copies) in pairs.iter().zip(&copies) {
        models.push(stopwatch.model(name, probe.model(i, o, copies)?)?);
    }
    let times = stopwatch.alternate(&models, TURNS, || {})?;
    let start = times[0];
    Ok(times[1..].iter().zip(copies).map(|(t, copies)| (t - start).max(0.0) / copies as f64).collect())
}

/// Nanoseconds of an image up to the head, and of all of it.
fn whole(stopwatch: &mut Stopwatch, graph: &Graph) -> miette::Result<[f64; 2]> {
    let body = stopwatch.model("(maps)", export_maps(graph, graph.meta.imgsz)?)?;
    let whole = stopwatch.model("(export)", exported(graph)?)?;
    let times = in_turns(stopwatch, &[body, whole], WHOLE_TURNS)?;
    Ok([times[0], times[1]])
}

/// Milliseconds of one image of its size in each of `detectors`, which take `turns`, with as many runs each.
pub fn side_by_side(detectors: &[&Graph], turns: [usize; 2]) -> miette::Result<Vec<f64>> {
    let mut stopwatch = Stopwatch::new(rayon::current_num_threads());
    let models = detectors.iter().map(|graph| Ok(stopwatch.model("(export)", exported(graph)?)?));
    let models = models.collect::<miette::Result<Vec<_>>>()?;
    Ok(in_turns(&stopwatch, &models, turns)?.iter().map(|nanos| nanos / 1e6).collect())
}

/// [`Stopwatch::alternate`] under a bar.
pub fn in_turns(stopwatch: &Stopwatch, models: &[Timed], turns: [usize; 2]) -> miette::Result<Vec<f64>> {
    let bar = ui::bar("Timing", models.len() * turns[0], "turns");
    let nanos = stopwatch.alternate(models, turns, || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(nanos)
}

fn exported(graph: &Graph) -> graph::Result<Vec<u8>> {
    export(graph, &ExportOptions { imgsz: graph.meta.imgsz, batch: 1, dynamic_batch: false })
}

/// Whether a node's channels stay as they are, whatever its map has: it is timed as it is.
fn is_fixed(op: &Op) -> bool {
    match op {
        Op::Attention(_) => true,
        Op::Conv(conv) => conv.groups > 1 && !conv.is_depthwise(),
        _ => false,
    }
}
