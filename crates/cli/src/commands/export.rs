//! `export`: writes a detector for another runtime, after running it there.

use std::path::{Path, PathBuf};

use graph::Graph;
use graph::format::onnx::ExportOptions;
use graph::format::{darknet, save, ultralytics};
use serde::Serialize;

use crate::args::{Export, ExportFormat};
use crate::detector::image_size;
use crate::exit::{Error, Exit};
use crate::int8::{Int8, Outcome};
use crate::onnx::export_verified;
use crate::training::{tell_left_out, tell_split};
use crate::{files, ui};

/// Runs the command.
pub fn run(args: &Export) -> miette::Result<Exit> {
    let format = format(args);
    for (option, asked) in [("--int8", args.int8), ("--dynamic", args.dynamic)] {
        if asked && format != ExportFormat::Onnx {
            return Err(Error::usage(format!("`{option}` is for ONNX files"), "leave it out, or write an .onnx file"));
        }
    }
    // What helps training alone is of use to a family's own package only.
    let mut graph = match format {
        ExportFormat::Pt => args.model.load_to_train()?,
        _ => args.model.load()?,
    };
    let imgsz = image_size(&graph, args.imgsz)?;
    let out = target(args, format)?;
    match format {
        ExportFormat::Safetensors => {
            graph.meta.imgsz = [imgsz; 2];
            save(&graph, &out)?;
            ui::note(format_args!("Wrote `{}`", out.display()));
        }
        ExportFormat::Darknet => {
            if args.imgsz.is_some() {
                graph.meta.imgsz = [imgsz; 2];
            }
            darknet::save(&graph, &out)?;
            ui::note(format_args!("Wrote `{}`, its .weights and its .names", out.display()));
        }
        ExportFormat::Onnx if args.int8 => return int8(args, &graph, imgsz, &out),
        ExportFormat::Pt => {
            graph.meta.imgsz = [imgsz; 2];
            let written = ultralytics::save(&graph, &out)?;
            ui::note(format_args!("Wrote `{}`{}", out.display(), padding(&written.padded)));
        }
        ExportFormat::Onnx => {
            let options = options(args, imgsz);
            let difference = export_verified(&graph, &out, &options)?;
            ui::note(format_args!(
                "Wrote `{}`; the embedded runtime differs from our own forward by {difference:.5} at most",
                out.display()
            ));
        }
    }
    ui::print(format_args!("{}\n", out.display()));
    Ok(Exit::Done)
}

fn options(args: &Export, imgsz: usize) -> ExportOptions {
    ExportOptions { imgsz: [imgsz; 2], batch: 1, dynamic_batch: args.dynamic }
}

/// What `export --int8 --json` prints.
#[derive(Serialize)]
struct Written {
    file: String,
    imgsz: usize,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Writes the detector in eight bits.
fn int8(args: &Export, graph: &Graph, imgsz: usize, out: &Path) -> miette::Result<Exit> {
    let Some(data) = &args.data else {
        return Err(Error::usage("`--int8` without images", "give a dataset with `--data`"));
    };
    let dataset = data::open(data, &args.form.options())?;
    tell_left_out(&dataset, &["train", "val"]);
    tell_split(&dataset, "val");
    let job = Int8 { graph, dataset: &dataset, images: args.calibration_images, options: options(args, imgsz) };
    let outcome = job.write(out)?;
    ui::note(format_args!("Wrote `{}`", out.display()));
    if args.json {
        ui::print_json(&Written { file: out.display().to_string(), imgsz, outcome });
    } else {
        ui::print(outcome.table());
        ui::print(format_args!("{}\n", out.display()));
    }
    Ok(Exit::Done)
}

/// What was added for the family's code, in words: nothing where nothing was.
fn padding(padded: &[(String, usize)]) -> String {
    let Some((first, _)) = padded.first() else { return String::new() };
    let channels: usize = padded.iter().map(|(_, n)| n).sum();
    let others = match padded.len() - 1 {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!(
        "; {channels} channels of zeros were added in `{first}`{others}, where the family's code needs halves of one size: \
         what it finds is the same"
    )
}

/// The format that was asked for, else the one that the name of the file to write stands for, else ONNX.
fn format(args: &Export) -> ExportFormat {
    let named = args.out.as_ref().filter(|_| !args.int8).and_then(|out| ExportFormat::of(out));
    args.format.or(named).unwrap_or(ExportFormat::Onnx)
}

/// Where to write to: what was asked for, else beside the model. The model itself is never overwritten.
fn target(args: &Export, format: ExportFormat) -> miette::Result<PathBuf> {
    let extension = format.extension();
    let out = args.out.clone().unwrap_or_else(|| {
        let model = &args.model.model;
        let stem = model.file_stem().unwrap_or_default().to_string_lossy();
        match args.int8 {
            true => model.with_file_name(format!("{stem}-int8.{extension}")),
            false => model.with_extension(extension),
        }
    });
    files::spares(&out, &args.model.model)?;
    if format != ExportFormat::Darknet {
        files::named(&out, extension, "")?;
        return Ok(out);
    }
    files::named(&out, extension, "; .weights and .names go beside it")?;
    let weights = out.with_extension("weights");
    let given = [args.model.weights.as_ref(), Some(&args.model.model)];
    if given.into_iter().flatten().any(|own| files::same(&weights, own)) {
        return Err(Error::usage(
            format!("`{}` holds the model's own weights", weights.display()),
            "give another file with `--out`",
        ));
    }
    Ok(out)
}
