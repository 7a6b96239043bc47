"""oneDNN's primitives, made once, into memory that is there; its own threads (TBB) on the affinity of the process.

The package is built for SYCL: a call is a task of a queue, which is waited for. Parameters are float32 always: with
bfloat16 ones oneDNN takes its reference kernels, which need a hundred times as long.
"""

import numpy as np

from cells import BACKWARD, EPS, FORWARD, PREALLOCATED
from peers import _dnnl as dnnl

NAME = "oneDNN"
version = dnnl.version


def contestants(cell, tensors):
    make = {"BatchNorm": _batch_norm, "add + RMSNorm": _add_rms_norm}.get(cell.norm, _row_norm)
    return {PREALLOCATED: make(cell, tensors)}


def _params(t):
    return [None if param is None else param.astype(np.float32) for param in t.numpy("weight", "bias")]


def _row_forward(x, y, kind, flags):
    stats = np.empty(x.shape[0], np.float32)
    return dnnl.primitive_desc("layer_normalization_forward_primitive_desc_create", kind, x, y, stats, EPS, flags)


def _row_norm(cell, t):
    x, y, dy, dx = t.numpy("x", "y", "dy", "dx")
    weight, bias = _params(t)
    flags = dnnl.USE_SCALE | (dnnl.USE_SHIFT if cell.has_bias else dnnl.RMS_NORM)
    arrays = {dnnl.SRC: x, dnnl.DST: y, dnnl.SCALE: weight} | ({dnnl.SHIFT: bias} if cell.has_bias else {})
    if cell.work == FORWARD:
        return dnnl.call([dnnl.Step(_row_forward(x, y, dnnl.FORWARD_INFERENCE, flags), arrays)], (y,))
    mean, variance = np.empty((2, x.shape[0]), np.float32)
    stats = {dnnl.MEAN: mean, dnnl.VARIANCE: variance}
    desc = _row_forward(x, y, dnnl.FORWARD_TRAINING, flags)
    forward = dnnl.Step(desc, arrays | stats)
    create = "layer_normalization_backward_primitive_desc_create"
    desc = dnnl.primitive_desc(create, dnnl.BACKWARD, dx, dy, x, mean, EPS, flags, desc)
    return _training(cell, forward, desc, stats, (x, dy, weight), dx)


def _batch_norm(cell, t):
    x, mean, var, y, dy, dx = t.numpy("x", "mean", "var", "y", "dy", "dx")
    weight, bias = _params(t)
    flags = dnnl.USE_SCALE | dnnl.USE_SHIFT
    create = "batch_normalization_forward_primitive_desc_create"
    arrays = {dnnl.SRC: x, dnnl.DST: y, dnnl.SCALE: weight, dnnl.SHIFT: bias}
    if cell.work == FORWARD:
        desc = dnnl.primitive_desc(create, dnnl.FORWARD_INFERENCE, x, y, EPS, flags | dnnl.GLOBAL_STATS)
        return dnnl.call([dnnl.Step(desc, arrays | {dnnl.MEAN: mean, dnnl.VARIANCE: var})], (y,))
    stats = dict(zip((dnnl.MEAN, dnnl.VARIANCE), np.empty((2, *weight.shape), np.float32), strict=True))
    desc = dnnl.primitive_desc(create, dnnl.FORWARD_TRAINING, x, y, EPS, flags)
    forward = dnnl.Step(desc, arrays | stats)
    create = "batch_normalization_backward_primitive_desc_create"
    desc = dnnl.primitive_desc(create, dnnl.BACKWARD, dx, dy, x, EPS, flags, desc)
    return _training(cell, forward, desc, stats, (x, dy, weight), dx)


def _training(cell, forward, desc, stats, inputs, dx):
    x, dy, weight = inputs
    dweight, dbias = np.empty((2, *weight.shape), np.float32)
    inputs = {dnnl.SRC: x, dnnl.DIFF_DST: dy, dnnl.SCALE: weight}
    grads = {dnnl.DIFF_SRC: dx, dnnl.DIFF_SCALE: dweight, dnnl.DIFF_SHIFT: dbias}
    backward = dnnl.Step(desc, inputs | stats | grads)
    if cell.work == BACKWARD:
        dnnl.call([forward], None)()  # saves the statistics
        return dnnl.call([backward], (dx, dweight, dbias))
    return dnnl.call([forward, backward], (dx, dweight, dbias))


def _add_rms_norm(cell, t):
    """Two primitives: there is none that adds first."""
    x, residual, y, total = t.numpy("x", "residual", "y", "sum")
    weight, _ = _params(t)
    add = dnnl.primitive_desc("binary_primitive_desc_create", dnnl.BINARY_ADD, x, residual, total)
    norm = _row_forward(total, y, dnnl.FORWARD_INFERENCE, dnnl.USE_SCALE | dnnl.RMS_NORM)
    steps = [
        dnnl.Step(add, {dnnl.SRC: x, dnnl.SRC_1: residual, dnnl.DST: total}),
        dnnl.Step(norm, {dnnl.SRC: total, dnnl.SCALE: weight, dnnl.DST: y}),
    ]
    return dnnl.call(steps, (y, total))
