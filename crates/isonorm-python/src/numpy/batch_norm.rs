//! `batch_norm` and its backward pass.

use pyo3::prelude::*;

use super::axes::Axis;
use super::channel_norm::{self, Backward, Batch, ChannelNorm, Forward, Kind};
use super::options::{Count, Wanted, cpu};
use super::stats::Stats;

const SECOND: Axis = Axis::One(1);

/// Normalizes each channel by its mean and standard deviation: over the batch in training, else the running ones.
///
/// Parameters
/// ----------
/// x : array_like
///     ``(N, C, ...)``: float32, float64, float16 or ``ml_dtypes.bfloat16``, also through DLPack.
/// weight, bias : array_like, optional
///     One factor and one summand for each channel, of types of their own (float64 with float64 alone).
/// running_mean, running_var : array_like
///     One for each channel. In training they are optional, and arrays that are updated.
/// training : bool, default False
///     Normalize by the statistics of the batch.
/// momentum : float, default 0.1
///     The share of the batch in the running statistics; ``1 / (n + 1)`` after n batches for an average over all.
/// eps : float, default 1e-5
///     Added to the variance.
/// axis : int, default 1
///     The channels: -1 for NHWC. The first of the other axes is N.
/// out : ndarray, optional
///     Where y is written, in a type of its own; x itself for a call in place.
/// weight_offset : float, default 0.0
///     Added to every weight.
/// eps_outside : bool, default False
///     eps is added to the standard deviation instead.
/// biased_running_var : bool, default False
///     The running variance takes the batch's without the factor ``n / (n - 1)``.
/// return_stats : bool, default False
///     Also return the statistics of the batch, for `batch_norm_backward`.
/// threads : int, optional
///     At most so many threads; all cores by default.
///
/// Returns
/// -------
/// y : ndarray
///     `out`, or a new array that lies in memory as x does.
/// stats : Stats
///     With `return_stats` alone.
///
/// Raises
/// ------
/// TypeError
///     For types that are none of these, or do not go together. Nothing is written then.
/// ValueError
///     For shapes and options that do not fit, a channel of a single value in training, and where arrays that are
///     written overlap others. Nothing is written then.
///
/// Notes
/// -----
/// .. math:: y = \frac{x - \mathrm{mean}_c}{\sqrt{\mathrm{var}_c + \epsilon}} (w_c + w_0) + b_c
///
/// Nothing is copied where x is contiguous with the channels second or last, in whatever order of axes it is given.
/// Otherwise x is copied, and `out` or `dy` where it lies in memory otherwise than x. For the rest, see `rms_norm`.
///
/// References
/// ----------
/// Ioffe & Szegedy, *Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift*,
/// 2015. arXiv:1502.03167
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> x, mean, var = np.array([[1.0, 10.0], [3.0, 30.0]]), np.zeros(2), np.ones(2)
/// >>> isonorm.batch_norm(x, running_mean=mean, running_var=var, training=True, momentum=0.5, eps=0.0)
/// array([[-1., -1.],
///        [ 1.,  1.]])
/// >>> mean, var
/// (array([ 1., 10.]), array([  1.5, 100.5]))
#[pyfunction]
#[pyo3(
    signature = (x, weight=None, bias=None, *, running_mean=None, running_var=None, training=false, momentum=0.1,
        eps=1e-5, axis=SECOND, out=None, weight_offset=0.0, eps_outside=false, biased_running_var=false,
        return_stats=false, threads=None),
    text_signature = "(x, weight=None, bias=None, *, running_mean=None, running_var=None, training=False, \
        momentum=0.1, eps=1e-05, axis=1, out=None, weight_offset=0.0, eps_outside=False, \
        biased_running_var=False, return_stats=False, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn batch_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    running_mean: Option<&Bound<'py, PyAny>>,
    running_var: Option<&Bound<'py, PyAny>>,
    training: bool,
    momentum: f64,
    eps: f64,
    axis: Axis,
    out: Option<&Bound<'py, PyAny>>,
    weight_offset: f64,
    eps_outside: bool,
    biased_running_var: bool,
    return_stats: bool,
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let (mean, var, is_biased) = (running_mean, running_var, biased_running_var);
    let kind = Kind::Batch(Batch { is_training: training, mean, var, momentum, is_biased });
    let norm = ChannelNorm { kind, eps, eps_outside, weight_offset, cpu: cpu(threads)? };
    channel_norm::forward(py, Forward { norm, x, weight, bias, axis, out, return_stats })
}

