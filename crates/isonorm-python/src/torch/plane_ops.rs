//! The operators over channels.

use std::ffi::CStr;

use isonorm::{DType, rules};

use super::cuda_planes;
use super::device::Device;
use super::failure::Failure;
use super::kernel::Kernel;
use super::planes::{After, Backward, Forward, Gradients, Layout, Options, Which, samples_of, write_out};
use super::rows::Params;
use super::tensor::{Tensor, TensorMut};

/// BatchNorm by the batch's own statistics, which are returned, with the running ones as they are after the batch.
pub(super) struct BatchNormTrain;

impl Kernel for BatchNormTrain {
    const SCHEMA: &CStr = c"batch_norm_train(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, \
        Tensor? running_var, float momentum, float eps, float weight_offset) \
        -> (Tensor y, Tensor stats, Tensor running_mean_after, Tensor running_var_after)";
    type Arguments = (Tensor, Option<Tensor>, Option<Tensor>, Option<Tensor>, Option<Tensor>, f64, f64, f64);
    type Results = [Tensor; 4];

    fn run(arguments: Self::Arguments) -> Result<[Tensor; 4], Failure> {
        let (x, weight, bias, running_mean, running_var, momentum, eps, weight_offset) = arguments;
        let params = Params::new(weight, bias)?;
        let (x, layout) = Layout::of(x)?;
        let (dtype, device) = (x.dtype()?, x.device());
        let mut y = layout.new_like(&x, dtype)?;
        let mut stats = TensorMut::for_stats(layout.channels, dtype, device)?;
        let mut after = After::of(running_mean, running_var, dtype, device)?;
        let call = Forward { layout, x: Some(&x), y: &mut y, stats: Some(&mut stats) };
        let which = Which::Train { momentum, after: &mut after };
        Options { eps, weight_offset }.forward(which, &params, call)?;
        Ok([y, stats, after.mean, after.var].map(TensorMut::into_tensor))
    }
}

/// The same into a tensor of the caller's, which x may be, for a call without a backward pass.
pub(super) struct BatchNormTrainOut;

impl Kernel for BatchNormTrainOut {
    const SCHEMA: &CStr = c"batch_norm_train.out(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, \
        Tensor? running_var, float momentum, float eps, float weight_offset, *, Tensor(a!) out) \
        -> (Tensor running_mean_after, Tensor running_var_after)";
    type Arguments = (Tensor, Option<Tensor>, Option<Tensor>, Option<Tensor>, Option<Tensor>, f64, f64, f64, Tensor);
    type Results = [Tensor; 2];

    fn run(arguments: Self::Arguments) -> Result<[Tensor; 2], Failure> {
        let (x, weight, bias, running_mean, running_var, momentum, eps, weight_offset, out) = arguments;
        let mut params = Params::new(weight, bias)?;
        let mut after = After::of(running_mean, running_var, x.dtype()?, x.device())?;
        write_out(x, &mut params, out, |params, call| {
            Options { eps, weight_offset }.forward(Which::Train { momentum, after: &mut after }, params, call)
        })?;
        Ok([after.mean, after.var].map(TensorMut::into_tensor))
    }
}

/// BatchNorm by the running statistics.
pub(super) struct BatchNormEval;

impl Kernel for BatchNormEval {
    const SCHEMA: &CStr = c"batch_norm_eval(Tensor x, Tensor? weight, Tensor? bias, Tensor running_mean, \
        Tensor running_var, float eps, float weight_offset) -> Tensor";
    type Arguments = (Tensor, Option<Tensor>, Option<Tensor>, Tensor, Tensor, f64, f64);
    type Results = Tensor;

    fn run((x, weight, bias, mean, var, eps, weight_offset): Self::Arguments) -> Result<Tensor, Failure> {
        let (params, mean, var) = (Params::new(weight, bias)?, mean.contiguous()?, var.contiguous()?);
        let (x, layout) = Layout::of(x)?;
        let mut y = layout.new_like(&x, x.dtype()?)?;
        let call = Forward { layout, x: Some(&x), y: &mut y, stats: None };
        Options { eps, weight_offset }.forward(Which::Evaluate { mean: &mean, var: &var }, &params, call)?;
        Ok(y.into_tensor())
    }
}

