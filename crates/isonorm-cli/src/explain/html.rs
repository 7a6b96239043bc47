//! An explanation as one page: no script, no font, nothing from elsewhere; light and dark as the reader has it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::document::{Axis, Bands, Block, Explanation, Grid, Paper, Step, Table, Worked, left_out};
use super::math::{self, Math};

const STYLE: &str = include_str!("page.css");
/// Nothing but what is in the page may load.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The whole page.
pub(crate) fn render(explanation: &Explanation) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (explanation.title) ", step by step" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (head(explanation))
                    @for (i, step) in explanation.steps.iter().enumerate() { (section(i + 1, step)) }
                    (foot(&explanation.papers))
                }
            }
        }
    };
    page.into_string()
}

fn head(explanation: &Explanation) -> Markup {
    html! {
        header {
            h1 { (explanation.title) }
            p.summary { (explanation.summary) }
            div.equations { @for equation in &explanation.equations { p { (formula(equation)) } } }
            dl.facts {
                @for (name, value) in &explanation.facts { div { dt { (name) } dd { (value) } } }
            }
            @if explanation.steps.len() > 4 {
                nav aria-label="Steps" {
                    ol { @for (i, step) in explanation.steps.iter().enumerate() {
                        li { a href={ "#step-" (i + 1) } { (step.title) } }
                    } }
                }
            }
            p.legend {
                span.swatch.below style="--heat:100%" {} "below 0"
                span.swatch.at {} "0"
                span.swatch.above style="--heat:100%" {} "above 0, stronger the further away"
            }
        }
    }
}

fn section(number: usize, step: &Step) -> Markup {
    let id = format!("step-{number}");
    html! {
        section aria-labelledby=(id) {
            h2 id=(id) { span.number aria-hidden="true" { (number) } (step.title) }
            @for block in &step.blocks { (markup(block)) }
        }
    }
}

fn markup(block: &Block) -> Markup {
    match block {
        Block::Text(text) => html! { p { (text) } },
        Block::Note(text) => html! { p.note { (text) } },
        Block::Worked(lines) => worked(lines),
        Block::Grids(grids) => html! { div.grids { @for one in grids { (grid(one, heat_unit(grids))) } } },
        Block::Table(table) => words(table),
        Block::Drawing { caption, lines } => html! {
            figure.drawing {
                figcaption { (caption) }
                pre { (lines.join("\n")) }
            }
        },
    }
}

fn worked(lines: &[Worked]) -> Markup {
    html! {
        dl.worked {
            @for line in lines { div { dt { (line.label) } dd { (formula(&line.formula)) } } }
        }
    }
}

fn words(table: &Table) -> Markup {
    html! {
        div.scroll {
            table.words {
                thead { tr { @for cell in &table.head {
                    @if cell.is_empty() { td {} } @else { th scope="col" { (cell) } }
                } } }
                tbody {
                    @for row in &table.rows {
                        tr { @for (i, cell) in row.iter().enumerate() {
                            @if i == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                        } }
                    }
                }
            }
        }
    }
}

/// The largest magnitude of several grids: what the strongest colour stands for.
fn heat_unit(grids: &[Grid]) -> f64 {
    let cells = grids.iter().flat_map(|grid| &grid.cells).flatten();
    cells.filter(|v| v.is_finite()).fold(0.0, |max: f64, v| max.max(v.abs()))
}

fn grid(grid: &Grid, unit: f64) -> Markup {
    let more = left_out(grid.rows.left_out, grid.columns.left_out, &grid.rows.name, &grid.columns.name);
    html! {
        figure.grid {
            @if !grid.caption.is_empty() { figcaption { (grid.caption) } }
            table class=(framing(grid)) style={ "--chars:" (longest(grid)) } {
                thead { tr {
                    td.corner { @if !grid.columns.name.is_empty() { (grid.columns.name) " →" } }
                    @for label in &grid.columns.labels { th scope="col" { (label) } }
                    @if grid.columns.left_out > 0 { td.more { "…" } }
                } }
                tbody { @for (r, row) in grid.cells.iter().enumerate() {
                    tr {
                        th scope="row" { (row_label(&grid.rows, r)) }
                        @for (c, &value) in row.iter().enumerate() { (cell(grid, r, c, value, unit)) }
                        @if grid.columns.left_out > 0 { td.more { "…" } }
                        (arrow_beside(grid, r))
                    }
                } }
                (arrows_below(grid))
            }
            @if !more.is_empty() { p.more { (more) } }
        }
    }
}

/// The characters of the longest number, for columns of one width.
fn longest(grid: &Grid) -> usize {
    grid.cells.iter().flatten().map(|&v| grid.format.write(v).len()).max().unwrap_or(1)
}

