//! Unfinished gradients of parameters, which go on from one micro-batch to the next. An operator's arguments are
//! tensors and numbers, so it names them by number.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use isonorm::{DType, Partial};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::failure::Failure;
use super::kernel::Kernel;
use super::rows::{Params, RowNorm, gradient};
use super::tensor::{Tensor, TensorMut};

type Shared = Arc<Mutex<Partial>>;

static PARTIALS: Mutex<(i64, BTreeMap<i64, Shared>)> = Mutex::new((0, BTreeMap::new()));

fn find(number: i64) -> Result<Shared, Failure> {
    let partials = PARTIALS.lock().unwrap_or_else(PoisonError::into_inner);
    partials.1.get(&number).cloned().ok_or_else(|| Failure::new("isonorm: these unfinished gradients are gone"))
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

    fn with<T>(&self, read: impl FnOnce(&mut Partial) -> T) -> T {
        read(&mut self.partial.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for TorchPartial {
    fn drop(&mut self) {
        PARTIALS.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.number);
    }
}

#[pymethods]
impl TorchPartial {
    /// Of rows of `columns` elements; `is_f64` says whether x is float64.
    #[new]
    #[pyo3(signature = (columns, is_f64, start=0))]
    fn new(columns: usize, is_f64: bool, start: usize) -> TorchPartial {
        TorchPartial::keep(Partial::rows(if is_f64 { DType::F64 } else { DType::F32 }, columns, start))
    }

    /// The row that comes next.
    #[getter]
    fn end(&self) -> usize {
        self.with(|partial| partial.end())
    }

    /// For another process.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.with(|partial| partial.to_bytes()))
    }

    /// What `to_bytes` of several processes or pieces gave, put together.
    #[staticmethod]
    fn join(parts: Vec<Vec<u8>>) -> PyResult<TorchPartial> {
        let parts = parts.iter().map(|bytes| Partial::from_bytes(bytes)).collect::<Result<Vec<_>, _>>();
        let joined = parts.and_then(Partial::join).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(TorchPartial::keep(joined))
    }
}

/// dx; the gradients of weight and bias are added to unfinished ones.
pub(super) struct RowNormBackwardPartial;

impl Kernel for RowNormBackwardPartial {
    const SCHEMA: &CStr = c"row_norm_backward_partial(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, int dims, \
        bool centered, float eps, float weight_offset, bool llama, int partial) -> Tensor";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool, i64);
    type Results = Tensor;

    fn run(arguments: Self::Arguments) -> Result<Tensor, Failure> {
        let (dy, x, weight, bias, dims, centered, eps, weight_offset, llama, number) = arguments;
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        let partial = find(number)?;
        let mut partial = partial.lock().unwrap_or_else(PoisonError::into_inner);
        norm.backward_into(dy, x, &Params::new(weight, bias)?, &mut partial)
    }
}

/// The finished gradients of weight and bias, in the shape and type of these.
pub(super) struct FinishPartial;

impl Kernel for FinishPartial {
    const SCHEMA: &CStr = c"finish_partial(Tensor weight, Tensor? bias, int partial) -> (Tensor dweight, Tensor dbias)";
    type Arguments = (Tensor, Option<Tensor>, i64);
    type Results = [Tensor; 2];

    fn run((weight, bias, number): Self::Arguments) -> Result<[Tensor; 2], Failure> {
        let partial = find(number)?;
        let partial = partial.lock().unwrap_or_else(PoisonError::into_inner);
        let weight = Some(weight);
        let (mut dweight, mut dbias) = (gradient(&weight, true, DType::F32)?, gradient(&bias, true, DType::F32)?);
        partial.dweight(dweight.slice()?)?;
        if bias.is_some() {
            partial.dbias(dbias.slice()?)?;
        }
        Ok([dweight, dbias].map(TensorMut::into_tensor))
    }
}
