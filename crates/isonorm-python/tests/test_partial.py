"""`Partial`: gradients of a batch in pieces, and `Stats`."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import isonorm
from conftest import assert_same_bits, draw


@given(st.data())
def test_micro_batches_have_the_bits_of_the_batch(data):
    dtype = data.draw(st.sampled_from([np.float32, np.float64, ml_dtypes.bfloat16]))
    rows = data.draw(st.integers(1, 70))
    x, dy, weight = draw((rows, 5), dtype), draw((rows, 5), dtype, 1), draw(5, dtype, 2)
    dx, dweight, dbias = isonorm.layer_norm_backward(dy, x, weight)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    pieces = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
    partial, parts = isonorm.Partial(dtype, 5), []
    for piece in pieces:
        part_dx, *nothing = isonorm.layer_norm_backward(dy[piece], x[piece], weight, accumulate=partial)
        assert nothing == [None, None]
        assert_same_bits(part_dx, dx[piece], "dx")
        parts.append(isonorm.Partial(dtype, 5, piece.start))
        isonorm.layer_norm_backward(dy[piece], x[piece], weight, accumulate=parts[-1])
    joined = isonorm.Partial.join(pickle.loads(pickle.dumps(part)) for part in data.draw(st.permutations(parts)))
    for sums in (partial, joined):
        assert (sums.start, sums.end, len(sums), sums.columns) == (0, rows, rows, 5)
        assert_same_bits(sums.dweight(dtype), dweight, "dweight")
        assert_same_bits(sums.dbias(dtype), dbias, "dbias")


def test_push_takes_rows_and_merge_neighbours():
    dy, x_hat = draw((40, 3), np.float32), draw((40, 3), np.float32, 1)
    whole = isonorm.Partial("float32", 3)
    whole.push(dy, x_hat)
    first, second = isonorm.Partial(np.float32, 3), isonorm.Partial(np.float32, 3, start=17)
    first.push(dy[:17], x_hat[:17])
    second.push(np.asfortranarray(dy[17:]), x_hat[17:].tolist())
    first.merge(second)
    assert first.dtype == np.float32 and len(second) == 23
    assert_same_bits(first.dweight(), whole.dweight())
    assert_same_bits(first.dbias(np.float16), whole.dbias("f2"))
    assert first.to_bytes() == whole.to_bytes()
    assert copy.deepcopy(first).to_bytes() == isonorm.Partial.from_bytes(first.to_bytes()).to_bytes()
    assert repr(first) == "Partial(dtype=float32, columns=3, rows=0..40)"


def test_what_does_not_fit_is_refused():
    partial = isonorm.Partial(np.float32, 3)
    ones = np.ones((2, 3), np.float32)
    partial.push(ones, ones)
    late = isonorm.Partial(np.float32, 3, start=5)
    refused = [
        (lambda: partial.merge(late), ValueError, "starts at 5, expected 2"),
        (lambda: partial.merge(isonorm.Partial(np.float32, 4, start=2)), ValueError, "expected"),
        (lambda: partial.merge(partial), ValueError, "next is in use, expected another sum"),
        (lambda: partial.push(ones, ones[:1]), ValueError, "x_hat has shape"),
        (lambda: partial.push(ones[:, :2], ones[:, :2]), ValueError, "not a whole number of rows"),
        (lambda: partial.push(ones.astype("f8"), ones), TypeError, "dy is f64"),
        (lambda: partial.dweight("f8"), TypeError, "dweight is f64"),
        (lambda: partial.dweight(int), TypeError, "expected float32"),
        (late.dweight, ValueError, "starts at 5, expected 0"),
        (lambda: isonorm.Partial.from_bytes(b"no sum"), ValueError, "the bytes are no partial sum"),
        (lambda: isonorm.Partial.join([]), ValueError, "is 0, expected at least 1"),
        (lambda: isonorm.Partial.join([1]), TypeError, "Partial"),
        (lambda: isonorm.Partial(int, 3), TypeError, "expected float32"),
        (lambda: isonorm.Partial(np.float32, -3), ValueError, "-3 is negative"),
        (lambda: isonorm.rms_norm_backward(ones[:, :2], ones[:, :2], accumulate=partial), ValueError, "expected"),
    ]
    before = partial.to_bytes()
    for call, error, message in refused:
        with pytest.raises(error, match=message):
            call()
    assert partial.to_bytes() == before


def test_padding_is_no_part_of_the_batch():
    x, dy = draw((6, 4), np.float32), draw((6, 4), np.float32, 1)
    mask = np.array([True, False, True, True, False, True])
    dx, dweight, dbias = isonorm.layer_norm_backward(dy, x, mask=mask)
    _, expected, expected_dbias = isonorm.layer_norm_backward(dy[mask], x[mask])
    assert_same_bits(dweight, expected)
    assert_same_bits(dbias, expected_dbias)
    assert (dx[~mask] == 0).all()
    strange = np.array([2, 0, 1, 255, 0, 4], np.uint8).view(bool)
    assert_same_bits(isonorm.layer_norm_backward(dy, x, mask=strange)[0], dx)


def test_statistics_are_those_of_the_rows(dtype):
    x = draw((2, 3, 5), dtype)
    _, stats = isonorm.layer_norm(x, axis=1, return_stats=True)
    compute = np.float64 if dtype == np.float64 else np.float32
    wide = x.astype(np.float64)
    for name, expected in [("mean", wide.mean(1)), ("var", wide.var(1)), ("rstd", 1 / np.sqrt(wide.var(1) + 1e-5))]:
        found = getattr(stats, name)
        assert found.dtype == compute and found.shape == (2, 5) == stats.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)  # f32 sums of three values
    assert repr(stats) == f"Stats(shape=[2, 5], dtype={np.dtype(compute)})"


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda one, n=n: pickle.loads(pickle.dumps(one, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_statistics_are_copied_whole(copied, dtype):
    x, dy = draw((2, 3, 5), dtype), draw((2, 3, 5), dtype, 1)
    x[0, :, 0] *= np.asarray(3e4, dtype)  # squares beyond float16: nothing of it is lost
    _, stats = isonorm.layer_norm(x, axis=1, return_stats=True)
    twin = copied(stats)
    assert type(twin) is isonorm.Stats and repr(twin) == repr(stats)
    assert twin != stats and stats == stats and len({stats, twin}) == 2  # no two are equal
    for name in ("mean", "var", "rstd"):
        assert_same_bits(getattr(twin, name), getattr(stats, name), name)
    expected = isonorm.layer_norm_backward(dy, x, axis=1, stats=stats)
    for found, gradient in zip(isonorm.layer_norm_backward(dy, x, axis=1, stats=twin), expected, strict=True):
        assert_same_bits(found, gradient)


def test_statistics_under_the_range_rule_and_of_no_rows_are_copied_whole():
    x = np.array([[1e30, -2e30, 3e30], [1e-30, 2e-30, -1e-30], [np.nan, 1.0, np.inf]], np.float32)
    for rows in (x, x[:0]):
        _, stats = isonorm.layer_norm(rows, eps=0.0, return_stats=True)
        expected = isonorm.layer_norm_backward(rows, rows, eps=0.0, stats=stats)
        found = isonorm.layer_norm_backward(rows, rows, eps=0.0, stats=copy.copy(stats))
        for a, b in zip(found, expected, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copied_partial_goes_on_by_itself(copied):
    dy, x_hat = draw((40, 3), np.float32), draw((40, 3), np.float32, 1)
    partial = isonorm.Partial(np.float32, 3, start=5)
    partial.push(dy, x_hat)
    before, twin = partial.to_bytes(), copied(partial)
    assert type(twin) is isonorm.Partial and twin.to_bytes() == before and repr(twin) == repr(partial)
    assert twin != partial and partial == partial and len({partial, twin}) == 2  # no two are equal
    twin.push(dy, x_hat)
    assert (len(partial), len(twin)) == (40, 80) and partial.to_bytes() == before


def test_what_is_no_pickled_statistics_is_refused():
    _, stats = isonorm.layer_norm(draw((4, 6), np.float32), return_stats=True)
    make, (values,) = stats.__reduce__()
    assert values.shape == (4, 5)
    for wrong, error, message in [
        (values[:, :4], ValueError, r"values has shape \[4, 4\], expected five for each row"),
        (values[0, 0], ValueError, r"values has shape \[\]"),
        (values.astype(np.float16), TypeError, "expected float32 or float64"),
        (values.astype(int), TypeError, "expected float32"),
    ]:
        with pytest.raises(error, match=message):
            make(wrong)
    assert_same_bits(make(np.asfortranarray(values)).mean, stats.mean)
