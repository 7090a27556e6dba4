//! A plain table that fits the terminal: text left, numbers right, one column that gives way.

use std::fmt;

use console::{Style, measure_text_width};

use super::fit::shortened;
use super::stdout_width;

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    title: &'static str,
    align: Align,
    gives_way: bool,
}

impl Column {
    /// Text, on the left.
    pub fn text(title: &'static str) -> Self {
        Self { title, align: Align::Left, gives_way: false }
    }

    /// Numbers, on the right.
    pub fn number(title: &'static str) -> Self {
        Self { title, align: Align::Right, gives_way: false }
    }

    /// Cut its cells where the table is wider than the terminal.
    pub fn gives_way(self) -> Self {
        Self { gives_way: true, ..self }
    }
}

/// Rows of cells under titles; a rule sets off the rows that sum up.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    totals: Vec<Vec<String>>,
}

/// Blanks between two columns.
const GAP: usize = 2;
/// What a column that gives way keeps at least.
const LEAST: usize = 8;

impl Table {
    /// A table without rows.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: vec![], totals: vec![] }
    }

    /// Appends a row; missing cells are empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Appends a row below the rule.
    pub fn total<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.totals.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table in at most `width` terminal columns, as far as the columns that give way can.
    pub fn render(&self, width: Option<usize>) -> String {
        let mut widths: Vec<usize> = self.columns.iter().map(|c| measure_text_width(c.title)).collect();
        for row in self.rows.iter().chain(&self.totals) {
            for (w, cell) in widths.iter_mut().zip(row) {
                *w = (*w).max(measure_text_width(cell));
            }
        }
        let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        if let Some(room) = width {
            while total(&widths) > room {
                let widest = (0..widths.len()).filter(|&i| self.columns[i].gives_way && widths[i] > LEAST);
                let Some(widest) = widest.max_by_key(|&i| widths[i]) else { break };
                widths[widest] -= 1;
            }
        }
        let rows = self.cells(&widths);
        let dim = Style::new().for_stdout().dim();
        let titles: Vec<String> = self.columns.iter().map(|c| c.title.to_owned()).collect();
        let rule = dim.apply_to("─".repeat(total(&widths))).to_string();
        let mut out = format!("{}\n{rule}\n", Style::new().for_stdout().bold().apply_to(self.line(&titles, &widths)));
        for row in &rows {
            out.push_str(&self.line(row, &widths));
            out.push('\n');
        }
        if !self.totals.is_empty() {
            out.push_str(&rule);
            out.push('\n');
        }
        for row in &self.totals {
            out.push_str(&self.line(row, &widths));
            out.push('\n');
        }
        out
    }

    /// The cells of the rows, of at most `widths` columns.
    fn cells(&self, widths: &[usize]) -> Vec<Vec<String>> {
        let mut rows = vec![vec![]; self.rows.len()];
        for (i, &width) in widths.iter().enumerate() {
            let column: Vec<&str> = self.rows.iter().map(|row| row.get(i).map_or("", String::as_str)).collect();
            rows.iter_mut().zip(shortened(&column, width)).for_each(|(row, cell)| row.push(cell));
        }
        rows
    }

    /// One row, as wide as the table.
    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (i, (column, &width)) in self.columns.iter().zip(widths).enumerate() {
            let cell = shortened(&[cells.get(i).map_or("", String::as_str)], width).remove(0);
            let blank = " ".repeat(width - measure_text_width(&cell));
            match column.align {
                Align::Left => line.push_str(&format!("{cell}{blank}")),
                Align::Right => line.push_str(&format!("{blank}{cell}")),
            }
            line.push_str(&" ".repeat(GAP));
        }
        line.trim_end().to_owned()
    }
}

impl fmt::Display for Table {
    /// Fits the terminal behind stdout.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(stdout_width()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_names_give_way() {
        let mut table = Table::new([Column::text("layer").gives_way(), Column::number("params")]);
        table.row(["model.24.m.0.conv", "1.77M"]);
        table.row(["a", "7"]);
        table.total(["total", "1.77M"]);
        let wide = "layer              params\n─────────────────────────\nmodel.24.m.0.conv   1.77M\na                       7\n\
                    ─────────────────────────\ntotal               1.77M\n";
        assert_eq!(table.render(None), wide);
        let narrow = "layer      params\n─────────────────\nmode…conv   1.77M\na               7\n\
                      ─────────────────\ntotal       1.77M\n";
        assert_eq!(table.render(Some(17)), narrow);
    }
}
