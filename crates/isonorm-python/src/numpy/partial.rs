//! Unfinished gradients of weight and bias.

use isonorm::DType;
use numpy::{PyArrayDescr, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};

use super::array::Array;
use super::dtype;
use super::options::Count;
use super::output::Output;
use crate::error::raised;

/// Unfinished sums over the rows of a batch: the gradients of weight and bias.
///
/// Whoever merges the pieces of a batch, cut anywhere, has the bits of one sum over all its rows. So micro-batches and
/// ranks have the gradients of the whole batch. Sums can be pickled and copied.
///
/// Parameters
/// ----------
/// dtype : dtype
///     The type of x: sums are float64 for float64, else float32.
/// columns : int
///     The number of normalized elements.
/// start : int, default 0
///     The row of the whole batch that will be the first.
///
/// Attributes
/// ----------
/// start, end : int
///     The rows that are summed, `start` up to `end`. ``len()`` is their number.
/// columns : int
///     The number of sums side by side.
/// dtype : numpy.dtype
///     The type of the sums.
///
/// Raises
/// ------
/// TypeError
///     For types that are none of the library's, or do not go together.
/// ValueError
///     Where pieces do not follow one another, or sizes do not fit. Nothing is taken then.
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> x, dy = np.arange(1.0, 7.0).reshape(3, 2), np.ones((3, 2))
/// >>> dx, dweight, _ = isonorm.rms_norm_backward(dy, x)
/// >>> partial = isonorm.Partial(x.dtype, columns=2)
/// >>> for rows in (slice(0, 1), slice(1, 3)):  # two micro-batches
/// ...     _ = isonorm.rms_norm_backward(dy[rows], x[rows], accumulate=partial)
/// >>> np.array_equal(partial.dweight(), dweight)
/// True
#[pyclass(module = "isonorm")]
pub(crate) struct Partial {
    pub(super) sums: isonorm::Partial,
}

#[pymethods]
impl Partial {
    #[new]
    #[pyo3(signature = (dtype, columns, start=Count(0)), text_signature = "(dtype, columns, start=0)")]
    fn new(dtype: &Bound<'_, PyAny>, columns: Count, start: Count) -> PyResult<Self> {
        let dtype = dtype::expect_storage("a partial sum", &dtype::descr(dtype)?)?;
        Ok(Partial { sums: isonorm::Partial::rows(dtype, columns.0, start.0) })
    }

    /// Takes the next rows, from `end` on.
    ///
    /// Parameters
    /// ----------
    /// dy, x_hat : array_like
    ///     The gradient of y, and x normalized. Any shape of whole rows; copied where they are not contiguous.
    fn push(&mut self, py: Python<'_>, dy: &Bound<'_, PyAny>, x_hat: &Bound<'_, PyAny>) -> PyResult<()> {
        let dy = contiguous(Array::read("dy", dy, None)?)?;
        let x_hat = contiguous(Array::read("x_hat", x_hat, Some(&dy))?)?;
        let (sums, dy, x_hat) = (&mut self.sums, dy.slice(), x_hat.slice());
        py.detach(move || sums.push(dy, x_hat)).map_err(raised)
    }

    /// Takes the rows of `next`, which starts where this one ends, and is left as it is.
    ///
    /// Parameters
    /// ----------
    /// next : Partial
    ///     The neighbour.
    fn merge(&mut self, py: Python<'_>, next: &Bound<'_, Partial>) -> PyResult<()> {
        // This sum itself is borrowed already.
        let next = next.try_borrow().map_err(|_| PyValueError::new_err("next is in use, expected another sum"))?;
        let next = next.sums.clone();
        let sums = &mut self.sums;
        py.detach(move || sums.merge(next)).map_err(raised)
    }

    /// All the parts merged, in whatever order they are given.
    ///
    /// Parameters
    /// ----------
    /// parts : iterable of Partial
    ///     They are left as they are.
    ///
    /// Returns
    /// -------
    /// Partial
    #[classmethod]
    fn join(_: &Bound<'_, PyType>, py: Python<'_>, parts: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut sums = Vec::new();
        for part in parts.try_iter()? {
            sums.push(part?.cast::<Partial>()?.try_borrow()?.sums.clone());
        }
        let sums = py.detach(move || isonorm::Partial::join(sums)).map_err(raised)?;
        Ok(Partial { sums })
    }

    /// The gradient of the weight, rounded once.
    ///
    /// Parameters
    /// ----------
    /// dtype : dtype, optional
    ///     Its type; that of the sums by default.
    ///
    /// Returns
    /// -------
    /// ndarray
    ///     Of shape ``(columns,)``.
    #[pyo3(signature = (dtype=None))]
    fn dweight<'py>(&self, py: Python<'py>, dtype: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        self.gradient(py, dtype, |sums, to| sums.dweight(to))
    }

    /// The gradient of the bias, rounded once.
    ///
    /// Parameters
    /// ----------
    /// dtype : dtype, optional
    ///     Its type; that of the sums by default.
    ///
    /// Returns
    /// -------
    /// ndarray
    ///     Of shape ``(columns,)``.
    #[pyo3(signature = (dtype=None))]
    fn dbias<'py>(&self, py: Python<'py>, dtype: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        self.gradient(py, dtype, |sums, to| sums.dbias(to))
    }

    /// The sums as bytes, for another process: the same on every machine.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.sums.to_bytes())
    }

    /// The sums that `to_bytes` wrote.
    ///
    /// Parameters
    /// ----------
    /// data : bytes
    ///
    /// Returns
    /// -------
    /// Partial
    #[classmethod]
    fn from_bytes(_: &Bound<'_, PyType>, data: &[u8]) -> PyResult<Self> {
        isonorm::Partial::from_bytes(data).map(|sums| Partial { sums }).map_err(raised)
    }

    #[getter]
    fn start(&self) -> usize {
        self.sums.start()
    }
    #[getter]
    fn end(&self) -> usize {
        self.sums.end()
    }
    #[getter]
    fn columns(&self) -> usize {
        self.sums.columns()
    }
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> Bound<'py, PyArrayDescr> {
        match self.sums.dtype() {
            DType::F64 => numpy::dtype::<f64>(py),
            _ => numpy::dtype::<f32>(py),
        }
    }

    fn __len__(&self) -> usize {
        self.sums.len()
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let (rows, columns) = (self.sums.start()..self.sums.end(), self.sums.columns());
        format!("Partial(dtype={}, columns={columns}, rows={rows:?})", self.dtype(py))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let bytes = slf.try_borrow()?.to_bytes(slf.py());
        Ok((slf.get_type().getattr("from_bytes")?, (bytes,)))
    }
}

impl Partial {
    fn gradient<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<&Bound<'py, PyAny>>,
        finish: impl for<'a> Fn(&isonorm::Partial, isonorm::SliceMut<'a>) -> Result<(), isonorm::Error>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let descr = dtype.map_or_else(|| Ok(self.dtype(py)), dtype::descr)?;
        let mut output = Output::new(py, &[self.sums.columns()], descr)?;
        finish(&self.sums, output.slice_mut()).map_err(raised)?;
        Ok(output.array().object().clone().into_any())
    }
}

fn contiguous(array: Array<'_>) -> PyResult<Array<'_>> {
    debug_assert_eq!(array.shape(), array.object().shape());
    if array.is_contiguous() { Ok(array) } else { array.copied() }
}