/// The same into a tensor of the caller's, which x may be.
pub(super) struct BatchNormEvalOut;

impl Kernel for BatchNormEvalOut {
    const SCHEMA: &CStr = c"batch_norm_eval.out(Tensor x, Tensor? weight, Tensor? bias, Tensor running_mean, \
        Tensor running_var, float eps, float weight_offset, *, Tensor(a!) out) -> ()";
    type Arguments = (Tensor, Option<Tensor>, Option<Tensor>, Tensor, Tensor, f64, f64, Tensor);
    type Results = ();

    fn run((x, weight, bias, mean, var, eps, weight_offset, out): Self::Arguments) -> Result<(), Failure> {
        let mut params = Params::new(weight, bias)?;
        let [mean, var] = [mean.apart_from(&out)?, var.apart_from(&out)?];
        write_out(x, &mut params, out, |params, call| {
            Options { eps, weight_offset }.forward(Which::Evaluate { mean: &mean, var: &var }, params, call)
        })
    }
}

/// The gradients of BatchNorm in training, with forward's statistics; those not asked for are empty.
pub(super) struct BatchNormTrainBackward;

impl Kernel for BatchNormTrainBackward {
    const SCHEMA: &CStr =
        c"batch_norm_train_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor stats, \
        float eps, float weight_offset, bool dweight, bool dbias) -> (Tensor dx, Tensor dweight, Tensor dbias)";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, Tensor, f64, f64, bool, bool);
    type Results = [Tensor; 3];

    fn run(
        (dy, x, weight, bias, stats, eps, weight_offset, dweight, dbias): Self::Arguments,
    ) -> Result<[Tensor; 3], Failure> {
        let params = Params::new(weight, bias)?;
        let mut none = After::of(None, None, x.dtype()?, x.device())?;
        Backward { dy, x, dweight, dbias }.run(&params, |call| {
            let which = Which::Train { momentum: 0.0, after: &mut none };
            Options { eps, weight_offset }.backward(which, &params, Gradients { stats: Some(&stats), ..call })
        })
    }
}

/// The gradients of BatchNorm in evaluation; those not asked for are empty.
pub(super) struct BatchNormEvalBackward;

impl Kernel for BatchNormEvalBackward {
    const SCHEMA: &CStr = c"batch_norm_eval_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, \
        Tensor running_mean, Tensor running_var, float eps, float weight_offset, bool dweight, bool dbias) \
        -> (Tensor dx, Tensor dweight, Tensor dbias)";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, Tensor, Tensor, f64, f64, bool, bool);
    type Results = [Tensor; 3];

    fn run(arguments: Self::Arguments) -> Result<[Tensor; 3], Failure> {
        let (dy, x, weight, bias, mean, var, eps, weight_offset, dweight, dbias) = arguments;
        let (params, mean, var) = (Params::new(weight, bias)?, mean.contiguous()?, var.contiguous()?);
        Backward { dy, x, dweight, dbias }.run(&params, |call| {
            Options { eps, weight_offset }.backward(Which::Evaluate { mean: &mean, var: &var }, &params, call)
        })
    }
}

/// GroupNorm, and InstanceNorm with as many groups as channels; the statistics are returned.
pub(super) struct GroupNorm;

impl Kernel for GroupNorm {
    const SCHEMA: &CStr = c"group_norm(Tensor x, Tensor? weight, Tensor? bias, SymInt groups, float eps, \
        float weight_offset) -> (Tensor y, Tensor stats)";
    type Arguments = (Tensor, Option<Tensor>, Option<Tensor>, i64, f64, f64);
    type Results = [Tensor; 2];

