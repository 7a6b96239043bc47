//! The backward pass, step by step: from dy to dx, and to the gradients of weight and bias.

use isonorm::{DType, Recipe};

use super::compute::{self, Affine, Arithmetic, Backward, Kind};
use super::document::{Block, Explanation, MOST_COLUMNS, Paper, Step, Table, Worked};
use super::number::{count, counted, exact, seven};
use super::order::{RowSum, Terms};
use super::steps::{self, Run, bracketed};
use super::subject::{Dy, Subject};
use super::values::Values;
use super::{batch_norm, group_norm, layer_norm, rms_norm};
use crate::error::Result;

pub(crate) fn explain(subject: &Subject) -> Result<Explanation> {
    let pass = Pass::new(subject)?;
    let mut all = vec![pass.input()];
    if subject.options.kind == Kind::Batch {
        all.extend([pass.parameters(), pass.shares(), pass.dx()]);
    } else {
        all.extend([pass.weighted(), pass.means(), pass.dx(), pass.parameters()]);
    }
    all.push(pass.check()?);
    let (title, paper, equations) = described(subject.options.kind);
    Ok(Explanation {
        title,
        summary: "From dy, the gradient of the result, to dx, and to the gradients of weight and bias.".into(),
        equations,
        papers: vec![paper],
        facts: facts(subject),
        steps: all,
    })
}

/// The forward pass's, without the bias, which no gradient depends on.
fn facts(subject: &Subject) -> Vec<(&'static str, String)> {
    let mut facts = match subject.options.kind {
        Kind::Rms { .. } => rms_norm::facts(subject),
        _ => steps::facts(subject),
    };
    facts.retain(|(name, _)| *name != "bias");
    let dy = match &subject.dy {
        Some(Dy::Given(dy)) => format!("given, {}", dy.dtype()),
        _ => "1 everywhere".to_owned(),
    };
    facts.insert(1, ("dy", dy));
    facts
}

fn described(kind: Kind) -> (&'static str, Paper, Vec<&'static str>) {
    let params = r"dweight = \text{sum of }dy · x_hat, dbias = \text{sum of }dy";
    let centred = r"dx = (g - \text{mean of }g - x_hat · \text{mean of }g · x_hat) · rstd";
    let g = "g = dy · weight";
    match kind {
        Kind::Rms { .. } => {
            let dx = r"dx = (g - x_hat · \text{mean of }g · x_hat) · rstd";
            ("RMSNorm, backward", rms_norm::PAPER, vec![g, dx, params])
        }
        Kind::Layer => ("LayerNorm, backward", layer_norm::PAPER, vec![g, centred, params]),
        Kind::Group { .. } => ("GroupNorm, backward", group_norm::GROUP, vec![g, centred, params]),
        Kind::Instance => ("InstanceNorm, backward", group_norm::INSTANCE, vec![g, centred, params]),
        Kind::Batch => {
            let dx = r"dx = (dy - \frac{dbias}{n} - x_hat · \frac{dweight}{n}) · weight · rstd";
            ("BatchNorm, backward", batch_norm::PAPER, vec![params, dx])
        }
    }
}

/// A subject with the library's x_hat and gradients.
struct Pass<'a> {
    run: Run<'a>,
    dy: &'a Values,
    made: Backward,
}

impl<'a> Pass<'a> {
    fn new(subject: &'a Subject) -> Result<Self> {
        let dy = subject.dy.as_ref().map_or(&subject.x, Dy::values);
        let weight = subject.weight.as_ref();
        let made = compute::backward(&subject.options, &subject.layout, &subject.x, dy, weight)?;
        Ok(Pass { run: Run::new(subject)?, dy, made })
    }

    fn arithmetic(&self) -> Arithmetic {
        self.run.arithmetic
    }

    fn hat(&self, index: usize) -> f64 {
        self.run.hat.y.at(index)
    }

