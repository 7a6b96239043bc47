//! NumPy's types and the library's.

use std::sync::atomic::{AtomicI32, Ordering};

use isonorm::DType;
use numpy::npyffi::NPY_TYPES;
use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

const FLOAT: i32 = NPY_TYPES::NPY_FLOAT as i32;
const DOUBLE: i32 = NPY_TYPES::NPY_DOUBLE as i32;
const HALF: i32 = NPY_TYPES::NPY_HALF as i32;

/// The number that NumPy gave `ml_dtypes.bfloat16`, once it was seen: a look at the name costs a tenth of a small call.
static BFLOAT16: AtomicI32 = AtomicI32::new(-1);

/// The storage type, if it is one of the library's; in either byte order.
pub(super) fn storage(descr: &Bound<'_, PyArrayDescr>) -> Option<DType> {
    match descr.num() {
        FLOAT => Some(DType::F32),
        DOUBLE => Some(DType::F64),
        HALF => Some(DType::F16),
        number if number >= 0 && number == BFLOAT16.load(Ordering::Relaxed) => Some(DType::Bf16),
        number => {
            let name = descr.typeobj().name().ok()?;
            let is_bfloat16 = name.to_str().is_ok_and(|name| name == "bfloat16") && descr.itemsize() == 2;
            is_bfloat16.then(|| BFLOAT16.store(number, Ordering::Relaxed)).map(|()| DType::Bf16)
        }
    }
}

/// The storage type of `name`, or what there could be instead.
pub(super) fn expect_storage(name: &str, descr: &Bound<'_, PyArrayDescr>) -> PyResult<DType> {
    storage(descr).ok_or_else(|| {
        let advice = "float32, float64, float16 or ml_dtypes.bfloat16: convert it with astype";
        PyTypeError::new_err(format!("{name} has dtype {descr}, expected {advice}"))
    })
}

/// What `numpy.dtype(object)` is.
pub(super) fn descr<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArrayDescr>> {
    PyArrayDescr::new(object.py(), object)
}
