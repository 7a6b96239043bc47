//! The command line: what may be given, in what words. What it means is the library's.

mod backward;

use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use isonorm::{DType, Level, Recipe};

use crate::error::{Error, Result};
use crate::tensor::{Format, Place};
pub use backward::{Backward, BackwardBatch, BackwardGroup, BackwardInstance, BackwardRow, Gradients};

/// Normalization layers with the same bits everywhere, at the speed of memory.
///
/// A tensor is `file.npy`, `file.safetensors`, or `file.safetensors:name` where the file holds several. An
/// output's format follows its extension; its name in a safetensors file is `y` unless given.
#[derive(Parser, Debug)]
#[command(
    name = "isonorm",
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 done, 1 `verify` found differing bits, 2 anything else wrong, 130 interrupted."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Divide by the root mean square along an axis
    RmsNorm(Row),
    /// Subtract the mean and divide by the standard deviation along an axis
    LayerNorm(Row),
    /// Normalize each channel over the batch; updates or uses running statistics
    BatchNorm(Batch),
    /// Normalize groups of channels of each sample
    GroupNorm(Group),
    /// Normalize each channel of each sample
    InstanceNorm(Instance),
    /// The backward pass: from dy to dx, and to the gradients of weight and bias
    #[command(subcommand)]
    Backward(Backward),
    /// Show every step of a norm with its numbers
    Explain(crate::explain::Args),
    /// Check the golden cases bit for bit, on every level of this machine
    Verify(Verify),
    /// Measure the norms against this machine's copy speed
    Bench(Bench),
}

/// What every call takes.
#[derive(Args, Debug)]
pub struct Common {
    /// The input
    #[arg(value_name = "X")]
    pub x: Place,
    /// A factor for each normalized element or channel
    #[arg(long, value_name = "W")]
    pub weight: Option<Place>,
    /// Added to the variance or mean square [default: 1e-6 for rms-norm, 1e-5 for the others]
    #[arg(long, value_name = "E", allow_hyphen_values = true)]
    pub eps: Option<f64>,
    /// Add eps to the root instead: x / (root + eps)
    #[arg(long)]
    pub eps_outside: bool,
    /// Take 2-byte items without a type (|V2) in npy files for bf16, and write bf16 so
    #[arg(long)]
    pub bf16: bool,
    /// Threads to use; the bits are the same for any number [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = count::<usize>)]
    pub threads: Option<usize>,
    /// Instruction set: scalar, avx2, avx512 or neon; the bits are the same [default: the fastest here]
    #[arg(long, value_name = "L")]
    pub level: Option<Level>,
    /// Print the summary as one JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

impl Common {
    /// Refuses `--bf16`, which is about npy files, where none is named among these and `more`.
    pub(crate) fn check_bf16<'a>(&'a self, more: impl IntoIterator<Item = &'a Place>) -> Result<()> {
        check_bf16(self.bf16, [&self.x].into_iter().chain(&self.weight).chain(more))
    }
}

/// What every forward call takes.
#[derive(Args, Debug)]
pub struct Forward {
    /// The output
    #[arg(short, long, value_name = "Y")]
    pub output: Place,
    /// Storage type of the output [default: that of X]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<Type>,
    /// Write the statistics: `mean` and `rstd` of each row or group (batch-norm: `mean` and `var` of each channel)
    #[arg(long, value_name = "S.safetensors")]
    pub save_stats: Option<Place>,
    /// A summand for each normalized element or channel
    #[arg(long, value_name = "B")]
    pub bias: Option<Place>,
    /// What every call takes.
    #[command(flatten)]
    pub common: Common,
}

/// Refuses an idle `--bf16`: whoever gives it may believe that it chooses a type.
pub(crate) fn check_bf16<'a>(given: bool, mut named: impl Iterator<Item = &'a Place>) -> Result<()> {
    if given && named.all(|place| place.format != Format::Npy) {
        let found = "--bf16 says how npy files hold bf16, but none is named";
        return Err(Error::usage(found, "leave it out; --dtype bf16 chooses the type"));
    }
    Ok(())
}

/// rms-norm and layer-norm.
#[derive(Args, Debug)]
pub struct Row {
    /// What every forward call takes.
    #[command(flatten)]
    pub forward: Forward,
    /// How rows are normalized.
    #[command(flatten)]
    pub rows: RowOptions,
    /// Added to X first, and rounded to its own type
    #[arg(long, value_name = "R")]
    pub residual: Option<Place>,
    /// Write the sum of X and the residual
    #[arg(long, value_name = "RO", requires = "residual")]
    pub residual_out: Option<Place>,
}

