//! The norms of channels: what a call's tensors are to the core.

use isonorm::{BatchNorm, DType, GroupNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut, Running};

use super::cuda_planes;
use super::device::Device;
use super::failure::Failure;
use super::pool::cpu;
use super::rows::{Params, gradient, slice_of};
use super::shape::{channels_last_strides, contiguous_strides};
use super::tensor::{Dims, Tensor, TensorMut};

/// How a tensor `[samples, channels, ...]` lies in memory, and the sizes that the core asks for.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Layout {
    pub(super) last: bool,
    pub(super) samples: usize,
    pub(super) channels: usize,
    pub(super) spatial: usize,
}

impl Layout {
    /// Of `x`, which is copied unless its channels lie first or last without gaps.
    pub(super) fn of(x: Tensor) -> Result<(Tensor, Layout), Failure> {
        let shape = x.shape()?;
        let &[_, channels, ref spatial @ ..] = shape.sizes else {
            let dims = shape.sizes.len();
            return Err(Failure::new(format!("Expected at least 2 dimensions (N, C, ...), but got {dims}")));
        };
        let is_first = shape.is_contiguous();
        let last = !is_first && shape.is_channels_last();
        let spatial = spatial.iter().product::<i64>() as usize;
        let layout = Layout { last, samples: samples_of(&x)?, channels: channels as usize, spatial };
        let is_plain = (is_first || last) && x.is_aligned()?;
        let x = if is_plain { x } else { x.copied(&layout.strides(x.shape()?.sizes))? };
        Ok((x, layout))
    }

    fn strides(&self, sizes: &[i64]) -> Dims {
        if self.last { channels_last_strides(sizes) } else { contiguous_strides(sizes) }
    }

    /// `tensor` if it lies in memory in this way, else a copy that does.
    pub(super) fn arranged(&self, tensor: Tensor) -> Result<Tensor, Failure> {
        if self.is_of(&tensor)? { Ok(tensor) } else { tensor.copied(&self.strides(tensor.shape()?.sizes)) }
    }

    pub(super) fn is_of(&self, tensor: &Tensor) -> Result<bool, Failure> {
        let shape = tensor.shape()?;
        let fits = if self.last { shape.is_channels_last() } else { shape.is_contiguous() };
        Ok(fits && tensor.is_aligned()?)
    }

    /// A new tensor with the shape and memory order of `x`.
    pub(super) fn new_like(&self, x: &Tensor, dtype: DType) -> Result<TensorMut, Failure> {
        let sizes = x.shape()?.sizes;
        TensorMut::strided(sizes, &self.strides(sizes), dtype, x.device())
    }

    pub(super) fn read<'a>(&self, tensor: &'a Tensor) -> Result<Planes<'a>, Failure> {
        let make = if self.last { Planes::channels_last } else { Planes::channels_first };
        Ok(make(tensor.slice()?, self.channels, self.spatial))
    }

    pub(super) fn write<'a>(&self, tensor: &'a mut TensorMut) -> Result<PlanesMut<'a>, Failure> {
        let make = if self.last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        Ok(make(tensor.slice()?, self.channels, self.spatial))
    }
}

/// The samples of `x`, as the core counts them: samples without elements are none.
pub(super) fn samples_of(x: &Tensor) -> Result<usize, Failure> {
    Ok(match x.shape()?.sizes {
        [samples, sample @ ..] if !sample.contains(&0) => *samples as usize,
        _ => 0,
    })
}

/// Options that norms of channels share.
#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) eps: f64,
    pub(super) weight_offset: f64,
}

/// Which norm.
pub(super) enum Which<'a> {
    /// BatchNorm by the batch's own statistics; the running ones move.
    Train { momentum: f64, after: &'a mut After },
    /// BatchNorm by running statistics, contiguous.
    Evaluate { mean: &'a Tensor, var: &'a Tensor },
    /// GroupNorm.
    Groups(i64),
}

/// Copies of running statistics, to be updated; nothing where there are none.
pub(super) struct After {
    are_there: bool,
    pub(super) mean: TensorMut,
    pub(super) var: TensorMut,
}

