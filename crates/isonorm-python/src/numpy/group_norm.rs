//! `group_norm`, `instance_norm` and their backward passes.

use pyo3::prelude::*;

use super::axes::Axis;
use super::channel_norm::{self, Backward, ChannelNorm, Forward, Kind};
use super::options::{Count, Wanted, cpu};
use super::stats::Stats;

const SECOND: Axis = Axis::One(1);

/// Normalizes each group of a sample's channels by its mean and standard deviation.
///
/// Parameters
/// ----------
/// x : array_like
///     ``(N, C, ...)``: float32, float64, float16 or ``ml_dtypes.bfloat16``, also through DLPack.
/// num_groups : int
///     A divisor of the channels.
/// weight, bias : array_like, optional
///     One factor and one summand for each channel, of types of their own (float64 with float64 alone).
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
/// return_stats : bool, default False
///     Also return the statistics, for `group_norm_backward`.
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
///     For shapes and options that do not fit, and where `out` overlaps another array. Nothing is written then.
///
/// Notes
/// -----
/// .. math:: y = \frac{x - \mathrm{mean}_{n,g}}{\sqrt{\mathrm{var}_{n,g} + \epsilon}} (w_c + w_0) + b_c
///
/// What is copied is as in `batch_norm`.
///
/// References
/// ----------
/// Wu & He, *Group Normalization*, 2018. arXiv:1803.08494
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> isonorm.group_norm(np.array([[1.0, 3.0, 5.0, 7.0]]), 2, eps=0.0)
/// array([[-1.,  1., -1.,  1.]])
#[pyfunction]
#[pyo3(
    signature = (x, num_groups, weight=None, bias=None, *, eps=1e-5, axis=SECOND, out=None, weight_offset=0.0,
        eps_outside=false, return_stats=false, threads=None),
    text_signature = "(x, num_groups, weight=None, bias=None, *, eps=1e-05, axis=1, out=None, weight_offset=0.0, \
        eps_outside=False, return_stats=False, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn group_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    num_groups: Count,
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
    let kind = Kind::Group { groups: num_groups.0 };
    let norm = ChannelNorm { kind, eps, eps_outside, weight_offset, cpu: cpu(threads)? };
    channel_norm::forward(py, Forward { norm, x, weight, bias, axis, out, return_stats })
}