/// How rows are normalized.
#[derive(Args, Debug)]
pub struct RowOptions {
    /// The axis or axes to normalize over, such as -1 or 1,2
    #[arg(long, value_name = "A", default_value = "-1", value_delimiter = ',', allow_hyphen_values = true)]
    pub axis: Vec<isize>,
    /// Where values are rounded: torch once at the end, llama before the weight too, gemma as torch with weight + 1
    #[arg(long, value_enum, default_value = "torch")]
    pub recipe: RecipeName,
    /// rms-norm: take the mean square of the first K elements only
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = count::<usize>)]
    pub partial: Option<usize>,
}

/// batch-norm.
#[derive(Args, Debug)]
pub struct Batch {
    /// What every forward call takes.
    #[command(flatten)]
    pub forward: Forward,
    /// Where the channels are
    #[arg(long, value_enum, default_value = "nchw")]
    pub layout: Layout,
    /// Use the running statistics instead of those of this batch
    #[arg(long, requires = "running_mean", requires = "running_var")]
    pub eval: bool,
    /// The running mean; in training its update is written by --save-stats as `running_mean`
    #[arg(long, value_name = "M", requires = "running_var")]
    pub running_mean: Option<Place>,
    /// The running variance; in training its update is written by --save-stats as `running_var`
    #[arg(long, value_name = "V", requires = "running_mean")]
    pub running_var: Option<Place>,
    /// The share of this batch in the running statistics [default: 0.1]
    #[arg(long, value_name = "P", requires = "running_mean", allow_hyphen_values = true)]
    pub momentum: Option<f64>,
    /// Average over all batches, of which the running statistics have seen N
    #[arg(long, value_name = "N", requires = "running_mean", conflicts_with = "momentum")]
    #[arg(allow_negative_numbers = true, value_parser = count::<u64>)]
    pub cumulative: Option<u64>,
    /// Update the running variance with the biased variance
    #[arg(long, requires = "running_mean")]
    pub biased_running_var: bool,
}

/// group-norm.
#[derive(Args, Debug)]
pub struct Group {
    /// What every forward call takes.
    #[command(flatten)]
    pub forward: Forward,
    /// Where the channels are
    #[arg(long, value_enum, default_value = "nchw")]
    pub layout: Layout,
    /// Groups, which must divide the channels
    #[arg(long, value_name = "G", allow_negative_numbers = true, value_parser = count::<usize>)]
    pub groups: usize,
}

/// instance-norm.
#[derive(Args, Debug)]
pub struct Instance {
    /// What every forward call takes.
    #[command(flatten)]
    pub forward: Forward,
    /// Where the channels are
    #[arg(long, value_enum, default_value = "nchw")]
    pub layout: Layout,
}

/// verify.
#[derive(Args, Debug)]
pub struct Verify {
    /// This level alone [default: every level of this machine]
    #[arg(long, value_name = "L")]
    pub level: Option<Level>,
    /// Print the table as one JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// bench.
#[derive(Args, Debug)]
pub struct Bench {
    /// Threads of the second column [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = count::<usize>)]
    pub threads: Option<usize>,
    /// Instruction set [default: the fastest here]
    #[arg(long, value_name = "L")]
    pub level: Option<Level>,
    /// Print the table as one JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// A number of things, with an error that says so.
pub(crate) fn count<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "it is too large".to_owned(),
        _ => "expected a whole number of at least 0".to_owned(),
    })
}

/// A rounding recipe by its name.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipeName {
    /// One rounding.
    Torch,
    /// Rounded to the storage type before the weight.
    Llama,
    /// One rounding, weight offset 1.
    Gemma,
}

impl RecipeName {
    /// The library's recipe and the weight offset.
    pub fn parts(self) -> (Recipe, f64) {
        match self {
            RecipeName::Torch => (Recipe::Torch, 0.0),
            RecipeName::Llama => (Recipe::Llama, 0.0),
            RecipeName::Gemma => (Recipe::Torch, 1.0),
        }
    }
}

/// Where the channels are.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Axis 1.
    Nchw,
    /// The last axis.
    Nhwc,
}

/// A storage type by its name.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl From<Type> for DType {
    fn from(name: Type) -> Self {
        match name {
            Type::F32 => DType::F32,
            Type::F64 => DType::F64,
            Type::F16 => DType::F16,
            Type::Bf16 => DType::Bf16,
        }
    }
}
