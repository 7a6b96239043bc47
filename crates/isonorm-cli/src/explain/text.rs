//! An explanation as text for a terminal or a pipe. Styles are written always; the stream strips them where
//! nobody could see them.

mod grid;

use anstyle::{AnsiColor, Style};

use super::document::{Block, Explanation, Step, Table, Worked};
use super::math;

/// Columns before everything inside a step.
const INDENT: usize = 4;
/// Prose wider than this tires the eye.
const PROSE: usize = 88;

const TITLE: Style = Style::new().bold();
const NUMBER: Style = AnsiColor::Cyan.on_default().bold();
const QUIET: Style = Style::new().dimmed();
const FORMULA: Style = AnsiColor::Green.on_default();

/// A line with styles in it, and the columns that it takes up on the screen.
#[derive(Clone, Debug, Default)]
struct Line {
    text: String,
    width: usize,
}

impl Line {
    fn plain(text: &str) -> Self {
        let mut line = Line::default();
        line.push(Style::new(), text);
        line
    }

    fn push(&mut self, style: Style, text: &str) {
        if text.is_empty() {
            return;
        }
        self.text.push_str(&styled(style, text));
        self.width += text.chars().count();
    }

    fn pad_to(&mut self, width: usize) {
        let missing = width.saturating_sub(self.width);
        self.push(Style::new(), &" ".repeat(missing));
    }

    fn append(&mut self, other: &Line) {
        self.text.push_str(&other.text);
        self.width += other.width;
    }
}

fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// The explanation in lines of at most `width` columns, where numbers and drawings allow it.
pub(crate) fn render(explanation: &Explanation, width: usize) -> String {
    let mut out = head(explanation, width);
    for (i, step) in explanation.steps.iter().enumerate() {
        out.push('\n');
        out.push_str(&step_text(i + 1, step, width));
    }
    // A line that ends in spaces is noise in a file and in a diff.
    out.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn head(explanation: &Explanation, width: usize) -> String {
    let mut out = format!("{}\n", styled(TITLE, explanation.title));
    out.push_str(&paragraph(&explanation.summary, width, 0, Style::new()));
    out.push('\n');
    for equation in &explanation.equations {
        out.push_str(&format!("    {}\n", styled(FORMULA, &math::line(&math::parse(equation)))));
    }
    out.push('\n');
    let papers = explanation
        .papers
        .iter()
        .map(|paper| ("paper", format!("{} {}, {}, arXiv:{}", paper.authors, paper.year, paper.title, paper.arxiv)));
    let facts: Vec<(&str, String)> = explanation.facts.iter().cloned().chain(papers).collect();
    let column = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    for (name, value) in &facts {
        out.push_str(&hanging(&styled(QUIET, name), name.len(), column, value, width, 0));
    }
    out
}

fn step_text(number: usize, step: &Step, width: usize) -> String {
    let number = format!("{number:>2}");
    let mut out = format!("{}  {}\n\n", styled(NUMBER, &number), styled(TITLE, &step.title));
    for block in &step.blocks {
        match block {
            Block::Text(text) => out.push_str(&paragraph(text, width, INDENT, Style::new())),
            Block::Note(text) => out.push_str(&paragraph(text, width, INDENT, QUIET)),
            Block::Worked(lines) => out.push_str(&worked(lines, width)),
            Block::Grids(grids) => out.push_str(&grid::side_by_side(grids, width)),
            Block::Table(table) => out.push_str(&table_text(table)),
            Block::Drawing { caption, lines } => {
                out.push_str(&paragraph(caption, width, INDENT, Style::new()));
                for line in lines {
                    out.push_str(&format!("{:INDENT$}{line}\n", ""));
                }
            }
        }
        out.push('\n');
    }
    out.truncate(out.trim_end_matches('\n').len());
    out.push('\n');
    out
}

fn wrapped(text: &str, room: usize) -> Vec<String> {
    let options = textwrap::Options::new(room.clamp(20, PROSE))
        .break_words(false)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::wrap(text, options).into_iter().map(|line| line.into_owned()).collect()
}

fn paragraph(text: &str, width: usize, indent: usize, style: Style) -> String {
    wrapped(text, width.saturating_sub(indent))
        .iter()
        .map(|line| format!("{:indent$}{}\n", "", styled(style, line)))
        .collect()
}

/// A label, and text beside it that stays beside it where it takes several lines.
fn hanging(label: &str, label_width: usize, column: usize, text: &str, width: usize, indent: usize) -> String {
    let mut out = String::new();
    for (i, line) in wrapped(text, width.saturating_sub(indent + column)).iter().enumerate() {
        if i == 0 {
            out.push_str(&format!("{:indent$}{label}{:gap$}{line}\n", "", "", gap = column - label_width));
        } else {
            out.push_str(&format!("{:indent$}{:column$}{line}\n", "", ""));
        }
    }
    out
}

fn worked(lines: &[Worked], width: usize) -> String {
    let column = lines.iter().map(|line| line.label.chars().count()).max().unwrap_or(0) + 2;
    lines
        .iter()
        .map(|line| {
            let formula = math::line(&math::parse(&line.formula));
            hanging(&styled(QUIET, &line.label), line.label.chars().count(), column, &formula, width, INDENT)
        })
        .collect()
}

fn table_text(table: &Table) -> String {
    let all = || std::iter::once(&table.head).chain(&table.rows);
    let columns = table.head.len();
    let width = |c: usize| all().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (i, row) in all().enumerate() {
        let style = if i == 0 { QUIET } else { Style::new() };
        let mut line = Line::plain(&" ".repeat(INDENT));
        for (cell, width) in row.iter().zip(&widths) {
            let end = line.width + width + 2;
            line.push(style, cell);
            line.pad_to(end);
        }
        out.push_str(&line.text);
        out.push('\n');
    }
    out
}
