//! The extension module `isonorm._isonorm`: the library for Python. It translates, and has no rule of its own that the
//! library has.

use pyo3::prelude::*;

mod error;
mod fork;
mod numpy;
mod torch;

#[pymodule]
mod _isonorm {
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        fork::register(module)?;
        numpy::register(module)?;
        torch::register(module)
    }
}
