//! Operators on GPUs: what a call's tensors are to `isonorm-cuda`, on torch's current stream.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::OnceLock;

use isonorm::{Recipe, rules};
use isonorm_cuda::{self as gpu, BackwardIo, Io, Rows, RowsMut, Slice, SliceMut, Stream};
use libloading::Library;

use super::device::{Device, is_emulated};
use super::failure::Failure;
use super::rows::{Backward, Forward, Leading, Params, RowNorm};
use super::shim;
use super::tensor::{Tensor, TensorMut};

/// Queues y, and r where there is one.
pub(super) fn forward(norm: &RowNorm, hidden: usize, params: &Params, call: Forward<'_>) -> Result<(), Failure> {
    let Forward { x, y, sum } = call;
    let device = y.tensor().device();
    let leading = [Leading::of(y.tensor(), norm.dims)?, Leading::of(x.unwrap_or(y.tensor()), norm.dims)?];
    let io = match (x, sum) {
        (None, None) => Io::in_place(rows_mut(device, y, &leading[0])?),
        (Some(x), None) => Io::new(rows(device, x, &leading[1])?, rows_mut(device, y, &leading[0])?),
        (x, Some((residual, r))) => {
            let of_r = Leading::of(r.tensor(), norm.dims)?;
            let of_residual = residual.map(|residual| Leading::of(residual, norm.dims)).transpose()?;
            let to = (rows_mut(device, r, &of_r)?, rows_mut(device, y, &leading[0])?);
            let io = match (x, residual, &of_residual) {
                (Some(x), Some(residual), Some(of_residual)) => {
                    Io::add(rows(device, x, &leading[1])?, rows(device, residual, of_residual)?, to.0, to.1)
                }
                _ => Io::add_in_place(to.1, to.0),
            };
            return Ok(norm_of(norm, hidden, params, device)?.forward(&stream(device)?, io)?);
        }
    };
    Ok(norm_of(norm, hidden, params, device)?.forward(&stream(device)?, io)?)
}

/// Queues dx and whatever gradients are asked for.
pub(super) fn backward(norm: &RowNorm, hidden: usize, params: &Params, call: Backward<'_>) -> Result<(), Failure> {
    let Backward { x, dy, dx, dresidual, dr, dweight, dbias } = call;
    let (device, dtype) = (x.device(), x.dtype()?);
    let core = norm_of(norm, hidden, params, device)?;
    let count = x.shape()?.sizes.iter().product::<i64>() as usize / hidden.max(1);
    let stream = stream(device)?;
    let is_summed = dweight.is_some() || dbias.is_some();
    let needed = if is_summed { core.scratch(stream.device(), count, dtype) } else { 0 };
    let mut scratch = TensorMut::new(&[needed as i64], rules::compute(dtype), device)?;
    let leading = |tensor: &Tensor| Leading::of(tensor, norm.dims);
    let of = (leading(x)?, leading(dy)?, leading(dx.tensor())?);
    let mut io = BackwardIo::new(rows(device, x, &of.0)?, rows(device, dy, &of.1)?, rows_mut(device, dx, &of.2)?);
    let of_dresidual = dresidual.map(leading).transpose()?;
    if let (Some(dresidual), Some(leading)) = (dresidual, &of_dresidual) {
        io = io.dresidual(rows(device, dresidual, leading)?);
    }
    let of_dr = dr.as_ref().map(|dr| leading(dr.tensor())).transpose()?;
    if let (Some(dr), Some(leading)) = (dr, &of_dr) {
        io = io.dr(rows_mut(device, dr, leading)?);
    }
    if let Some(dweight) = dweight {
        io = io.dweight(slice_mut(device, dweight)?);
    }
    if let Some(dbias) = dbias {
        io = io.dbias(slice_mut(device, dbias)?);
    }
    // The caching allocator gives the memory to later work of this stream alone.
    let io = io.scratch(slice_mut(device, &mut scratch)?);
    Ok(core.backward(&stream, io)?)
}

fn norm_of<'a>(norm: &RowNorm, hidden: usize, params: &'a Params, device: Device) -> Result<gpu::RowNorm<'a>, Failure> {
    let mut core = if norm.centered { gpu::RowNorm::layer(hidden) } else { gpu::RowNorm::rms(hidden) };
    core = core.eps(norm.eps).recipe(if norm.llama && !norm.centered { Recipe::Llama } else { Recipe::Torch });
    if let Some(weight) = &params.weight {
        // Without a weight torch's modules have nothing that an offset could be added to.
        core = core.weight(slice(device, weight)?).weight_offset(norm.weight_offset);
    }
    params.bias.as_ref().map_or(Ok(core), |bias| Ok(core.bias(slice(device, bias)?)))
}

