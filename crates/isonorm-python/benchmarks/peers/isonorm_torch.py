"""isonorm for PyTorch."""

import isonorm
import isonorm.torch.functional as F
from cells import EPS, FORWARD, FRESH, PREALLOCATED
from peers import _passes

NAME = "isonorm"


def version():
    return isonorm.__version__


def contestants(cell, tensors):
    found = {FRESH: _passes.of(cell, tensors, _fresh(cell, tensors))}
    return found | ({PREALLOCATED: _preallocated(cell, tensors)} if cell.work == FORWARD else {})


def _fresh(cell, t):
    x, weight, bias, residual, mean, var = t.x, t.weight, t.bias, t.residual, t.mean, t.var
    size, training = tuple(weight.shape), cell.work != FORWARD
    return {
        "RMSNorm": lambda: F.rms_norm(x, size, weight, EPS),
        "LayerNorm": lambda: F.layer_norm(x, size, weight, bias, EPS),
        "add + RMSNorm": lambda: F.add_rms_norm(x, residual, size, weight, EPS),
        "BatchNorm": lambda: F.batch_norm(x, mean, var, weight, bias, training, 0.1, EPS),
    }[cell.norm]


def _preallocated(cell, t):
    x, weight, bias, mean, var, y = t.x, t.weight, t.bias, t.mean, t.var, t.y
    size = tuple(weight.shape)
    if cell.norm == "add + RMSNorm":  # in place, which overwrites the inputs
        x, residual = x.clone(), t.residual.clone()
        return lambda: F.add_rms_norm(x, residual, size, weight, EPS, inplace=True)
    return {
        "RMSNorm": lambda: F.rms_norm(x, size, weight, EPS, out=y),
        "LayerNorm": lambda: F.layer_norm(x, size, weight, bias, EPS, out=y),
        "BatchNorm": lambda: F.batch_norm(x, mean, var, weight, bias, False, 0.1, EPS, out=y),
    }[cell.norm]
