//! Unfinished gradients of parameters, which go on from one micro-batch to the next. An operator's arguments are
//! tensors and numbers, so it names them by number.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isonorm::{BackwardIo, DType, Partial};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::device::Device;
use super::failure::Failure;
use super::kernel::{Dtype, Kernel};
use super::planes::{Backward, Gradients, Options};
use super::rows::{AddBackward, Backward as RowBackward, Norm, Params, RowNorm, gradient};
use super::tensor::{Tensor, TensorMut};
use crate::error::raised;

type Shared = Arc<Mutex<Partial>>;

static PARTIALS: Mutex<(i64, BTreeMap<i64, Shared>)> = Mutex::new((0, BTreeMap::new()));

fn find(number: i64) -> Result<Shared, Failure> {
    let partials = PARTIALS.lock().unwrap_or_else(PoisonError::into_inner);
    partials.1.get(&number).cloned().ok_or_else(|| Failure::new("isonorm: these unfinished gradients are gone"))
}

/// Nobody else's meanwhile. A call that panicked may have left a part of its rows.
fn lock(partial: &Shared) -> Result<MutexGuard<'_, Partial>, Failure> {
    partial.lock().map_err(|_| Failure::new("isonorm: these unfinished gradients were lost when a call failed"))
}

/// The unfinished gradients of weight and bias of one norm: rows `start` to `end` of the whole batch.
#[pyclass(frozen, module = "isonorm._isonorm")]
pub(super) struct TorchPartial {
    /// What operators know it by.
    #[pyo3(get)]
    number: i64,
    partial: Shared,
}

impl TorchPartial {
    fn keep(partial: Partial) -> TorchPartial {
        let partial = Arc::new(Mutex::new(partial));
        let mut partials = PARTIALS.lock().unwrap_or_else(PoisonError::into_inner);
        partials.0 += 1;
        let number = partials.0;
        partials.1.insert(number, Arc::clone(&partial));
        TorchPartial { number, partial }
    }

    fn with<T>(&self, read: impl FnOnce(&Partial) -> T) -> PyResult<T> {
        let partial = lock(&self.partial).map_err(|failure| PyRuntimeError::new_err(failure.into_text()))?;
        Ok(read(&partial))
    }
}

impl Drop for TorchPartial {
    fn drop(&mut self) {
        PARTIALS.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.number);
    }
}

#[pymethods]
impl TorchPartial {
    /// Of rows of `columns` elements, or of samples of `columns` channels; `is_f64` says whether x is float64, `start`
    /// how many rows or samples come before.
    #[new]
    fn new(columns: usize, is_f64: bool, is_of_samples: bool, start: usize) -> TorchPartial {
        let new = if is_of_samples { Partial::samples } else { Partial::rows };
        TorchPartial::keep(new(if is_f64 { DType::F64 } else { DType::F32 }, columns, start))
    }

    #[getter]
    fn start(&self) -> PyResult<usize> {
        self.with(Partial::start)
    }

    #[getter]
    fn end(&self) -> PyResult<usize> {
        self.with(Partial::end)
    }

    /// For another process.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.with(Partial::to_bytes)?))
    }

    /// What `to_bytes` of several processes gave, put together.
    #[staticmethod]
    fn join(parts: Vec<Vec<u8>>) -> PyResult<TorchPartial> {
        let parts = parts.iter().map(|bytes| Partial::from_bytes(bytes)).collect::<Result<Vec<_>, _>>();
        parts.and_then(Partial::join).map(TorchPartial::keep).map_err(raised)
    }
}

/// The mask's flags, one for each row of the batch or of its padding.
fn flags(mask: &Option<Tensor>) -> Result<Option<Vec<bool>>, Failure> {
    mask.as_ref().map(Tensor::flags).transpose()
}

/// A call whose rows, but for those of the padding, go to `partial`.
fn accumulated<'a>(io: BackwardIo<'a>, mask: &'a Option<Vec<bool>>, partial: &'a mut Partial) -> BackwardIo<'a> {
    let io = io.partial(partial);
    match mask {
        Some(mask) => io.mask(mask),
        None => io,
    }
}

/// dx; the gradients of weight and bias are added to unfinished ones.
pub(super) struct RowNormBackwardPartial;

