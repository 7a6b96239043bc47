//! Tensors of libtorch: a share in one that is read, and one that a kernel writes.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::null_mut;

use arrayvec::ArrayVec;
use half::{bf16, f16};
use isonorm::{DType, Slice, SliceMut, Stats, StatsMut, StatsRef};

use super::device::Device;
use super::failure::Failure;
use super::pages::ask_for;
use super::rows::Params;
use super::shape::{Shape, contiguous_strides};
use super::shim::{Handle, call, shim};

/// The most dimensions of a tensor.
pub(super) const MAX_RANK: usize = 64;
/// The number of floats in the statistics of one row, group or channel.
const STATS: usize = 5;

const _: () = assert!(size_of::<Stats<f32>>() == STATS * 4 && size_of::<Stats<f64>>() == STATS * 8);

/// A tensor, and this handle's share in it. What a kernel asks for again and again is asked of libtorch once.
pub(super) struct Tensor {
    handle: Handle,
    dims: usize,
    sizes: *mut i64,
    strides: *mut i64,
    data: *mut c_void,
    dtype: Result<DType, &'static str>,
    is_bool: bool,
    device: Device,
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // The status could only say that the handle is null.
        let _ = call!(aoti_torch_delete_tensor_object(self.handle));
    }
}

impl Tensor {
    /// The owner of a handle.
    ///
    /// # Safety
    ///
    /// `handle` is live and nobody else's.
    pub(super) unsafe fn from_handle(handle: Handle) -> Tensor {
        let (mut dims, mut code) = (0, 0);
        let (mut sizes, mut strides, mut data) = (null_mut(), null_mut(), null_mut());
        let is_known = call!(aoti_torch_get_dim(handle, &mut dims)).is_ok()
            && call!(aoti_torch_get_sizes(handle, &mut sizes)).is_ok()
            && call!(aoti_torch_get_strides(handle, &mut strides)).is_ok()
            && call!(aoti_torch_get_data_ptr(handle, &mut data)).is_ok()
            && call!(aoti_torch_get_dtype(handle, &mut code)).is_ok();
        let dtype = match shim().dtypes.iter().find(|(known, _)| *known == code) {
            _ if !is_known => Err("isonorm: a tensor is not a plain one with strides and memory of its own"),
            Some((_, dtype)) => Ok(*dtype),
            None => Err("isonorm: tensors are float32, float64, float16 or bfloat16, got another dtype"),
        };
        let is_bool = is_known && code == shim().bool_code;
        Tensor { handle, dims: dims as usize, sizes, strides, data, dtype, is_bool, device: Device::of(handle) }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    pub(super) fn into_handle(self) -> Handle {
        let handle = self.handle;
        std::mem::forget(self);
        handle
    }

    /// Sizes and strides.
    #[inline]
    pub(super) fn shape(&self) -> Result<Shape<'_>, Failure> {
        self.dtype()?;
        // SAFETY: libtorch gave them, `dims` of each, and they live as long as the tensor does.
        Ok(unsafe { Shape::from_raw(self.sizes, self.strides, self.dims) })
    }

    /// The storage type, of one that norms have.
    #[inline]
    pub(super) fn dtype(&self) -> Result<DType, Failure> {
        self.dtype.map_err(Failure::new)
    }

    /// The first element, and how many there are from it to the last, those between rows included.
    fn span(&self, size: usize) -> Result<(*mut c_void, usize), Failure> {
        let (data, len) = (self.data, self.shape()?.span());
        if len > 0 && data.is_null() {
            return Err(Failure::new("isonorm: a tensor has elements but no memory: its storage was resized or freed"));
        }
        if len > 0 && data.addr() % size != 0 {
            return Err(Failure::new("isonorm: a tensor's memory is not aligned to its elements"));
        }
        Ok((data, len))
    }

    /// The same, for kernels of a GPU, with the type.
    pub(super) fn memory(&self) -> Result<(*mut c_void, usize, DType), Failure> {
        let dtype = self.dtype()?;
        let (data, len) = self.span(dtype.size())?;
        Ok((data, len, dtype))
    }

    /// The same, of a tensor on the CPU.
    fn span_on_cpu(&self, size: usize) -> Result<(*mut c_void, usize), Failure> {
        Device::Cpu.check(self.device)?;
        self.span(size)
    }

    /// Whether its memory is where elements of its type can be.
    pub(super) fn is_aligned(&self) -> Result<bool, Failure> {
        Ok(self.data.addr().is_multiple_of(self.dtype()?.size()))
    }

