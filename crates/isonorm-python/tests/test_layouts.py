"""Any shape, axis, strides and type have the bits of the contiguous call."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import isonorm
from conftest import DTYPES, assert_same_bits, draw

ROW_NORMS = (isonorm.rms_norm, isonorm.layer_norm)
CHANNEL_NORMS = {
    "batch": (isonorm.batch_norm, isonorm.batch_norm_backward, {"training": True}),
    "group": (isonorm.group_norm, isonorm.group_norm_backward, {"num_groups": 2}),
    "instance": (isonorm.instance_norm, isonorm.instance_norm_backward, {}),
}
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
dtypes = st.sampled_from(DTYPES)


@st.composite
def views(draw_from, shape, dtype, is_written=False):
    """An array of `shape` that lies in memory in any way: axes in any order, steps, negative ones, zeros, gaps."""
    ndim = len(shape)
    order = draw_from(st.permutations(range(ndim)))
    steps = [draw_from(st.sampled_from([1, 1, 2, -1, -2])) for _ in range(ndim)]
    base = draw([shape[axis] * abs(steps[axis]) for axis in order], dtype, draw_from(st.integers(0, 9)))
    offset = draw_from(st.integers(0, 3))
    memory = np.concatenate([np.zeros(offset, dtype), base.ravel()])[offset:].reshape(base.shape)
    view = memory.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    if not is_written and ndim and draw_from(st.booleans()):
        axis = draw_from(st.integers(0, ndim - 1))
        view = np.broadcast_to(view.take([0], axis=axis), shape)
    assert view.shape == shape
    return view


@st.composite
def axes(draw_from, ndim):
    chosen = draw_from(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True))
    signed = [axis - ndim if draw_from(st.booleans()) else axis for axis in chosen]
    return signed[0] if len(signed) == 1 and draw_from(st.booleans()) else tuple(signed)


def as_rows(array, axis):
    """A contiguous copy with the normalized axes last and as one, and the shape they have."""
    axis = sorted(a % array.ndim for a in np.atleast_1d(axis))
    others = [a for a in range(array.ndim) if a not in axis]
    moved = array.transpose(others + axis)
    shape = moved.shape[len(others) :]
    return np.ascontiguousarray(moved).reshape(-1, int(np.prod(shape))), shape, others + axis


def back(rows, shape, order):
    return rows.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


@given(st.data())
def test_rows_have_the_bits_of_contiguous_rows(data):
    shape, dtype = data.draw(shapes), data.draw(dtypes)
    norm, axis = data.draw(st.sampled_from(ROW_NORMS)), data.draw(axes(len(shape)))
    x = data.draw(views(shape, dtype))
    rows, normalized, order = as_rows(x, axis)
    weight = data.draw(st.none() | views(normalized, dtype))
    bias = data.draw(st.none() | views(normalized, dtype))
    flat = {"weight": None if weight is None else weight.ravel(), "bias": None if bias is None else bias.ravel()}
    expected = back(norm(rows, **flat), shape, order)
    before = x.copy()
    assert_same_bits(norm(x, weight, bias=bias, axis=axis), expected, "new")
    out = data.draw(views(shape, dtype, is_written=True))
    assert norm(x, weight, bias=bias, axis=axis, out=out) is out
    assert_same_bits(out, expected, "out")
    assert_same_bits(x, before, "x is left as it is")
    if x.flags.writeable:
        assert norm(x, weight, bias=bias, axis=axis, out=x) is x
        assert_same_bits(x, expected, "in place")


@given(st.data())
def test_gradients_of_rows_have_the_bits_of_contiguous_rows(data):
    shape, dtype = data.draw(shapes), data.draw(dtypes)
    norm = data.draw(st.sampled_from(["rms_norm", "layer_norm"]))
    axis = data.draw(axes(len(shape)))
    x, dy = data.draw(views(shape, dtype)), data.draw(views(shape, dtype))
    (rows, normalized, order), (dy_rows, *_) = as_rows(x, axis), as_rows(dy, axis)
    weight = data.draw(views(normalized, dtype))
    forward, backward = getattr(isonorm, norm), getattr(isonorm, norm + "_backward")
    expected = backward(dy_rows, rows, weight.ravel(), dbias=True)
    expected = (back(expected[0], shape, order), *(gradient.reshape(normalized) for gradient in expected[1:]))
    _, stats = forward(x, weight, axis=axis, return_stats=True)
    out = data.draw(st.none() | views(shape, dtype, is_written=True))
    dweight = data.draw(st.just(True) | views(normalized, dtype, is_written=True))
    found = backward(dy, x, weight, axis=axis, out=out, dweight=dweight, dbias=True, stats=stats)
    for name, a, b in zip(("dx", "dweight", "dbias"), found, expected, strict=True):
        assert_same_bits(a, b, name)
    if dy.flags.writeable:
        backward(dy, x, weight, axis=axis, out=dy)
        assert_same_bits(dy, expected[0], "dx in place of dy")


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
@given(data=st.data())
def test_the_residual_add_has_the_bits_of_its_two_steps(norm, data):
    names = (norm, f"{norm}_backward", f"add_{norm}", f"add_{norm}_backward")
    forward, backward, add, add_backward = (getattr(isonorm, name) for name in names)
    shape, dtype = data.draw(shapes), data.draw(dtypes)
    axis = data.draw(axes(len(shape)))
    x, residual = data.draw(views(shape, dtype, is_written=True)), data.draw(views(shape, dtype, is_written=True))
    sum_, expected_dr = x + residual, x + residual
    expected = forward(sum_, axis=axis)
    y, r = add(x, residual, axis=axis)
    assert_same_bits(y, expected, "y")
    assert_same_bits(r, sum_, "r")
    dx, dr, dweight, dbias = add_backward(x, r, np.zeros_like(r), axis=axis)
    expected_dr, expected_dweight, expected_dbias = backward(x, r, axis=axis)
    assert dr is dx
    assert_same_bits(dx + 0, expected_dr + 0, "dx")  # -0 + 0 is 0
    assert_same_bits(dweight, expected_dweight, "dweight")
    if norm == "rms_norm":
        assert dbias is expected_dbias is None
    else:
        assert_same_bits(dbias, expected_dbias, "dbias")
    places = data.draw(st.sampled_from([("x", "residual"), ("x",), ("residual",)]))
    given_out = {}
    if "x" in places:
        given_out["out"] = x
    if "residual" in places:
        given_out["residual_out"] = residual
    y, r = add(x, residual, axis=axis, **given_out)
    assert_same_bits(y, expected, f"y with {places} in place")
    assert_same_bits(r, sum_, f"r with {places} in place")


@pytest.mark.parametrize("norm", CHANNEL_NORMS)
@given(data=st.data())
def test_channels_have_the_bits_of_contiguous_samples(norm, data):
    forward, backward, options = CHANNEL_NORMS[norm]
    spatial = data.draw(st.lists(st.integers(1, 4), max_size=2))
    shape = (data.draw(st.integers(2, 4)), 2 * data.draw(st.integers(1, 3)), *spatial)
    dtype, axis = data.draw(dtypes), data.draw(st.integers(0, len(shape) - 1))
    contiguous, dy_contiguous = draw(shape, dtype, data.draw(st.integers(0, 9))), draw(shape, dtype, 11)
    weight, bias = draw(shape[1], dtype, 1), draw(shape[1], dtype, 2)
    expected, saved = forward(contiguous, weight=weight, bias=bias, return_stats=True, **options)
    gradients = backward(dy_contiguous, contiguous, weight=weight, stats=saved, **options)

    moved = tuple(np.moveaxis(contiguous, 1, axis).shape)
    x, dy = data.draw(views(moved, dtype, is_written=True)), data.draw(views(moved, dtype, is_written=True))
    x[...], dy[...] = np.moveaxis(contiguous, 1, axis), np.moveaxis(dy_contiguous, 1, axis)
    given_options = {"axis": axis if data.draw(st.booleans()) else axis - len(shape), "weight": weight, **options}
    found = backward(dy, x, **given_options)
    assert_same_bits(np.moveaxis(found[0], axis, 1), gradients[0], "dx")
    assert_same_bits(found[1], gradients[1], "dweight")
    assert_same_bits(found[2], gradients[2], "dbias")
    backward(dy, x, out=dy, **given_options)
    assert_same_bits(np.moveaxis(dy, axis, 1), gradients[0], "dx in place of dy")

    given_options["bias"] = bias
    assert_same_bits(np.moveaxis(forward(x, **given_options), axis, 1), expected, "new")
    out = data.draw(views(moved, dtype, is_written=True))
    assert forward(x, out=out, **given_options) is out
    assert_same_bits(np.moveaxis(out, axis, 1), expected, "out")
    assert forward(x, out=x, **given_options) is x
    assert_same_bits(np.moveaxis(x, axis, 1), expected, "in place")


def test_a_row_does_not_depend_on_the_others(dtype):
    x, weight = draw((64, 300), dtype), draw(300, dtype, 1)
    whole = isonorm.rms_norm(x, weight)
    for r in (0, 17, 63):
        assert_same_bits(isonorm.rms_norm(x[r], weight), whole[r], f"row {r}")


def test_new_arrays_lie_as_is_documented(dtype):
    x = draw((3, 4, 5), dtype)
    assert isonorm.layer_norm(x).flags.c_contiguous
    assert isonorm.layer_norm(x[:, ::2]).flags.c_contiguous
    assert np.moveaxis(isonorm.layer_norm(x, axis=0), 0, -1).flags.c_contiguous
    nhwc = isonorm.batch_norm(np.moveaxis(x, -1, 1), training=True)
    assert np.moveaxis(nhwc, 1, -1).flags.c_contiguous


def test_empty_arrays_are_normalized_to_empty_arrays(dtype):
    for shape in [(0,), (0, 4), (3, 0), (2, 0, 4)]:
        x = np.empty(shape, dtype)
        for norm in ROW_NORMS:
            y, stats = norm(x, return_stats=True)
            assert y.shape == shape and y.dtype == dtype and stats.shape == shape[:-1]
        dx, dweight, dbias = isonorm.layer_norm_backward(x, x)
        assert dx.shape == shape and (dweight == 0).all() and (dbias == 0).all()
    for shape in [(0, 4, 3), (3, 4, 0)]:
        x = np.empty(shape, dtype)
        for forward, backward, options in CHANNEL_NORMS.values():
            y, stats = forward(x, **options, return_stats=True)
            assert y.shape == shape and stats.shape in [(4,), (shape[0], 4), (shape[0], 2)]
            dx, dweight, dbias = backward(x, x, **options, stats=stats)
            assert dx.shape == shape and (dweight == 0).all() and (dbias == 0).all()
