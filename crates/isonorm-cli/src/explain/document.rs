//! What an explanation is, whatever shows it: titled steps of prose, worked formulae, grids and drawings.
//!
//! The norms fill it in; `text.rs` and `html.rs` show it. Neither knows the other.

use super::number::{Format, count};

/// A whole explanation.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// The norm as papers spell it.
    pub(crate) title: &'static str,
    /// What it does, in one sentence.
    pub(crate) summary: String,
    /// The equation, in the notation of `math.rs`.
    pub(crate) equations: Vec<&'static str>,
    pub(crate) papers: Vec<Paper>,
    /// The input and the options: a name and a value each.
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) steps: Vec<Step>,
}

/// Where a norm comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paper {
    pub(crate) authors: &'static str,
    pub(crate) year: u16,
    pub(crate) title: &'static str,
    pub(crate) arxiv: &'static str,
}

/// One step of the computation.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) title: String,
    pub(crate) blocks: Vec<Block>,
}

impl Step {
    pub(crate) fn new(title: impl Into<String>, blocks: Vec<Block>) -> Self {
        Step { title: title.into(), blocks }
    }
}

/// One piece of a step.
#[derive(Debug)]
pub(crate) enum Block {
    /// A paragraph.
    Text(String),
    /// A paragraph beside the thread of thought.
    Note(String),
    /// Formulae with their numbers, one for each row, channel or group.
    Worked(Vec<Worked>),
    /// Grids side by side where there is room.
    Grids(Vec<Grid>),
    Table(Table),
    /// Lines whose characters stand below each other.
    Drawing {
        caption: String,
        lines: Vec<String>,
    },
}

impl Block {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Block::Text(text.into())
    }

    pub(crate) fn note(text: impl Into<String>) -> Self {
        Block::Note(text.into())
    }
}

/// A formula for `label`, in the notation of `math.rs`.
#[derive(Debug)]
pub(crate) struct Worked {
    pub(crate) label: String,
    pub(crate) formula: String,
}

/// Numbers in rows and columns.
#[derive(Debug)]
pub(crate) struct Grid {
    pub(crate) caption: String,
    pub(crate) rows: Axis,
    pub(crate) columns: Axis,
    pub(crate) cells: Vec<Vec<f64>>,
    pub(crate) format: Format,
    /// What is normalized together.
    pub(crate) bands: Bands,
    /// Whether the bands are drawn as boxes, with an arrow to what becomes of each.
    pub(crate) arrow: Option<String>,
}

/// The labels along one side of a grid.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// What there is one of for each label: `row`, `channel`.
    pub(crate) name: String,
    pub(crate) labels: Vec<String>,
    /// How many more there are than shown.
    pub(crate) left_out: usize,
}

impl Axis {
    /// The first `shown` of `total`, numbered from 0.
    pub(crate) fn numbered(name: &str, shown: usize, total: usize) -> Self {
        let labels = (0..shown).map(|i| i.to_string()).collect();
        Axis { name: name.to_owned(), labels, left_out: total - shown }
    }

    /// Labels that are names, none left out.
    pub(crate) fn named(names: &[&str]) -> Self {
        let labels = names.iter().map(|&name| name.to_owned()).collect();
        Axis { name: String::new(), labels, left_out: 0 }
    }
}

/// The parts of a grid whose elements are normalized together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bands {
    None,
    /// This many rows each.
    Rows(usize),
    /// This many columns each.
    Columns(usize),
}

impl Bands {
    /// The band of a cell; `None` where there are no bands.
    pub(crate) fn of(self, row: usize, column: usize) -> Option<usize> {
        match self {
            Bands::None => None,
            Bands::Rows(size) => Some(row / size),
            Bands::Columns(size) => Some(column / size),
        }
    }
}

/// Words and numbers in rows and columns.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// The most that a grid shows of anything: rows, columns, and grids of one tensor.
pub(crate) const MOST_ROWS: usize = 6;
pub(crate) const MOST_COLUMNS: usize = 8;
pub(crate) const MOST_GRIDS: usize = 3;

/// `left out: 4,088 more along hidden`; empty where everything is shown.
pub(crate) fn left_out(rows: usize, columns: usize, row: &str, column: &str) -> String {
    let part = |n: usize, along: &str| (n > 0).then(|| format!("{} more along {along}", count(n)));
    let parts: Vec<String> = [part(rows, row), part(columns, column)].into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!("left out: {}", parts.join(", ")) }
}
