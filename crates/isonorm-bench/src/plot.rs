//! The plot for the README: per cell, how close isonorm and each peer come to the limit.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::cells::Goal;
use crate::report::{Report, Row};
use crate::timing::{Role, Timed};

const WIDTH: i32 = 1096;
/// Left of the bars: the cells' names.
const LABELS: i32 = 252;
/// Right of the 100 % of each panel: what is faster than its limit, and numbers.
const BEYOND: i32 = 74;
const HEAD: i32 = 108;
const FOOT: i32 = 34;
const BAR: i32 = 9;
const GAP: i32 = 14;

/// isonorm's colour, then the peers'.
const COLORS: [RGBColor; 5] = [
    RGBColor(0xc2, 0x41, 0x0c),
    RGBColor(0x47, 0x55, 0x69),
    RGBColor(0x7c, 0x8b, 0xa1),
    RGBColor(0xa9, 0xb4, 0xc4),
    RGBColor(0xcd, 0xd5, 0xdf),
];
const INK: RGBColor = RGBColor(0x1f, 0x29, 0x37);
const FAINT: RGBColor = RGBColor(0xd1, 0xd5, 0xdb);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// One column of bars: a number of threads.
struct Panel {
    threads: usize,
    left: i32,
    /// From 0 to 100 %.
    scale: i32,
}

/// The report as one SVG document: a cell per line, a panel per number of threads.
pub(crate) fn draw(report: &Report) -> Result<String, Box<dyn Error>> {
    let (names, panels) = (names(report), panels(report));
    let cells: Vec<&[Row]> = report.rows.chunk_by(|a, b| a.name == b.name).collect();
    let height = HEAD + FOOT + cells.iter().map(|rows| height(rows)).sum::<i32>();
    let mut svg = String::new();
    {
        let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(|error| error.to_string())?;
        heading(&area, report, &names)?;
        for panel in &panels {
            grid(&area, panel, height)?;
        }
        let mut top = HEAD;
        for rows in cells {
            let middle = top + (self::height(rows) - GAP) / 2;
            text(&area, &rows[0].name, (LABELS - 10, middle), 12, INK, HPos::Right)?;
            for panel in &panels {
                for row in rows.iter().filter(|row| row.threads == panel.threads) {
                    group(&area, panel, row, &names, top)?;
                }
            }
            top += self::height(rows);
        }
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

/// isonorm first, then every peer that takes part anywhere.
fn names(report: &Report) -> Vec<String> {
    let mut names = Vec::new();
    for role in [Role::Isonorm, Role::Peer] {
        for contestant in report.rows.iter().flat_map(|row| &row.contestants) {
            if contestant.role == role && !names.contains(&contestant.name) {
                names.push(contestant.name.clone());
            }
        }
    }
    names
}

fn panels(report: &Report) -> Vec<Panel> {
    let mut threads: Vec<usize> = report.rows.iter().map(|row| row.threads).collect();
    threads.sort_unstable();
    threads.dedup();
    let width = (WIDTH - LABELS) / threads.len().max(1) as i32;
    let panel = |(i, threads)| {
        let left = LABELS + width * i as i32;
        Panel { threads, left, scale: width - BEYOND }
    };
    threads.into_iter().enumerate().map(panel).collect()
}

fn bars(row: &Row) -> impl Iterator<Item = &Timed> {
    row.contestants.iter().filter(|c| matches!(c.role, Role::Isonorm | Role::Peer))
}

fn height(rows: &[Row]) -> i32 {
    rows.iter().map(|row| bars(row).count()).max().unwrap_or(0) as i32 * BAR + GAP
}

fn heading(area: &Area<'_>, report: &Report, names: &[String]) -> Drawn {
    let machine = &report.machine;
    let title = "Share of the speed of a plain copy of the same bytes";
    text(area, title, (16, 22), 17, INK, HPos::Left)?;
    let note = "One row (1x4096), and backward alone: share of the speed of a loop that may sum in any order. \
                The mark is what isonorm has to reach.";
    text(area, note, (16, 42), 12, INK, HPos::Left)?;
    let mut x = 16;
    for (i, name) in names.iter().enumerate() {
        rectangle(area, (x, 58), (x + 12, 70), COLORS[i % COLORS.len()])?;
        text(area, name, (x + 18, 64), 12, INK, HPos::Left)?;
        x += 34 + 8 * name.len() as i32;
    }
    let date = machine.date.split(' ').next().unwrap_or_default();
    let where_and_when = format!("{}, {} cores, {date}", machine.cpu, machine.cores);
    text(area, &where_and_when, (WIDTH - 16, 64), 12, INK, HPos::Right)
}

/// The panel's title, and lines at 0, 25, 50, 75 and 100 %.
fn grid(area: &Area<'_>, panel: &Panel, height: i32) -> Drawn {
    let title = match panel.threads {
        1 => "1 thread".to_string(),
        threads => format!("{threads} threads"),
    };
    text(area, &title, (panel.left, HEAD - 16), 13, INK, HPos::Left)?;
    for quarter in 0..=4 {
        let x = panel.left + panel.scale * quarter / 4;
        let color = if quarter == 4 { INK } else { FAINT };
        rectangle(area, (x, HEAD - 6), (x + 1, height - FOOT), color)?;
        let label = format!("{} %", 25 * quarter);
        text(area, &label, (x, height - FOOT + 14), 12, INK, HPos::Center)?;
    }
    Ok(())
}

/// A row's bars, and the mark of its goal.
fn group(area: &Area<'_>, panel: &Panel, row: &Row, names: &[String], top: i32) -> Drawn {
    let (full, goal) = match row.cell.goal {
        Goal::ShareOfLimit(share) => (row.by_median.limit_us, Some(share)),
        Goal::TimesLoop(times) => (row.by_median.loop_us.unwrap_or(f64::NAN), Some(1.0 / times)),
        Goal::AheadOfPeers => (row.by_median.limit_us, None),
    };
    let length = |share: f64| (share * f64::from(panel.scale)) as i32;
    for (i, bar) in bars(row).enumerate() {
        let share = full / bar.median_us;
        // What is faster than its limit ends here; the number beside it says how far it went.
        let right = panel.left + length(share.clamp(0.0, 1.05)).max(1);
        let y = top + i as i32 * BAR;
        let color = names.iter().position(|name| *name == bar.name).unwrap_or(0);
        rectangle(area, (panel.left, y), (right, y + BAR - 1), COLORS[color % COLORS.len()])?;
        let label = format!("{:.0} %", 100.0 * share);
        text(area, &label, (right + 4, y + BAR / 2), 9, INK, HPos::Left)?;
    }
    let Some(goal) = goal else {
        return Ok(());
    };
    let mark = panel.left + length(goal);
    rectangle(area, (mark, top - 2), (mark + 2, top + BAR + 1), INK)
}

fn rectangle(area: &Area<'_>, from: (i32, i32), to: (i32, i32), color: RGBColor) -> Drawn {
    let rectangle = Rectangle::new([from, to], color.filled());
    area.draw(&rectangle).map_err(|error| error.to_string().into())
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), size: i32, color: RGBColor, side: HPos) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&color).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.to_string(), at, style)).map_err(|error| error.to_string().into())
}
