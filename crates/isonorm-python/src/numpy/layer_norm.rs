//! `layer_norm` and its backward pass.

use pyo3::prelude::*;

use super::axes::{Axis, LAST};
use super::options::{Count, cpu};
use super::partial::Partial;
use super::row_norm::{self, Backward, Forward, Kind, RowNorm};
use super::stats::Stats;

/// Takes the mean off `x` along `axis`, divides it by the standard deviation and applies `weight` and `bias`.
///
/// Parameters
/// ----------
/// x : array_like
///     float32, float64, float16 or ``ml_dtypes.bfloat16``; any shape and strides, also through DLPack.
/// weight, bias : array_like, optional
///     One factor and one summand for each normalized element, of types of their own (float64 with float64 alone).
/// eps : float, default 1e-5
///     Added to the variance.
/// axis : int or tuple of int, default -1
///     The normalized axes; their elements are taken in x's order.
/// out : ndarray, optional
///     Where y is written, in a type of its own; x itself for a call in place.
/// weight_offset : float, default 0.0
///     Added to every weight.
/// eps_outside : bool, default False
///     eps is added to the standard deviation instead.
/// return_stats : bool, default False
///     Also return the statistics, for `layer_norm_backward`.
/// threads : int, optional
///     At most so many threads; all cores by default.
///
/// Returns
/// -------
/// y : ndarray
///     `out`, or a new array in which the normalized axes follow one another in memory.
/// stats : Stats
///     With `return_stats` alone.
///
/// Raises
/// ------
/// TypeError
///     For types that are none of these, or do not go together. Nothing is written then.
/// ValueError
///     For shapes and options that do not fit, and where `out` overlaps another array. Nothing is written then.
///
/// Notes
/// -----
/// .. math:: y_i = \frac{x_i - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}} (w_i + w_0) + b_i
///
/// The statistics are two-pass and corrected: a row of mean 1000 and standard deviation 1 loses nothing. For bits,
/// copies and threads, see the notes of `rms_norm`.
///
/// References
/// ----------
/// Ba, Kiros & Hinton, *Layer Normalization*, 2016. arXiv:1607.06450
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> isonorm.layer_norm(np.array([1.0, 2.0, 3.0], dtype=np.float32))
/// array([-1.2247356,  0.       ,  1.2247356], dtype=float32)
#[pyfunction]
#[pyo3(
    signature = (x, weight=None, bias=None, *, eps=1e-5, axis=LAST, out=None, weight_offset=0.0,
        eps_outside=false, return_stats=false, threads=None),
    text_signature = "(x, weight=None, bias=None, *, eps=1e-05, axis=-1, out=None, weight_offset=0.0, \
        eps_outside=False, return_stats=False, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn layer_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    eps: f64,
    axis: Axis,
    out: Option<&Bound<'py, PyAny>>,
    weight_offset: f64,
    eps_outside: bool,
    return_stats: bool,
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let norm = norm(eps, eps_outside, weight_offset, threads)?;
    row_norm::forward(py, Forward { norm, x, weight, bias, axis, out, return_stats })
}

/// The gradients of `layer_norm`.
///
/// Parameters
/// ----------
/// dy : array_like
///     The gradient of y, in a type of its own.
/// x, weight : array_like
///     What `layer_norm` was given, and so `eps`, `axis`, `weight_offset`, `eps_outside`.
/// out : ndarray, optional
///     Where dx is written; may be dy itself.
/// dweight, dbias : bool or ndarray, optional
///     Whether these gradients are wanted, or where they are written. By default both are, unless `accumulate` takes
///     them.
/// stats, mask, accumulate, threads
///     As in `rms_norm_backward`.
///
/// Returns
/// -------
/// dx : ndarray
///     `out`, or a new array in x's type.
/// dweight, dbias : ndarray or None
///     In weight's type, without one in x's; None where not wanted.
///
/// Raises
/// ------
/// TypeError, ValueError
///     As `layer_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math::
///
///     g &= dy \cdot (w + w_0) \\
///     dx &= (g - \mathrm{mean}(g) - \hat{x} \cdot \mathrm{mean}(g \hat{x})) \cdot \mathit{rstd} \\
///     dw &= \sum_r dy_r \hat{x}_r, \quad db = \sum_r dy_r
///
/// References
/// ----------
/// Ba, Kiros & Hinton, *Layer Normalization*, 2016. arXiv:1607.06450
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> x, dy = np.array([[1.0, 3.0], [2.0, 6.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])
/// >>> dx, dweight, dbias = isonorm.layer_norm_backward(dy, x, eps=0.0)
/// >>> dweight, dbias
/// (array([-1.,  2.]), array([1., 2.]))
#[pyfunction]
#[pyo3(
    signature = (dy, x, weight=None, *, eps=1e-5, axis=LAST, out=None, weight_offset=0.0, eps_outside=false,
        dweight=None, dbias=None, stats=None, mask=None, accumulate=None, threads=None),
    text_signature = "(dy, x, weight=None, *, eps=1e-05, axis=-1, out=None, weight_offset=0.0, eps_outside=False, \
        dweight=None, dbias=None, stats=None, mask=None, accumulate=None, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn layer_norm_backward<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
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
    let (stats, dresidual, is_after_add) = (stats.as_deref(), None, false);
    let x = ("x", x);
    let call =
        Backward { norm, dy, x, weight, axis, out, dresidual, is_after_add, dweight, dbias, stats, mask, accumulate };
    row_norm::backward(py, call)
}

/// LayerNorm with its options.
pub(super) fn norm(eps: f64, eps_outside: bool, weight_offset: f64, threads: Option<Count>) -> PyResult<RowNorm> {
    Ok(RowNorm { kind: Kind::Layer, eps, eps_outside, weight_offset, cpu: cpu(threads)? })
}
