//! A detector exported to ONNX, run by the embedded runtime.

use std::path::Path;

use data::Fit;
use eval::{Detection, Layout, NmsConfig, Predictions, candidates_from_rows, nms};
use runtime::{Output, Session};

use crate::exit::Error;
use crate::onnx::planar;

/// An ONNX detector whose boxes come out decoded.
pub(super) struct Exported {
    session: Session,
    layout: Layout,
    names: Vec<String>,
    imgsz: usize,
}

/// Side of the images where neither the user nor the file says.
const USUAL_SIZE: usize = 640;

impl Exported {
    /// Loads the file and shows it a grey image, to see what comes out.
    pub(super) fn open(path: &Path, asked: Option<usize>) -> miette::Result<Self> {
        let session = Session::load(path, rayon::current_num_threads())?;
        if session.metadata().selected {
            let what = format!("`{}` puts out boxes that are selected already", path.display());
            return Err(Error::failed(
                what,
                "export it again without `nms` and with `end2end=False`; Prunella selects itself",
            ));
        }
        let imgsz = image_size(path, &session, asked)?;
        let refuse = |what: String| {
            let what = format!("`{}` is no detector Prunella can read: {what}", path.display());
            Error::failed(what, "its output has to be (N, boxes, 5 + classes) or (N, 4 + classes, boxes), in pixels")
        };
        let batch = session.input_shape()[0].unwrap_or(1);
        let shape = [batch, 3, imgsz, imgsz];
        let probe = session.run(&vec![114.0 / 255.0; shape.iter().product()], shape)?;
        let [_, rows, columns] = probe.shape[..] else {
            return Err(refuse(format!("it has an output of {} axes", probe.shape.len())));
        };
        let stated = session.metadata().names.clone();
        let task = session.metadata().task.clone().unwrap_or_else(|| "detect".into());
        let (layout, classes) = layout([rows, columns], &task, stated.len(), imgsz).map_err(refuse)?;
        if !stated.is_empty() && stated.len() != classes {
            return Err(refuse(format!("it names {} classes, its output has room for {classes}", stated.len())));
        }
        let names = match stated.is_empty() {
            true => (0..classes).map(|c| format!("class{c}")).collect(),
            false => stated,
        };
        let exported = Self { session, layout, names, imgsz };
        // Centres of decoded boxes cover the image; raw ones, or ones in shares of it, stay near nought.
        let predictions = exported.predictions(&probe)?;
        let farthest = predictions.rows(0).map(|row| row[0]).fold(0.0, f32::max);
        if farthest < imgsz as f32 / 2.0 {
            return Err(refuse(format!("its boxes are not in pixels (largest centre {farthest:.2})")));
        }
        Ok(exported)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn fit(&self) -> Fit {
        self.session.metadata().family.map_or(Fit::Letterbox, train::evaluate::fit)
    }

    pub(super) fn imgsz(&self) -> usize {
        self.imgsz
    }

    /// As [`super::Detector::detect`]; where the file fixes the batch, the last one is filled up with nothing.
    pub(super) fn detect(
        &mut self,
        images: &[u8],
        n: usize,
        config: &NmsConfig,
    ) -> miette::Result<Vec<Vec<Detection>>> {
        let side = self.imgsz;
        let batch = self.session.input_shape()[0].unwrap_or(n);
        let config = match self.session.metadata().end_to_end {
            true => config.without_suppression(),
            false => *config,
        };
        let mut found = Vec::with_capacity(n);
        for chunk in images.chunks(batch * side * side * 3) {
            let mut input = planar(chunk, chunk.len() / (side * side * 3));
            input.resize(batch * 3 * side * side, 0.0);
            let output = self.session.run(&input, [batch, 3, side, side])?;
            found.extend(nms(&self.predictions(&output)?, &config));
        }
        found.truncate(n);
        Ok(found)
    }

    fn predictions(&self, output: &Output) -> miette::Result<Predictions> {
        let shape = [output.shape[0], output.shape[1], output.shape[2]];
        Ok(candidates_from_rows(&output.data, shape, self.layout, self.names.len())?)
    }
}

/// How an output of (N, rows, columns) presents boxes, and of how many classes, of which the file names `named`.
///
/// # Errors
/// Says what is wrong with it.
fn layout([rows, columns]: [usize; 2], task: &str, named: usize, imgsz: usize) -> Result<(Layout, usize), String> {
    let wrong = || format!("its output is {rows} by {columns}");
    let (layout, classes) = match (rows > columns, task) {
        // Every head has a level of stride 16 or finer, or several anchors at stride 32. Fewer rows are what an export has selected.
        (true, "detect") if rows < (imgsz / 16).pow(2) => {
            return Err(format!("{rows} boxes are fewer than a head has cells, and selected already"));
        }
        (true, "detect") => (Layout::Rows, columns.checked_sub(5)),
        // In tiny images there may be no more boxes than columns; the names tell where that was taken for the other layout.
        (false, "detect") => (Layout::Columns { extra: 0 }, rows.checked_sub(4)),
        // What is told beside the classes follows them; how many those are only their names say.
        (false, "segment" | "pose") if named > 0 => {
            let extra = rows.checked_sub(4 + named);
            (Layout::Columns { extra: extra.unwrap_or(0) }, extra.map(|_| named))
        }
        _ => return Err(format!("it is for the task `{task}`, {}", wrong())),
    };
    let classes = classes.filter(|&n| n > 0).ok_or_else(wrong)?;
    Ok((layout, classes))
}

/// The side of the square images the file takes.
fn image_size(path: &Path, session: &Session, asked: Option<usize>) -> miette::Result<usize> {
    let [_, channels, height, width] = session.input_shape();
    if channels.is_some_and(|c| c != 3) || (height != width) {
        let shape = [channels, height, width].map(|s| s.map_or("?".into(), |n| n.to_string())).join("x");
        let what = format!("`{}` takes images of {shape} (C, H, W)", path.display());
        return Err(Error::failed(what, "export it for square RGB images"));
    }
    match (height, asked) {
        (Some(fixed), Some(asked)) if fixed != asked => Err(Error::usage(
            format!("`--imgsz {asked}`, but `{}` takes images of {fixed} pixels only", path.display()),
            format!("leave `--imgsz` out, or export it again with `--imgsz {asked}`"),
        )),
        (Some(fixed), _) => Ok(fixed),
        (None, asked) => Ok(asked.or(session.metadata().imgsz.map(|s| s[0])).unwrap_or(USUAL_SIZE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selected_boxes_are_no_rows_of_one_class() {
        let detect = |shape, imgsz| layout(shape, "detect", 0, imgsz);
        assert_eq!(detect([25_200, 6], 640), Ok((Layout::Rows, 1)));
        assert_eq!(detect([84, 8_400], 640), Ok((Layout::Columns { extra: 0 }, 80)));
        // Two levels of one anchor each, the fewest boxes of any head.
        assert_eq!(detect([20 * 20 + 40 * 40, 6], 640), Ok((Layout::Rows, 1)));
        for imgsz in [320, 640] {
            assert!(detect([300, 6], imgsz).is_err_and(|told| told.contains("selected already")));
        }
        assert!(detect([4, 8_400], 640).is_err() && layout([300, 6], "segment", 1, 640).is_err());
    }
}
