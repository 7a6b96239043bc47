"""What is taken as an array: lists, DLPack, subclasses, foreign byte order, misaligned memory; and what is copied."""

import ml_dtypes
import numpy as np
import pytest

import isonorm
from conftest import assert_same_bits, draw


class Dlpack:
    """A CPU array of another library: nothing but the protocol."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_lists_are_float64_and_parameters_take_the_type_of_x():
    assert_same_bits(isonorm.rms_norm([[1.0, 2.0]]), isonorm.rms_norm(np.array([[1.0, 2.0]])))
    x = draw((2, 3), ml_dtypes.bfloat16)
    weight = np.array([1.0, 2.0, 3.0], dtype=x.dtype)
    assert_same_bits(isonorm.rms_norm(x, [1.0, 2, 3]), isonorm.rms_norm(x, weight))


def test_arrays_come_through_dlpack():
    x, weight = draw((4, 6), np.float32), draw(6, np.float32, 1)
    expected = isonorm.rms_norm(x, weight)
    assert_same_bits(isonorm.rms_norm(Dlpack(x), Dlpack(weight)), expected)
    assert_same_bits(isonorm.rms_norm(Dlpack(x[:, ::-1]), weight[::-1]), expected[:, ::-1])


def test_subclasses_are_read_as_plain_arrays():
    class Sub(np.ndarray):
        def __array_function__(self, *_):
            raise AssertionError("no code of a subclass is run")

        __array_ufunc__ = transpose = copy = __array_function__

    x = draw((4, 6), np.float32)
    expected = isonorm.rms_norm(x, axis=0)
    y = isonorm.rms_norm(x.view(Sub), axis=0)
    assert type(y) is np.ndarray
    assert_same_bits(y, expected)
    out = x.copy().view(Sub)
    assert isonorm.rms_norm(x, axis=0, out=out) is out
    assert_same_bits(out.view(np.ndarray), expected)


def test_foreign_byte_order_is_read_and_written():
    for dtype in (np.float32, np.float64, np.float16):
        x, weight = draw((4, 6), dtype), draw(6, dtype, 1)
        swapped = x.astype(x.dtype.newbyteorder())
        expected = isonorm.rms_norm(x, weight)
        y = isonorm.rms_norm(swapped, weight.astype(swapped.dtype))
        assert y.dtype.isnative
        assert_same_bits(y, expected)
        out = np.empty_like(swapped)
        isonorm.rms_norm(x, weight, out=out)
        assert not out.dtype.isnative
        assert_same_bits(out.astype(dtype), expected)
        isonorm.rms_norm(swapped, weight, out=swapped)
        assert_same_bits(swapped.astype(dtype), expected, "in place")


def test_misaligned_memory_is_read_and_written(dtype):
    x = draw((4, 6), dtype)
    expected = isonorm.rms_norm(x)
    memory = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = memory[1:].view(dtype).reshape(x.shape)
    assert not misaligned.flags.aligned
    misaligned[...] = x
    assert_same_bits(isonorm.rms_norm(misaligned), expected)
    isonorm.rms_norm(misaligned, out=misaligned)
    assert_same_bits(misaligned.copy(), expected, "in place")


def test_fields_of_records_are_read_and_written():
    for record in (np.dtype("f4, u1"), np.dtype("f4, u2", align=True), np.dtype("f8, f4, f4")):
        records = np.zeros((5, 8), record)
        name = record.names[-1] if record[-1] == "f4" else "f0"
        field = records[name]
        field[...] = draw((5, 8), np.float32)
        expected = isonorm.layer_norm(field.copy())
        assert_same_bits(isonorm.layer_norm(field), expected)
        isonorm.layer_norm(field, out=field)
        assert_same_bits(records[name].copy(), expected)
        assert all((records[other] == 0).all() for other in record.names if other != name)


def test_more_axes_than_a_view_of_the_library_has():
    x = draw([2] * 16, np.float32)[..., ::-1, :].transpose([*range(13, -1, -1), 14, 15])
    assert_same_bits(isonorm.rms_norm(x), isonorm.rms_norm(x.reshape(-1, 2)).reshape(x.shape))
    out = np.empty_like(x)
    isonorm.rms_norm(x, out=out)
    assert_same_bits(out, isonorm.rms_norm(x))


def test_out_that_lies_between_the_elements_of_x():
    qkv = draw((3, 5, 3, 4), np.float32)
    q, k = qkv[:, :, 0], qkv[:, :, 1]
    expected, v = isonorm.rms_norm(q.copy()), qkv[:, :, 2].copy()
    before = q.copy()
    assert isonorm.rms_norm(q, out=k) is k
    assert_same_bits(k, expected)
    assert_same_bits(q, before, "q")
    assert_same_bits(qkv[:, :, 2], v, "v")


def test_out_has_a_type_of_its_own(dtype):
    if dtype == np.float64:
        return
    x = draw((3, 7), dtype)
    wide = isonorm.rms_norm(x, out=np.empty((3, 7), np.float32))
    assert_same_bits(wide.astype(dtype), isonorm.rms_norm(x), "one rounding from f32")


def test_parameters_have_a_type_of_their_own():
    x = draw((3, 7), ml_dtypes.bfloat16)
    weight = draw(7, np.float32)
    y = isonorm.rms_norm(x, weight)
    assert y.dtype == x.dtype
    dx, dweight, _ = isonorm.rms_norm_backward(x, x, weight)
    assert (dx.dtype, dweight.dtype) == (x.dtype, np.float32)


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_a_residual_stream_of_float32(norm):
    x, residual = draw((3, 7), ml_dtypes.bfloat16), draw((3, 7), np.float32, 1)
    y, r = getattr(isonorm, f"add_{norm}")(x, residual)
    assert (y.dtype, r.dtype) == (x.dtype, residual.dtype)
    assert_same_bits(r, x.astype(np.float32) + residual)
    assert_same_bits(y, getattr(isonorm, norm)(r, out=np.empty_like(x)))
    dx, dr, dweight, _ = getattr(isonorm, f"add_{norm}_backward")(y, r, residual)
    assert (dx.dtype, dr.dtype, dweight.dtype) == (y.dtype, r.dtype, r.dtype)
    assert_same_bits(dx, dr.astype(dx.dtype))


def test_scalars_and_memoryviews():
    values = memoryview(draw(6, np.float32).tobytes()).cast("f")
    assert_same_bits(isonorm.rms_norm(values), isonorm.rms_norm(np.frombuffer(values, np.float32)))
    with pytest.raises(ValueError, match="out of bounds"):
        isonorm.rms_norm(1.0)


def test_running_statistics_are_updated_wherever_they_lie():
    x = draw((8, 6), np.float32)
    mean, var = np.full(6, 0.5, np.float32), np.full(6, 2.0, np.float32)
    start = np.stack([mean, var], axis=1)
    isonorm.batch_norm(x, training=True, running_mean=mean, running_var=var)
    assert (mean != 0.5).all() and (var != 2.0).all()
    for dtype in (start.dtype, start.dtype.newbyteorder()):
        pairs = start.astype(dtype)
        isonorm.batch_norm(x, training=True, running_mean=pairs[:, 0], running_var=pairs[:, 1])
        assert_same_bits(pairs[:, 0].astype(np.float32), mean)
        assert_same_bits(pairs[:, 1].astype(np.float32), var)
    y = isonorm.batch_norm(x, running_mean=pairs[:, 0], running_var=pairs[:, 1])
    assert_same_bits(y, isonorm.batch_norm(x, running_mean=mean, running_var=var))


def test_dy_of_another_type_than_x_becomes_dx():
    x = draw((4, 6, 5), ml_dtypes.bfloat16)
    for backward in (isonorm.instance_norm_backward, isonorm.layer_norm_backward):
        dy = draw(x.shape, np.float32, 1)
        dx, dweight, dbias = backward(dy, x)
        found = backward(dy, x, out=dy)
        assert found[0] is dy
        assert_same_bits(dy, dx.astype(np.float32), "dx")
        assert_same_bits(found[1], dweight, "dweight")
        assert_same_bits(found[2], dbias, "dbias")
