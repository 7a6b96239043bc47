"""What the tests share: types, bits, and the comparison of them."""

import importlib.util
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings

from isonorm._audit.elsewhere import processes

settings.register_profile("isonorm", deadline=None, max_examples=150, derandomize=True)
settings.load_profile("isonorm")

HAS_TORCH = importlib.util.find_spec("torch") is not None
collect_ignore_glob = [] if HAS_TORCH else ["pytorch/*"]

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def bits(array):
    """The storage patterns of an array, every NaN as the same one."""
    array = np.asarray(array)
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize]
    quiet = np.full((), np.nan, dtype=array.dtype)
    return np.where(
        np.isnan(array), quiet.view(unsigned), np.ascontiguousarray(array).view(unsigned).reshape(array.shape)
    )


def assert_same_bits(found, expected, label=""):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype, f"{label}: {found.dtype} is not {expected.dtype}"
    assert found.shape == expected.shape, f"{label}: {found.shape} is not {expected.shape}"
    differ = np.argwhere(bits(found) != bits(expected))
    if len(differ):
        at = tuple(differ[0])
        words = f"{bits(found)[at]:x}, expected {bits(expected)[at]:x}"
        raise AssertionError(f"{label}: {len(differ)} of {found.size} elements differ, first at {at}: {words}")


def draw(shape, dtype, seed=0):
    """Normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture(params=DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(autouse=True, scope="session")
def audits_share_their_processes():
    with processes():
        yield


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every test that has PyTorch loaded."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
