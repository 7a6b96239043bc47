//! PyTorch: operators that libtorch's dispatcher calls, with kernels for the CPU and for CUDA. What Python sees of them is in
//! `python/isonorm/torch/`, autograd too, which libtorch lets Python alone write.

use std::path::PathBuf;

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

mod cuda;
mod cuda_planes;
mod device;
mod eager;
mod failure;
mod kernel;
mod library;
mod pages;
mod partials;
mod plane_ops;
mod planes;
mod pool;
mod row_ops;
mod rows;
mod shape;
mod shim;
mod tensor;

/// Registers the operators with the libtorch at `path`, which torch has loaded. NVRTC may be at one of `nvrtc`.
#[pyfunction]
fn register_torch(path: &str, nvrtc: Vec<PathBuf>) -> PyResult<()> {
    isonorm_cuda::Nvrtc::also_try(nvrtc);
    library::register(path).map_err(|failure| PyImportError::new_err(failure.into_text()))
}

/// For tests: registers them as `isonorm_emulated` too, for tensors on the CPU, with kernels of a GPU that is emulated.
#[pyfunction]
fn register_emulated_gpu(path: &str) -> PyResult<()> {
    library::register_emulated(path).map_err(|failure| PyImportError::new_err(failure.into_text()))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(register_torch, module)?)?;
    module.add_function(wrap_pyfunction!(register_emulated_gpu, module)?)?;
    module.add_function(wrap_pyfunction!(eager::torch_row_norm, module)?)?;
    module.add_class::<partials::TorchPartial>()
}
