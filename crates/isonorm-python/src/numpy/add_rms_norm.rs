//! `add_rms_norm`, a norm after a residual add, and its backward pass.

use pyo3::prelude::*;

use super::axes::{Axis, LAST};
use super::options::{Count, RecipeName};
use super::partial::Partial;
use super::rms_norm::{TORCH, norm};
use super::row_norm::{self, Backward, Forward};
use super::stats::Stats;

/// Adds `x` to `residual` and normalizes the sum by its root mean square.
///
/// Parameters
/// ----------
/// x : array_like
///     As in `rms_norm`.
/// residual : array_like
///     Of x's shape, in a type of its own: float32 for a residual stream that keeps more than x.
/// weight, bias, eps, axis, weight_offset, recipe, eps_outside, partial, return_stats, threads
///     As in `rms_norm`.
/// out : ndarray, optional
///     Where y is written; may be x itself.
/// residual_out : ndarray, optional
///     Where the new residual is written; may be `residual` itself.
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
///     As `rms_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math:: r = x + \mathit{residual}, \quad y = \mathrm{rms\_norm}(r)
///
/// One pass over memory. With both in place (``out=x, residual_out=residual``) or neither nothing is copied; with one of
/// them its array is.
///
/// References
/// ----------
/// Zhang & Sennrich, *Root Mean Square Layer Normalization*, 2019. arXiv:1910.07467
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> y, r = isonorm.add_rms_norm(np.array([1.0, 2.0]), np.array([2.0, 2.0]), eps=0.0)
/// >>> r
/// array([3., 4.])
/// >>> bool((y == isonorm.rms_norm(r, eps=0.0)).all())
/// True
#[pyfunction]
#[pyo3(
    signature = (x, residual, weight=None, *, bias=None, eps=1e-6, axis=LAST, out=None, residual_out=None,
        weight_offset=0.0, recipe=TORCH, eps_outside=false, partial=None, return_stats=false, threads=None),
    text_signature = "(x, residual, weight=None, *, bias=None, eps=1e-06, axis=-1, out=None, residual_out=None, \
        weight_offset=0.0, recipe='torch', eps_outside=False, partial=None, return_stats=False, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn add_rms_norm<'py>(
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
    recipe: RecipeName,
    eps_outside: bool,
    partial: Option<Count>,
    return_stats: bool,
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let norm = norm(eps, eps_outside, weight_offset, recipe, partial, threads)?;
    let call = Forward { norm, x, weight, bias, axis, out, return_stats };
    row_norm::forward_add(py, call, residual, residual_out)
}

/// The gradients of `add_rms_norm`.
///
/// Parameters
/// ----------
/// dy : array_like
///     The gradient of y.
/// r : array_like
///     The new residual that `add_rms_norm` returned.
/// dresidual : array_like, optional
///     The gradient that reaches r from elsewhere, in r's shape; added in r's type.
/// weight, eps, axis, weight_offset, recipe, eps_outside, partial
///     What `add_rms_norm` was given.
/// out, dweight, dbias, stats, mask, accumulate, threads
///     As in `rms_norm_backward`.
///
/// Returns
/// -------
/// dx : ndarray
///     The gradient of x: `out`, or a new array in dy's type.
/// dr : ndarray
///     The gradient of the residual that was added, in r's type; dx itself where that is dx's.
/// dweight, dbias : ndarray or None
///     As `rms_norm_backward`.
///
/// Raises
/// ------
/// TypeError, ValueError
///     As `rms_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math:: dr = \mathit{dresidual} + dx_{\mathrm{rms\_norm}}(dy, r), \quad dx = dr
///
/// References
/// ----------
/// Zhang & Sennrich, *Root Mean Square Layer Normalization*, 2019. arXiv:1910.07467
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> r, dresidual = np.array([3.0, 4.0]), np.array([1.0, 1.0])
/// >>> dx, dr, dweight, _ = isonorm.add_rms_norm_backward(np.zeros(2), r, dresidual)
/// >>> dx, dr is dx
/// (array([1., 1.]), True)
#[pyfunction]
#[pyo3(
    signature = (dy, r, dresidual=None, weight=None, *, eps=1e-6, axis=LAST, out=None, weight_offset=0.0,
        recipe=TORCH, eps_outside=false, partial=None, dweight=None, dbias=None, stats=None, mask=None,
        accumulate=None, threads=None),
    text_signature = "(dy, r, dresidual=None, weight=None, *, eps=1e-06, axis=-1, out=None, weight_offset=0.0, \
        recipe='torch', eps_outside=False, partial=None, dweight=None, dbias=None, stats=None, mask=None, \
        accumulate=None, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn add_rms_norm_backward<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    r: &Bound<'py, PyAny>,
    dresidual: Option<&Bound<'py, PyAny>>,
    weight: Option<&Bound<'py, PyAny>>,
    eps: f64,
    axis: Axis,
    out: Option<&Bound<'py, PyAny>>,
    weight_offset: f64,
    recipe: RecipeName,
    eps_outside: bool,
    partial: Option<Count>,
    dweight: Option<Bound<'py, PyAny>>,
    dbias: Option<Bound<'py, PyAny>>,
    stats: Option<PyRef<'py, Stats>>,
    mask: Option<&Bound<'py, PyAny>>,
    accumulate: Option<PyRefMut<'py, Partial>>,
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let norm = norm(eps, eps_outside, weight_offset, recipe, partial, threads)?;
    let (stats, is_after_add) = (stats.as_deref(), true);
    let x = ("r", r);
    let call =
        Backward { norm, dy, x, weight, axis, out, dresidual, is_after_add, dweight, dbias, stats, mask, accumulate };
    row_norm::backward(py, call)
}
