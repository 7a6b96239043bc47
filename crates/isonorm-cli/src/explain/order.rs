//! `--order`: how a row or a channel is summed, drawn with its numbers, and why that order is fixed.

mod sums;
mod tree;

use isonorm::{BATCH_LEAF, LANES, LEAF};

use self::sums::BatchSum;
pub(super) use self::sums::{RowSum, Terms};
use super::compute::Kind;
use super::document::{Block, Step};
use super::layout::Together;
use super::number::{bits, count, counted};
use super::steps::Run;

/// Leaves of a tree that is drawn in full.
const DRAWN_LEAVES: usize = 8;
/// Numbers of a list that is cut short.
const LISTED: usize = 6;

/// The steps that `--order` adds.
pub(crate) fn steps(run: &Run<'_>) -> Vec<Step> {
    if !run.subject.order {
        return Vec::new();
    }
    let (mut blocks, total, row) = if run.subject.options.kind == Kind::Batch { batch(run) } else { row(run) };
    blocks.push(agreement(run, total, row.len()));
    vec![
        Step::new(format!("The order of the sum: {}", run.layout().label(0)), blocks),
        Step::new("Why the order is fixed", why(run, total, &row)),
    ]
}

fn terms(run: &Run<'_>) -> Terms {
    if matches!(run.subject.options.kind, Kind::Rms { .. }) { Terms::Squares } else { Terms::Elements }
}

/// The elements of the first row, channel or group that enter the sum.
fn elements(run: &Run<'_>) -> Vec<f64> {
    let n = match run.subject.options.kind {
        Kind::Rms { partial: Some(k), .. } => k,
        _ => run.layout().count(),
    };
    run.layout().members(0).take(n).map(|index| run.scaled_x(index)).collect()
}

type Drawn = (Vec<Block>, f64, Vec<f64>);

fn row(run: &Run<'_>) -> Drawn {
    let row = elements(run);
    let terms = terms(run);
    let sum = RowSum::new(run.arithmetic, terms, &row);
    let leaves = sum.levels[0].len();
    let mut blocks = vec![
        Block::text(format!(
            "{} of {} are dealt to {LANES} lanes in leaves of {LEAF}: element i goes to leaf i / {LEAF} and \
             there to lane i mod {LANES}. Each lane starts at +0 and takes its elements in increasing order.",
            if terms == Terms::Squares { "The squares" } else { "The values" },
            counted(row.len(), "element"),
        )),
        Block::Drawing {
            caption: format!("Lanes of leaf 0{}", of_leaves(leaves)),
            lines: lanes(run, terms, &row, &sum),
        },
    ];
    if leaves > 1 {
        blocks.push(Block::text(
            "Leaves are then added in a binary tree, neighbours first; a leaf without a neighbour passes through.",
        ));
        let caption = "The tree, by the number in lane 0; lanes 1 to 31 do the same".to_owned();
        blocks.push(Block::Drawing { caption, lines: row_tree(run, &sum, row.len()) });
    }
    let caption = format!("The fold of the {LANES} lanes, by halves");
    blocks.push(Block::Drawing { caption, lines: fold(run, &sum) });
    (blocks, sum.total(), row)
}

fn of_leaves(leaves: usize) -> String {
    if leaves > 1 { format!(" (of {})", count(leaves)) } else { String::new() }
}

fn lanes(run: &Run<'_>, terms: Terms, row: &[f64], sum: &RowSum) -> Vec<String> {
    let first = &row[..row.len().min(LEAF)];
    let used = first.len().min(LANES);
    let mut lines = Vec::new();
    for lane in (0..used).filter(|&lane| lane < 4 || lane + 1 == used) {
        if lane > 4 {
            lines.push("   ⋮".to_owned());
        }
        let taken: Vec<usize> = (lane..first.len()).step_by(LANES).collect();
        let names: Vec<String> = taken.iter().map(|i| format!("x[{i}]")).collect();
        let square = if terms == Terms::Squares { "²" } else { "" };
        let numbers: Vec<String> = taken.iter().map(|&i| format!("{}{square}", number(run, first[i], terms))).collect();
        lines.push(format!(
            "lane {lane:>2}   {}{square}   =   {}   =   {}",
            names.join(&format!("{square} + ")),
            numbers.join(" + "),
            run.brief(sum.levels[0][0][lane]),
        ));
    }
    if used < LANES {
        lines.push(format!("lanes {used} to {} have no element: +0", LANES - 1));
    }
    lines
}

