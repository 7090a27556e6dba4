//! The `results.csv` of a training run, in the columns YOLOv5's plots and dashboards read.

use std::path::{Path, PathBuf};

use graph::format::write_whole;
use graph::{Error, Result};

/// One epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// From 0.
    pub epoch: usize,
    /// Means of the three parts of the loss over the epoch.
    pub train: [f64; 3],
    pub precision: f64,
    pub recall: f64,
    /// Mean average precision at IoU 0.5.
    pub map50: f64,
    /// Mean over IoU 0.5 to 0.95.
    pub map50_95: f64,
    /// As `train`, on the validation images.
    pub val: [f64; 3],
    /// Learning rates of weights, BatchNorm scales and biases.
    pub lr: [f64; 3],
}

/// Columns of a file.
const COLUMNS: usize = 14;

/// The rows of a run and the file they are kept in.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    path: PathBuf,
    header: String,
    rows: Vec<Row>,
}

impl Results {
    /// An empty table; `parts` are the names of the loss parts ([`crate::loss::Criterion::parts`]). Nothing is written
    /// before the first row.
    pub fn new(path: impl Into<PathBuf>, parts: [&str; 3]) -> Self {
        Self { path: path.into(), header: header(parts), rows: Vec::new() }
    }

    /// The rows of epochs before `epochs` of a file written earlier, to go on with; an empty table if there is none.
    ///
    /// # Errors
    /// The file cannot be read, has other columns, or a cell is no number: with file and line.
    pub fn resume(path: impl Into<PathBuf>, parts: [&str; 3], epochs: usize) -> Result<Self> {
        let mut results = Self::new(path, parts);
        let text = match std::fs::read_to_string(&results.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(results),
            Err(e) => return Err(Error::io("read", &results.path, e)),
        };
        let mut lines = text.lines().enumerate();
        let found = lines.next().map(|(_, l)| l.split(',').map(str::trim).collect::<Vec<_>>().join(","));
        if found.as_deref() != Some(&results.header) {
            return Err(Error::format(&results.path, "has other columns than this training writes")
                .at("line 1")
                .hint("it belongs to another run; move it away or train into another folder"));
        }
        for (i, line) in lines.filter(|(_, l)| !l.trim().is_empty()) {
            let row = parse(&results.path, line).map_err(|e| e.at(format!("line {}", i + 1)))?;
            if row.epoch < epochs {
                results.rows.push(row);
            }
        }
        Ok(results)
    }

    /// Adds an epoch and writes the file anew, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn push(&mut self, row: Row) -> Result<()> {
        self.rows.push(row);
        let lines = std::iter::once(self.header.clone()).chain(self.rows.iter().map(format_row));
        let text: String = lines.map(|line| line + "\n").collect();
        write_whole(&self.path, text.as_bytes())
    }
}

fn header(parts: [&str; 3]) -> String {
    let losses = |phase: &str| parts.map(|part| format!("{phase}/{part}_loss")).join(",");
    format!(
        "epoch,{},metrics/precision,metrics/recall,metrics/mAP_0.5,metrics/mAP_0.5:0.95,{},x/lr0,x/lr1,x/lr2",
        losses("train"),
        losses("val")
    )
}

fn format_row(row: &Row) -> String {
    let metrics = [row.precision, row.recall, row.map50, row.map50_95];
    let values = row.train.iter().chain(&metrics).chain(&row.val).chain(&row.lr);
    // The shortest digits that read back to the same number: a resumed file equals one written in one go.
    values.fold(row.epoch.to_string(), |line, v| format!("{line},{v}"))
}

fn parse(path: &Path, line: &str) -> Result<Row> {
    let cells: Vec<&str> = line.split(',').map(str::trim).collect();
    if cells.len() != COLUMNS {
        return Err(Error::format(path, format!("has {} columns, not {COLUMNS}", cells.len())));
    }
    let bad = |cell: &str| Error::format(path, format!("`{cell}` is no number"));
    let epoch = cells[0].parse().map_err(|_| bad(cells[0]))?;
    let mut v = [0.0; COLUMNS - 1];
    for (v, cell) in v.iter_mut().zip(&cells[1..]) {
        *v = cell.parse().map_err(|_| bad(cell))?;
    }
    let [a, b, c, precision, recall, map50, map50_95, d, e, f, lr0, lr1, lr2] = v;
    Ok(Row { epoch, train: [a, b, c], precision, recall, map50, map50_95, val: [d, e, f], lr: [lr0, lr1, lr2] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [&str; 3] = ["box", "obj", "cls"];

    fn row(epoch: usize) -> Row {
        let x = 1.0 / (3.0 + epoch as f64);
        Row {
            epoch,
            train: [x, 2.0 * x, 1e-9],
            precision: 0.5,
            recall: 1.0,
            map50: x,
            map50_95: 0.0,
            val: [x, x, f64::NAN],
            lr: [0.01, 0.01, 0.1],
        }
    }

    #[test]
    fn columns_are_those_of_yolov5() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.csv");
        Results::new(&path, PARTS).push(row(0)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text.lines().next().unwrap(),
            "epoch,train/box_loss,train/obj_loss,train/cls_loss,metrics/precision,metrics/recall,metrics/mAP_0.5,\
             metrics/mAP_0.5:0.95,val/box_loss,val/obj_loss,val/cls_loss,x/lr0,x/lr1,x/lr2"
        );
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_resumed_table_drops_the_epochs_to_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.csv");
        let mut table = Results::new(&path, PARTS);
        (0..3).for_each(|e| table.push(row(e)).unwrap());
        let whole = std::fs::read(&path).unwrap();
        let mut resumed = Results::resume(&path, PARTS, 2).unwrap();
        assert_eq!(resumed.rows.len(), 2);
        assert_eq!(resumed.rows[1].train, row(1).train);
        resumed.push(row(2)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_missing_file_is_an_empty_table() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Results::resume(dir.path().join("results.csv"), PARTS, 9).unwrap().rows.is_empty());
    }

    #[test]
    fn damage_is_named_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.csv");
        let rows = |tail: &str| std::fs::write(&path, format!("{}\n{tail}\n", header(PARTS))).unwrap();
        rows("0,1,2");
        let short = Results::resume(&path, PARTS, 9).unwrap_err().to_string();
        assert!(short.contains("line 2") && short.contains("3 columns"), "{short}");
        rows("0,1,2,3,4,5,6,7,8,9,10,11,x,13");
        assert!(Results::resume(&path, PARTS, 9).unwrap_err().to_string().contains("`x` is no number"));
        let other = Results::resume(&path, ["box", "cls", "dfl"], 9).unwrap_err().to_string();
        assert!(other.contains("line 1"), "{other}");
    }
}
