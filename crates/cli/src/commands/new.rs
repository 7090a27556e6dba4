//! `new`: an untrained detector of a published family.

use graph::build::{Design, MAX_CLASSES, names};
use graph::cost;
use graph::format::save;

use crate::args::New;
use crate::detector::whole_cells;
use crate::exit::{Error, Exit};
use crate::{files, ui};

/// Runs the command.
pub fn run(args: &New) -> miette::Result<Exit> {
    let Some(design) = Design::named(&args.name) else {
        let known = format!("known are {}", names().join(", "));
        return Err(Error::usage(format!("no detector is called `{}`", args.name), known));
    };
    files::native(&args.out)?;
    let imgsz = whole_cells(args.imgsz.unwrap_or(design.imgsz()), design.largest_stride())?;
    let graph = design.build(&classes(args)?, imgsz, args.seed)?;
    save(&graph, &args.out)?;
    let cost = cost::total(&graph, graph.meta.imgsz)?;
    let (params, gflops) = (ui::count(cost.params), 2e-9 * cost.macs as f64);
    ui::note(format_args!(
        "Wrote an untrained {} of {params} parameters, {gflops:.2} GFLOPs at {imgsz}×{imgsz}",
        args.name
    ));
    ui::print(format_args!("{}\n", args.out.display()));
    Ok(Exit::Done)
}

/// The names of the classes.
fn classes(args: &New) -> miette::Result<Vec<String>> {
    let (names, option) = match (&args.names, &args.data) {
        (Some(names), _) => (distinct(names)?, "--names"),
        (None, Some(data)) => (data::open(data, &args.form.options())?.names, "--data"),
        (None, None) => {
            let many = args.classes.unwrap_or(0);
            if many > MAX_CLASSES {
                let what = format!("`--classes {many}` is more than any detector tells apart");
                return Err(Error::usage(what, format!("give at most {MAX_CLASSES}")));
            }
            return Ok((0..many).map(|i| format!("class {i}")).collect());
        }
    };
    match args.classes {
        Some(asked) if asked != names.len() => {
            let what = format!("`--classes {asked}` and the {} of `{option}` contradict each other", names.len());
            Err(Error::usage(what, "leave `--classes` out"))
        }
        _ => Ok(names),
    }
}

/// `names` without the blanks around them, none of them empty or given twice.
fn distinct(names: &[String]) -> miette::Result<Vec<String>> {
    let names: Vec<String> = names.iter().map(|name| name.trim().to_owned()).collect();
    if names.iter().any(String::is_empty) {
        return Err(Error::usage("a class of `--names` has no name", "part the names by single commas"));
    }
    match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        Some((_, name)) => {
            Err(Error::usage(format!("`--names` has `{name}` twice"), "give every class a name of its own"))
        }
        None => Ok(names),
    }
}
