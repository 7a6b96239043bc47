//! BatchNorm, LayerNorm and RMSNorm of the same data, side by side.

use super::compute::{self, Affine, Forward};
use super::document::{Axis, Bands, Block, Explanation, Grid, MOST_COLUMNS, MOST_ROWS, Step, Table};
use super::number::Format;
use super::subject::{Source, Subject};
use super::values::compute_type;
use super::{Args, Norm, batch_norm, layer_norm, rms_norm};
use crate::error::{Error, Result};

const NAMES: [&str; 3] = ["BatchNorm", "LayerNorm", "RMSNorm"];

/// The subjects and what the library made of each, in the order of `NAMES`.
struct Compared {
    subjects: [Subject; 3],
    x_hat: [Forward; 3],
}

pub(crate) fn explain(args: &Args, source: &Source) -> Result<Explanation> {
    if args.weight.is_some() || args.bias.is_some() || args.order || args.backward {
        return Err(Error::usage(
            "compare takes neither --weight, --bias, --order nor --backward: it shows what the norms themselves do",
            "leave them out, or explain one norm",
        ));
    }
    let subject = |norm| Subject::compared(args, norm, source);
    let subjects = [subject(Norm::BatchNorm)?, subject(Norm::LayerNorm)?, subject(Norm::RmsNorm)?];
    let forward = |s: &Subject| {
        compute::forward(&s.options, &s.layout, &s.x, Affine::default(), compute_type(s.x.dtype())).map_err(Error::from)
    };
    let x_hat = [forward(&subjects[0])?, forward(&subjects[1])?, forward(&subjects[2])?];
    let compared = Compared { subjects, x_hat };
    let facts = vec![
        ("x", compared.subjects[1].described.clone()),
        ("eps", format!("{} (RMSNorm: {})", compared.subjects[1].eps(), compared.subjects[2].eps())),
    ];
    Ok(Explanation {
        title: "BatchNorm, LayerNorm and RMSNorm side by side",
        summary: "The same numbers through three norms: along which axis each works, and what each makes \
                  of rows and columns."
            .into(),
        equations: vec![
            r"\text{BatchNorm: }x_hat = \frac{x - mean}{\sqrt{var + eps}}\text{, with mean and variance of the column}",
            r"\text{LayerNorm: }x_hat = \frac{x - mean}{\sqrt{var + eps}}\text{, with mean and variance of the row}",
            r"\text{RMSNorm: }x_hat = \frac{x}{\sqrt{ms + eps}}\text{, with the mean square of the row}",
        ],
        papers: vec![batch_norm::PAPER, layer_norm::PAPER, rms_norm::PAPER],
        facts,
        steps: vec![axes(&compared), results(&compared), effects(&compared)?, choice()],
    })
}

impl Compared {
    fn grid(
        &self,
        caption: &str,
        value: impl Fn(usize) -> f64,
        bands: Bands,
        arrow: Option<&str>,
        format: Format,
    ) -> Grid {
        let [_, rows, columns] = self.subjects[1].layout.whole;
        let shown = (rows.min(MOST_ROWS), columns.min(MOST_COLUMNS));
        let row = |r: usize| (0..shown.1).map(|c| value(r * columns + c)).collect();
        Grid {
            caption: caption.to_owned(),
            rows: Axis::numbered("row", shown.0, rows),
            columns: Axis::numbered("column", shown.1, columns),
            cells: (0..shown.0).map(row).collect(),
            format,
            bands,
            arrow: arrow.map(str::to_owned),
        }
    }

    fn digits(&self) -> usize {
        self.subjects[1].digits
    }
}

fn bands(norm: usize) -> Bands {
    if norm == 0 { Bands::Columns(1) } else { Bands::Rows(1) }
}