    /// Its elements, in memory order, and what lies between them.
    pub(super) fn slice(&self) -> Result<Slice<'_>, Failure> {
        let dtype = self.dtype()?;
        let (data, len) = self.span_on_cpu(dtype.size())?;
        // For each arm: the memory has `len` elements of this type and lives as long as the tensor. Writers are
        // kept apart from it: `TensorMut`.
        Ok(match dtype {
            // SAFETY: as said above.
            DType::F32 => Slice::F32(unsafe { read(data, len) }),
            // SAFETY: as said above.
            DType::F64 => Slice::F64(unsafe { read(data, len) }),
            // SAFETY: as said above.
            DType::F16 => Slice::F16(unsafe { read::<f16>(data, len) }),
            // SAFETY: as said above.
            DType::Bf16 => Slice::Bf16(unsafe { read::<bf16>(data, len) }),
        })
    }

    /// The elements of a tensor of bools, one after another.
    pub(super) fn flags(&self) -> Result<Vec<bool>, Failure> {
        if !self.is_bool {
            return Err(Failure::new("isonorm: a mask is a tensor of bools"));
        }
        // SAFETY: libtorch gave them, `dims` of each, and they live as long as the tensor does.
        let shape = unsafe { Shape::from_raw(self.sizes, self.strides, self.dims) };
        Device::Cpu.check(self.device)?;
        let len = shape.span();
        if !shape.is_contiguous() || (len > 0 && self.data.is_null()) {
            return Err(Failure::new("isonorm: a mask is contiguous, in memory of its own"));
        }
        // SAFETY: the memory has `len` bytes and lives as long as the tensor; torch lets them be others than 0 and 1.
        let bytes = unsafe { read::<u8>(self.data, len) };
        Ok(bytes.iter().map(|byte| *byte != 0).collect())
    }

    /// Statistics that [`TensorMut::stats`] was.
    pub(super) fn stats(&self) -> Result<StatsRef<'_>, Failure> {
        self.check_stats()?;
        let dtype = self.dtype()?;
        let (data, len) = self.span_on_cpu(dtype.size())?;
        // For each arm: `Stats` are five floats without padding, and any bits are floats.
        Ok(match dtype {
            // SAFETY: as said above.
            DType::F64 => StatsRef::F64(unsafe { read(data, len / STATS) }),
            // SAFETY: as said above.
            _ => StatsRef::F32(unsafe { read(data, len / STATS) }),
        })
    }

    /// Refuses what no [`TensorMut::for_stats`] has made.
    pub(super) fn check_stats(&self) -> Result<(), Failure> {
        let is_type = matches!(self.dtype()?, DType::F32 | DType::F64);
        let shape = self.shape()?;
        let is_shape = matches!(shape.sizes, [_, n] if *n == STATS as i64) && shape.is_contiguous();
        if is_type && is_shape { Ok(()) } else { Err(Failure::new("isonorm: these are no saved statistics")) }
    }

    /// The bytes between its first element and its last.
    fn bytes(&self) -> Result<Range<usize>, Failure> {
        let size = self.dtype()?.size();
        let (start, len) = (self.data.addr(), self.shape()?.span());
        Ok(start..start + len * size)
    }

    /// Itself, or a copy, with its elements one after another.
    pub(super) fn contiguous(self) -> Result<Tensor, Failure> {
        let is_plain = self.shape()?.is_contiguous() && self.is_aligned()?;
        if is_plain { Ok(self) } else { self.copied(&contiguous_strides(self.shape()?.sizes)) }
    }

    /// Contiguous, and not in the memory of `out`.
    pub(super) fn apart_from(self, out: &Tensor) -> Result<Tensor, Failure> {
        let is_apart = !overlap(&self, out)?;
        if is_apart { self.contiguous() } else { self.copied(&contiguous_strides(self.shape()?.sizes)) }
    }

    /// A copy whose elements follow one another in the order of `strides`.
    pub(super) fn copied(&self, strides: &[i64]) -> Result<Tensor, Failure> {
        let copy = TensorMut::strided(self.shape()?.sizes, strides, self.dtype()?, self.device)?;
        call!(aoti_torch_copy_(copy.0.handle, self.handle, 0))?;
        Ok(copy.0)
    }
}

/// # Safety
///
/// `len` values of `T` at `data`, which nobody writes.
unsafe fn read<'a, T>(data: *mut c_void, len: usize) -> &'a [T] {
    // SAFETY: by the caller's word; a slice without elements needs no memory.
    if len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(data.cast(), len) } }
}

/// # Safety
///
/// `len` values of `T` at `data`, which nobody else reads or writes.
unsafe fn write<'a, T>(data: *mut c_void, len: usize) -> &'a mut [T] {
    // SAFETY: by the caller's word; a slice without elements needs no memory.
    if len == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(data.cast(), len) } }
}

fn overlap(a: &Tensor, b: &Tensor) -> Result<bool, Failure> {
    let (a, b) = (a.bytes()?, b.bytes()?);
    Ok(a.start < b.end && b.start < a.end)
}

/// A tensor that a kernel writes: new, or kept apart from those that it reads.
pub(super) struct TensorMut(Tensor);

