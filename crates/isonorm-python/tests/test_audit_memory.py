"""The audit's patterns: types, layouts, and distances."""

import ml_dtypes
import numpy as np
import pytest

from conftest import draw
from isonorm._audit.memory import FORMATS, Bits, Layout, distance, encode


def patterns(values, dtype="float32"):
    return Bits(encode(np.array(values, dtype=np.float64), dtype), dtype)


def test_bfloat16_is_rounded_as_ml_dtypes_does():
    values = np.concatenate([draw(10_000, np.float64), [0.0, -0.0, np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38]])
    expected = values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert (encode(values, "bfloat16") == expected).all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize(
    ("layout", "strides"),
    [
        (Layout(), (7, 1)),
        (Layout(gap=5), (12, 1)),
        (Layout(step=2), (14, 2)),
        (Layout(step=3, gap=2), (23, 3)),
        (Layout(columns_first=True), (1, 4)),
    ],
)
def test_rows_lie_where_a_layout_says(layout, strides, offset, dtype):
    rows = encode(draw((4, 7), np.float64), dtype)
    layout = Layout(**{**vars(layout), "offset": offset})
    placed = layout.place(rows)
    assert (placed == rows).all()
    assert placed.strides == tuple(stride * rows.itemsize for stride in strides)
    assert placed.ctypes.data % 64 == offset * rows.itemsize


def test_a_broadcast_row_has_no_stride():
    rows = encode(np.tile(draw((1, 7), np.float64), (4, 1)), "float32")
    placed = Layout(broadcast=True).place(rows)
    assert placed.strides == (0, 4) and (placed == rows).all()


@pytest.mark.parametrize(
    ("found", "expected", "ulps"),
    [
        ([1.0], [1.0 + 2.0**-23], 1),
        ([-(2.0**-149)], [2.0**-149], 2),
        ([0.0], [-0.0], 0),
        ([np.inf], [np.finfo(np.float32).max], 1),
        ([np.nan], [1.0], None),
    ],
)
def test_distances_count_representable_values(found, expected, ulps):
    for left, right in ((found, expected), (expected, found)):
        apart = distance(patterns([left]), patterns([right]))
        assert (apart.rows, apart.elements, apart.of, apart.row, apart.ulps) == (1, 1, 1, 0, ulps)


def test_distances_name_the_first_row():
    found, expected = np.zeros((5, 3)), np.zeros((5, 3))
    found[2, 1:] = found[4, 0] = 1.0
    apart = distance(patterns(found), patterns(expected))
    assert (apart.rows, apart.elements, apart.of, apart.row) == (2, 3, 15, 2)


def test_the_same_bits_have_no_distance():
    assert distance(patterns([[1.0, np.nan]]), patterns([[1.0, np.nan]])) is None
    negative = Bits(patterns([[np.nan]]).patterns | np.uint32(1 << 31), "float32")
    assert distance(negative, patterns([[np.nan]])) is None


def test_other_types_differ():
    assert distance(patterns([[1.0]], "float64"), patterns([[1.0]])).ulps is None


def test_extremes_of_float64_do_not_overflow():
    largest = np.finfo(np.float64).max
    assert distance(patterns([[largest]], "float64"), patterns([[-largest]], "float64")).ulps == 2 * 0x7FEFFFFFFFFFFFFF
