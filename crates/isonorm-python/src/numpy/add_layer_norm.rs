//! `add_layer_norm`, LayerNorm after a residual add, and its backward pass.

use pyo3::prelude::*;

use super::axes::{Axis, LAST};
use super::layer_norm::norm;
use super::options::Count;
use super::partial::Partial;
use super::row_norm::{self, Backward, Forward};
use super::stats::Stats;

/// Adds `x` to `residual`, takes the mean off the sum and divides it by its standard deviation.
///
/// Parameters
/// ----------
/// x, residual, out, residual_out
///     As in `add_rms_norm`.
/// weight, bias, eps, axis, weight_offset, eps_outside, return_stats, threads
///     As in `layer_norm`.
///
/// Returns
/// -------
/// y : ndarray
///     The normalized sum, in x's type.
/// r : ndarray
///     The new residual, ``x + residual`` rounded to the type of `residual`; y is the norm of what is kept.
/// stats : Stats
///     With `return_stats` alone.
///
/// Raises
/// ------
/// TypeError, ValueError
///     As `layer_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math:: r = x + \mathit{residual}, \quad y = \mathrm{layer\_norm}(r)
///
/// One pass over memory; for copies, see the notes of `add_rms_norm`.
///
/// References
/// ----------
/// Ba, Kiros & Hinton, *Layer Normalization*, 2016. arXiv:1607.06450
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> isonorm.add_layer_norm(np.array([1.0, 2.0]), np.array([2.0, 5.0]), eps=0.0)
/// (array([-1.,  1.]), array([3., 7.]))
#[pyfunction]
#[pyo3(
    signature = (x, residual, weight=None, bias=None, *, eps=1e-5, axis=LAST, out=None, residual_out=None,
        weight_offset=0.0, eps_outside=false, return_stats=false, threads=None),
    text_signature = "(x, residual, weight=None, bias=None, *, eps=1e-05, axis=-1, out=None, residual_out=None, \
        weight_offset=0.0, eps_outside=False, return_stats=False, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn add_layer_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    residual: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    eps: f64,
    axis: Axis,
    out: Option<&Bound<'py, PyAny>>,
    residual_out: Option<&Bound<'py, PyAny>>,
    weight_offset: f64,
    eps_outside: bool,
    return_stats: bool,
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let norm = norm(eps, eps_outside, weight_offset, threads)?;
    let call = Forward { norm, x, weight, bias, axis, out, return_stats };
    row_norm::forward_add(py, call, residual, residual_out)
}

/// The gradients of `add_layer_norm`.
///
/// Parameters
/// ----------
/// dy, r, dresidual
///     As in `add_rms_norm_backward`; r is what `add_layer_norm` returned.
/// weight, eps, axis, weight_offset, eps_outside
///     What `add_layer_norm` was given.
/// out, dweight, dbias, stats, mask, accumulate, threads
///     As in `layer_norm_backward`.
///
/// Returns
/// -------
/// dx, dr, dweight, dbias : ndarray
///     As `add_rms_norm_backward`.
///
/// Raises
/// ------
/// TypeError, ValueError
///     As `layer_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math:: dr = \mathit{dresidual} + dx_{\mathrm{layer\_norm}}(dy, r), \quad dx = dr
///
/// References
/// ----------
/// Ba, Kiros & Hinton, *Layer Normalization*, 2016. arXiv:1607.06450
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> r, dresidual = np.array([3.0, 7.0]), np.array([1.0, 2.0])
/// >>> dx, dr, dweight, dbias = isonorm.add_layer_norm_backward(np.ones(2), r, dresidual, eps=0.0)
/// >>> dx, dr is dx, dweight, dbias
/// (array([1., 2.]), True, array([-1.,  1.]), array([1., 1.]))
#[pyfunction]
#[pyo3(
    signature = (dy, r, dresidual=None, weight=None, *, eps=1e-5, axis=LAST, out=None, weight_offset=0.0,
        eps_outside=false, dweight=None, dbias=None, stats=None, mask=None, accumulate=None, threads=None),
    text_signature = "(dy, r, dresidual=None, weight=None, *, eps=1e-05, axis=-1, out=None, weight_offset=0.0, \
        eps_outside=False, dweight=None, dbias=None, stats=None, mask=None, accumulate=None, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn add_layer_norm_backward<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    r: &Bound<'py, PyAny>,
    dresidual: Option<&Bound<'py, PyAny>>,
    weight: Option<&Bound<'py, PyAny>>,
    eps: f64,
    axis: Axis,
    out: Option<&Bound<'py, PyAny>>,
    weight_offset: f64,
    eps_outside: bool,
    dweight: Option<Bound<'py, PyAny>>,
    dbias: Option<Bound<'py, PyAny>>,
    stats: Option<PyRef<'py, Stats>>,
    mask: Option<&Bound<'py, PyAny>>,
    accumulate: Option<PyRefMut<'py, Partial>>,
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let norm = norm(eps, eps_outside, weight_offset, threads)?;
    let (stats, is_after_add) = (stats.as_deref(), true);
    let x = ("r", r);
    let call =
        Backward { norm, dy, x, weight, axis, out, dresidual, is_after_add, dweight, dbias, stats, mask, accumulate };
    row_norm::backward(py, call)
}
