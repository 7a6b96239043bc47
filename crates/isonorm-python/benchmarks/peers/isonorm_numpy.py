"""isonorm for NumPy."""

import isonorm
from cells import BACKWARD, EPS, FORWARD, FRESH, PREALLOCATED

NAME = "isonorm.numpy"


def version():
    return isonorm.__version__


def contestants(cell, tensors):
    if cell.work == FORWARD:
        fresh, into = _forward(cell, tensors), _forward(cell, tensors, *tensors.numpy("y", "sum"))
    else:
        fresh, into = _backward(cell, tensors), _backward(cell, tensors, *tensors.numpy("y", "dx"))
    return {FRESH: fresh, PREALLOCATED: into}


def _forward(cell, tensors, y=None, total=None):
    x, weight, bias, residual, mean, var = tensors.numpy("x", "weight", "bias", "residual", "mean", "var")
    running = {"running_mean": mean, "running_var": var}
    return {
        "RMSNorm": lambda: isonorm.rms_norm(x, weight, eps=EPS, out=y),
        "LayerNorm": lambda: isonorm.layer_norm(x, weight, bias, eps=EPS, out=y),
        "add + RMSNorm": lambda: isonorm.add_rms_norm(x, residual, weight, eps=EPS, out=y, residual_out=total),
        "BatchNorm": lambda: isonorm.batch_norm(x, weight, bias, **running, eps=EPS, out=y),
    }[cell.norm]


def _backward(cell, tensors, y=None, dx=None):
    x, weight, bias, mean, var, dy = tensors.numpy("x", "weight", "bias", "mean", "var", "dy")
    same = {"eps": EPS, "return_stats": True, "out": y}
    forward, backward, options = {
        "RMSNorm": (lambda: isonorm.rms_norm(x, weight, **same), isonorm.rms_norm_backward, {}),
        "LayerNorm": (lambda: isonorm.layer_norm(x, weight, bias, **same), isonorm.layer_norm_backward, {}),
        "BatchNorm": (
            lambda: isonorm.batch_norm(x, weight, bias, running_mean=mean, running_var=var, training=True, **same),
            isonorm.batch_norm_backward,
            {"training": True},
        ),
    }[cell.norm]
    options |= {"eps": EPS, "out": dx, "dweight": True, "dbias": cell.has_bias}
    if cell.work == BACKWARD:
        _, saved = forward()
        return lambda: backward(dy, x, weight, stats=saved, **options)
    return lambda: backward(dy, x, weight, stats=forward()[1], **options)