/// A number inside a sum.
fn number(run: &Run<'_>, value: f64, terms: Terms) -> String {
    let text = run.brief(value);
    if text.starts_with('-') || (terms == Terms::Squares && text.contains('e')) { format!("({text})") } else { text }
}

fn row_tree(run: &Run<'_>, sum: &RowSum, n: usize) -> Vec<String> {
    let lane0: Vec<Vec<f64>> = sum.levels.iter().map(|level| level.iter().map(|lanes| lanes[0]).collect()).collect();
    let name =
        |leaf: usize| format!("leaf {leaf}: x[{}] to x[{}]", leaf * LEAF, (leaf * LEAF + LEAF).min(n).max(1) - 1);
    any_tree(run, &lane0, name)
}

/// A small tree in full, a large one by its levels.
fn any_tree(run: &Run<'_>, levels: &[Vec<f64>], name: impl Fn(usize) -> String) -> Vec<String> {
    let leaves = levels[0].len();
    if leaves <= DRAWN_LEAVES {
        let names: Vec<String> = (0..leaves).map(&name).collect();
        let widest = names.iter().map(String::len).max().unwrap_or(0);
        let label = |(leaf, &value): (usize, &f64)| format!("{:widest$}   {}", names[leaf], run.brief(value));
        let mut labels = vec![levels[0].iter().enumerate().map(label).collect::<Vec<_>>()];
        labels.extend(levels[1..].iter().map(|level| level.iter().map(|&v| run.brief(v)).collect()));
        return tree::draw(&labels);
    }
    let mut lines = vec![name(0), name(1), "⋮".to_owned(), name(leaves - 1), String::new()];
    for (i, level) in levels.iter().enumerate() {
        let what = if i == 0 {
            "leaves"
        } else if level.len() == 1 {
            "node: the root"
        } else {
            "nodes"
        };
        lines.push(format!("level {i:>2}   {:>9} {what:<15} {}", count(level.len()), listed(run, level)));
    }
    lines
}

fn listed(run: &Run<'_>, values: &[f64]) -> String {
    let shown: Vec<String> = values.iter().take(LISTED).map(|&v| run.brief(v)).collect();
    let more = if values.len() > LISTED { "  …" } else { "" };
    format!("{}{more}", shown.join("  "))
}

fn fold(run: &Run<'_>, sum: &RowSum) -> Vec<String> {
    let line = |lanes: &Vec<f64>| {
        let half = lanes.len();
        let lanes_left = format!("{half} lane{}", if half == 1 { "" } else { "s" });
        format!("lane l + lane l + {half:<2}   →   {lanes_left:<8}   {}", listed(run, lanes))
    };
    sum.fold.iter().map(line).collect()
}

fn batch(run: &Run<'_>) -> Drawn {
    let row = elements(run);
    let layout = run.layout();
    let across = layout.together == Together::Column;
    let samples = if across { layout.computed[1] } else { layout.computed[0] };
    let positions = row.len() / samples;
    let plane = |values: &[f64]| RowSum::new(run.arithmetic, Terms::Elements, values).total();
    let scalars: Vec<f64> = if across { row.clone() } else { row.chunks(positions).map(plane).collect() };
    let mut blocks = Vec::new();
    if !across {
        blocks.push(Block::text(format!(
            "Each sample's {positions} positions are summed as a row is ({LANES} lanes, leaves of {LEAF}, tree, \
             fold): {}.",
            listed(run, &scalars)
        )));
    }
    blocks.push(Block::text(format!(
        "The samples are taken in leaves of {BATCH_LEAF}, each summed in increasing order from +0; leaves are \
         then added in a binary tree, neighbours first.",
    )));
    let first: Vec<String> =
        scalars.iter().take(BATCH_LEAF.min(LISTED)).map(|&v| number(run, v, Terms::Elements)).collect();
    let more = if scalars.len() > LISTED { " + …" } else { "" };
    let sum = BatchSum::new(run.arithmetic, &scalars);
    blocks.push(Block::Drawing {
        caption: format!("Leaf 0{}", of_leaves(sum.levels[0].len())),
        lines: vec![format!("+0 + {}{more}   =   {}", first.join(" + "), run.brief(sum.levels[0][0]))],
    });
    if sum.levels[0].len() > 1 {
        let name = |leaf: usize| {
            let end = (leaf * BATCH_LEAF + BATCH_LEAF).min(scalars.len()) - 1;
            format!("leaf {leaf}: samples {} to {end}", leaf * BATCH_LEAF)
        };
        blocks.push(Block::Drawing { caption: "The tree".into(), lines: any_tree(run, &sum.levels, name) });
    }
    (blocks, sum.total(), row)
}