fn framing(grid: &Grid) -> &'static str {
    match (&grid.arrow, grid.bands) {
        (None, _) => "heat",
        (Some(_), Bands::Rows(1)) => "heat framed rows",
        (Some(_), Bands::Columns(1)) => "heat framed columns",
        (Some(_), _) => "heat framed",
    }
}

/// To the right of a band of rows: what becomes of it.
fn arrow_beside(grid: &Grid, row: usize) -> Markup {
    html! {
        @if let (Some(arrow), Bands::Rows(size)) = (&grid.arrow, grid.bands) && row.is_multiple_of(size) {
            td.arrow rowspan=(size) { "→ " (arrow) }
        }
    }
}

/// Below bands of columns: what becomes of them.
fn arrows_below(grid: &Grid) -> Markup {
    html! {
        @if let (Some(arrow), Bands::Columns(size)) = (&grid.arrow, grid.bands) {
            tfoot {
                tr {
                    td {}
                    @for _ in 0..grid.columns.labels.len() / size { td.down colspan=(size) { "↓" } }
                }
                tr { td {} td.arrow colspan=(grid.columns.labels.len() + 1) { (arrow) } }
            }
        }
    }
}

fn row_label(axis: &Axis, row: usize) -> String {
    format!("{} {}", axis.name, axis.labels[row]).trim().to_owned()
}

fn cell(grid: &Grid, row: usize, column: usize, value: f64, unit: f64) -> Markup {
    let heat = if value.is_finite() && unit > 0.0 { (value.abs() / unit * 100.0).round() } else { 0.0 };
    let mut class = match value {
        v if !v.is_finite() => "odd".to_owned(),
        v if v < 0.0 => "below".to_owned(),
        v if v > 0.0 => "above".to_owned(),
        _ => "at".to_owned(),
    };
    if grid.arrow.is_some() {
        class.push_str(&edges(grid, row, column));
    }
    html! { td class=(class) style={ "--heat:" (heat) "%" } { (grid.format.write(value)) } }
}

/// The sides on which a cell borders on another band, or on nothing.
fn edges(grid: &Grid, row: usize, column: usize) -> String {
    let band = |r: usize, c: usize| grid.bands.of(r, c);
    let here = band(row, column);
    let (rows, columns) = (grid.cells.len(), grid.cells[row].len());
    let differs = |inside: bool, r: usize, c: usize| !inside || band(r, c) != here;
    let sides = [
        (" t", differs(row > 0, row.wrapping_sub(1), column)),
        (" b", differs(row + 1 < rows, row + 1, column)),
        (" l", differs(column > 0, row, column.wrapping_sub(1))),
        (" r", differs(column + 1 < columns, row, column + 1)),
    ];
    sides.into_iter().filter(|(_, edge)| *edge).map(|(side, _)| side).collect()
}

/// A formula, read aloud as its line of text.
fn formula(source: &str) -> Markup {
    let formula = math::parse(source);
    html! { span.math role="math" aria-label=(math::line(&formula)) { (pieces(&formula)) } }
}

fn pieces(formula: &[Math]) -> Markup {
    html! {
        @for piece in formula {
            @match piece {
                Math::Text(text) => (names(text)),
                Math::Words(text) => (text),
                Math::Fraction(above, below) => span.frac {
                    span.above { (pieces(above)) }
                    span.under { (pieces(below)) }
                },
                Math::Root(of) => span.root { span.sign { "√" } span.of { (pieces(of)) } },
                Math::Index(index) => sub { (pieces(index)) },
                Math::Power(power) => sup { (pieces(power)) },
            }
        }
    }
}

/// Names in italics, everything else upright, as in a book.
fn names(text: &str) -> Markup {
    let mut parts: Vec<(bool, String)> = Vec::new();
    let mut before = ' ';
    for c in text.chars() {
        // The e of 1e-5 is part of a number.
        let exponent = c == 'e' && before.is_ascii_digit();
        before = c;
        let continues = parts.last().is_some_and(|(name, _)| *name) && (c.is_ascii_digit() || c == '_');
        let name = (c.is_ascii_alphabetic() && !exponent) || continues;
        // A hyphen is too short for a minus.
        let c = if c == '-' { '\u{2212}' } else { c };
        match parts.last_mut() {
            Some((kind, part)) if *kind == name => part.push(c),
            _ => parts.push((name, c.to_string())),
        }
    }
    html! { @for (name, part) in &parts { @if *name { i { (part) } } @else { (part) } } }
}

fn foot(papers: &[Paper]) -> Markup {
    html! {
        footer {
            @for paper in papers {
                p {
                    (paper.authors) " " (paper.year) ", "
                    cite { (paper.title) } ", "
                    a href={ "https://arxiv.org/abs/" (paper.arxiv) } { "arXiv:" (paper.arxiv) }
                }
            }
            p { "Every number is computed by isonorm " (env!("CARGO_PKG_VERSION")) "." }
        }
    }
}
