//! BatchNorm, step by step: training, the running statistics it leaves, and evaluation with them.

use super::compute;
use super::document::{Block, Explanation, Paper, Step, Table, Worked};
use super::layout::Together;
use super::number::{count, counted};
use super::order;
use super::steps::{self, Run, bracketed};
use super::subject::Subject;
use crate::error::Result;

pub(crate) const PAPER: Paper = Paper {
    authors: "Ioffe & Szegedy",
    year: 2015,
    title: "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    arxiv: "1502.03167",
};

/// PyTorch's default: the share of a batch in the running statistics.
const MOMENTUM: f64 = 0.1;

pub(crate) fn explain(subject: &Subject) -> Result<Explanation> {
    let run = Run::new(subject)?;
    let across = run.layout().together == Together::Column;
    let place = if across { "a column here" } else { "the same row of every sample here" };
    let text = format!(
        "BatchNorm works down the batch: each channel, {place}, gets one mean and one variance over its {} in \
         all samples. A sample's result therefore depends on the others in its batch; evaluation uses running \
         statistics instead.",
        counted(run.layout().count(), "value"),
    );
    let mut all = vec![
        steps::input(
            &run,
            text,
            if across { "one mean, one variance for each column" } else { "with this row of every sample" },
        ),
        steps::mean(&run),
        steps::deviations(&run),
        steps::variance(&run),
        steps::root(&run, "var"),
        steps::normalized(&run, true),
        steps::affine(&run, None),
        steps::afterwards(&run)?,
        running(&run)?,
        evaluation(&run)?,
        Step::new("Where conventions differ", steps::eps_conventions(&run, "var")?),
    ];
    all.extend(order::steps(&run));
    Ok(Explanation {
        title: "BatchNorm",
        summary: "Brings each channel to mean 0 and variance 1 over the batch, then scales and shifts it.".into(),
        equations: vec![
            r"mean = \frac{x_{1} + … + x_{n}}{n}",
            r"var = \frac{(x_{1} - mean)^{2} + … + (x_{n} - mean)^{2}}{n}",
            r"y = \frac{x - mean}{\sqrt{var + eps}} · weight + bias",
        ],
        papers: vec![PAPER],
        facts: steps::facts(subject),
        steps: all,
    })
}

/// The running statistics after this batch, in both conventions of the variance.
fn running(run: &Run<'_>) -> Result<Step> {
    let subject = run.subject;
    let of = |biased| compute::running(&subject.options, run.layout(), &subject.x, MOMENTUM, biased);
    // A momentum of 1 forgets all else: what enters the running variance, by the library itself.
    let enters = |biased| compute::running(&subject.options, run.layout(), &subject.x, 1.0, biased);
    let (unbiased, biased) = (of(false)?, of(true)?);
    let (n_less_1, n) = (enters(false)?.var, enters(true)?.var);
    let row = |unit: usize| {
        let numbers =
            [&unbiased.mean, &n, &n_less_1, &unbiased.var, &biased.var].map(|values| run.exact(values.at(unit)));
        std::iter::once(run.layout().label(unit)).chain(numbers).collect()
    };
    let head = ["", "running_mean", "var (by n)", "var (by n - 1)", "running_var (PyTorch)", "running_var (biased)"];
    let table = Table { head: head.map(str::to_owned).to_vec(), rows: run.layout().shown_units().map(row).collect() };
    let n = run.layout().count();
    let correction = format!(r"\frac{{{}}}{{{}}}", count(n), count(n - 1));
    let formulae = [
        ("running_mean", format!("0.9 · running_mean + {MOMENTUM} · mean")),
        ("running_var", format!("0.9 · running_var + {MOMENTUM} · var · {correction}")),
    ];
    let worked = formulae.map(|(label, formula)| Worked { label: label.to_owned(), formula }).into();
    let blocks = vec![
        Block::text(format!(
            "Training also keeps running statistics, of which this batch is the share momentum = {MOMENTUM}. \
             They begin with mean 0 and variance 1.",
        )),
        Block::Worked(worked),
        Block::Table(table),
        Block::note(
            "x_hat uses the variance divided by n (biased); PyTorch puts the one divided by n - 1 (unbiased) \
             into running_var. Other frameworks put the biased one there, and for small batches the two differ \
             much: see the last two columns.",
        ),
    ];
    Ok(Step::new("The running statistics: biased or unbiased", blocks))
}

fn evaluation(run: &Run<'_>) -> Result<Step> {
    let subject = run.subject;
    let running = compute::running(&subject.options, run.layout(), &subject.x, MOMENTUM, false)?;
    let y = compute::evaluate(&subject.options, run.layout(), &subject.x, subject.affine(), &running)?;
    let formula = if subject.options.eps_outside {
        r"y = \frac{x - running_mean}{\sqrt{running_var} + eps}"
    } else {
        r"y = \frac{x - running_mean}{\sqrt{running_var + eps}}"
    };
    let affine = match (&subject.weight, &subject.bias) {
        (Some(_), Some(_)) => " · weight + bias",
        (Some(_), None) => " · weight",
        (None, Some(_)) => " + bias",
        (None, None) => "",
    };
    let unit = 0;
    let [mean, var] = [&running.mean, &running.var].map(|values| run.exact(values.at(unit)));
    let lines = vec![
        Worked { label: "each element".into(), formula: format!("{formula}{affine}") },
        Worked {
            label: run.layout().label(unit),
            formula: format!("running_mean = {}, running_var = {var}", bracketed(mean)),
        },
    ];
    let blocks = vec![
        Block::text(
            "In evaluation the batch plays no part: every sample is normalized with the running statistics. \
             After a single batch they are still far from the data, and so is the result; they settle over \
             many batches.",
        ),
        Block::Worked(lines),
        run.grids("y in evaluation", |index| y.at(index)),
    ];
    Ok(Step::new("The same data in evaluation", blocks))
}
