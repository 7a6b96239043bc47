//! `rms_norm` and its backward pass.

use isonorm::Recipe;
use pyo3::prelude::*;

use super::axes::{Axis, LAST};
use super::options::{Count, RecipeName, cpu};
use super::partial::Partial;
use super::row_norm::{self, Backward, Forward, Kind, RowNorm};
use super::stats::Stats;

pub(super) const TORCH: RecipeName = RecipeName(Recipe::Torch);

/// Normalizes `x` by its root mean square along `axis` and scales it by `weight`.
///
/// Parameters
/// ----------
/// x : array_like
///     float32, float64, float16 or ``ml_dtypes.bfloat16``; any shape and strides, also through DLPack.
/// weight, bias : array_like, optional
///     One factor and one summand for each normalized element, of types of their own (float64 with float64 alone).
/// eps : float, default 1e-6
///     Added to the mean square.
/// axis : int or tuple of int, default -1
///     The normalized axes; their elements are taken in x's order.
/// out : ndarray, optional
///     Where y is written, in a type of its own; x itself for a call in place.
/// weight_offset : float, default 0.0
///     Added to every weight: 1 for Gemma.
/// recipe : {"torch", "llama"}, default "torch"
///     With "llama", x_hat is rounded to x's type before the weight, as Hugging Face's ``LlamaRMSNorm`` does.
/// eps_outside : bool, default False
///     eps is added to the root instead.
/// partial : int, optional
///     pRMSNorm: only the first `partial` elements enter the mean square.
/// return_stats : bool, default False
///     Also return the statistics, for `rms_norm_backward`.
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
/// .. math:: y_i = \frac{x_i}{\sqrt{\frac{1}{n} \sum_j x_j^2 + \epsilon}} (w_i + w_0) + b_i
///
/// Computed in float32 (float64 for float64); y is rounded once. The bits depend on the values, the shape and these
/// options alone: not on other rows, strides, threads or the instruction set.
///
/// Nothing is copied where the elements of a row follow one another in memory, in whatever order the other (at most 8)
/// axes lie. Copied are: x where they do not; weights with strides; arrays that are misaligned or in foreign byte
/// order. `out` is written by way of a new array where it is any of these, or lies between another array's elements.
/// The GIL is released; other threads must not write to the arrays meanwhile.
///
/// References
/// ----------
/// Zhang & Sennrich, *Root Mean Square Layer Normalization*, 2019. arXiv:1910.07467
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> x = np.array([[3.0, 4.0], [6.0, 8.0]], dtype=np.float32)
/// >>> isonorm.rms_norm(x, weight=np.array([1.0, 2.0], dtype=np.float32))
/// array([[0.8485281 , 2.2627416 ],
///        [0.84852815, 2.2627418 ]], dtype=float32)
#[pyfunction]
#[pyo3(
    signature = (x, weight=None, *, bias=None, eps=1e-6, axis=LAST, out=None, weight_offset=0.0, recipe=TORCH,
        eps_outside=false, partial=None, return_stats=false, threads=None),
    text_signature = "(x, weight=None, *, bias=None, eps=1e-06, axis=-1, out=None, weight_offset=0.0, \
        recipe='torch', eps_outside=False, partial=None, return_stats=False, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn rms_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    eps: f64,
    axis: Axis,
    out: Option<&Bound<'py, PyAny>>,
    weight_offset: f64,
    recipe: RecipeName,
    eps_outside: bool,
    partial: Option<Count>,
    return_stats: bool,
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let norm = norm(eps, eps_outside, weight_offset, recipe, partial, threads)?;
    row_norm::forward(py, Forward { norm, x, weight, bias, axis, out, return_stats })
}

/// The gradients of `rms_norm`.
///
/// Parameters
/// ----------
/// dy : array_like
///     The gradient of y, in a type of its own.
/// x, weight : array_like
///     What `rms_norm` was given, and so `eps`, `axis`, `weight_offset`, `recipe`, `eps_outside`, `partial`.
/// out : ndarray, optional
///     Where dx is written; may be dy itself.
/// dweight, dbias : bool or ndarray, optional
///     Whether these gradients are wanted, or where they are written. By default dweight is, unless `accumulate` takes
///     it; dbias is not.
/// stats : Stats, optional
///     What `rms_norm` returned: spares a pass over x, and changes no bit.
/// mask : array_like of bool, optional
///     Of x's shape without the normalized axes: False for padding, which is no part of the batch. Its dx is 0.
/// accumulate : Partial, optional
///     Takes the rows of this batch: gradients of a batch in pieces.
/// threads : int, optional
///     At most so many threads.
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
///     As `rms_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math::
///
///     g &= dy \cdot (w + w_0) \\
///     dx &= (g - \hat{x} \cdot \mathrm{mean}(g \hat{x})) \cdot \mathit{rstd} \\
///     dw &= \sum_r dy_r \hat{x}_r
///
/// The sums over rows have an order of their own: the same bits for any strides and threads, and with `accumulate` for
/// a batch in any pieces.
///
/// References
/// ----------
/// Zhang & Sennrich, *Root Mean Square Layer Normalization*, 2019. arXiv:1910.07467
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> x = np.array([[3.0, 4.0], [6.0, 8.0]])
/// >>> dx, dweight, _ = isonorm.rms_norm_backward(np.eye(2), x, eps=0.0)
/// >>> dweight
/// array([0.84852814, 1.13137085])
#[pyfunction]
#[pyo3(
    signature = (dy, x, weight=None, *, eps=1e-6, axis=LAST, out=None, weight_offset=0.0, recipe=TORCH,
        eps_outside=false, partial=None, dweight=None, dbias=None, stats=None, mask=None, accumulate=None,
        threads=None),
    text_signature = "(dy, x, weight=None, *, eps=1e-06, axis=-1, out=None, weight_offset=0.0, recipe='torch', \
        eps_outside=False, partial=None, dweight=None, dbias=None, stats=None, mask=None, accumulate=None, \
        threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn rms_norm_backward<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
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
    let (stats, dresidual, is_after_add) = (stats.as_deref(), None, false);
    let x = ("x", x);
    let call =
        Backward { norm, dy, x, weight, axis, out, dresidual, is_after_add, dweight, dbias, stats, mask, accumulate };
    row_norm::backward(py, call)
}

/// RMSNorm with its options.
pub(super) fn norm(
    eps: f64,
    eps_outside: bool,
    weight_offset: f64,
    RecipeName(recipe): RecipeName,
    partial: Option<Count>,
    threads: Option<Count>,
) -> PyResult<RowNorm> {
    let kind = Kind::Rms { recipe, partial: partial.map(|Count(k)| k) };
    Ok(RowNorm { kind, eps, eps_outside, weight_offset, cpu: cpu(threads)? })
}