/// The drawn sum, divided, beside what the library reports.
fn agreement(run: &Run<'_>, total: f64, n: usize) -> Block {
    let stat = &run.hat.stats[0];
    let squares = terms(run) == Terms::Squares;
    let (name, library) = if squares { ("mean square", stat.var) } else { ("mean", stat.mean) };
    let drawn = run.arithmetic.div(total, run.arithmetic.round(n as f64));
    let same = drawn.to_bits() == library.to_bits() || (drawn.is_nan() && library.is_nan());
    let verdict =
        if same { "bit for bit what the library computed" } else { "but the library computed other bits: report it" };
    Block::text(format!(
        "The sum is {}. Divided by {} it is {} ({}), the {name}: {verdict}{}.",
        run.exact(total),
        count(n),
        run.exact(drawn),
        bits(drawn, run.arithmetic.0).0,
        if same { String::new() } else { format!(" ({})", bits(library, run.arithmetic.0).0) },
    ))
}

/// A row whose sum depends on the order: from left to right it is not what the contract's order gives.
const EXAMPLE: [f64; 3] = [0.1, 0.2, 0.4];

fn why(run: &Run<'_>, total: f64, row: &[f64]) -> Vec<Block> {
    let (arithmetic, terms) = (run.arithmetic, terms(run));
    let own = (terms.left_to_right(arithmetic, row), total);
    let differs = own.0.to_bits() != own.1.to_bits() && own.1.is_finite();
    let (which, (loose, fixed)) = if differs {
        let what = if terms == Terms::Squares { "the squares" } else { "the elements" };
        (format!("Here {what} of {}, summed in two orders:", run.layout().label(0)), own)
    } else {
        let example: Vec<f64> = EXAMPLE.iter().map(|&v| arithmetic.round(v)).collect();
        let which = "The numbers above happen to give the same sum from left to right. 0.1 + 0.2 + 0.4 do not: \
                     from left to right it is (0.1 + 0.2) + 0.4, folded (0.1 + 0.4) + 0.2.";
        let folded = RowSum::new(arithmetic, Terms::Elements, &example).total();
        (which.to_owned(), (Terms::Elements.left_to_right(arithmetic, &example), folded))
    };
    vec![
        Block::text(
            "Every addition rounds, so the order decides the last bits. A loop that follows the width of a \
             vector unit, the number of threads or the size of the batch gives other bits on another machine \
             or in another batch. isonorm fixes one order that vector units, threads, devices and ranks can \
             all follow: leaves are independent, and any whole subtree can be summed elsewhere.",
        ),
        Block::Drawing { caption: which, lines: two_orders(run, loose, fixed) },
    ]
}

fn two_orders(run: &Run<'_>, loose: f64, fixed: f64) -> Vec<String> {
    let texts = [run.exact(loose), run.exact(fixed)];
    let width = texts[0].len().max(texts[1].len());
    let (hex, digits) = (|v| bits(v, run.arithmetic.0).0, |v| bits(v, run.arithmetic.0).1);
    let line = |name: &str, text: &str, v: f64| format!("{name:<16} {text:<width$}   {}   {}", hex(v), digits(v));
    let mark = |(a, b): (char, char)| if a == b { ' ' } else { '^' };
    let marks: String = digits(loose).chars().zip(digits(fixed).chars()).map(mark).collect();
    let before = line("", "", fixed).chars().count() - marks.chars().count();
    vec![
        line("left to right", &texts[0], loose),
        line("isonorm's order", &texts[1], fixed),
        format!("{:before$}{marks}", "").trim_end().to_owned(),
    ]
}