impl TensorMut {
    /// A new tensor of contiguous rows.
    pub(super) fn new(sizes: &[i64], dtype: DType, device: Device) -> Result<TensorMut, Failure> {
        Self::strided(sizes, &contiguous_strides(sizes), dtype, device)
    }

    /// A new tensor that lies in memory as `strides` say.
    pub(super) fn strided(sizes: &[i64], strides: &[i64], dtype: DType, device: Device) -> Result<TensorMut, Failure> {
        let code = shim().dtypes.iter().find(|(_, known)| *known == dtype).map_or(0, |(code, _)| *code);
        let (dims, (kind, index), mut handle) = (sizes.len() as i64, device.codes(), null_mut());
        call!(aoti_torch_empty_strided(dims, sizes.as_ptr(), strides.as_ptr(), code, kind, index, &mut handle))?;
        // SAFETY: the handle is new.
        let tensor = unsafe { Tensor::from_handle(handle) };
        if device == Device::Cpu {
            ask_for(tensor.data, tensor.bytes()?.len());
        }
        Ok(TensorMut(tensor))
    }

    /// What stands for a result that was not asked for.
    pub(super) fn nothing(dtype: DType, device: Device) -> Result<TensorMut, Failure> {
        Self::new(&[0], dtype, device)
    }

    /// Memory for the statistics of `count` rows, groups or channels of an x of type `dtype`.
    pub(super) fn for_stats(count: usize, dtype: DType, device: Device) -> Result<TensorMut, Failure> {
        let dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        Self::new(&[count as i64, STATS as i64], dtype, device)
    }

    /// A caller's tensor. Of `params`, those that share memory with it are copied first, so that nothing reads what is
    /// written.
    pub(super) fn of(tensor: Tensor, params: &mut Params) -> Result<TensorMut, Failure> {
        for param in [&mut params.weight, &mut params.bias].into_iter().flatten() {
            if overlap(&tensor, param)? {
                *param = param.copied(&contiguous_strides(param.shape()?.sizes))?;
            }
        }
        Ok(TensorMut(tensor))
    }

    /// The same beside `x`, which is copied too; but not where its elements are the very ones that are written: `true`
    /// says that it must be computed in place.
    pub(super) fn beside(tensor: Tensor, x: &mut Tensor, params: &mut Params) -> Result<(TensorMut, bool), Failure> {
        let (shares, is_same) = (overlap(&tensor, x)?, x.dtype()? == tensor.dtype()? && x.bytes()? == tensor.bytes()?);
        let is_in_place = shares && is_same && x.shape()?.is_same(&tensor.shape()?);
        if shares && !is_in_place {
            *x = x.copied(&contiguous_strides(x.shape()?.sizes))?;
        }
        Ok((Self::of(tensor, params)?, is_in_place))
    }

    /// Whether the two share memory.
    pub(super) fn overlaps(&self, other: &TensorMut) -> Result<bool, Failure> {
        overlap(&self.0, &other.0)
    }

    pub(super) fn tensor(&self) -> &Tensor {
        &self.0
    }

    pub(super) fn into_tensor(self) -> Tensor {
        self.0
    }

    /// Its elements, in memory order, and what lies between them.
    pub(super) fn slice(&mut self) -> Result<SliceMut<'_>, Failure> {
        let dtype = self.0.dtype()?;
        let (data, len) = self.0.span_on_cpu(dtype.size())?;
        // For each arm: as for `Tensor::slice`; a `TensorMut` is new, or no input of the call lies in its memory.
        Ok(match dtype {
            // SAFETY: as said above.
            DType::F32 => SliceMut::F32(unsafe { write(data, len) }),
            // SAFETY: as said above.
            DType::F64 => SliceMut::F64(unsafe { write(data, len) }),
            // SAFETY: as said above.
            DType::F16 => SliceMut::F16(unsafe { write::<f16>(data, len) }),
            // SAFETY: as said above.
            DType::Bf16 => SliceMut::Bf16(unsafe { write::<bf16>(data, len) }),
        })
    }

    /// As statistics, of one made [`for_stats`](Self::for_stats).
    pub(super) fn stats(&mut self) -> Result<StatsMut<'_>, Failure> {
        self.0.check_stats()?;
        let dtype = self.0.dtype()?;
        let (data, len) = self.0.span_on_cpu(dtype.size())?;
        // For each arm: `Stats` are five floats without padding, and the memory is this tensor's alone.
        Ok(match dtype {
            // SAFETY: as said above.
            DType::F64 => StatsMut::F64(unsafe { write(data, len / STATS) }),
            // SAFETY: as said above.
            _ => StatsMut::F32(unsafe { write(data, len / STATS) }),
        })
    }

    /// Takes the values of `from`.
    pub(super) fn copy_from(&mut self, from: &Tensor) -> Result<(), Failure> {
        call!(aoti_torch_copy_(self.0.handle, from.handle, 0))
    }
}

/// Strides, or sizes, of a tensor.
pub(super) type Dims = ArrayVec<i64, MAX_RANK>;
