//! RMSNorm, step by step.

use isonorm::{DType, Recipe};

use super::compute::{self, Affine, Kind, Options};
use super::document::{Block, Explanation, Paper, Step, Table};
use super::number::{count, counted, seven};
use super::order;
use super::steps::{self, Run};
use super::subject::Subject;
use super::values::Values;
use crate::error::Result;

pub(crate) const PAPER: Paper = Paper {
    authors: "Zhang & Sennrich",
    year: 2019,
    title: "Root Mean Square Layer Normalization",
    arxiv: "1910.07467",
};

pub(crate) fn explain(subject: &Subject) -> Result<Explanation> {
    let run = Run::new(subject)?;
    let text = format!(
        "RMSNorm works along the last axis: each row is divided by its own root mean square, over its {}. No \
         mean is taken off, which saves a pass over the row; many language models since LLaMA use it in place of \
         LayerNorm.",
        counted(run.layout().count(), "element"),
    );
    let mut conventions = steps::eps_conventions(&run, "ms")?;
    conventions.extend(recipes(&run)?);
    let mut all = vec![
        steps::input(&run, text, "one mean square"),
        mean_square(&run),
        steps::root(&run, "ms"),
        steps::normalized(&run, false),
        steps::affine(&run, before_weight(&run)?),
        steps::afterwards(&run)?,
        Step::new("Where conventions differ", conventions),
    ];
    all.extend(order::steps(&run));
    Ok(Explanation {
        title: "RMSNorm",
        summary: "Divides each row by its root mean square, then scales each of its elements.".into(),
        equations: vec![r"ms = \frac{x_{1}^{2} + … + x_{n}^{2}}{n}", r"y = \frac{x}{\sqrt{ms + eps}} · weight"],
        papers: vec![PAPER],
        facts: facts(subject),
        steps: all,
    })
}

pub(crate) fn facts(subject: &Subject) -> Vec<(&'static str, String)> {
    let mut facts = steps::facts(subject);
    if let Kind::Rms { recipe, weight_offset, partial } = subject.options.kind {
        let name = match (recipe, weight_offset != 0.0) {
            (Recipe::Llama, _) => "llama: x_hat is rounded to the storage type before the weight",
            (_, true) => "gemma: one rounding, at the end; 1 is added to the weight",
            _ => "torch: one rounding, at the end",
        };
        facts.push(("recipe", name.to_owned()));
        facts.extend(
            partial.map(|k| ("partial", format!("only the first {} enter the mean square", counted(k, "element")))),
        );
    }
    facts
}

fn mean_square(run: &Run<'_>) -> Step {
    let n = match run.subject.options.kind {
        Kind::Rms { partial: Some(k), .. } => k,
        _ => run.layout().count(),
    };
    let worked = run.worked(|unit| {
        let squares = run.squares(unit, n, |index| run.scaled_x(index));
        format!(r"ms = \frac{{{squares}}}{{{}}} = {}", count(n), run.exact(run.hat.stats[unit].var))
    });
    let mut blocks = vec![worked];
    blocks.extend(steps::range_note(run));
    Step::new("The mean square of each row", blocks)
}

/// What a recipe does before the weight.
fn before_weight(run: &Run<'_>) -> Result<Option<Block>> {
    let subject = run.subject;
    let (dtype, given) = (subject.x.dtype(), subject.weight.is_some());
    Ok(match subject.options.kind {
        Kind::Rms { weight_offset, .. } if weight_offset != 0.0 && given => {
            Some(Block::note("Gemma stores weight - 1, so that a weight of 0 changes nothing: 1 is added first."))
        }
        Kind::Rms { recipe: Recipe::Llama, partial, .. } if given && is_half(dtype) => {
            let kind = Kind::Rms { recipe: Recipe::Llama, weight_offset: 0.0, partial };
            let options = Options { kind, ..subject.options };
            let rounded = compute::forward(&options, run.layout(), &subject.x, Affine::default(), dtype)?.y;
            Some(run.grids(&format!("x_hat, rounded to {dtype} first"), |index| rounded.at(index)))
        }
        _ => None,
    })
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::Bf16)
}

/// Both rounding recipes on half types, where they differ.
fn recipes(run: &Run<'_>) -> Result<Vec<Block>> {
    let subject = run.subject;
    let dtype = subject.x.dtype();
    if !is_half(dtype) {
        return Ok(vec![Block::note(
            "With f16 and bf16 the rounding differs too: PyTorch rounds once, at the end; Hugging Face's \
             LlamaRMSNorm rounds x_hat before the weight (--recipe llama); Gemma adds 1 to the weight \
             (--recipe gemma). Add --dtype bf16 and a --weight to see both.",
        )]);
    }
    if subject.weight.is_none() {
        return Ok(vec![Block::note(format!(
            "In {dtype} the recipes torch and llama differ in when x_hat is rounded. Without a weight that is \
             the same moment; add --weight '[...]' to see the difference.",
        ))]);
    }
    let with = |recipe| {
        let Kind::Rms { weight_offset, partial, .. } = subject.options.kind else { return Ok(run.y.y.clone()) };
        let options = Options { kind: Kind::Rms { recipe, weight_offset, partial }, ..subject.options };
        compute::forward(&options, run.layout(), &subject.x, subject.affine(), dtype).map(|forward| forward.y)
    };
    let (torch, llama) = (with(Recipe::Torch)?, with(Recipe::Llama)?);
    let differ: Vec<usize> = (0..torch.len()).filter(|&i| torch.at(i).to_bits() != llama.at(i).to_bits()).collect();
    // Where they differ is what there is to see.
    let shown: Vec<usize> = differ.iter().copied().chain(run.layout().members(0)).take(3).collect();
    let hidden = run.layout().computed[2];
    let row = |name: &str, when: &str, y: &Values| {
        let numbers = shown.iter().map(|&i| seven(y.at(i)));
        [name.to_owned(), when.to_owned()].into_iter().chain(numbers).collect()
    };
    let places = shown.iter().map(|&i| format!("y[{}, {}]", i / hidden, i % hidden));
    let table = Table {
        head: ["recipe".to_owned(), "rounded to the storage type".to_owned()].into_iter().chain(places).collect(),
        rows: vec![row("torch", "at the end", &torch), row("llama", "before the weight, and at the end", &llama)],
    };
    let effect = match differ.len() {
        0 => "In the rows shown the two recipes happen to agree.".to_owned(),
        n => {
            let (n, all) = (count(n), counted(torch.len(), "element"));
            format!("In the rows shown the two recipes differ in {n} of {all}.")
        }
    };
    let text = format!("In {dtype} it matters when x_hat is rounded. {effect}");
    Ok(vec![Block::text(text), Block::Table(table)])
}
