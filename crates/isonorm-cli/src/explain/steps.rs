//! Steps that several norms share: mean, deviations, variance, root, x_hat, weight and bias, conventions.

use isonorm::{DType, Recipe};

use super::compute::{self, Affine, Arithmetic, Forward, Kind, Options};
use super::document::{Block, MOST_COLUMNS, Step, Table, Worked};
use super::layout::Layout;
use super::number::{brief, count, exact};
use super::subject::Subject;
use super::values::{Values, compute_type};
use crate::error::Result;

/// Elements that a worked formula names before it is cut short.
const NAMED: usize = 5;

/// A subject with everything that the library made of it.
pub(crate) struct Run<'a> {
    pub(crate) subject: &'a Subject,
    /// Without weight and bias, in the compute type: x_hat, and the statistics.
    pub(crate) hat: Forward,
    /// With weight and bias, in the type of x.
    pub(crate) y: Forward,
    pub(crate) arithmetic: Arithmetic,
}

impl<'a> Run<'a> {
    pub(crate) fn new(subject: &'a Subject) -> Result<Self> {
        let dtype = subject.x.dtype();
        let hat = x_hat(subject, &subject.options)?;
        let y = compute::forward(&subject.options, &subject.layout, &subject.x, subject.affine(), dtype)?;
        Ok(Run { subject, hat, y, arithmetic: Arithmetic::of(dtype) })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.subject.layout
    }

    /// A number of the compute type with the fewest digits that mean it.
    pub(crate) fn exact(&self, value: f64) -> String {
        exact(value, self.arithmetic.0)
    }

    /// The same, cut short where it is long.
    pub(crate) fn brief(&self, value: f64) -> String {
        brief(value, self.arithmetic.0)
    }

    /// `x * scale`: x itself wherever the range rule did not apply.
    pub(crate) fn scaled_x(&self, index: usize) -> f64 {
        let scale = self.hat.stats[self.layout().unit_of(index)].scale;
        self.arithmetic.mul(self.subject.x.at(index), scale)
    }

    pub(crate) fn deviation(&self, index: usize) -> f64 {
        self.arithmetic.sub(self.scaled_x(index), self.hat.stats[self.layout().unit_of(index)].mean)
    }

    /// One worked formula for each shown row, channel or group.
    pub(crate) fn worked(&self, formula: impl Fn(usize) -> String) -> Block {
        let line = |unit| Worked { label: self.layout().label(unit), formula: formula(unit) };
        let mut lines: Vec<Worked> = self.layout().shown_units().map(line).collect();
        let more = self.layout().units() - lines.len();
        if more > 0 {
            lines.push(Worked { label: "…".to_owned(), formula: format!(r"\text{{and {} more}}", count(more)) });
        }
        Block::Worked(lines)
    }

    /// Grids of a value of each shown element.
    pub(crate) fn grids(&self, caption: &str, value: impl Fn(usize) -> f64) -> Block {
        self.layout().grids(caption, value, self.subject.digits, None)
    }

    /// `1 + 2 - 3 + … `: the first terms of a set.
    pub(crate) fn sum(&self, unit: usize, limit: usize, term: impl Fn(usize) -> String) -> String {
        let mut text = String::new();
        for (i, index) in self.layout().members(unit).take(limit.min(NAMED)).enumerate() {
            let term = term(index);
            match (i, term.strip_prefix('-')) {
                (0, _) => text.push_str(&term),
                (_, Some(rest)) => text.push_str(&format!(" - {rest}")),
                (_, None) => text.push_str(&format!(" + {term}")),
            }
        }
        if limit > NAMED { format!("{text} + …") } else { text }
    }

    /// `(-1)^{2} + 2^{2} + …`
    pub(crate) fn squares(&self, unit: usize, limit: usize, value: impl Fn(usize) -> f64) -> String {
        self.sum(unit, limit, |index| {
            let text = self.brief(value(index));
            if text.starts_with('-') || text.contains('e') {
                format!("({text})^{{2}}")
            } else {
                format!("{text}^{{2}}")
            }
        })
    }
}

/// x_hat: the norm without weight and bias, before any rounding to the storage type.
fn x_hat(subject: &Subject, options: &Options) -> Result<Forward> {
    let kind = match options.kind {
        Kind::Rms { partial, .. } => Kind::Rms { recipe: Recipe::Torch, weight_offset: 0.0, partial },
        other => other,
    };
    let options = Options { kind, ..*options };
    let dtype = compute_type(subject.x.dtype());
    Ok(compute::forward(&options, &subject.layout, &subject.x, Affine::default(), dtype)?)
}