    /// The weight of an element, with its offset.
    fn weight(&self, index: usize) -> Option<f64> {
        let Subject { options, layout, weight, .. } = self.run.subject;
        let weight = weight.as_ref()?.at(layout.parameter_of(index));
        Some(match options.kind {
            Kind::Rms { weight_offset, .. } if weight_offset != 0.0 => self.arithmetic().add(weight, weight_offset),
            _ => weight,
        })
    }

    /// The gradient of x_hat; of BatchNorm, whose weight comes last, dy.
    fn g(&self, index: usize) -> f64 {
        let (options, dy) = (&self.run.subject.options, self.dy.at(index));
        if options.kind == Kind::Batch {
            return dy;
        }
        let g = self.weight(index).map_or(dy, |weight| self.arithmetic().mul(dy, weight));
        match options.kind {
            Kind::Rms { recipe: Recipe::Llama, .. } => {
                Values::rounded(std::iter::once(g), self.run.subject.x.dtype()).at(0)
            }
            _ => g,
        }
    }

    /// What the sums of a row are divided by.
    fn n(&self) -> usize {
        match self.run.subject.options.kind {
            Kind::Rms { partial: Some(k), .. } => k,
            _ => self.run.layout().count(),
        }
    }

    /// The factor that eps outside the root brings with it.
    fn q(&self, unit: usize) -> Option<f64> {
        let (options, stat) = (&self.run.subject.options, &self.run.hat.stats[unit]);
        let root = self.arithmetic().sqrt(stat.var);
        options.eps_outside.then(|| match root {
            0.0 => 0.0,
            root => self.arithmetic().div(self.arithmetic().root(options, stat), root),
        })
    }

    fn with_q(&self, unit: usize, value: f64) -> f64 {
        self.q(unit).map_or(value, |q| self.arithmetic().mul(value, q))
    }

    /// The means of g and of g · x_hat, summed as the library sums them.
    fn c(&self, unit: usize) -> [f64; 2] {
        let (arithmetic, n) = (self.arithmetic(), self.n() as f64);
        let n = arithmetic.round(n);
        let mean = |sum| arithmetic.div(sum, n);
        if self.run.subject.options.kind == Kind::Batch {
            let [k1, k2] = [&self.made.dbias, &self.made.dweight].map(|sums| mean(sums.at(unit)));
            return [k1, self.with_q(unit, k2)];
        }
        let members: Vec<usize> = self.run.layout().members(unit).collect();
        let g: Vec<f64> = members.iter().map(|&index| self.g(index)).collect();
        let pairs: Vec<(f64, f64)> = members.iter().map(|&index| (self.g(index), self.hat(index))).collect();
        let c1 = mean(RowSum::new(arithmetic, Terms::Elements, &g).total());
        [c1, self.with_q(unit, mean(RowSum::dot(arithmetic, &pairs).total()))]
    }

    fn is_centred(&self) -> bool {
        !matches!(self.run.subject.options.kind, Kind::Rms { .. })
    }

    /// Whether an element entered the mean square, where only the first did.
    fn is_measured(&self, index: usize) -> bool {
        match self.run.subject.options.kind {
            Kind::Rms { partial: Some(k), .. } => index % self.run.layout().computed[2] < k,
            _ => true,
        }
    }

    fn input(&self) -> Step {
        let mut blocks = vec![Block::text(
            "The backward pass starts from dy: how much the loss changes with each element of the result. It needs \
             x_hat again, which is computed from x exactly as in the forward pass.",
        )];
        if matches!(self.run.subject.dy, Some(Dy::Ones(_))) {
            blocks.push(Block::note(
                "No --dy is given, so dy is 1 everywhere: the loss is the sum of the result. Where a mean is taken off, \
                 that sum hardly depends on x, and dx is 0 but for the weight: give --dy '[...]' to see more.",
            ));
        }
        blocks.push(self.run.grids("x_hat", |index| self.hat(index)));
        blocks.push(self.run.grids("dy", |index| self.dy.at(index)));
        Step::new("What comes back, and what it meets", blocks)
    }