/// A tensor's elements, which must be on the call's device.
pub(super) fn slice(device: Device, tensor: &Tensor) -> Result<Slice<'_>, Failure> {
    device.check(tensor.device())?;
    let (data, len, dtype) = tensor.memory()?;
    // SAFETY: the memory is the tensor's, on this device; torch's allocator keeps it for this stream's work.
    Ok(unsafe { Slice::from_raw(data, len, dtype) })
}

pub(super) fn slice_mut(device: Device, tensor: &mut TensorMut) -> Result<SliceMut<'_>, Failure> {
    let found = slice(device, tensor.tensor())?;
    let (data, len, dtype) = tensor.tensor().memory()?;
    debug_assert_eq!(found.len(), len);
    // SAFETY: as for `slice`; a `TensorMut` is new, or no other input of the call lies in its memory.
    Ok(unsafe { SliceMut::from_raw(data, len, dtype) })
}

/// Saved statistics.
pub(super) fn stats(device: Device, tensor: &Tensor) -> Result<Slice<'_>, Failure> {
    tensor.check_stats()?;
    slice(device, tensor)
}

fn rows<'a>(device: Device, tensor: &'a Tensor, leading: &'a Leading) -> Result<Rows<'a>, Failure> {
    let data = slice(device, tensor)?;
    Ok(leading.dims().map_or(data.into(), |(lens, strides)| Rows::strided(data, 0, lens, strides)))
}

fn rows_mut<'a>(device: Device, tensor: &'a mut TensorMut, leading: &'a Leading) -> Result<RowsMut<'a>, Failure> {
    let data = slice_mut(device, tensor)?;
    Ok(match leading.dims() {
        None => data.into(),
        Some((lens, strides)) => RowsMut::strided(data, 0, lens, strides),
    })
}

/// torch's current stream on this thread.
pub(super) fn stream(device: Device) -> Result<Stream<'static>, Failure> {
    let Device::Cuda(index) = device else { return Err(Failure::new("isonorm: the tensors are on no GPU")) };
    let mut raw = null_mut();
    if !is_emulated() {
        let current = current_stream()?;
        // SAFETY: the index is a tensor's, and the stream is written to a local.
        if unsafe { current(index, &mut raw) } != 0 {
            return Err(shim::refused("aoti_torch_get_current_cuda_stream"));
        }
    }
    // SAFETY: torch's streams are of the device's primary context and are never destroyed.
    Ok(unsafe { Stream::from_raw(gpu_of(index as usize)?, raw) })
}

/// The GPU of this number.
fn gpu_of(index: usize) -> Result<gpu::Device, Failure> {
    static GPUS: [OnceLock<gpu::Device>; 16] = [const { OnceLock::new() }; 16];
    if let Some(found) = GPUS.get(index).and_then(OnceLock::get) {
        return Ok(*found);
    }
    let found = gpu::Device::new(index)?;
    Ok(GPUS.get(index).map_or(found, |known| *known.get_or_init(|| found)))
}

type CurrentStream = unsafe extern "C-unwind" fn(i32, *mut *mut c_void) -> i32;

/// The function that says which stream is current, in the part of libtorch that is there where CUDA is.
fn current_stream() -> Result<CurrentStream, Failure> {
    static FOUND: OnceLock<CurrentStream> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let name = if cfg!(windows) { "torch_cuda.dll" } else { "libtorch_cuda.so" };
    let path = shim::library_path()?.with_file_name(name);
    let failed =
        |error| Failure::new(format!("isonorm: GPUs are reached through torch's {name}, and that failed: {error}"));
    // SAFETY: torch has loaded the library, whose initializers have run.
    let library = unsafe { Library::new(path) }.map_err(failed)?;
    // SAFETY: the signature is the one of the C header, the same in all versions.
    let found = *unsafe { library.get::<CurrentStream>("aoti_torch_get_current_cuda_stream") }.map_err(failed)?;
    std::mem::forget(library);
    Ok(*FOUND.get_or_init(|| found))
}
