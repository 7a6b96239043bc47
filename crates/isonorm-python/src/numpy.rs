//! Norms of NumPy arrays.
//!
//! ```text
//! what Python gives ── array.rs: an ndarray that a slice can have ── rows.rs or planes.rs: where its rows or channels lie
//!                      output.rs: memory that is the call's alone
//! ```

use pyo3::prelude::*;

mod add_layer_norm;
mod add_rms_norm;
mod array;
mod axes;
mod batch_norm;
mod channel_norm;
mod dtype;
mod group_norm;
mod layer_norm;
mod options;
mod output;
mod partial;
mod planes;
mod rms_norm;
mod row_norm;
mod rows;
mod stats;

/// Adds the functions and classes to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<partial::Partial>()?;
    module.add_class::<stats::Stats>()?;
    module.add_function(wrap_pyfunction!(rms_norm::rms_norm, module)?)?;
    module.add_function(wrap_pyfunction!(rms_norm::rms_norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(add_rms_norm::add_rms_norm, module)?)?;
    module.add_function(wrap_pyfunction!(add_rms_norm::add_rms_norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(layer_norm::layer_norm, module)?)?;
    module.add_function(wrap_pyfunction!(layer_norm::layer_norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(add_layer_norm::add_layer_norm, module)?)?;
    module.add_function(wrap_pyfunction!(add_layer_norm::add_layer_norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(batch_norm::batch_norm, module)?)?;
    module.add_function(wrap_pyfunction!(batch_norm::batch_norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(group_norm::group_norm, module)?)?;
    module.add_function(wrap_pyfunction!(group_norm::group_norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(group_norm::instance_norm, module)?)?;
    module.add_function(wrap_pyfunction!(group_norm::instance_norm_backward, module)?)?;
    Ok(())
}
