//! The library's errors as Python's, with their text.

use isonorm::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyTypeError, PyValueError};

/// `TypeError` for types that do not go together, `ValueError` for everything else.
pub(crate) fn raised(error: Error) -> PyErr {
    match error {
        Error::Type { .. } | Error::TypeIsNot { .. } => PyTypeError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}