/// The facts that stand above the steps.
pub(crate) fn facts(subject: &Subject) -> Vec<(&'static str, String)> {
    let given = |values: &Option<Values>| match values {
        Some(values) => format!("given, {}", values.dtype()),
        None => "none".to_owned(),
    };
    let (dtype, compute) = (subject.x.dtype(), compute_type(subject.x.dtype()));
    let computed = if dtype == compute { String::new() } else { format!(", computed in {compute}") };
    vec![
        ("x", format!("{}{computed}", subject.described)),
        ("eps", subject.eps()),
        ("weight", given(&subject.weight)),
        ("bias", given(&subject.bias)),
    ]
}

/// The first step: x, framed by what is normalized together.
pub(crate) fn input(run: &Run<'_>, text: String, arrow: &str) -> Step {
    let x = |index| run.subject.x.at(index);
    let grids = run.layout().grids("x", x, run.subject.digits, Some(arrow));
    Step::new("The input, and what is normalized together", vec![Block::text(text), grids])
}

pub(crate) fn mean(run: &Run<'_>) -> Step {
    let n = run.layout().count();
    let unit = run.layout().unit;
    let worked = run.worked(|unit| {
        let sum = run.sum(unit, n, |index| run.brief(run.scaled_x(index)));
        format!(r"mean = \frac{{{sum}}}{{{}}} = {}", count(n), run.exact(run.hat.stats[unit].mean))
    });
    let mut blocks = vec![worked];
    blocks.extend(range_note(run));
    Step::new(format!("The mean of each {unit}"), blocks)
}

/// What the range rule did, where it did anything.
pub(crate) fn range_note(run: &Run<'_>) -> Option<Block> {
    let layout = run.layout();
    let (unit, stat) = layout.shown_units().map(|u| (u, run.hat.stats[u])).find(|(_, stat)| stat.scale != 1.0)?;
    Some(Block::note(format!(
        "The squares in {} would leave the range of {}. It is therefore computed from x · s with s = 2^{}, a \
         power of two, which changes no digit; what follows shows x · s. x_hat is the same either way.",
        layout.label(unit),
        run.arithmetic.0,
        stat.scale.log2(),
    )))
}

pub(crate) fn deviations(run: &Run<'_>) -> Step {
    let mut blocks = vec![
        Block::text("How far each element lies from its mean."),
        run.grids("x - mean", |index| run.deviation(index)),
    ];
    let off =
        run.layout().shown_units().map(|unit| (unit, run.hat.stats[unit].delta)).find(|(_, delta)| delta.abs() > 0.0);
    if let Some((unit, delta)) = off {
        blocks.push(Block::note(format!(
            "A mean is rounded like every number, so the deviations still have a small mean of their own \
             (delta = {} in {}). isonorm takes it off too, from the variance and from x_hat: that keeps the \
             result accurate where the mean is much larger than the spread.",
            run.exact(delta),
            run.layout().label(unit),
        )));
    }
    Step::new("The deviations from the mean", blocks)
}

pub(crate) fn variance(run: &Run<'_>) -> Step {
    let n = run.layout().count();
    let worked = run.worked(|unit| {
        let squares = run.squares(unit, n, |index| run.deviation(index));
        format!(r"var = \frac{{{squares}}}{{{}}} = {}", count(n), run.exact(run.hat.stats[unit].var))
    });
    let text = format!("The mean of the squared deviations: their sum, divided by n = {}.", count(n));
    let mut blocks = vec![Block::text(text), worked];
    if n > 1 {
        blocks.push(Block::note(format!(
            "Dividing by n gives the biased variance, which the norm uses. Statistics courses often divide by \
             n - 1 = {} (unbiased), as torch.var does unless told otherwise: x_hat computed by hand with it \
             comes out smaller by the factor sqrt({} / {}).",
            count(n - 1),
            count(n - 1),
            count(n),
        )));
    } else {
        blocks.push(Block::note("One value alone is its own mean: nothing is left to normalize, and x_hat is 0."));
    }
    Step::new(format!("The variance of each {}", run.layout().unit), blocks)
}

