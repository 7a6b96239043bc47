//! The command line of `isonorm backward`.

use clap::{Args, Subcommand};
use isonorm::DType;

use super::{Common, Layout, RowOptions, Type, count};
use crate::error::{Error, Result};
use crate::tensor::Place;

/// The norm whose backward pass runs.
#[derive(Subcommand, Debug)]
pub enum Backward {
    /// The gradients of rms-norm
    RmsNorm(BackwardRow),
    /// The gradients of layer-norm
    LayerNorm(BackwardRow),
    /// The gradients of batch-norm, in training or with --eval
    BatchNorm(BackwardBatch),
    /// The gradients of group-norm
    GroupNorm(BackwardGroup),
    /// The gradients of instance-norm
    InstanceNorm(BackwardInstance),
}

/// What every backward call takes.
#[derive(Args, Debug)]
pub struct Gradients {
    /// The gradient of the norm's result, of X's shape
    #[arg(long, value_name = "DY")]
    pub dy: Place,
    /// Write the gradient of X
    #[arg(long, value_name = "DX")]
    pub dx: Option<Place>,
    /// Write the gradient of the weight, summed over all rows or samples
    #[arg(long, value_name = "DW")]
    pub dweight: Option<Place>,
    /// Write the gradient of the bias, summed over all rows or samples
    #[arg(long, value_name = "DB")]
    pub dbias: Option<Place>,
    /// Storage type of DX [default: that of X]
    #[arg(long, value_name = "TYPE", requires = "dx")]
    pub dtype: Option<Type>,
    /// Storage type of DW and DB [default: that of W, else of X]
    #[arg(long, value_name = "TYPE")]
    pub param_dtype: Option<Type>,
    /// What every call takes.
    #[command(flatten)]
    pub common: Common,
}

impl Gradients {
    /// Refuses a call that writes nothing, and a flag that would change nothing. Besides these there may be the gradient
    /// of a residual and other inputs.
    pub(crate) fn check<'a>(
        &'a self,
        dr: Option<&'a Place>,
        inputs: impl IntoIterator<Item = &'a Place>,
    ) -> Result<()> {
        let Gradients { dy, dweight, dbias, .. } = self;
        if self.places(dr).is_empty() {
            let found = "none of the gradients is to be written";
            return Err(Error::usage(found, "add --dx DX, --dweight DW or --dbias DB"));
        }
        if self.param_dtype.is_some() && dweight.is_none() && dbias.is_none() {
            let found = "--param-dtype is about the gradients of weight and bias, but neither is to be written";
            return Err(Error::usage(found, "add --dweight DW or --dbias DB, or leave it out"));
        }
        self.common.check_bf16([dy].into_iter().chain(self.places(dr)).chain(inputs))
    }

    /// All that is to be written.
    pub(crate) fn places<'a>(&'a self, dr: Option<&'a Place>) -> Vec<&'a Place> {
        [&self.dx, &self.dweight, &self.dbias].into_iter().flatten().chain(dr).collect()
    }

    /// The type of dx.
    pub(crate) fn dx_type(&self, x: DType) -> DType {
        self.dtype.map_or(x, DType::from)
    }

    /// The type of dweight and dbias.
    pub(crate) fn param_type(&self, weight: Option<DType>, x: DType) -> DType {
        self.param_dtype.map_or(weight.unwrap_or(x), DType::from)
    }
}

/// rms-norm and layer-norm.
#[derive(Args, Debug)]
pub struct BackwardRow {
    /// What every backward call takes.
    #[command(flatten)]
    pub gradients: Gradients,
    /// How rows are normalized.
    #[command(flatten)]
    pub rows: RowOptions,
    /// After a residual add, whose sum is then X: the gradient that reaches X from elsewhere, added to DX
    #[arg(long, value_name = "DRES")]
    pub dresidual: Option<Place>,
    /// After a residual add: write the gradient of the residual, in X's type
    #[arg(long, value_name = "DR")]
    pub dr: Option<Place>,
}

/// batch-norm.
#[derive(Args, Debug)]
pub struct BackwardBatch {
    /// What every backward call takes.
    #[command(flatten)]
    pub gradients: Gradients,
    /// Where the channels are
    #[arg(long, value_enum, default_value = "nchw")]
    pub layout: Layout,
    /// The gradients of evaluation, by the running statistics
    #[arg(long, requires = "running_mean", requires = "running_var")]
    pub eval: bool,
    /// The running mean of evaluation; training reads none
    #[arg(long, value_name = "M", requires = "eval")]
    pub running_mean: Option<Place>,
    /// The running variance of evaluation; training reads none
    #[arg(long, value_name = "V", requires = "eval")]
    pub running_var: Option<Place>,
}

/// group-norm.
#[derive(Args, Debug)]
pub struct BackwardGroup {
    /// What every backward call takes.
    #[command(flatten)]
    pub gradients: Gradients,
    /// Where the channels are
    #[arg(long, value_enum, default_value = "nchw")]
    pub layout: Layout,
    /// Groups, which must divide the channels
    #[arg(long, value_name = "G", allow_negative_numbers = true, value_parser = count::<usize>)]
    pub groups: usize,
}

/// instance-norm.
#[derive(Args, Debug)]
pub struct BackwardInstance {
    /// What every backward call takes.
    #[command(flatten)]
    pub gradients: Gradients,
    /// Where the channels are
    #[arg(long, value_enum, default_value = "nchw")]
    pub layout: Layout,
}