/// The gradients of `batch_norm`.
///
/// Parameters
/// ----------
/// dy : array_like
///     The gradient of y, in a type of its own.
/// x, weight : array_like
///     What `batch_norm` was given, and so `training`, `eps`, `axis`, `weight_offset`, `eps_outside`.
/// running_mean, running_var : array_like, optional
///     What evaluation was given. In training they are not read.
/// out : ndarray, optional
///     Where dx is written; may be dy itself.
/// dweight, dbias : bool or ndarray, default True
///     Whether these gradients are wanted, or where they are written.
/// stats : Stats, optional
///     What `batch_norm` returned: spares a pass over x, and changes no bit.
/// threads : int, optional
///     At most so many threads.
///
/// Returns
/// -------
/// dx : ndarray
///     `out`, or a new array in x's type that lies in memory as x does.
/// dweight, dbias : ndarray or None
///     In weight's type, without one in x's; None where not wanted.
///
/// Raises
/// ------
/// TypeError, ValueError
///     As `batch_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math::
///
///     db &= \sum dy, \quad dw = \sum dy \cdot \hat{x} \\
///     dx &= (dy - db / n - \hat{x} \cdot dw / n) \cdot (w + w_0) \cdot \mathit{rstd}
///
/// In evaluation dx is ``dy * w * rstd``.
///
/// References
/// ----------
/// Ioffe & Szegedy, *Batch Normalization*, 2015. arXiv:1502.03167
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> x, dy = np.array([[1.0], [3.0], [1.0], [3.0]]), np.array([[1.0], [1.0], [2.0], [0.0]])
/// >>> dx, dweight, dbias = isonorm.batch_norm_backward(dy, x, training=True, eps=0.0)
/// >>> dx.ravel(), dweight, dbias
/// (array([-0.5,  0.5,  0.5, -0.5]), array([-2.]), array([4.]))
#[pyfunction]
#[pyo3(
    signature = (dy, x, weight=None, *, running_mean=None, running_var=None, training=false, eps=1e-5, axis=SECOND,
        out=None, weight_offset=0.0, eps_outside=false, dweight=None, dbias=None, stats=None, threads=None),
    text_signature = "(dy, x, weight=None, *, running_mean=None, running_var=None, training=False, eps=1e-05, \
        axis=1, out=None, weight_offset=0.0, eps_outside=False, dweight=True, dbias=True, stats=None, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn batch_norm_backward<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    running_mean: Option<&Bound<'py, PyAny>>,
    running_var: Option<&Bound<'py, PyAny>>,
    training: bool,
    eps: f64,
    axis: Axis,
    out: Option<&Bound<'py, PyAny>>,
    weight_offset: f64,
    eps_outside: bool,
    dweight: Option<Bound<'py, PyAny>>,
    dbias: Option<Bound<'py, PyAny>>,
    stats: Option<PyRef<'py, Stats>>,
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let (mean, var) = (running_mean, running_var);
    let kind = Kind::Batch(Batch { is_training: training, mean, var, momentum: 0.0, is_biased: false });
    let norm = ChannelNorm { kind, eps, eps_outside, weight_offset, cpu: cpu(threads)? };
    let (dweight, dbias) = (Wanted::of("dweight", dweight, true)?, Wanted::of("dbias", dbias, true)?);
    let stats = stats.as_deref();
    channel_norm::backward(py, Backward { norm, dy, x, weight, axis, out, dweight, dbias, stats })
}