impl After {
    /// Beside an x of this type on this device.
    pub(super) fn of(mean: Option<Tensor>, var: Option<Tensor>, x: DType, device: Device) -> Result<After, Failure> {
        let copy = |running: &Option<Tensor>| {
            let Some(running) = running else { return TensorMut::nothing(x, device) };
            let mut copy = TensorMut::new(running.shape()?.sizes, running.dtype()?, device)?;
            copy.copy_from(running)?;
            Ok(copy)
        };
        Ok(After { are_there: mean.is_some() && var.is_some(), mean: copy(&mean)?, var: copy(&var)? })
    }

    /// Mean and variance, where there are any.
    pub(super) fn tensors(&mut self) -> Option<[&mut TensorMut; 2]> {
        self.are_there.then_some([&mut self.mean, &mut self.var])
    }

    /// The same, as the core takes them.
    pub(super) fn running(&mut self) -> Result<Option<Running<'_>>, Failure> {
        let Some([mean, var]) = self.tensors() else { return Ok(None) };
        Ok(Some(Running::new(mean.slice()?, var.slice()?)))
    }
}

/// The tensors of a forward call.
pub(super) struct Forward<'a> {
    pub(super) layout: Layout,
    /// `None`: what y holds.
    pub(super) x: Option<&'a Tensor>,
    pub(super) y: &'a mut TensorMut,
    pub(super) stats: Option<&'a mut TensorMut>,
}

/// The tensors of a backward call.
pub(super) struct Gradients<'a> {
    pub(super) layout: Layout,
    pub(super) x: &'a Tensor,
    pub(super) dy: &'a Tensor,
    pub(super) dx: &'a mut TensorMut,
    pub(super) dweight: Option<&'a mut TensorMut>,
    pub(super) dbias: Option<&'a mut TensorMut>,
    /// What forward saved, if its statistics were the batch's.
    pub(super) stats: Option<&'a Tensor>,
}

impl Options {
    // Without a weight torch's modules have nothing that an offset could be added to.
    pub(super) fn offset(&self, params: &Params) -> f64 {
        if params.weight.is_some() { self.weight_offset } else { 0.0 }
    }

    fn batch_norm<'a>(&self, channels: usize, params: &'a Params) -> Result<BatchNorm<'a>, Failure> {
        let mut norm = BatchNorm::new(channels).eps(self.eps).weight_offset(self.offset(params)).on(cpu());
        norm = slice_of(&params.weight)?.map_or(norm, |weight| norm.weight(weight));
        Ok(slice_of(&params.bias)?.map_or(norm, |bias| norm.bias(bias)))
    }

    fn group_norm<'a>(&self, groups: i64, channels: usize, params: &'a Params) -> Result<GroupNorm<'a>, Failure> {
        let mut norm = GroupNorm::new(groups.max(0) as usize, channels).eps(self.eps);
        norm = norm.weight_offset(self.offset(params)).on(cpu());
        norm = slice_of(&params.weight)?.map_or(norm, |weight| norm.weight(weight));
        Ok(slice_of(&params.bias)?.map_or(norm, |bias| norm.bias(bias)))
    }

    /// Computes y, where the tensors are.
    pub(super) fn forward(&self, which: Which<'_>, params: &Params, call: Forward<'_>) -> Result<(), Failure> {
        let Device::Cpu = call.y.tensor().device() else { return cuda_planes::forward(self, which, params, call) };
        let (layout, y) = (call.layout, call.layout.write(call.y)?);
        let mut io = match call.x {
            Some(x) => PlaneIo::new(layout.read(x)?, y),
            None => PlaneIo::in_place(y),
        };
        if let Some(stats) = call.stats {
            io = io.stats(stats.stats()?);
        }
        Ok(match which {
            Which::Train { momentum, after } => {
                self.batch_norm(layout.channels, params)?.momentum(momentum).train(io, after.running()?)
            }
            Which::Evaluate { mean, var } => {
                self.batch_norm(layout.channels, params)?.evaluate(io, mean.slice()?, var.slice()?)
            }
            Which::Groups(groups) => self.group_norm(groups, layout.channels, params)?.apply(io),
        }?)
    }

    /// Computes dx and whatever gradients are asked for, where the tensors are.
    pub(super) fn backward(&self, which: Which<'_>, params: &Params, call: Gradients<'_>) -> Result<(), Failure> {
        let Device::Cpu = call.x.device() else { return cuda_planes::backward(self, which, params, call) };
        let channels = call.layout.channels;
        match which {
            Which::Groups(groups) => self.backward_on_cpu(groups, params, call, |io| io),
            Which::Train { .. } => Ok(self.batch_norm(channels, params)?.train_backward(call.io()?)?),
            Which::Evaluate { mean, var } => {
                let norm = self.batch_norm(channels, params)?;
                Ok(norm.evaluate_backward(call.io()?, mean.slice()?, var.slice()?)?)
            }
        }
    }

    /// GroupNorm's, with more than `call` says.
    pub(super) fn backward_on_cpu<'a>(
        &self,
        groups: i64,
        params: &Params,
        call: Gradients<'a>,
        more: impl FnOnce(PlaneBackwardIo<'a>) -> PlaneBackwardIo<'a>,
    ) -> Result<(), Failure> {
        let norm = self.group_norm(groups, call.layout.channels, params)?;
        Ok(norm.backward(more(call.io()?))?)
    }
}

