//! `analyze`: how much accuracy each group of coupled channels is worth, one group at a time.

use graph::cost;
use prune::{Coupling, Similarity, similarity, surgery};
use train::watch::Quiet;

use crate::args::Analyze;
use crate::detector::image_size;
use crate::exit::Exit;
use crate::pipeline::cut::{CALIBRATION_IMAGES, Calibration};
use crate::report::analysis::{Analysis, Group, render, table};
use crate::score::{Judge, by_place};
use crate::training::{tell_left_out, tell_split};
use crate::{runs, ui};

/// Runs the command.
pub fn run(args: &Analyze) -> miette::Result<Exit> {
    let mut model = args.model.load()?;
    let dataset = args.data.open()?;
    tell_left_out(&dataset, &["train", &args.split]);
    tell_split(&dataset, &args.split);
    by_place(&mut model, &dataset)?;
    let imgsz = image_size(&model, args.imgsz)?;
    model.meta.imgsz = [imgsz; 2];
    let calibration = Calibration::new(&dataset, imgsz, CALIBRATION_IMAGES, args.seed);
    let model = calibration.unfold(&model)?;
    let out = runs::folder(args.out.as_deref(), "analyze", false)?;

    let judge = Judge::new(&dataset, &args.split, imgsz, model.meta.family)?;
    let score = |graph: &graph::Graph| judge.score(graph, &mut Quiet).map(|map| map.map50_95);

    let coupling = Coupling::of(&model)?;
    let statistics = calibration.statistics(&model, &coupling)?;
    let whole = cost::total(&model, [imgsz; 2])?;
    let dense = score(&model)?;
    let free: Vec<usize> = (0..coupling.sets.len())
        .filter(|&set| {
            let classes = &coupling.sets[set].classes;
            classes.len() > 1 && coupling.classes[classes[0]].pinned.is_none()
        })
        .collect();
    let bar = ui::bar("Analyzing", free.len(), "groups");
    let mut groups = vec![];
    for set in free {
        let channels = coupling.sets[set].classes.len();
        let count = ((args.rate * channels as f64).round() as usize).max(1);
        let plan = similarity::plan_set(&model, &coupling, &statistics, &Similarity::default(), set, count)?;
        let slim = surgery::apply(&model, &plan)?;
        let left = cost::total(&slim, [imgsz; 2])?;
        let members = &coupling.classes[coupling.sets[set].classes[0]].members;
        let mut layers: Vec<String> = members.iter().map(|site| model.nodes[site.node].name.clone()).collect();
        layers.dedup();
        let map50_95 = score(&slim)?;
        groups.push(Group {
            group: set,
            layers,
            channels,
            removed: plan.removals.len(),
            macs_saved: (whole.macs - left.macs) as f64 / whole.macs as f64,
            params_saved: (whole.params - left.params) as f64 / whole.params as f64,
            predicted: plan.removals.iter().map(|r| f64::from(r.score)).sum(),
            map50_95,
            drop: dense - map50_95,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    groups.sort_by(|a, b| b.drop.total_cmp(&a.drop));
    let analysis = Analysis {
        model: args.model.model.display().to_string(),
        data: args.data.data.display().to_string(),
        split: dataset.answering(&args.split).into(),
        imgsz,
        rate: args.rate,
        map50_95: dense,
        groups,
    };
    runs::write_json(&out.join("analysis.json"), &analysis)?;
    graph::format::write_whole(&out.join("report.html"), render(&analysis).as_bytes())?;
    if args.json {
        ui::print_json(&analysis);
    } else {
        ui::print(format_args!("{}\n", table(&analysis)));
    }
    ui::note(format_args!("The report is `{}`", out.join("report.html").display()));
    Ok(Exit::Done)
}
