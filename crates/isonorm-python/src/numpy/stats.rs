//! Saved statistics.

use isonorm::{DType, Slice, Stats as Row, StatsMut, StatsRef};
use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use super::array::Array;

/// Statistics that a norm saved for its backward pass.
///
/// ``return_stats=True`` gives them, ``stats=`` takes them. They are exactly what the norm computed with, so that the
/// gradients have the same bits with them as without. They can be pickled and copied.
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
        match &self.rows {
            Rows::F32(rows) => array(py, rows.iter().map(f32), &self.shape),
            Rows::F64(rows) => array(py, rows.iter().map(f64), &self.shape),
        }
    }
}

fn array<'py, T: Element>(
    py: Python<'py>,
    values: impl Iterator<Item = T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyArray1::from_iter(py, values).reshape(shape)?.into_any())
}

/// What the statistics of a row are, in the order in which they are pickled.
fn values<T: Copy>(row: &Row<T>) -> [T; 5] {
    [row.mean, row.delta, row.var, row.inv, row.scale]
}

fn rows<T: Copy>(values: &[T]) -> Vec<Row<T>> {
    let (values, _) = values.as_chunks();
    values.iter().map(|&[mean, delta, var, inv, scale]| Row { mean, delta, var, inv, scale }).collect()
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
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyAny>,))> {
        let (py, Stats { rows, shape }) = (slf.py(), slf.get());
        let shape = [shape.as_slice(), &[5]].concat();
        let values = match rows {
            Rows::F32(rows) => array(py, rows.iter().flat_map(values), &shape),
            Rows::F64(rows) => array(py, rows.iter().flat_map(values), &shape),
        };
        Ok((slf.get_type().getattr("_of_values")?, (values?,)))
    }

    /// What `__reduce__` took apart.
    #[classmethod]
    fn _of_values(_: &Bound<'_, PyType>, values: &Bound<'_, PyAny>) -> PyResult<Self> {
        let values = Array::read("values", values, None)?;
        let values = if values.is_contiguous() { values } else { values.copied()? };
        let [shape @ .., 5] = values.shape() else {
            let found = values.shape();
            return Err(PyValueError::new_err(format!("values has shape {found:?}, expected five for each row")));
        };
        let rows = match values.slice() {
            Slice::F32(values) => Rows::F32(rows(values)),
            Slice::F64(values) => Rows::F64(rows(values)),
            _ => return Err(PyTypeError::new_err("values has a half type, expected float32 or float64")),
        };
        Ok(Stats { rows, shape: shape.to_vec() })
    }

    fn __repr__(&self) -> String {
        let dtype = if matches!(self.rows, Rows::F64(_)) { "float64" } else { "float32" };
        format!("Stats(shape={:?}, dtype={dtype})", self.shape)
    }
}
