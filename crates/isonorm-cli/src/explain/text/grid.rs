//! Grids of numbers as text: boxes around what is normalized together, grids side by side.

use anstyle::AnsiColor;

use super::super::document::{Bands, Grid, left_out};
use super::{INDENT, Line, QUIET};

/// Columns between two grids.
const GAP: usize = 3;
const COLOURS: [AnsiColor; 5] =
    [AnsiColor::Cyan, AnsiColor::Yellow, AnsiColor::Magenta, AnsiColor::Green, AnsiColor::Blue];

/// The grids of one tensor, as many beside each other as fit into `width`.
pub(super) fn side_by_side(grids: &[Grid], width: usize) -> String {
    let room = width.saturating_sub(INDENT);
    let mut bands: Vec<Vec<Line>> = Vec::new();
    let mut current: Vec<Line> = Vec::new();
    for (i, grid) in grids.iter().enumerate() {
        // Labels that stand to the left already, line by line, are not repeated.
        let labelled = i == 0 || grid.arrow.is_some() || grids[i - 1].rows.labels != grid.rows.labels;
        let drawn = Drawn::new(grid, room, labelled).lines();
        let taken = widest(&current);
        if !current.is_empty() && taken + GAP + widest(&drawn) <= room {
            current = beside(current, &drawn);
        } else {
            bands.push(std::mem::replace(&mut current, Drawn::new(grid, room, true).lines()));
        }
    }
    bands.push(current);
    let text = |lines: Vec<Line>| -> String {
        lines.into_iter().map(|line| format!("{:INDENT$}{}\n", "", line.text)).collect()
    };
    bands.into_iter().filter(|lines| !lines.is_empty()).map(text).collect::<Vec<_>>().join("\n")
}

fn widest(lines: &[Line]) -> usize {
    lines.iter().map(|line| line.width).max().unwrap_or(0)
}

fn beside(mut left: Vec<Line>, right: &[Line]) -> Vec<Line> {
    let column = widest(&left) + GAP;
    left.resize(left.len().max(right.len()), Line::default());
    for (line, more) in left.iter_mut().zip(right) {
        line.pad_to(column);
        line.append(more);
    }
    left
}

/// A grid with its measures.
struct Drawn<'a> {
    grid: &'a Grid,
    /// Cells as text; an ellipsis stands for what is left out.
    cells: Vec<Vec<String>>,
    heads: Vec<String>,
    sides: Vec<String>,
    cell: usize,
    /// Columns before the cells.
    side: usize,
    labelled: bool,
    /// Whether there is no room for what the arrows say beside them.
    legend: bool,
    left_out: (usize, usize),
}

impl<'a> Drawn<'a> {
    fn new(grid: &'a Grid, room: usize, labelled: bool) -> Self {
        let written: Vec<Vec<String>> =
            grid.cells.iter().map(|row| row.iter().map(|&v| grid.format.write(v)).collect()).collect();
        let longest = |texts: &[String]| texts.iter().map(|t| t.chars().count()).max().unwrap_or(0);
        let cell = written.iter().map(|row| longest(row)).max().unwrap_or(0).max(longest(&grid.columns.labels));
        let mut sides: Vec<String> =
            grid.rows.labels.iter().map(|label| format!("{} {label}", grid.rows.name).trim().to_owned()).collect();
        let corner = if grid.columns.name.is_empty() { 0 } else { grid.columns.name.chars().count() + 2 };
        let side = if labelled { longest(&sides).max(corner) + 2 } else { 0 };
        let between = if matches!(grid.bands, Bands::Columns(_)) && grid.arrow.is_some() { 3 } else { 2 };
        let total = grid.columns.labels.len() + usize::from(grid.columns.left_out > 0);
        let fits = |arrow: usize| (room.saturating_sub(side + arrow + 4) / (cell + between)).max(2);
        let long = grid.arrow.as_ref().map_or(0, |arrow| arrow.chars().count() + 3);
        let (legend, fits) = if total <= fits(long) { (false, fits(long)) } else { (true, fits(3)) };
        // Where not all columns fit, one place is the ellipsis's.
        let fit = if total <= fits { total } else { fits - 1 };
        let shown = grid.columns.labels.len().min(fit);
        let left_out = (grid.rows.left_out, grid.columns.left_out + grid.columns.labels.len() - shown);
        let mut heads = grid.columns.labels[..shown].to_vec();
        let mut cells: Vec<Vec<String>> = written.into_iter().map(|row| row[..shown].to_vec()).collect();
        if left_out.1 > 0 {
            heads.push("…".into());
            cells.iter_mut().for_each(|row| row.push("…".into()));
        }
        if left_out.0 > 0 {
            sides.push("⋮".into());
            cells.push(vec!["⋮".into(); heads.len()]);
        }
        Drawn { grid, cells, heads, sides, cell, side, labelled, legend, left_out }
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        if !self.grid.caption.is_empty() {
            lines.push(Line::plain(&self.grid.caption));
        }
        if !self.grid.columns.name.is_empty() || !self.heads.iter().all(String::is_empty) {
            lines.push(self.head());
        }
        let rows = self.cells.len();
        for row in 0..rows {
            lines.extend(self.border(row));
            lines.push(self.row(row));
        }
        lines.extend(self.border(rows));
        lines.extend(self.arrows());
        lines.extend(self.legend());
        lines.extend(self.what_is_left_out());
        lines
    }