/// From `var` or `ms`, the name of the variance or mean square, to rstd.
pub(crate) fn root(run: &Run<'_>, name: &str) -> Step {
    let options = &run.subject.options;
    let worked = run.worked(|unit| {
        let stat = &run.hat.stats[unit];
        let eps = run.exact(run.arithmetic.eps(options, stat.scale));
        let (var, root) = (run.exact(stat.var), run.exact(run.arithmetic.root(options, stat)));
        let (names, numbers) = if options.eps_outside {
            (format!(r"\sqrt{{{name}}} + eps"), format!(r"\sqrt{{{var}}} + {eps}"))
        } else {
            (format!(r"\sqrt{{{name} + eps}}"), format!(r"\sqrt{{{var} + {eps}}}"))
        };
        format!(
            r"rstd = \frac{{1}}{{{names}}} = \frac{{1}}{{{numbers}}} = \frac{{1}}{{{root}}} = {}",
            run.exact(stat.inv)
        )
    });
    let what = if name == "ms" { "all 0" } else { "all equal" };
    let eps = exact(options.eps, DType::F64);
    let keeps = if options.eps == 0.0 {
        format!("With eps = 0 nothing keeps the division finite where the elements are {what}.")
    } else {
        format!("eps = {eps} keeps the division finite where the elements are {what}; elsewhere it hardly matters.")
    };
    let text = format!("{keeps} rstd, one over the root, is the factor by which everything is then multiplied.");
    Step::new("eps, the root, and rstd", vec![Block::text(text), worked])
}

pub(crate) fn normalized(run: &Run<'_>, centred: bool) -> Step {
    let first = (0..run.layout().len()).next().map(|index| {
        let stat = &run.hat.stats[run.layout().unit_of(index)];
        let (value, inv) = (run.brief(run.scaled_x(index)), run.exact(stat.inv));
        let x_hat = run.exact(run.hat.y.at(index));
        let (mean, delta) = (bracketed(run.brief(stat.mean)), bracketed(run.brief(stat.delta)));
        let formula = match (centred, stat.delta == 0.0 || stat.delta.is_nan()) {
            (true, true) => format!("x_hat = (x - mean) · rstd = ({value} - {mean}) · {inv} = {x_hat}"),
            (true, false) => {
                format!("x_hat = (x - mean - delta) · rstd = ({value} - {mean} - {delta}) · {inv} = {x_hat}")
            }
            (false, _) => format!("x_hat = x · rstd = {} · {inv} = {x_hat}", bracketed(value)),
        };
        Worked { label: "first element".to_owned(), formula }
    });
    let blocks = vec![Block::Worked(first.into_iter().collect()), run.grids("x_hat", |index| run.hat.y.at(index))];
    Step::new("The normalized values x_hat", blocks)
}

/// A negative number in parentheses.
pub(crate) fn bracketed(number: String) -> String {
    if number.starts_with('-') { format!("({number})") } else { number }
}

/// y, out of x_hat, weight and bias.
pub(crate) fn affine(run: &Run<'_>, lead: Option<Block>) -> Step {
    let subject = run.subject;
    let offset = matches!(subject.options.kind, Kind::Rms { weight_offset, .. } if weight_offset != 0.0);
    let weight = if offset { " · (1 + weight)" } else { " · weight" };
    let (title, text) = match (&subject.weight, &subject.bias) {
        (None, None) => (
            "The result",
            format!(
                "y = x_hat, as no weight and no bias are given. A model learns one weight (1 at first) and \
             often one bias (0 at first) for each {}: try --weight '[...]' --bias '[...]'.",
                per(run.layout()),
            ),
        ),
        (Some(_), None) => {
            ("The weight, and the result", format!("y = x_hat{weight}: one weight for each {}.", per(run.layout())))
        }
        (None, Some(_)) => {
            ("The bias, and the result", format!("y = x_hat + bias: one bias for each {}.", per(run.layout())))
        }
        (Some(_), Some(_)) => (
            "Weight, bias, and the result",
            format!("y = x_hat{weight} + bias: one weight and one bias for each {}.", per(run.layout())),
        ),
    };
    let mut blocks = vec![Block::text(text)];
    blocks.extend(lead);
    for (name, values) in [("weight", &subject.weight), ("bias", &subject.bias)] {
        blocks.extend(values.as_ref().map(|values| parameter(name, values)));
    }
    let caption = if subject.x.dtype() == run.arithmetic.0 {
        "y".to_owned()
    } else {
        format!("y, rounded to {}", subject.x.dtype())
    };
    blocks.push(run.grids(&caption, |index| run.y.y.at(index)));
    Step::new(title, blocks)
}

/// What there is one weight for.
fn per(layout: &Layout) -> &'static str {
    if layout.unit == "row" { "element of a row" } else { "channel" }
}