    fn run((x, weight, bias, groups, eps, weight_offset): Self::Arguments) -> Result<[Tensor; 2], Failure> {
        let params = Params::new(weight, bias)?;
        let (x, layout) = Layout::of(x)?;
        let dtype = x.dtype()?;
        let mut y = layout.new_like(&x, dtype)?;
        let mut stats = TensorMut::for_stats(count_groups(&x, groups)?, dtype, x.device())?;
        let call = Forward { layout, x: Some(&x), y: &mut y, stats: Some(&mut stats) };
        Options { eps, weight_offset }.forward(Which::Groups(groups), &params, call)?;
        Ok([y, stats].map(TensorMut::into_tensor))
    }
}

/// The same into a tensor of the caller's, which x may be.
pub(super) struct GroupNormOut;

impl Kernel for GroupNormOut {
    const SCHEMA: &CStr = c"group_norm.out(Tensor x, Tensor? weight, Tensor? bias, SymInt groups, float eps, \
        float weight_offset, *, Tensor(a!) out) -> Tensor stats";
    type Arguments = (Tensor, Option<Tensor>, Option<Tensor>, i64, f64, f64, Tensor);
    type Results = Tensor;

    fn run((x, weight, bias, groups, eps, weight_offset, out): Self::Arguments) -> Result<Tensor, Failure> {
        let mut params = Params::new(weight, bias)?;
        let mut stats = TensorMut::for_stats(count_groups(&x, groups)?, x.dtype()?, x.device())?;
        write_out(x, &mut params, out, |params, call| {
            let call = Forward { stats: Some(&mut stats), ..call };
            Options { eps, weight_offset }.forward(Which::Groups(groups), params, call)
        })?;
        Ok(stats.into_tensor())
    }
}

/// Groups of all samples, of a number that divides the channels.
fn count_groups(x: &Tensor, groups: i64) -> Result<usize, Failure> {
    let (groups, Some(channels)) = (groups.max(0) as usize, x.shape()?.sizes.get(1)) else { return Ok(0) };
    rules::check_groups(groups, *channels as usize)?;
    Ok(samples_of(x)? * groups)
}

/// The gradients of GroupNorm, with forward's statistics; those not asked for are empty.
pub(super) struct GroupNormBackward;

impl Kernel for GroupNormBackward {
    const SCHEMA: &CStr = c"group_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor stats, \
        SymInt groups, float eps, float weight_offset, bool dweight, bool dbias) \
        -> (Tensor dx, Tensor dweight, Tensor dbias)";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, Tensor, i64, f64, f64, bool, bool);
    type Results = [Tensor; 3];

    fn run(arguments: Self::Arguments) -> Result<[Tensor; 3], Failure> {
        let (dy, x, weight, bias, stats, groups, eps, weight_offset, dweight, dbias) = arguments;
        let params = Params::new(weight, bias)?;
        Backward { dy, x, dweight, dbias }.run(&params, |call| {
            let call = Gradients { stats: Some(&stats), ..call };
            Options { eps, weight_offset }.backward(Which::Groups(groups), &params, call)
        })
    }
}

/// The running statistics of InstanceNorm after a batch: they move towards the means over its samples.
pub(super) struct InstanceNormRunning;

impl Kernel for InstanceNormRunning {
    const SCHEMA: &CStr = c"instance_norm_running(Tensor stats, Tensor running_mean, Tensor running_var, \
        float momentum, SymInt positions) -> (Tensor running_mean_after, Tensor running_var_after)";
    type Arguments = (Tensor, Tensor, Tensor, f64, i64);
    type Results = [Tensor; 2];

    fn run((stats, running_mean, running_var, momentum, positions): Self::Arguments) -> Result<[Tensor; 2], Failure> {
        let (device, positions) = (stats.device(), positions.max(0) as usize);
        let mut after = After::of(Some(running_mean), Some(running_var), DType::F32, device)?;
        if device != Device::Cpu {
            cuda_planes::instances(&stats, &mut after, momentum, positions)?;
        } else if let Some(mut running) = after.running()? {
            running.instances(momentum, stats.stats()?, positions)?;
        }
        Ok([after.mean, after.var].map(TensorMut::into_tensor))
    }
}