    fn framed(&self) -> bool {
        self.grid.arrow.is_some()
    }

    fn band(&self, row: usize, column: usize) -> Option<usize> {
        self.grid.bands.of(row, column)
    }

    /// Whether a vertical line stands before this column.
    fn edge(&self, column: usize) -> bool {
        let ends = column == 0 || column == self.heads.len();
        let between = || self.band(0, column) != self.band(0, column - 1);
        self.framed() && (ends || between())
    }

    /// What stands between columns: one string of the same width in every line.
    fn between(&self, column: usize, edge: &str, fill: &str) -> String {
        let (first, last) = (column == 0, column == self.heads.len());
        match (self.edge(column), first, last) {
            (true, true, _) => format!("{edge}{fill}"),
            (true, _, true) => format!("{fill}{edge}"),
            (true, ..) => format!("{fill}{edge}{fill}"),
            (false, false, false) => fill.repeat(2),
            (false, ..) => String::new(),
        }
    }

    fn head(&self) -> Line {
        let mut line = Line::default();
        if self.labelled && !self.grid.columns.name.is_empty() {
            let name = format!("{} →", self.grid.columns.name);
            line.pad_to(self.side - 2 - name.chars().count());
            line.push(QUIET, &name);
        }
        line.pad_to(self.side);
        for (column, head) in self.heads.iter().enumerate() {
            line.push(QUIET, &self.between(column, " ", " "));
            line.push(QUIET, &format!("{head:>width$}", width = self.cell));
        }
        line
    }

    fn row(&self, row: usize) -> Line {
        let mut line = Line::default();
        let side = &self.sides[row];
        if self.labelled {
            line.pad_to(self.side - 2 - side.chars().count());
            line.push(QUIET, side);
        }
        line.pad_to(self.side);
        for (column, cell) in self.cells[row].iter().enumerate() {
            line.push(QUIET, &self.between(column, "│", " "));
            let colour = self.band(row, column).map(|band| COLOURS[band % COLOURS.len()].on_default());
            line.push(colour.unwrap_or_default(), &format!("{cell:>width$}", width = self.cell));
        }
        line.push(QUIET, &self.between(self.heads.len(), "│", " "));
        if let (Some(arrow), Bands::Rows(size)) = (&self.grid.arrow, self.grid.bands)
            && row % size == (size - 1) / 2
            && cell_is_shown(&self.sides[row])
        {
            let says = if self.legend { String::new() } else { format!(" {arrow}") };
            line.push(QUIET, &format!(" →{says}"));
        }
        line
    }

    /// The line above row `row`, or below the last one.
    fn border(&self, row: usize) -> Option<Line> {
        let (first, last) = (row == 0, row == self.cells.len());
        let wanted = self.framed() && (first || last || self.band(row, 0) != self.band(row - 1, 0));
        wanted.then(|| {
            let marks = if first {
                ["┌", "┬", "┐"]
            } else if last {
                ["└", "┴", "┘"]
            } else {
                ["├", "┼", "┤"]
            };
            let mut line = Line::default();
            line.pad_to(self.side);
            for column in 0..=self.heads.len() {
                let mark = if column == 0 {
                    0
                } else if column == self.heads.len() {
                    2
                } else {
                    1
                };
                line.push(QUIET, &self.between(column, marks[mark], "─"));
                if column < self.heads.len() {
                    line.push(QUIET, &"─".repeat(self.cell));
                }
            }
            line
        })
    }

    /// Arrows below bands of columns.
    fn arrows(&self) -> Option<Line> {
        let (Some(arrow), Bands::Columns(size)) = (&self.grid.arrow, self.grid.bands) else { return None };
        let mut line = Line::default();
        line.pad_to(self.side);
        for (column, head) in self.heads.iter().enumerate() {
            line.push(QUIET, &self.between(column, " ", " "));
            let here = column % size == (size - 1) / 2 && cell_is_shown(head);
            line.push(QUIET, &format!("{:>width$}", if here { "↓" } else { "" }, width = self.cell));
        }
        line.push(QUIET, &format!("   {arrow}"));
        Some(line)
    }

    /// What the arrows beside rows mean, where it does not stand beside them.
    fn legend(&self) -> Option<Line> {
        let (Some(arrow), Bands::Rows(_), true) = (&self.grid.arrow, self.grid.bands, self.legend) else { return None };
        let mut line = Line::default();
        line.pad_to(self.side);
        line.push(QUIET, &format!("→ {arrow}"));
        Some(line)
    }

    fn what_is_left_out(&self) -> Option<Line> {
        let (rows, columns) = self.left_out;
        let text = left_out(rows, columns, &self.grid.rows.name, &self.grid.columns.name);
        (!text.is_empty()).then(|| {
            let mut line = Line::default();
            line.pad_to(self.side);
            line.push(QUIET, &text);
            line
        })
    }
}

fn cell_is_shown(label: &str) -> bool {
    !matches!(label, "…" | "⋮")
}