    fn weighted(&self) -> Step {
        let text = match self.run.subject.options.kind {
            Kind::Rms { recipe: Recipe::Llama, .. } => {
                "g = dy · weight, rounded to the storage type as the llama recipe rounds x_hat."
            }
            _ if self.run.subject.weight.is_none() => "g = dy, as no weight is given.",
            _ => "g = dy · weight: the weight scaled x_hat, so it scales its gradient too.",
        };
        Step::new("The gradient of x_hat: g", vec![Block::text(text), self.run.grids("g", |index| self.g(index))])
    }

    /// A product of two numbers as it is written in a sum.
    fn product(&self, a: f64, b: f64) -> String {
        format!("{} · {}", self.run.brief(a), bracketed(self.run.brief(b)))
    }

    fn means(&self) -> Step {
        let (run, n) = (&self.run, self.run.layout().count());
        let worked = run.worked(|unit| {
            let [c1, c2] = self.c(unit);
            let dots = run.sum(unit, n, |index| self.product(self.g(index), self.hat(index)));
            let q = self.q(unit).map_or(String::new(), |q| format!(" · {}", run.exact(q)));
            let c2 = format!(r"\frac{{{dots}}}{{{}}}{q} = {}", count(self.n()), run.exact(c2));
            if !self.is_centred() {
                return format!("c = {c2}");
            }
            let sum = run.sum(unit, n, |index| run.brief(self.g(index)));
            format!(r"c1 = \frac{{{sum}}}{{{}}} = {}, c2 = {c2}", count(n), run.exact(c1))
        });
        let text = if self.is_centred() {
            "Moving one x moves its row's mean and variance, and with them the whole row: c1, the mean of g, and c2, \
             that of g · x_hat, are what that takes away."
        } else {
            "Moving one x moves its row's mean square, and with it the whole row: c, the mean of g · x_hat, is what \
             that takes away. Sums run over all of the row."
        };
        let mut blocks = vec![Block::text(text), worked];
        if run.subject.options.eps_outside {
            blocks.push(Block::note("With eps outside the root the second mean has the factor (root + eps) / root."));
        }
        Step::new(format!("What the statistics of each {} take away", run.layout().unit), blocks)
    }

    /// BatchNorm's: the gradients of weight and bias, shared out.
    fn shares(&self) -> Step {
        let run = &self.run;
        let worked = run.worked(|unit| {
            let ([k1, k2], n) = (self.c(unit), count(self.n()));
            let [dbias, dweight] = [&self.made.dbias, &self.made.dweight].map(|sums| run.exact(sums.at(unit)));
            let q = self.q(unit).map_or(String::new(), |q| format!(" · {}", run.exact(q)));
            format!(
                r"k1 = \frac{{{dbias}}}{{{n}}} = {}, k2 = \frac{{{dweight}}}{{{n}}}{q} = {}",
                run.exact(k1),
                run.exact(k2)
            )
        });
        let text = "Moving one x moves its channel's mean and variance, and with them the channel in every sample: k1 \
                    and k2, dbias and dweight over n before any rounding, are what that takes away.";
        Step::new("What the statistics of each channel take away", vec![Block::text(text), worked])
    }

    /// dx of an element in the compute type, by the formula of the contract.
    fn dx_of(&self, index: usize, [c1, c2]: [f64; 2]) -> f64 {
        let (a, stat) = (self.arithmetic(), &self.run.hat.stats[self.run.layout().unit_of(index)]);
        let g = if self.is_centred() { a.sub(self.g(index), c1) } else { self.g(index) };
        let moved = if self.is_measured(index) { a.fma(-self.hat(index), c2, g) } else { g };
        let factor = match (self.run.subject.options.kind, self.weight(index)) {
            (Kind::Batch, Some(weight)) => a.mul(weight, stat.inv),
            _ => stat.inv,
        };
        a.mul(a.mul(moved, factor), stat.scale)
    }

