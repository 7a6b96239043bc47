//! The shortest way for the commonest call: no gradient, nothing that watches. The dispatcher, which takes more time
//! than a row does, is left out where it would have nothing to do but to find the kernel: plain tensors, and
//! no autograd, transform, mode or tracer at work. Anything else is `None`, and Python takes the long way.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::null_mut;

use arrayvec::ArrayVec;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use pyo3::{ffi, intern};

use super::device::Device;
use super::row_ops::{forward, forward_into};
use super::rows::{Params, RowNorm};
use super::shim::{is_loaded, shim};
use super::tensor::Tensor;

/// Elements from which other Python threads may run meanwhile.
const LARGE: usize = 1 << 14;

/// What is asked of torch before each call.
struct Torch {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    /// Functions without arguments; something is at work where one does not return 0, False or None.
    watchers: Vec<Py<PyAny>>,
    forward_ad: Py<PyModule>,
    increment_version: Py<PyAny>,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

impl Torch {
    fn find(py: Python<'_>) -> PyResult<Torch> {
        let torch = py.import("torch")?;
        let core = torch.getattr("_C")?;
        let names = [
            "_are_functorch_transforms_active",
            "_len_torch_function_stack",
            "_len_torch_dispatch_stack",
            "_get_tracing_state",
        ];
        let watchers = names.iter().map(|name| Ok(core.getattr(*name)?.unbind())).collect::<PyResult<_>>()?;
        Ok(Torch {
            tensor: torch.getattr("Tensor")?.cast_into::<PyType>()?.unbind(),
            parameter: py.import("torch.nn")?.getattr("Parameter")?.cast_into::<PyType>()?.unbind(),
            watchers,
            forward_ad: py.import("torch.autograd.forward_ad")?.unbind(),
            increment_version: py.import("torch.autograd.graph")?.getattr("increment_version")?.unbind(),
        })
    }

    fn is_watched(&self, py: Python<'_>) -> PyResult<bool> {
        for watcher in &self.watchers {
            if watcher.bind(py).call0()?.is_truthy()? {
                return Ok(true);
            }
        }
        let level = self.forward_ad.bind(py).getattr(intern!(py, "_current_level"))?;
        Ok(level.extract::<i64>()? >= 0)
    }

    /// A handle of a plain tensor.
    fn handle(&self, object: &Bound<'_, PyAny>) -> PyResult<Option<Tensor>> {
        let py = object.py();
        let (Some(from), kind) = (shim().torch_tensor_from_pyobject, object.get_type()) else { return Ok(None) };
        if !(kind.is(&self.tensor) || kind.is(&self.parameter)) {
            return Ok(None);
        }
        if object.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
            return Ok(None);
        }
        let mut handle = null_mut();
        // SAFETY: the object is a tensor, and the interpreter is held.
        if unsafe { from(object.as_ptr().cast(), &mut handle) } != 0 {
            return Ok(None);
        }
        // SAFETY: the handle is new.
        let tensor = unsafe { Tensor::from_handle(handle) };
        Ok((tensor.device() != Device::Other).then_some(tensor))
    }
}

/// Whether this version of torch has what is needed.
fn is_possible() -> bool {
    is_loaded() && shim().torch_tensor_from_pyobject.is_some() && shim().torch_tensor_to_pyobject.is_some()
}

fn is_grad_enabled() -> bool {
    let is_enabled = shim().aoti_torch_grad_mode_is_enabled;
    // SAFETY: the function takes nothing and returns the mode of this thread.
    unsafe { is_enabled() }
}

/// Values on their way to where the interpreter is not held, and back.
struct Sent<T>(T);

// SAFETY: tensors are pointers to counted references, which any one thread may use, and norms are numbers.
unsafe impl<T> Send for Sent<T> {}

