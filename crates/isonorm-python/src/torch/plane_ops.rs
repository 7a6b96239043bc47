//! The operators over channels.

use std::ffi::CStr;

use isonorm::{DType, PlaneIo, Running};

use super::device::Device;
use super::failure::Failure;
use super::kernel::Kernel;
use super::planes::{Backward, Layout, Options, samples_of, write_out};
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
        let dtype = x.dtype()?;
        let mut y = layout.new_like(&x, dtype)?;
        let mut stats = TensorMut::for_stats(layout.channels, dtype, x.device())?;
        let mut after = After::of(running_mean, running_var, (dtype, x.device()))?;
        let io = PlaneIo::new(layout.read(&x)?, layout.write(&mut y)?).stats(stats.stats()?);
        let norm = Options { eps, weight_offset }.batch_norm(layout.channels, &params)?;
        norm.momentum(momentum).train(io, after.running()?)?;
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
        let (mut params, channels) = (Params::new(weight, bias)?, channels_of(&x)?);
        let mut after = After::of(running_mean, running_var, (x.dtype()?, x.device()))?;
        write_out(x, &mut params, out, |params, io| {
            let norm = Options { eps, weight_offset }.batch_norm(channels, params)?;
            Ok(norm.momentum(momentum).train(io, after.running()?)?)
        })?;
        Ok([after.mean, after.var].map(TensorMut::into_tensor))
    }
}

/// Copies of running statistics, to be updated; nothing where there are none.
struct After {
    are_there: bool,
    mean: TensorMut,
    var: TensorMut,
}

impl After {
    fn of(mean: Option<Tensor>, var: Option<Tensor>, x: (DType, Device)) -> Result<After, Failure> {
        let are_there = mean.is_some() && var.is_some();
        Ok(After { are_there, mean: after(&mean, x)?, var: after(&var, x)? })
    }

    fn running(&mut self) -> Result<Option<Running<'_>>, Failure> {
        if !self.are_there {
            return Ok(None);
        }
        Ok(Some(Running::new(self.mean.slice()?, self.var.slice()?)))
    }
}

fn after(running: &Option<Tensor>, x: (DType, Device)) -> Result<TensorMut, Failure> {
    let Some(running) = running else { return TensorMut::nothing(x.0, x.1) };
    let mut copy = TensorMut::new(running.shape()?.sizes, running.dtype()?, x.1)?;
    copy.copy_from(running)?;
    Ok(copy)
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
        let io = PlaneIo::new(layout.read(&x)?, layout.write(&mut y)?);
        let norm = Options { eps, weight_offset }.batch_norm(layout.channels, &params)?;
        norm.evaluate(io, mean.slice()?, var.slice()?)?;
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
        let (mut params, channels) = (Params::new(weight, bias)?, channels_of(&x)?);
        let [mean, var] = [mean.apart_from(&out)?, var.apart_from(&out)?];
        write_out(x, &mut params, out, |params, io| {
            let norm = Options { eps, weight_offset }.batch_norm(channels, params)?;
            Ok(norm.evaluate(io, mean.slice()?, var.slice()?)?)
        })
    }
}

fn channels_of(x: &Tensor) -> Result<usize, Failure> {
    Ok(x.shape()?.sizes.get(1).map_or(0, |channels| *channels as usize))
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
        Backward { dy, x, dweight, dbias }.run(&params, |layout, io| {
            let norm = Options { eps, weight_offset }.batch_norm(layout.channels, &params)?;
            Ok(norm.train_backward(io.stats(stats.stats()?))?)
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
        Backward { dy, x, dweight, dbias }.run(&params, |layout, io| {
            let norm = Options { eps, weight_offset }.batch_norm(layout.channels, &params)?;
            Ok(norm.evaluate_backward(io, mean.slice()?, var.slice()?)?)
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
        let norm = Options { eps, weight_offset }.group_norm(groups, layout.channels, &params)?;
        let mut stats = TensorMut::for_stats(layout.samples * groups.max(0) as usize, dtype, x.device())?;
        norm.apply(PlaneIo::new(layout.read(&x)?, layout.write(&mut y)?).stats(stats.stats()?))?;
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
        let (mut params, channels) = (Params::new(weight, bias)?, channels_of(&x)?);
        let mut stats = TensorMut::for_stats(samples_of(&x)? * groups.max(0) as usize, x.dtype()?, x.device())?;
        write_out(x, &mut params, out, |params, io| {
            let norm = Options { eps, weight_offset }.group_norm(groups, channels, params)?;
            Ok(norm.apply(io.stats(stats.stats()?))?)
        })?;
        Ok(stats.into_tensor())
    }
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
        Backward { dy, x, dweight, dbias }.run(&params, |layout, io| {
            let norm = Options { eps, weight_offset }.group_norm(groups, layout.channels, &params)?;
            Ok(norm.backward(io.stats(stats.stats()?))?)
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
        let mut after = After::of(Some(running_mean), Some(running_var), (DType::F32, stats.device()))?;
        if let Some(mut running) = after.running()? {
            running.instances(momentum, stats.stats()?, positions.max(0) as usize)?;
        }
        Ok([after.mean, after.var].map(TensorMut::into_tensor))
    }
}