/// Normalizes each channel of each sample by its mean and standard deviation.
///
/// Parameters
/// ----------
/// x, weight, bias, eps, axis, out, weight_offset, eps_outside, return_stats, threads
///     As in `group_norm`, of which this is the case with as many groups as channels.
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
/// TypeError, ValueError
///     As `group_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math:: y = \frac{x - \mathrm{mean}_{n,c}}{\sqrt{\mathrm{var}_{n,c} + \epsilon}} (w_c + w_0) + b_c
///
/// References
/// ----------
/// Ulyanov, Vedaldi & Lempitsky, *Instance Normalization: The Missing Ingredient for Fast Stylization*, 2016.
/// arXiv:1607.08022
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> isonorm.instance_norm(np.array([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
/// array([[[-1.,  1.],
///         [-1.,  1.]]])
#[pyfunction]
#[pyo3(
    signature = (x, weight=None, bias=None, *, eps=1e-5, axis=SECOND, out=None, weight_offset=0.0,
        eps_outside=false, return_stats=false, threads=None),
    text_signature = "(x, weight=None, bias=None, *, eps=1e-05, axis=1, out=None, weight_offset=0.0, \
        eps_outside=False, return_stats=False, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn instance_norm<'py>(
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
    let norm = ChannelNorm { kind: Kind::Instance, eps, eps_outside, weight_offset, cpu: cpu(threads)? };
    channel_norm::forward(py, Forward { norm, x, weight, bias, axis, out, return_stats })
}

/// The gradients of `group_norm`.
///
/// Parameters
/// ----------
/// dy : array_like
///     The gradient of y, in a type of its own.
/// x, num_groups, weight
///     What `group_norm` was given, and so `eps`, `axis`, `weight_offset`, `eps_outside`.
/// out : ndarray, optional
///     Where dx is written; may be dy itself.
/// dweight, dbias : bool or ndarray, default True
///     Whether these gradients are wanted, or where they are written.
/// stats : Stats, optional
///     What `group_norm` returned: spares a pass over x, and changes no bit.
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
///     As `group_norm`. Nothing is written then.
///
/// Notes
/// -----
/// .. math::
///
///     g &= dy \cdot (w + w_0) \\
///     dx &= (g - \mathrm{mean}(g) - \hat{x} \cdot \mathrm{mean}(g \hat{x})) \cdot \mathit{rstd} \\
///     dw &= \sum dy \cdot \hat{x}, \quad db = \sum dy
///
/// References
/// ----------
/// Wu & He, *Group Normalization*, 2018. arXiv:1803.08494
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> x, dy = np.array([[1.0, 3.0, 1.0, 3.0]]), np.array([[1.0, 1.0, 2.0, 0.0]])
/// >>> dx, dweight, dbias = isonorm.group_norm_backward(dy, x, 1, eps=0.0)
/// >>> dx, dweight
/// (array([[-0.5,  0.5,  0.5, -0.5]]), array([-1.,  1., -2.,  0.]))
#[pyfunction]
#[pyo3(
    signature = (dy, x, num_groups, weight=None, *, eps=1e-5, axis=SECOND, out=None, weight_offset=0.0,
        eps_outside=false, dweight=None, dbias=None, stats=None, threads=None),
    text_signature = "(dy, x, num_groups, weight=None, *, eps=1e-05, axis=1, out=None, weight_offset=0.0, \
        eps_outside=False, dweight=True, dbias=True, stats=None, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn group_norm_backward<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
    num_groups: Count,
    weight: Option<&Bound<'py, PyAny>>,
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
    let kind = Kind::Group { groups: num_groups.0 };
    let norm = ChannelNorm { kind, eps, eps_outside, weight_offset, cpu: cpu(threads)? };
    let (dweight, dbias) = (Wanted::of("dweight", dweight, true)?, Wanted::of("dbias", dbias, true)?);
    let stats = stats.as_deref();
    channel_norm::backward(py, Backward { norm, dy, x, weight, axis, out, dweight, dbias, stats })
}

/// The gradients of `instance_norm`.
///
/// Parameters
/// ----------
/// dy, x, weight, eps, axis, out, weight_offset, eps_outside, dweight, dbias, stats, threads
///     As in `group_norm_backward`, of which this is the case with as many groups as channels.
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
///     As `group_norm`. Nothing is written then.
///
/// References
/// ----------
/// Ulyanov, Vedaldi & Lempitsky, *Instance Normalization: The Missing Ingredient for Fast Stylization*, 2016.
/// arXiv:1607.08022
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import isonorm
/// >>> x, dy = np.array([[[1.0, 3.0], [2.0, 6.0]]]), np.array([[[1.0, 0.0], [0.0, 2.0]]])
/// >>> dx, dweight, dbias = isonorm.instance_norm_backward(dy, x, eps=0.0)
/// >>> dweight, dbias
/// (array([-1.,  2.]), array([1., 2.]))
#[pyfunction]
#[pyo3(
    signature = (dy, x, weight=None, *, eps=1e-5, axis=SECOND, out=None, weight_offset=0.0, eps_outside=false,
        dweight=None, dbias=None, stats=None, threads=None),
    text_signature = "(dy, x, weight=None, *, eps=1e-05, axis=1, out=None, weight_offset=0.0, eps_outside=False, \
        dweight=True, dbias=True, stats=None, threads=None)"
)]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn instance_norm_backward<'py>(
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
    threads: Option<Count>,
) -> PyResult<Bound<'py, PyAny>> {
    let norm = ChannelNorm { kind: Kind::Instance, eps, eps_outside, weight_offset, cpu: cpu(threads)? };
    let (dweight, dbias) = (Wanted::of("dweight", dweight, true)?, Wanted::of("dbias", dbias, true)?);
    let stats = stats.as_deref();
    channel_norm::backward(py, Backward { norm, dy, x, weight, axis, out, dweight, dbias, stats })
}