fn axes(compared: &Compared) -> Step {
    let x = &compared.subjects[1].x;
    let value = |index| x.at(index);
    let format = Format::of(x.iter().take(MOST_ROWS * MOST_COLUMNS), compared.digits());
    let grids = vec![
        compared.grid("BatchNorm: down the columns", value, bands(0), Some("statistics of its own"), format),
        compared.grid("LayerNorm, RMSNorm: along the rows", value, bands(1), Some("statistics of its own"), format),
    ];
    let text = "The same x twice. What stands in one box is normalized together: a column holds one feature of \
                all samples, a row all features of one sample.";
    Step::new("The input, and the axis of each norm", vec![Block::text(text), Block::Grids(grids)])
}

fn results(compared: &Compared) -> Step {
    let all = compared.x_hat.iter().flat_map(|forward| forward.y.iter().take(MOST_ROWS * MOST_COLUMNS));
    let format = Format::of(all, compared.digits());
    let grid = |norm: usize| {
        let y = &compared.x_hat[norm].y;
        compared.grid(NAMES[norm], |index| y.at(index), bands(norm), None, format)
    };
    let text = "Each element without weight and bias. BatchNorm keeps the order within a column and forgets \
                how columns differ; LayerNorm keeps the order within a row and forgets how rows differ; \
                RMSNorm keeps the sign and the direction of a row and forgets only its length.";
    Step::new("The normalized values x_hat", vec![Block::text(text), Block::Grids((0..3).map(grid).collect())])
}

/// Means and variances of rows and columns, before and after.
fn effects(compared: &Compared) -> Result<Step> {
    let spread = |of: usize, values: &super::values::Values| {
        let subject = &compared.subjects[of];
        compute::forward(&subject.options, &subject.layout, values, Affine::default(), values.dtype())
    };
    let tensors: Vec<&super::values::Values> =
        std::iter::once(&compared.subjects[1].x).chain(compared.x_hat.iter().map(|forward| &forward.y)).collect();
    // BatchNorm's statistics are those of columns, LayerNorm's those of rows: the library measures itself.
    let mut sides = Vec::new();
    for (of, name, most) in [(1, "row", MOST_ROWS), (0, "column", MOST_COLUMNS)] {
        let stats = tensors.iter().map(|values| spread(of, values).map(|f| f.stats)).collect::<Result<Vec<_>, _>>()?;
        let side = |what: &str, value: fn(&compute::OfX) -> f64| {
            let cells: Vec<Vec<f64>> =
                stats.iter().map(|stats| stats.iter().take(most).map(|stat| value(&stat.of_x)).collect()).collect();
            Grid {
                caption: format!("{name} {what}"),
                rows: Axis::named(&["x", NAMES[0], NAMES[1], NAMES[2]]),
                columns: Axis::numbered(name, cells[0].len(), stats[0].len()),
                format: Format::of(cells.iter().flatten().copied(), compared.digits()),
                cells,
                bands: Bands::None,
                arrow: None,
            }
        };
        sides.push(Block::Grids(vec![side("means", |of_x| of_x.mean), side("variances", |of_x| of_x.var)]));
    }
    let mut blocks = vec![Block::text(
        "BatchNorm brings the columns to mean 0 and variance 1, LayerNorm the rows. RMSNorm brings neither: \
         the mean of a row stays in, scaled like the rest, and its mean square becomes 1.",
    )];
    blocks.extend(sides);
    Ok(Step::new("What each makes of rows and columns", blocks))
}

fn choice() -> Step {
    let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
    let table = Table {
        head: row(["", "BatchNorm", "LayerNorm", "RMSNorm"]),
        rows: vec![
            row(["works along", "columns (the batch)", "rows (the features)", "rows (the features)"]),
            row(["takes the mean off", "yes", "yes", "no"]),
            row(["other samples matter", "in training", "never", "never"]),
            row(["keeps running statistics", "yes", "no", "no"]),
            row(["learns, as a rule", "weight, bias", "weight, bias", "weight"]),
            row(["at home in", "convolutional networks", "transformers", "large language models"]),
        ],
    };
    Step::new("Which is which", vec![Block::Table(table)])
}
