//! The norms of channels on GPUs: what a call's tensors are to `isonorm-cuda`, on torch's current stream.

use isonorm::rules;
use isonorm_cuda::{BatchNorm, GroupNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut, Running};

use super::cuda::{slice, slice_mut, stats, stream};
use super::device::Device;
use super::failure::Failure;
use super::planes::{After, Forward, Gradients, Layout, Options, Which};
use super::rows::Params;
use super::tensor::{Tensor, TensorMut};

/// Queues y, and what else is asked for.
pub(super) fn forward(options: &Options, which: Which<'_>, params: &Params, call: Forward<'_>) -> Result<(), Failure> {
    let Forward { layout, x, y, stats } = call;
    let (device, dtype) = (y.tensor().device(), x.unwrap_or(y.tensor()).dtype()?);
    let y = layout.written(device, y)?;
    let mut io = match x {
        Some(x) => PlaneIo::new(layout.planes(device, x)?, y),
        None => PlaneIo::in_place(y),
    };
    if let Some(stats) = stats {
        io = io.stats(slice_mut(device, stats)?);
    }
    if let Which::Groups(groups) = which {
        return Ok(group_norm(options, groups, layout, params, device)?.forward(&stream(device)?, io)?);
    }
    let norm = batch_norm(options, layout, params, device)?;
    let mut scratch = scratch(norm.scratch(), dtype, device)?;
    let io = io.scratch(slice_mut(device, &mut scratch)?);
    Ok(match which {
        Which::Train { momentum, after } => {
            norm.momentum(momentum).train(&stream(device)?, io, running(device, after)?)
        }
        Which::Evaluate { mean, var } => norm.evaluate(&stream(device)?, io, slice(device, mean)?, slice(device, var)?),
        Which::Groups(_) => Ok(()),
    }?)
}

/// Queues dx and whatever gradients are asked for.
pub(super) fn backward(
    options: &Options,
    which: Which<'_>,
    params: &Params,
    call: Gradients<'_>,
) -> Result<(), Failure> {
    let Gradients { layout, x, dy, dx, dweight, dbias, stats: saved } = call;
    let (device, dtype) = (x.device(), x.dtype()?);
    let (x, dy) = (layout.planes(device, x)?, layout.planes(device, dy)?);
    let mut io = PlaneBackwardIo::new(x, dy, layout.written(device, dx)?);
    if let Some(dweight) = dweight {
        io = io.dweight(slice_mut(device, dweight)?);
    }
    if let Some(dbias) = dbias {
        io = io.dbias(slice_mut(device, dbias)?);
    }
    if let Some(tensor) = saved {
        io = io.stats(stats(device, tensor)?);
    }
    if let Which::Groups(groups) = which {
        let norm = group_norm(options, groups, layout, params, device)?;
        let mut scratch = scratch(norm.scratch(layout.samples), dtype, device)?;
        return Ok(norm.backward(&stream(device)?, io.scratch(slice_mut(device, &mut scratch)?))?);
    }
    let norm = batch_norm(options, layout, params, device)?;
    let mut scratch = scratch(norm.scratch(), dtype, device)?;
    let io = io.scratch(slice_mut(device, &mut scratch)?);
    Ok(match which {
        Which::Evaluate { mean, var } => {
            norm.evaluate_backward(&stream(device)?, io, slice(device, mean)?, slice(device, var)?)
        }
        _ => norm.train_backward(&stream(device)?, io),
    }?)
}

/// Queues the move of running statistics by those of a batch of InstanceNorm.
pub(super) fn instances(saved: &Tensor, after: &mut After, momentum: f64, count: usize) -> Result<(), Failure> {
    let device = saved.device();
    match running(device, after)? {
        Some(mut running) => Ok(running.instances(&stream(device)?, momentum, stats(device, saved)?, count)?),
        None => Ok(()),
    }
}

impl Layout {
    fn planes<'a>(&self, device: Device, tensor: &'a Tensor) -> Result<Planes<'a>, Failure> {
        let make = if self.last { Planes::channels_last } else { Planes::channels_first };
        Ok(make(slice(device, tensor)?, self.channels, self.spatial))
    }

    fn written<'a>(&self, device: Device, tensor: &'a mut TensorMut) -> Result<PlanesMut<'a>, Failure> {
        let make = if self.last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        Ok(make(slice_mut(device, tensor)?, self.channels, self.spatial))
    }
}

fn running(device: Device, after: &mut After) -> Result<Option<Running<'_>>, Failure> {
    let Some([mean, var]) = after.tensors() else { return Ok(None) };
    Ok(Some(Running::new(slice_mut(device, mean)?, slice_mut(device, var)?)))
}

/// Memory that the caching allocator gives to later work of this stream alone.
fn scratch(values: usize, x: isonorm::DType, device: Device) -> Result<TensorMut, Failure> {
    TensorMut::new(&[values as i64], rules::compute(x), device)
}

fn batch_norm<'a>(
    options: &Options,
    layout: Layout,
    params: &'a Params,
    device: Device,
) -> Result<BatchNorm<'a>, Failure> {
    let mut norm = BatchNorm::new(layout.channels).eps(options.eps).weight_offset(options.offset(params));
    if let Some(weight) = &params.weight {
        norm = norm.weight(slice(device, weight)?);
    }
    params.bias.as_ref().map_or(Ok(norm), |bias| Ok(norm.bias(slice(device, bias)?)))
}

fn group_norm<'a>(
    options: &Options,
    groups: i64,
    layout: Layout,
    params: &'a Params,
    device: Device,
) -> Result<GroupNorm<'a>, Failure> {
    let groups = groups.max(0) as usize;
    rules::check_groups(groups, layout.channels)?;
    let mut norm = GroupNorm::new(groups, layout.channels).eps(options.eps);
    norm = norm.weight_offset(options.offset(params));
    if let Some(weight) = &params.weight {
        norm = norm.weight(slice(device, weight)?);
    }
    params.bias.as_ref().map_or(Ok(norm), |bias| Ok(norm.bias(slice(device, bias)?)))
}
