"""What is needed of oneDNN's C interface, by ctypes: the package `onednn` has the library, and no Python.

Nothing is given back to it: a run makes some hundred small things.
"""

import ctypes
import importlib.metadata
import os
from itertools import starmap

import numpy as np

FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128
GLOBAL_STATS, USE_SCALE, USE_SHIFT, RMS_NORM = 0x1, 0x2, 0x4, 0x20
BINARY_ADD = 0x1FFF0
SRC, SRC_1, DST, MEAN, VARIANCE, SCALE, SHIFT = 1, 2, 17, 49, 50, 51, 52
DIFF_SRC, DIFF_DST, DIFF_SCALE, DIFF_SHIFT = 129, 145, 255, 256

_CPU, _IN_ORDER, _MAX_DIMS = 1, 1, 12
_DATA_TYPES = {"float32": 3, "bfloat16": 2}
_NEEDED = ("libintlc.so.5", "libimf.so", "libsvml.so", "libtbb.so.12", "libur_loader.so.0", "libsycl.so.9")


class _Argument(ctypes.Structure):
    _fields_ = (("index", ctypes.c_int), ("memory", ctypes.c_void_p))


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int))


def _load():
    """The library; what it needs lies beside it, where the loader would not look."""
    files = importlib.metadata.files("onednn")
    path = next(file.locate().resolve() for file in files if file.name == "libdnnl.so.3")
    os.environ.setdefault("OCL_ICD_FILENAMES", str(path.parent / "libintelocl.so"))  # the CPU as a device of SYCL
    for name in _NEEDED:
        ctypes.CDLL(str(path.parent / name))
    return ctypes.CDLL(str(path))


def _checked(name, *arguments):
    status = getattr(_library, name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} failed with status {status}")


def _new(name, *arguments):
    """The handle that a function of oneDNN gives through its first argument."""
    handle = ctypes.c_void_p()
    _checked(name, ctypes.byref(handle), *arguments)
    return handle


_library = _load()
_library.dnnl_version.restype = ctypes.POINTER(_Version)
_engine = _new("dnnl_engine_create", _CPU, ctypes.c_size_t(0))
_stream = _new("dnnl_stream_create", _engine, _IN_ORDER)


def version():
    found = _library.dnnl_version().contents
    return f"{found.major}.{found.minor}.{found.patch}"


def describe(array):
    """A memory descriptor: shape, strides, type."""
    dims = (ctypes.c_int64 * _MAX_DIMS)(*array.shape)
    strides = (ctypes.c_int64 * _MAX_DIMS)(*(stride // array.itemsize for stride in array.strides))
    return _new("dnnl_memory_desc_create_with_strides", array.ndim, dims, _DATA_TYPES[array.dtype.name], strides)


def primitive_desc(kind, *arguments):
    """`kind` without `dnnl_`; arrays are passed as their descriptors, floats as C's."""

    def as_c(argument):
        if isinstance(argument, np.ndarray):
            return describe(argument)
        return ctypes.c_float(argument) if isinstance(argument, float) else argument

    return _new(f"dnnl_{kind}", _engine, *map(as_c, arguments), None)


class Step:
    """One primitive and the arrays it runs on."""

    def __init__(self, desc, arrays):
        self.primitive = _new("dnnl_primitive_create", desc)
        self.arrays = arrays  # they have to outlive the call
        memories = {
            index: _new("dnnl_memory_create", describe(array), _engine, ctypes.c_void_p(array.ctypes.data))
            for index, array in arrays.items()
        }
        self.arguments = (_Argument * len(memories))(*(_Argument(i, memory.value) for i, memory in memories.items()))


def call(steps, results):
    """A function that runs the steps one after the other, waits for them, and returns `results`."""
    execute, wait, stream = _library.dnnl_primitive_execute, _library.dnnl_stream_wait, _stream
    plan = [(step.primitive, stream, len(step.arguments), step.arguments) for step in steps]

    def run():
        if any(starmap(execute, plan)) or wait(stream):
            raise RuntimeError(f"oneDNN failed in one of {len(steps)} steps")
        return results

    return run
