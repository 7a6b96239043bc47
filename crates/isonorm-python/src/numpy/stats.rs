//! Saved statistics.

use isonorm::{DType, Stats as Row, StatsMut, StatsRef};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

/// Statistics that a norm saved for its backward pass.
///
/// ``return_stats=True`` gives them, ``stats=`` takes them. They are exactly what the norm computed with, so that the
/// gradients have the same bits with them as without.
///
/// Attributes
/// ----------
/// mean : ndarray
///     The mean of each row, channel, or group of each sample; 0 for RMSNorm.
/// var : ndarray
///     The variance, before eps; for RMSNorm the mean square.
/// rstd : ndarray
///     One over the standard deviation or root mean square, eps included.
/// shape : tuple of int
///     The shape of each of them.
#[pyclass(frozen, module = "isonorm")]
pub(crate) struct Stats {
    rows: Rows,
    shape: Vec<usize>,
}

enum Rows {
    F32(Vec<Row<f32>>),
    F64(Vec<Row<f64>>),
}

impl Stats {
    /// Room for the statistics of an x stored as `x`.
    pub(super) fn new(x: DType, shape: &[usize]) -> PyResult<Self> {
        let count = shape.iter().product();
        let rows = match x {
            DType::F64 => Rows::F64(room(count)?),
            DType::F32 | DType::F16 | DType::Bf16 => Rows::F32(room(count)?),
        };
        Ok(Stats { rows, shape: shape.to_vec() })
    }

    pub(super) fn writable(&mut self) -> StatsMut<'_> {
        match &mut self.rows {
            Rows::F32(rows) => rows.into(),
            Rows::F64(rows) => rows.into(),
        }
    }

    /// The statistics of a call that has them in `shape`.
    pub(super) fn saved(&self, shape: &[usize]) -> PyResult<StatsRef<'_>> {
        if self.shape != shape {
            let found = &self.shape;
            return Err(PyValueError::new_err(format!(
                "stats has shape {found:?}, expected {shape:?}: those of this x"
            )));
        }
        Ok(match &self.rows {
            Rows::F32(rows) => rows.into(),
            Rows::F64(rows) => rows.into(),
        })
    }

    fn array<'py>(
        &self,
        py: Python<'py>,
        f32: fn(&Row<f32>) -> f32,
        f64: fn(&Row<f64>) -> f64,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(match &self.rows {
            Rows::F32(rows) => PyArray1::from_iter(py, rows.iter().map(f32)).reshape(self.shape.clone())?.into_any(),
            Rows::F64(rows) => PyArray1::from_iter(py, rows.iter().map(f64)).reshape(self.shape.clone())?.into_any(),
        })
    }
}

/// Arrays without elements may have more rows than there is memory for.
fn room<T: Clone + Default>(count: usize) -> PyResult<Vec<T>> {
    let mut rows = Vec::new();
    let refused = |_| PyMemoryError::new_err(format!("no memory for the statistics of {count} rows"));
    rows.try_reserve_exact(count).map_err(refused)?;
    rows.resize(count, T::default());
    Ok(rows)
}

#[pymethods]
impl Stats {
    #[getter]
    fn mean<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.array(py, Row::mean, Row::mean)
    }
    #[getter]
    fn var<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.array(py, Row::var, Row::var)
    }
    #[getter]
    fn rstd<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.array(py, Row::rstd, Row::rstd)
    }
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyTuple>> {
        pyo3::types::PyTuple::new(py, &self.shape)
    }

    fn __repr__(&self) -> String {
        let dtype = if matches!(self.rows, Rows::F64(_)) { "float64" } else { "float32" };
        format!("Stats(shape={:?}, dtype={dtype})", self.shape)
    }
}