fn parameter(name: &str, values: &Values) -> Block {
    let shown: Vec<String> = values.iter().take(MOST_COLUMNS).map(|v| exact(v, values.dtype())).collect();
    let more = if values.len() > shown.len() {
        format!(r", … \text{{({} in all)}}", count(values.len()))
    } else {
        String::new()
    };
    Block::Worked(vec![Worked { label: name.to_owned(), formula: format!("[{}{more}]", shown.join(", ")) }])
}

/// Mean and variance of what came out, by the library itself.
pub(crate) fn afterwards(run: &Run<'_>) -> Result<Step> {
    let subject = run.subject;
    let kind = if matches!(subject.options.kind, Kind::Rms { .. }) { Kind::Layer } else { subject.options.kind };
    let options = Options { kind, ..subject.options };
    let x_hat = &run.hat.y;
    let spread = compute::forward(&options, run.layout(), x_hat, Affine::default(), x_hat.dtype())?.stats;
    let squares = match subject.options.kind {
        Kind::Rms { .. } => Some(x_hat_squares(subject, x_hat)?),
        _ => None,
    };
    let mut head = vec![String::new(), "mean of x_hat".to_owned(), "variance of x_hat".to_owned()];
    head.extend(squares.as_ref().map(|_| "mean square of x_hat".to_owned()));
    let row = |unit: usize| {
        let mut row = vec![run.layout().label(unit)];
        row.extend([run.exact(spread[unit].of_x.mean), run.exact(spread[unit].of_x.var)]);
        row.extend(squares.as_ref().map(|squares| run.exact(squares[unit])));
        row
    };
    let rows = run.layout().shown_units().map(row).collect();
    let text = if squares.is_some() {
        "The mean square is 1 but for eps and rounding; mean and variance are what they are: RMSNorm leaves the \
         mean in."
    } else {
        "The mean is 0 and the variance 1, but for eps and rounding. A variance well below 1 means that eps mattered."
    };
    Ok(Step::new("What came of it", vec![Block::text(text), Block::Table(Table { head, rows })]))
}

fn x_hat_squares(subject: &Subject, x_hat: &Values) -> Result<Vec<f64>> {
    let partial = if let Kind::Rms { partial, .. } = subject.options.kind { partial } else { None };
    let kind = Kind::Rms { recipe: Recipe::Torch, weight_offset: 0.0, partial };
    let options = Options { kind, ..subject.options };
    let stats = compute::forward(&options, &subject.layout, x_hat, Affine::default(), x_hat.dtype())?.stats;
    Ok(stats.iter().map(|stat| stat.of_x.var).collect())
}

/// The two places of eps, side by side.
pub(crate) fn eps_conventions(run: &Run<'_>, name: &str) -> Result<Vec<Block>> {
    let subject = run.subject;
    let with = |eps_outside| x_hat(subject, &Options { eps_outside, ..subject.options });
    let (inside, outside) = (with(false)?.y, with(true)?.y);
    let members: Vec<usize> = run.layout().members(0).take(3).collect();
    let row = |place: &str, formula: String, y: &Values| {
        let numbers = members.iter().map(|&i| run.exact(y.at(i)));
        [place.to_owned(), formula].into_iter().chain(numbers).collect()
    };
    let label = run.layout().label(0);
    let mut head = vec!["eps".to_owned(), "rstd".to_owned(), format!("x_hat of {label}")];
    head.resize(2 + members.len(), String::new());
    let rows = vec![
        row("inside the root", format!("1 / sqrt({name} + eps)"), &inside),
        row("outside the root", format!("1 / (sqrt({name}) + eps)"), &outside),
    ];
    let effect = match members.iter().map(|&i| difference(inside.at(i), outside.at(i))).fold(0.0, f64::max) {
        0.0 => format!("Here both give the same numbers, as wherever eps is small beside {name}."),
        relative => format!("Here they differ from the {} digit on.", digit(relative)),
    };
    let text = format!(
        "PyTorch, TensorFlow and Flax put eps inside the root; many tutorials put it outside (--eps-outside). \
         A model must be run as it was trained. {effect}",
    );
    Ok(vec![Block::text(text), Block::Table(Table { head, rows })])
}

/// The relative difference of two numbers.
fn difference(a: f64, b: f64) -> f64 {
    if a == b || !a.is_finite() { 0.0 } else { ((a - b) / a).abs() }
}

/// The digit in which a relative difference shows: `sixth`.
fn digit(relative: f64) -> &'static str {
    const NAMES: [&str; 10] =
        ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"];
    let at = (-relative.log10()).floor().max(0.0) as usize;
    NAMES[at.min(NAMES.len() - 1)]
}
