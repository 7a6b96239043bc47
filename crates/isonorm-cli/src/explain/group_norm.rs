//! GroupNorm and InstanceNorm, step by step: the same computation over other sets of channels.

use super::compute::Kind;
use super::document::{Explanation, Paper, Step};
use super::layout::{Layout, Together};
use super::number::{count, counted};
use super::order;
use super::steps::{self, Run};
use super::subject::Subject;
use crate::error::Result;

pub(crate) const GROUP: Paper =
    Paper { authors: "Wu & He", year: 2018, title: "Group Normalization", arxiv: "1803.08494" };

pub(crate) const INSTANCE: Paper = Paper {
    authors: "Ulyanov, Vedaldi & Lempitsky",
    year: 2016,
    title: "Instance Normalization: The Missing Ingredient for Fast Stylization",
    arxiv: "1607.08022",
};

pub(crate) fn explain(subject: &Subject) -> Result<Explanation> {
    let run = Run::new(subject)?;
    let instance = subject.options.kind == Kind::Instance;
    let (text, arrow) = if instance { instance_text(run.layout()) } else { group_text(run.layout()) };
    let mut all = vec![
        steps::input(&run, text, arrow),
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
    let summary = if instance {
        "Brings each channel of each sample to mean 0 and variance 1, then scales and shifts each channel."
    } else {
        "Brings each group of channels of each sample to mean 0 and variance 1, then scales and shifts each channel."
    };
    Ok(Explanation {
        title: if instance { "InstanceNorm" } else { "GroupNorm" },
        summary: summary.into(),
        equations: vec![
            r"mean = \frac{x_{1} + … + x_{n}}{n}",
            r"var = \frac{(x_{1} - mean)^{2} + … + (x_{n} - mean)^{2}}{n}",
            r"y = \frac{x - mean}{\sqrt{var + eps}} · weight + bias",
        ],
        papers: vec![if instance { INSTANCE } else { GROUP }],
        facts: steps::facts(subject),
        steps: all,
    })
}

fn group_text(layout: &Layout) -> (String, &'static str) {
    let size = if let Together::RowsOfOneGrid(size) = layout.together { size } else { 1 };
    let [_, channels, positions] = layout.whole;
    let text = format!(
        "GroupNorm splits the {} of each sample into {} of {}. The {} x {} elements of a group share one mean \
         and one variance. Other samples play no part, so small batches are as good as large ones. One group \
         of all channels is LayerNorm over them; groups of one channel are InstanceNorm.",
        counted(channels, "channel"),
        counted(channels / size, "group"),
        count(size),
        count(size),
        count(positions),
    );
    (text, "one mean, one variance")
}

fn instance_text(layout: &Layout) -> (String, &'static str) {
    let text = format!(
        "InstanceNorm takes each channel of each sample for itself, over its {}: neither other channels nor \
         other samples play a part. In pictures this takes the contrast out of each channel.",
        counted(layout.whole[2], "position"),
    );
    (text, "one mean, one variance")
}
