//! Norms of NumPy arrays.

use pyo3::prelude::*;

/// Adds the functions and classes to the module.
pub(crate) fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