    fn dx(&self) -> Step {
        let (run, unit) = (&self.run, 0);
        let [c1, c2] = self.c(unit).map(|c| bracketed(run.brief(c)));
        let index = run.layout().members(unit).next().unwrap_or(0);
        let (g, hat) = (run.brief(self.g(index)), bracketed(run.brief(self.hat(index))));
        let inv = run.exact(run.hat.stats[unit].inv);
        let dtype = run.subject.x.dtype();
        let result = exact(self.made.dx.at(index), dtype);
        let scale = match run.hat.stats[unit].scale {
            1.0 => String::new(),
            scale => format!(" · {}", run.exact(scale)),
        };
        let formula = match run.subject.options.kind {
            Kind::Rms { .. } => format!("dx = (g - x_hat · c) · rstd = ({g} - {hat} · {c2}) · {inv}{scale} = {result}"),
            Kind::Batch => {
                let weight = self.weight(index).map_or("1".to_owned(), |weight| bracketed(run.brief(weight)));
                format!(
                    "dx = (dy - k1 - x_hat · k2) · weight · rstd = ({g} - {c1} - {hat} · {c2}) · {weight} · {inv}{scale} = {result}"
                )
            }
            _ => format!("dx = (g - c1 - x_hat · c2) · rstd = ({g} - {c1} - {hat} · {c2}) · {inv}{scale} = {result}"),
        };
        let caption = if dtype == run.arithmetic.0 { "dx".to_owned() } else { format!("dx, rounded to {dtype}") };
        let worked = Block::Worked(vec![Worked { label: "first element".to_owned(), formula }]);
        Step::new("The gradient of x", vec![worked, run.grids(&caption, |index| self.made.dx.at(index))])
    }

    fn parameters(&self) -> Step {
        const NAMED: usize = 5;
        let (run, layout) = (&self.run, self.run.layout());
        let all = layout.len().checked_div(layout.parameters()).unwrap_or(0);
        let line = |parameter: usize| {
            let mut members = (0..layout.len()).filter(|&index| layout.parameter_of(index) == parameter);
            let named: Vec<usize> = members.by_ref().take(NAMED).collect();
            let sum = |term: &dyn Fn(usize) -> String| {
                let terms: Vec<String> = named.iter().map(|&index| term(index)).collect();
                let more = if all > named.len() { " + …" } else { "" };
                format!("{}{more}", terms.join(" + ").replace("+ -", "- "))
            };
            let dweight = sum(&|index| self.product(self.dy.at(index), self.hat_of_weight(index)));
            let dbias = sum(&|index| run.brief(self.dy.at(index)));
            let [dw, db] = [&self.made.dweight, &self.made.dbias].map(|sums| run.exact(sums.at(parameter)));
            let what = if layout.unit == "row" { "element" } else { "channel" };
            [("dweight", dweight, dw), ("dbias", dbias, db)].map(|(name, sum, total)| Worked {
                label: format!("{what} {parameter}"),
                formula: format!("{name} = {sum} = {total}"),
            })
        };
        let shown = layout.parameters().min(MOST_COLUMNS);
        let mut lines: Vec<Worked> = (0..shown).flat_map(line).collect();
        if layout.parameters() > shown {
            let formula = format!(r"\text{{and {} more}}", count(layout.parameters() - shown));
            lines.push(Worked { label: "…".to_owned(), formula });
        }
        let order = if layout.unit == "row" {
            "Rows are added in batch order: leaves of 16 rows one after another, the leaves in a binary tree."
        } else {
            "Each sample's plane is summed like a row, and the samples in batch order: leaves of 16, then a binary tree."
        };
        let text = format!(
            "Every weight and every bias met {}: dweight is the sum of dy · x_hat over them, dbias that of dy. {order} \
             Cut into micro-batches anywhere, the sums have the same bits. They are rounded once, to the type of the \
             parameter.",
            counted(all, "element"),
        );
        Step::new("The gradients of weight and bias", vec![Block::text(text), Block::Worked(lines)])
    }

