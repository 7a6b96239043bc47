"""Every wrong call is refused: what was found, what was expected; and nothing is written."""

import re

import ml_dtypes
import numpy as np
import pytest

import isonorm
from conftest import draw

X, W = draw((4, 6), np.float32), draw(6, np.float32, 1)
C = draw((4, 6, 5), np.float32)
INT = np.arange(24).reshape(4, 6)
R = isonorm.rms_norm
B = isonorm.rms_norm_backward


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def stats(x, **options):
    return isonorm.rms_norm(x, return_stats=True, **options)[1]


REFUSED = [
    # types
    (lambda: R(INT), TypeError, "x has dtype int64, expected float32, float64, float16 or ml_dtypes.bfloat16"),
    (lambda: R([1, 2]), TypeError, "x has dtype int64, expected float32"),
    (lambda: R("text"), TypeError, "expected float32"),
    (lambda: R(None), TypeError, "x has dtype object, expected float32"),
    (lambda: R(X.astype(np.complex64)), TypeError, "x has dtype complex64, expected float32"),
    (lambda: R(X.astype(ml_dtypes.float8_e4m3fn)), TypeError, "x has dtype float8_e4m3fn, expected float32"),
    (lambda: R(X.astype(np.longdouble)), TypeError, "expected float32"),
    (lambda: R(X, W.astype(np.float64)), TypeError, "weight is f64, which does not go with x of f32"),
    (lambda: R(X, INT[0]), TypeError, "weight has dtype int64, expected float32"),
    (lambda: R(X, out=X.astype(np.float64)), TypeError, "y is f64, which does not go with x of f32"),
    (lambda: R(X, out=INT), TypeError, "out has dtype int64, expected float32"),
    (lambda: R(X, out=X.tolist()), TypeError, "out is list, expected a numpy.ndarray to write into"),
    (lambda: R(np.ma.masked_array(X)), TypeError, "x is a masked array, expected one without a mask"),
    (lambda: R(X, out=np.ma.masked_array(X.copy())), TypeError, "out is a masked array"),
    (lambda: R(X, eps="small"), TypeError, "must be real number, not str"),
    (lambda: R(X, axis=1.0), TypeError, "axis is float, expected an int or a tuple of ints"),
    (lambda: R(X, W, W), TypeError, "positional"),
    (lambda: R(), TypeError, "'x'"),
    (lambda: B(X, X, dweight=[1.0]), TypeError, "dweight is list, expected True, False or a numpy.ndarray"),
    (lambda: B(X, X, stats=W), TypeError, "'ndarray' object is not an instance of 'Stats'"),
    (lambda: B(X, X, accumulate=W), TypeError, "'ndarray' object is not an instance of 'Partial'"),
    (lambda: B(X, X, mask=np.ones(4)), TypeError, "mask has dtype float64, expected bool"),
    (lambda: B(X.astype("f8"), X), TypeError, "dy is f64, which does not go with x of f32"),
    (lambda: B(X, X, stats=stats(X.astype("f8"))), TypeError, "stats is f64, expected f32"),
    # shapes
    (lambda: R(X, W[:3]), ValueError, "weight has shape [3], expected [6]: that of x's normalized axes"),
    (lambda: R(X, W.reshape(2, 3)), ValueError, "weight has shape [2, 3], expected [6]"),
    (lambda: R(C, C[0].T, axis=(1, 2)), ValueError, "weight has shape [5, 6], expected [6, 5]"),
    (lambda: R(X, bias=W[:3]), ValueError, "bias has shape [3], expected [6]"),
    (lambda: R(X, out=X[:2].copy()), ValueError, "out has shape [2, 6], expected [4, 6]"),
    (lambda: R(X, axis=2), ValueError, "axis 2 is out of bounds for array of dimension 2"),
    (lambda: R(X, axis=-3), ValueError, "axis -3 is out of bounds for array of dimension 2"),
    (lambda: R(X, axis=()), ValueError, "axis is [], expected at least one axis"),
    (lambda: R(X, axis=(1, -1)), ValueError, "axis is [1, 1], expected at least one axis, each of them once"),
    (lambda: R(np.float32(1)), ValueError, "axis -1 is out of bounds for array of dimension 0"),
    (lambda: B(X[:2], X), ValueError, "dy has shape [2, 6], expected [4, 6] as x has"),
    (lambda: B(X, X, mask=np.ones(3, bool)), ValueError, "mask has shape [3], expected [4]: one for each row"),
    (lambda: B(X, X, stats=stats(X[:2])), ValueError, "stats has shape [2], expected [4]: those of this x"),
    (lambda: B(X, X, dweight=np.empty(3, "f4")), ValueError, "dweight has shape [3], expected [6]"),
    (lambda: isonorm.add_rms_norm(X, X[:1]), ValueError, "residual has shape [1, 6], expected [4, 6] as x has"),
    (lambda: isonorm.add_layer_norm(X, X[:1]), ValueError, "residual has shape [1, 6], expected [4, 6] as x has"),
    (lambda: isonorm.add_layer_norm_backward(X, X, X[:1]), ValueError, "dresidual has shape [1, 6], expected [4, 6]"),
    (lambda: isonorm.add_layer_norm(X, X, W, W[:3]), ValueError, "bias has shape [3], expected [6]"),
    (
        lambda: isonorm.batch_norm(X[0], training=True),
        ValueError,
        "x has ndim 1, expected at least 2: samples, channels, and any positions",
    ),
    (lambda: isonorm.batch_norm(C, axis=(1, 2)), TypeError, "axis is a tuple, expected an int: the channels' axis"),
    (lambda: isonorm.group_norm(C, 3, W[:5]), ValueError, "weight has shape [5], expected [6]: that of x's channels"),
    # options
    (lambda: R(X, eps=-1.0), ValueError, "eps is -1, expected a finite number of at least 0"),
    (lambda: R(X, eps=float("nan")), ValueError, "eps is NaN, expected a finite number of at least 0"),
    (lambda: R(X, recipe="gemma"), ValueError, 'recipe is "gemma", expected "torch" or "llama"'),
    (lambda: R(X, weight_offset=1.0), ValueError, "weight_offset is 1, but there is no weight to add it to"),
    (lambda: R(X, partial=7), ValueError, "partial is 7, expected 1 to 6"),
    (lambda: R(X, partial=-1), ValueError, "-1 is negative, expected a count of at least 0"),
    (lambda: R(X, threads=0), ValueError, "threads is 0, expected at least 1"),
    (lambda: isonorm.group_norm(C, 4), ValueError, "4 groups do not divide 6 channels: choose a divisor of 6"),
    (lambda: isonorm.group_norm(C, 0), ValueError, "0 groups do not divide 6 channels"),
    (lambda: isonorm.group_norm(C, 10**15, return_stats=True), ValueError, "groups do not divide 6 channels"),
    (lambda: isonorm.batch_norm(C), TypeError, "running_mean and running_var are missing, expected both"),
    (lambda: isonorm.batch_norm(C, running_mean=W), TypeError, "one of running_mean and running_var is missing"),
    (lambda: isonorm.batch_norm(X[:1], training=True), ValueError, "1 value for each channel, expected at least 2"),
    (
        lambda: isonorm.batch_norm(C, running_mean=W, running_var=W, return_stats=True),
        ValueError,
        "return_stats is True, expected False",
    ),
    (
        lambda: isonorm.batch_norm(C, running_mean=W.tolist(), running_var=W.tolist(), training=True),
        TypeError,
        "running_mean is list, expected a numpy.ndarray to write into",
    ),
    # memory
    (lambda: R(np.empty((2**50, 0)), return_stats=True), MemoryError, "no memory for the statistics of"),
    (lambda: isonorm.Partial(np.float32, 2**50).dweight(), MemoryError, "Unable to allocate"),
    (lambda: R(X, out=read_only(X)), ValueError, "out is read-only, expected a writable array"),
    (lambda: B(X, X, dweight=read_only(W)), ValueError, "dweight is read-only, expected a writable array"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def strided(base, strides):
    return np.lib.stride_tricks.as_strided(base, (4, 6), strides)


OVERLAPS = [
    (lambda b: R(b[0:4], out=b[1:5]), "out overlaps x in memory, expected x itself or an array of its own"),
    (lambda b: R(b[0:4], out=b[3::-1]), "out overlaps x in memory"),
    (lambda b: R(X, b[0], out=b[0:4]), "out overlaps weight in memory, expected an array of its own"),
    (lambda b: R(X, bias=b[3], out=b[0:4]), "out overlaps bias in memory"),
    (lambda b: R(X, out=strided(b, (0, 4))), "out has strides of 0, expected elements of its own"),
    (lambda b: R(X, out=strided(b, (8, 4))), "rows that overlap"),
    (lambda b: B(b[0:4], X, out=b[1:5]), "out overlaps dy in memory, expected dy itself or an array of its own"),
    (lambda b: B(X, b[0:4], out=b[0:4]), "out overlaps x in memory, expected an array of its own"),
    (lambda b: B(X, X, out=b[0:4], dweight=b[0]), "dweight overlaps out in memory"),
    (lambda b: B(X, X, dweight=b[0], dbias=b[0]), "dbias overlaps dweight in memory"),
    (lambda b: B(X, b[0:4], dweight=b[2]), "dweight overlaps x in memory"),
    (lambda b: isonorm.add_rms_norm(b[0:4], X, residual_out=b[0:4]), "residual_out overlaps x in memory"),
    (lambda b: isonorm.add_rms_norm(X, b[0:4], out=b[0:4]), "out overlaps residual in memory"),
    (lambda b: isonorm.add_rms_norm(X, X, out=b[0:4], residual_out=b[0:4]), "residual_out overlaps out in memory"),
    (lambda b: isonorm.add_rms_norm(b[0:4], b[0:4], out=b[0:4]), "out overlaps residual in memory"),
    (lambda b: isonorm.add_layer_norm(X, X, bias=b[0], residual_out=b[0:4]), "residual_out overlaps bias in memory"),
    (
        lambda b: isonorm.batch_norm(X, training=True, running_mean=b[0], running_var=b[0]),
        "running_var overlaps running_mean in memory",
    ),
    (
        lambda b: isonorm.batch_norm(b[0:4], training=True, running_mean=b[0], running_var=b[5]),
        "running_mean overlaps x in memory",
    ),
    (
        lambda b: isonorm.batch_norm(X, training=True, running_mean=b[0], running_var=b[5], out=b[0:4]),
        "out overlaps running_mean in memory",
    ),
    (lambda b: isonorm.group_norm(b[0:4], 2, out=b[1:5]), "out overlaps x in memory"),
]


@pytest.mark.parametrize(
    ("call", "message"), OVERLAPS, ids=[f"{i} {message}" for i, (_, message) in enumerate(OVERLAPS)]
)
def test_overlaps_are_refused_and_nothing_is_written(call, message):
    buffer = draw((6, 6), np.float32, 3)
    before = buffer.copy()
    with pytest.raises(ValueError, match=re.escape(message)):
        call(buffer)
    assert (buffer == before).all()


def test_nothing_is_written_on_an_error():
    out, mean, var = X.copy(), np.zeros(6, np.float32), np.ones(6, np.float32)
    before = out.copy()
    for options in ({"eps": -1.0}, {"weight": W.astype("f8")}, {"threads": 0}, {"weight": W[:2]}):
        for norm in (isonorm.rms_norm, isonorm.layer_norm):
            with pytest.raises((TypeError, ValueError)):
                norm(X, **options, out=out)
        with pytest.raises((TypeError, ValueError)):
            isonorm.batch_norm(X, running_mean=mean, running_var=var, training=True, **options, out=out)
        with pytest.raises((TypeError, ValueError)):
            isonorm.layer_norm_backward(X, X, **options, out=out, dweight=mean, dbias=var)
        assert (out == before).all() and (mean == 0).all() and (var == 1).all()