/// Runs `work`, without holding the interpreter where that is worth it.
fn run<I, O>(py: Python<'_>, input: I, numel: usize, work: impl FnOnce(I) -> O + Send) -> O {
    if numel < LARGE {
        return work(input);
    }
    let sent = Sent(input);
    let done = py.detach(move || {
        let Sent(input) = { sent };
        Sent(work(input))
    });
    done.0
}

/// The tensors of a call, if it is one that can be as short as this.
fn tensors<const N: usize>(
    py: Python<'_>,
    torch: &Torch,
    objects: [&Bound<'_, PyAny>; N],
) -> PyResult<Option<[Tensor; N]>> {
    if torch.is_watched(py)? {
        return Ok(None);
    }
    let mut found = ArrayVec::<Tensor, N>::new();
    for object in objects {
        match torch.handle(object)? {
            Some(tensor) => found.push(tensor),
            None => return Ok(None),
        }
    }
    Ok(found.into_inner().ok())
}

/// RMSNorm, or LayerNorm where `centered`, into `out` if that is there; `None` where this is not the commonest call, or
/// where it has to fail. The normalized dimensions are the weight's, and `shape` if that is to be compared.
#[pyfunction]
#[pyo3(signature = (x, shape, weight, bias, centered, eps, weight_offset, llama, out=None))]
#[expect(clippy::too_many_arguments, reason = "they are Python's")]
pub(super) fn torch_row_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    shape: Option<&Bound<'py, PyAny>>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    centered: bool,
    eps: f64,
    weight_offset: f64,
    llama: bool,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    if !is_possible() || is_grad_enabled() {
        return Ok(None);
    }
    let torch = TORCH.get_or_try_init(py, || Torch::find(py))?;
    // Without a bias the weight stands in its place.
    let Some([x, weight, other]) = tensors(py, torch, [x, weight, bias.unwrap_or(weight)])? else { return Ok(None) };
    if shape.is_some_and(|shape| !is_shape_of(&weight, shape)) {
        return Ok(None);
    }
    let (Ok(numel), Ok(dims)) = (x.shape().map(|x| x.span()), weight.shape().map(|weight| weight.sizes.len())) else {
        return Ok(None);
    };
    let Ok(params) = Params::new(Some(weight), bias.map(|_| other)) else { return Ok(None) };
    let norm = RowNorm { centered, dims: dims as i64, eps, weight_offset, llama };
    let Some(out) = out else {
        let y = run(py, (x, params), numel, move |(x, params)| forward(norm, x, &params));
        return Ok(y.ok().and_then(|y| object_of(py, y)));
    };
    let Some(y) = torch.handle(out)? else { return Ok(None) };
    let done = run(py, (x, params, y), numel, move |(x, params, y)| forward_into(norm, x, params, y));
    if done.is_err() {
        return Ok(None);
    }
    if !out.call_method0(intern!(py, "is_inference"))?.is_truthy()? {
        torch.increment_version.bind(py).call1((out,))?;
    }
    Ok(Some(out.clone()))
}

fn is_shape_of(weight: &Tensor, shape: &Bound<'_, PyAny>) -> bool {
    let Ok(weight) = weight.shape() else { return false };
    let is_same = |(i, size): (usize, &i64)| {
        shape.get_item(i).and_then(|found| found.extract()).is_ok_and(|found: i64| found == *size)
    };
    shape.len().is_ok_and(|len| len == weight.sizes.len()) && weight.sizes.iter().enumerate().all(is_same)
}

fn object_of(py: Python<'_>, tensor: Tensor) -> Option<Bound<'_, PyAny>> {
    let (to, mut object) = (shim().torch_tensor_to_pyobject?, null_mut::<c_void>());
    // SAFETY: the handle is live, the interpreter is held, and the type is the default one.
    if unsafe { to(tensor.handle(), null_mut(), &mut object) } != 0 {
        return None;
    }
    // SAFETY: the object is a new reference.
    unsafe { Bound::from_owned_ptr_or_opt(py, object.cast::<ffi::PyObject>()) }
}