    /// x_hat as the weight met it.
    fn hat_of_weight(&self, index: usize) -> f64 {
        match self.run.subject.options.kind {
            Kind::Rms { recipe: Recipe::Llama, .. } => {
                Values::rounded(std::iter::once(self.hat(index)), self.run.subject.x.dtype()).at(0)
            }
            _ => self.hat(index),
        }
    }

    fn check(&self) -> Result<Step> {
        let members: Vec<usize> = self.run.layout().members(0).take(3).collect();
        let row = |name: &str, values: Vec<String>| [name.to_owned()].into_iter().chain(values).collect();
        let dtype = self.run.subject.x.dtype();
        let dx = members.iter().map(|&index| exact(self.made.dx.at(index), dtype)).collect();
        let slopes: Vec<f64> = members.iter().map(|&index| self.slope(index)).collect::<Result<_>>()?;
        let head = ["".to_owned(), format!("dx of {}", self.run.layout().label(0))];
        let mut head = head.to_vec();
        head.resize(1 + members.len(), String::new());
        let rows = vec![
            row("by the formula", dx),
            row("by differences, in f64", slopes.iter().map(|slope| seven(*slope)).collect()),
        ];
        let text = format!(
            "The loss here is the sum of dy · y. Each of these x is moved a little up and a little down, the norm is \
             computed in f64, and the change of the loss is divided by that of x. {}",
            self.agreement(),
        );
        let blocks = vec![Block::text(text), Block::Table(Table { head, rows })];
        Ok(Step::new("Compared with finite differences", blocks))
    }

    /// Whether the steps as they are shown give what the library gave.
    fn agreement(&self) -> String {
        let (layout, dtype) = (self.run.layout(), self.run.subject.x.dtype());
        let (mut same, mut all) = (0, 0);
        for unit in layout.shown_units() {
            let c = self.c(unit);
            for index in layout.members(unit) {
                let dx = Values::rounded(std::iter::once(self.dx_of(index, c)), dtype).at(0);
                all += 1;
                same += usize::from(dx.to_bits() == self.made.dx.at(index).to_bits());
            }
        }
        if same == all {
            format!("The steps above give the library's dx bit for bit in all {} shown.", counted(all, "element"))
        } else {
            format!(
                "The steps above give the library's dx bit for bit in {} of {}.",
                count(same),
                counted(all, "element")
            )
        }
    }

    /// How the loss changes with one x, measured.
    fn slope(&self, index: usize) -> Result<f64> {
        let Subject { options, layout, x, weight, .. } = self.run.subject;
        let wide = |values: &Values| Values::rounded(values.iter(), DType::F64);
        let weight = weight.as_ref().map(wide);
        let largest = layout.members(layout.unit_of(index)).map(|i| x.at(i).abs()).fold(0.0, f64::max);
        let step = 1e-5 * if largest > 0.0 && largest.is_finite() { largest } else { 1.0 };
        let at = |moved: f64| {
            let x = (0..x.len()).map(|i| if i == index { moved } else { x.at(i) });
            let affine = Affine { weight: weight.as_ref(), bias: None };
            let x = Values::rounded(x, DType::F64);
            compute::forward(options, layout, &x, affine, DType::F64).map(|made| made.y)
        };
        let (up, down) = (x.at(index) + step, x.at(index) - step);
        let (above, below) = (at(up)?, at(down)?);
        let change: f64 = (0..x.len()).map(|i| self.dy.at(i) * (above.at(i) - below.at(i))).sum();
        Ok(change / (up - down))
    }
}
