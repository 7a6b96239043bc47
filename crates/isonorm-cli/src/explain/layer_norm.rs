//! LayerNorm, step by step.

use super::document::{Explanation, Paper, Step};
use super::number::counted;
use super::order;
use super::steps::{self, Run};
use super::subject::Subject;
use crate::error::Result;

pub(crate) const PAPER: Paper =
    Paper { authors: "Ba, Kiros & Hinton", year: 2016, title: "Layer Normalization", arxiv: "1607.06450" };

pub(crate) fn explain(subject: &Subject) -> Result<Explanation> {
    let run = Run::new(subject)?;
    let text = format!(
        "LayerNorm works along the last axis: each row gets a mean and a variance of its own, over its {}. \
         Rows do not see each other, so the result of a row does not depend on the batch it is in.",
        counted(run.layout().count(), "element"),
    );
    let mut all = vec![
        steps::input(&run, text, "one mean, one variance"),
        steps::mean(&run),
        steps::deviations(&run),
        steps::variance(&run),
        steps::root(&run, "var"),
        steps::normalized(&run, true),
        steps::affine(&run, None),
        steps::afterwards(&run)?,
        Step::new("Where conventions differ", steps::eps_conventions(&run, "var")?),
    ];
    all.extend(order::steps(&run));
    Ok(Explanation {
        title: "LayerNorm",
        summary: "Brings each row to mean 0 and variance 1, then scales and shifts each of its elements.".into(),
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