impl Kernel for RowNormBackwardPartial {
    const SCHEMA: &CStr = c"row_norm_backward_partial(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, int dims, \
        bool centered, float eps, float weight_offset, bool llama, Tensor? mask, int partial) -> Tensor";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool, Option<Tensor>, i64);
    type Results = Tensor;

    fn run(arguments: Self::Arguments) -> Result<Tensor, Failure> {
        let (dy, x, weight, bias, dims, centered, eps, weight_offset, llama, mask, number) = arguments;
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        let (params, mask, partial) = (Params::new(weight, bias)?, flags(&mask)?, find(number)?);
        let (hidden, dy, x) = (norm.hidden(&x, &params)?, norm.readable(dy)?, norm.readable(x)?);
        let mut dx = TensorMut::new(x.shape()?.sizes, x.dtype()?, x.device())?;
        let (x, dy) = (&x, &dy);
        let call = RowBackward { x, dy, dx: &mut dx, dresidual: None, dr: None, dweight: None, dbias: None };
        let backward =
            |norm: Norm<'_>, io: BackwardIo<'_>| Ok(norm.backward(accumulated(io, &mask, &mut *lock(&partial)?))?);
        call.on_cpu(&norm, hidden, &params, backward)?;
        Ok(dx.into_tensor())
    }
}

/// The same after a residual add: dx in x's type, and dresidual where the residual has another one, else empty.
pub(super) struct AddRowNormBackwardPartial;

impl Kernel for AddRowNormBackwardPartial {
    const SCHEMA: &CStr =
        c"add_row_norm_backward_partial(Tensor dy, Tensor? dr, Tensor r, Tensor? weight, Tensor? bias, int dims, \
        bool centered, float eps, float weight_offset, bool llama, ScalarType x_dtype, Tensor? mask, int partial) \
        -> (Tensor dx, Tensor dresidual)";
    #[rustfmt::skip]
    type Arguments = (
        Tensor, Option<Tensor>, Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool, Dtype,
        Option<Tensor>, i64,
    );
    type Results = [Tensor; 2];

    fn run(arguments: Self::Arguments) -> Result<[Tensor; 2], Failure> {
        let (dy, dr, r, weight, bias, dims, centered, eps, weight_offset, llama, x_dtype, mask, number) = arguments;
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        let (params, mask, partial) = (Params::new(weight, bias)?, flags(&mask)?, find(number)?);
        let backward =
            |norm: Norm<'_>, io: BackwardIo<'_>| Ok(norm.backward(accumulated(io, &mask, &mut *lock(&partial)?))?);
        let gradients = AddBackward { norm, dy, dr, r, x_dtype: x_dtype.known()? }
            .run(&params, |hidden, call| call.on_cpu(&norm, hidden, &params, backward))?;
        Ok(gradients.map(TensorMut::into_tensor))
    }
}

/// The same of GroupNorm, with forward's statistics.
pub(super) struct GroupNormBackwardPartial;

impl Kernel for GroupNormBackwardPartial {
    const SCHEMA: &CStr = c"group_norm_backward_partial(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, \
        Tensor stats, SymInt groups, float eps, float weight_offset, int partial) -> Tensor";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, Tensor, i64, f64, f64, i64);
    type Results = Tensor;

    fn run(arguments: Self::Arguments) -> Result<Tensor, Failure> {
        let (dy, x, weight, bias, stats, groups, eps, weight_offset, number) = arguments;
        let (params, partial) = (Params::new(weight, bias)?, find(number)?);
        let [dx, ..] = Backward { dy, x, dweight: false, dbias: false }.run(&params, |call| {
            let (mut partial, call) = (lock(&partial)?, Gradients { stats: Some(&stats), ..call });
            Options { eps, weight_offset }.backward_on_cpu(groups, &params, call, |io| io.partial(&mut partial))
        })?;
        Ok(dx)
    }
}

/// The finished gradients of weight and bias, in the shape and type of these.
pub(super) struct FinishPartial;

impl Kernel for FinishPartial {
    const SCHEMA: &CStr =
        c"finish_partial(Tensor? weight, Tensor? bias, int partial) -> (Tensor dweight, Tensor dbias)";
    type Arguments = (Option<Tensor>, Option<Tensor>, i64);
    type Results = [Tensor; 2];

    fn run((weight, bias, number): Self::Arguments) -> Result<[Tensor; 2], Failure> {
        let partial = find(number)?;
        let partial = lock(&partial)?;
        let new = |param: &Option<Tensor>| {
            gradient(param, true, DType::F32, param.as_ref().map_or(Device::Cpu, Tensor::device))
        };
        let (mut dweight, mut dbias) = (new(&weight)?, new(&bias)?);
        if weight.is_some() {
            partial.dweight(dweight.slice()?)?;
        }
        if bias.is_some() {
            partial.dbias(dbias.slice()?)?;
        }
        Ok([dweight, dbias].map(TensorMut::into_tensor))
    }
}
