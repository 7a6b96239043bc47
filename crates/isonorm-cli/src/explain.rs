//! `isonorm explain`: each step of a norm with its numbers, as text or as one page.
//!
//! A norm makes an `Explanation` of a `Subject`; a renderer shows
//! it. Norms and renderers do not know each other, so that each can be added alone.

mod backward;
mod batch_norm;
mod compare;
mod compute;
mod document;
mod group_norm;
mod html;
mod json;
mod layer_norm;
mod layout;
mod math;
mod number;
mod order;
mod rms_norm;
mod steps;
mod subject;
mod text;
mod values;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::args::{RecipeName, Type, check_bf16, count};
use crate::error::{Error, Result};
use crate::output;
use crate::tensor::Place;
use document::Explanation;
use subject::{Source, Subject};

/// Show every step of a norm with its numbers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to explain
    #[arg(value_enum, value_name = "NORM")]
    norm: Norm,
    /// The input: file.npy or file.safetensors:name; without it and without --data, a small example
    #[arg(value_name = "X", conflicts_with_all = ["data", "dtype"])]
    x: Option<String>,
    /// The input as JSON: one row, rows, or samples of channels of positions
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    data: Option<String>,
    /// The storage type of --data
    #[arg(long, value_enum)]
    dtype: Option<Type>,
    /// Take 2-byte items without a type (|V2) in npy files for bf16
    #[arg(long)]
    bf16: bool,
    /// One weight for each normalized element or channel: '[1, 2, 3]' or a tensor file
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    weight: Option<String>,
    /// One bias for each normalized element or channel: '[1, 2, 3]' or a tensor file
    #[arg(long, value_name = "B", allow_negative_numbers = true)]
    bias: Option<String>,
    /// What keeps the root away from 0 [default: 1e-6 for rms-norm, else 1e-5]
    #[arg(long, value_name = "E", allow_hyphen_values = true)]
    eps: Option<f64>,
    /// Add eps to the root instead of under it
    #[arg(long)]
    eps_outside: bool,
    /// When to round to the storage type (rms-norm)
    #[arg(long, value_enum, default_value = "torch")]
    recipe: RecipeName,
    /// Only the first K elements enter the mean square (rms-norm)
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = count::<usize>)]
    partial: Option<usize>,
    /// Groups of channels (group-norm) [default: 2]
    #[arg(long, value_name = "G", allow_negative_numbers = true, value_parser = count::<usize>)]
    groups: Option<usize>,
    /// Explain the backward pass: from dy to dx, and to the gradients of weight and bias
    #[arg(long, conflicts_with_all = ["bias", "order"])]
    backward: bool,
    /// The gradient of the result, of x's shape, as JSON or a tensor file [default: ones]
    #[arg(long, value_name = "DY", requires = "backward", allow_negative_numbers = true)]
    dy: Option<String>,
    /// Draw the order in which a row is summed
    #[arg(long)]
    order: bool,
    /// Digits after the point in grids
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=17))]
    digits: u8,
    /// Write the explanation to FILE as one self-contained page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Args {
    /// The files named.
    fn places(&self) -> Vec<Place> {
        [&self.x, &self.weight, &self.bias, &self.dy]
            .into_iter()
            .flatten()
            .filter_map(|text| text.parse().ok())
            .collect()
    }
}

/// What can be explained.
#[allow(clippy::enum_variant_names)] // the names a user types
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Norm {
    RmsNorm,
    LayerNorm,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    /// BatchNorm, LayerNorm and RMSNorm of the same data, side by side
    Compare,
}

/// Explains, to a page or to standard output.
pub fn run(args: Args) -> Result<()> {
    let explanation = explain(&args)?;
    match &args.html {
        Some(path) => write_page(&args, path, &html::render(&explanation)),
        None => print(&explanation),
    }
}

fn explain(args: &Args) -> Result<Explanation> {
    check_bf16(args.bf16, args.places().iter())?;
    let source = Source::of(args)?;
    if args.norm == Norm::Compare {
        return compare::explain(args, &source);
    }
    let subject = Subject::new(args, args.norm, &source)?;
    if args.backward {
        return backward::explain(&subject);
    }
    match args.norm {
        Norm::RmsNorm => rms_norm::explain(&subject),
        Norm::LayerNorm | Norm::Compare => layer_norm::explain(&subject),
        Norm::BatchNorm => batch_norm::explain(&subject),
        Norm::GroupNorm | Norm::InstanceNorm => group_norm::explain(&subject),
    }
}

/// Columns in a pipe or a file, and at most on a terminal.
const WIDTH: usize = 100;

fn print(explanation: &Explanation) -> Result<()> {
    let width = terminal_size::terminal_size().filter(|_| std::io::stdout().is_terminal());
    let width = width.map_or(WIDTH, |(width, _)| usize::from(width.0).min(WIDTH));
    let text = text::render(explanation, width);
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("write", Path::new("standard output")))
}

/// Writes the page, but not over what it explains.
fn write_page(args: &Args, path: &Path, page: &str) -> Result<()> {
    output::resolve(path)?; // before anything opens it: a pipe would wait for its other end
    for input in args.places() {
        if same_file::is_same_file(path, &input.path).unwrap_or(false) {
            return Err(Error::SameFile { output: path.to_owned(), what: "input", other: input.path });
        }
    }
    output::write_text(path, page)?;
    crate::tell(format_args!("wrote {}", crate::OneLine(path.display())));
    Ok(())
}
