//! Which axes of an array are normalized, and how they are brought to its end.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

type Order = Vec<usize>;

/// The default of the norms of rows.
pub(super) const LAST: Axis = Axis::One(-1);

/// The `axis` of a call, as it was given.
pub(super) enum Axis {
    One(isize),
    Several(Vec<isize>),
}

impl<'py> FromPyObject<'_, 'py> for Axis {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(axis) = object.extract() {
            return Ok(Axis::One(axis));
        }
        object.extract().map(Axis::Several).map_err(|_| {
            let found = object.get_type().name().map_or_else(|_| "unknown".into(), |name| name.to_string());
            PyTypeError::new_err(format!("axis is {found}, expected an int or a tuple of ints"))
        })
    }
}

/// Normalized axes of arrays of one number of dimensions.
pub(super) struct Axes {
    /// How many are normalized.
    pub(super) count: usize,
    /// The order of the axes that brings them to the end, and the one that brings them back; none where they are there.
    orders: Option<(Order, Order)>,
}

impl Axes {
    /// The axes that `axis` names, of an array of `ndim` dimensions. Their elements are taken in the array's order.
    pub(super) fn new(py: Python<'_>, axis: &Axis, ndim: usize) -> PyResult<Self> {
        let mut own = match axis {
            Axis::One(axis) => {
                let axis = position(py, *axis, ndim)?;
                if axis + 1 == ndim {
                    return Ok(Axes { count: 1, orders: None });
                }
                vec![axis]
            }
            Axis::Several(axes) => axes.iter().map(|axis| position(py, *axis, ndim)).collect::<PyResult<_>>()?,
        };
        own.sort_unstable();
        if own.is_empty() || own.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(PyValueError::new_err(format!(
                "axis is {own:?}, expected at least one axis, each of them once"
            )));
        }
        let count = own.len();
        let order: Order = (0..ndim).filter(|axis| !own.contains(axis)).chain(own.iter().copied()).collect();
        Ok(Axes { count, orders: Self::orders(order) })
    }

    /// The order of the axes that puts `channels` second, of an array of `ndim` dimensions.
    pub(super) fn second(py: Python<'_>, channels: isize, ndim: usize) -> PyResult<Self> {
        if ndim < 2 {
            let advice = "expected at least 2: samples, channels, and any positions";
            return Err(PyValueError::new_err(format!("x has ndim {ndim}, {advice}")));
        }
        let channels = position(py, channels, ndim)?;
        let mut order: Order = (0..ndim).filter(|axis| *axis != channels).collect();
        order.insert(1, channels);
        Ok(Axes { count: 1, orders: Self::orders(order) })
    }

    fn orders(order: Order) -> Option<(Order, Order)> {
        if order.is_sorted() {
            return None;
        }
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, from)| back[*from] = to);
        Some((order, back))
    }

    /// `shape` in the library's order.
    pub(super) fn moved(&self, shape: &[usize]) -> Vec<usize> {
        self.order().map_or_else(|| shape.to_vec(), |order| order.iter().map(|axis| shape[*axis]).collect())
    }
    /// From the caller's order of axes to the library's.
    pub(super) fn order(&self) -> Option<&[usize]> {
        self.orders.as_ref().map(|(order, _)| order.as_slice())
    }
    /// From the library's order of axes to the caller's.
    pub(super) fn back(&self) -> Option<&[usize]> {
        self.orders.as_ref().map(|(_, back)| back.as_slice())
    }
}

/// `axis` counted from the front.
fn position(py: Python<'_>, axis: isize, ndim: usize) -> PyResult<usize> {
    let from_front = if axis < 0 { axis.saturating_add_unsigned(ndim) } else { axis };
    match usize::try_from(from_front) {
        Ok(position) if position < ndim => Ok(position),
        _ => {
            let error = py.import("numpy.exceptions")?.getattr("AxisError")?;
            Err(PyErr::from_value(error.call1((axis, ndim))?))
        }
    }
}