impl<'a> Gradients<'a> {
    /// As the core takes them.
    fn io(self) -> Result<PlaneBackwardIo<'a>, Failure> {
        let Gradients { layout, x, dy, dx, dweight, dbias, stats } = self;
        let mut io = PlaneBackwardIo::new(layout.read(x)?, layout.read(dy)?, layout.write(dx)?);
        if let Some(dweight) = dweight {
            io = io.dweight(dweight.slice()?);
        }
        if let Some(dbias) = dbias {
            io = io.dbias(dbias.slice()?);
        }
        Ok(match stats {
            Some(stats) => io.stats(stats.stats()?),
            None => io,
        })
    }
}

/// Writes y where a caller wants it: `apply` gets the tensors of the call, in place if `out` is x.
pub(super) fn write_out(
    x: Tensor,
    params: &mut Params,
    out: Tensor,
    apply: impl FnOnce(&Params, Forward<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut x, layout) = Layout::of(x)?;
    let (expected, found) = (x.shape()?.sizes, out.shape()?.sizes);
    if expected != found {
        return Err(Failure::new(format!("out has shape {found:?}, expected {expected:?} as the input has")));
    }
    x.device().check(out.device())?;
    let (mut y, in_place) = TensorMut::beside(out, &mut x, params)?;
    if !layout.is_of(y.tensor())? || !layout.is_of(&x)? {
        let x = layout.arranged(x)?;
        let mut new = layout.new_like(&x, y.tensor().dtype()?)?;
        apply(params, Forward { layout, x: Some(&x), y: &mut new, stats: None })?;
        return y.copy_from(new.tensor());
    }
    apply(params, Forward { layout, x: (!in_place).then_some(&x), y: &mut y, stats: None })
}

/// What a backward call reads besides the parameters, and which of their gradients it writes.
pub(super) struct Backward {
    pub(super) dy: Tensor,
    pub(super) x: Tensor,
    pub(super) dweight: bool,
    pub(super) dbias: bool,
}

impl Backward {
    /// dx, dweight and dbias from what `compute` writes.
    pub(super) fn run(
        self,
        params: &Params,
        compute: impl FnOnce(Gradients<'_>) -> Result<(), Failure>,
    ) -> Result<[Tensor; 3], Failure> {
        let (x, layout) = Layout::of(self.x)?;
        let (dy, dtype) = (layout.arranged(self.dy)?, x.dtype()?);
        let mut dx = layout.new_like(&x, dtype)?;
        let wants = [self.dweight && params.weight.is_some(), self.dbias && params.bias.is_some()];
        let mut dweight = gradient(&params.weight, wants[0], dtype, x.device())?;
        let mut dbias = gradient(&params.bias, wants[1], dtype, x.device())?;
        compute(Gradients {
            layout,
            x: &x,
            dy: &dy,
            dx: &mut dx,
            dweight: wants[0].then_some(&mut dweight),
            dbias: wants[1].then_some(&mut dbias),
            stats: None,
        })?;
        Ok([dx, dweight, dbias].map(TensorMut::into_tensor))
    }
}
