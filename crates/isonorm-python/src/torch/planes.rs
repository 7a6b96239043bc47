//! The norms of channels: what a call's tensors are to the core.

use isonorm::{BatchNorm, DType, GroupNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut};

use super::failure::Failure;
use super::pool::cpu;
use super::rows::{Params, gradient, slice_of};
use super::shape::{channels_last_strides, contiguous_strides};
use super::tensor::{Dims, Tensor, TensorMut};

/// How a tensor `[samples, channels, ...]` lies in memory, and the sizes that the core asks for.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Layout {
    last: bool,
    pub(super) samples: usize,
    pub(super) channels: usize,
    spatial: usize,
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

impl Options {
    // Without a weight torch's modules have nothing that an offset could be added to.
    fn offset(&self, params: &Params) -> f64 {
        if params.weight.is_some() { self.weight_offset } else { 0.0 }
    }

    pub(super) fn batch_norm<'a>(&self, channels: usize, params: &'a Params) -> Result<BatchNorm<'a>, Failure> {
        let mut norm = BatchNorm::new(channels).eps(self.eps).weight_offset(self.offset(params)).on(cpu());
        norm = slice_of(&params.weight)?.map_or(norm, |weight| norm.weight(weight));
        Ok(slice_of(&params.bias)?.map_or(norm, |bias| norm.bias(bias)))
    }

    pub(super) fn group_norm<'a>(
        &self,
        groups: i64,
        channels: usize,
        params: &'a Params,
    ) -> Result<GroupNorm<'a>, Failure> {
        let mut norm = GroupNorm::new(groups.max(0) as usize, channels).eps(self.eps);
        norm = norm.weight_offset(self.offset(params)).on(cpu());
        norm = slice_of(&params.weight)?.map_or(norm, |weight| norm.weight(weight));
        Ok(slice_of(&params.bias)?.map_or(norm, |bias| norm.bias(bias)))
    }
}

/// Writes y where a caller wants it: `apply` gets the tensors of the call, in place if `out` is x.
pub(super) fn write_out(
    x: Tensor,
    params: &mut Params,
    out: Tensor,
    apply: impl FnOnce(&Params, PlaneIo<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut x, layout) = Layout::of(x)?;
    let (expected, found) = (x.shape()?.sizes, out.shape()?.sizes);
    if expected != found {
        return Err(Failure::new(format!("out has shape {found:?}, expected {expected:?} as the input has")));
    }
    let (mut y, in_place) = TensorMut::beside(out, &mut x, params)?;
    if !layout.is_of(y.tensor())? || !layout.is_of(&x)? {
        let x = layout.arranged(x)?;
        let mut new = layout.new_like(&x, y.tensor().dtype()?)?;
        apply(params, PlaneIo::new(layout.read(&x)?, layout.write(&mut new)?))?;
        return y.copy_from(new.tensor());
    }
    let io = match in_place {
        true => PlaneIo::in_place(layout.write(&mut y)?),
        false => PlaneIo::new(layout.read(&x)?, layout.write(&mut y)?),
    };
    apply(params, io)
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
        compute: impl FnOnce(Layout, PlaneBackwardIo<'_>) -> Result<(), Failure>,
    ) -> Result<[Tensor; 3], Failure> {
        let (x, layout) = Layout::of(self.x)?;
        let (dy, dtype) = (layout.arranged(self.dy)?, x.dtype()?);
        let mut dx = layout.new_like(&x, dtype)?;
        let mut dweight = gradient(&params.weight, self.dweight, dtype, x.device())?;
        let mut dbias = gradient(&params.bias, self.dbias, dtype, x.device())?;
        let mut io = PlaneBackwardIo::new(layout.read(&x)?, layout.read(&dy)?, layout.write(&mut dx)?);
        if self.dweight && params.weight.is_some() {
            io = io.dweight(dweight.slice()?);
        }
        if self.dbias && params.bias.is_some() {
            io = io.dbias(dbias.slice()?);
        }
        compute(layout, io)?;
        Ok([dx, dweight, dbias].map(TensorMut::into_tensor))
    }
}
