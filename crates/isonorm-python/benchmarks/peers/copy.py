"""No peer: PyTorch's copy of the bytes that a forward pass must read and write, the floor."""

import torch

from cells import FORWARD, FRESH, PREALLOCATED

NAME = "copy"


def version():
    return torch.__version__


def contestants(cell, t):
    if cell.work != FORWARD:
        return {}
    x, residual, y, total = t.x, t.residual, t.y, t.sum
    if residual is None:
        return {FRESH: lambda: x.clone(), PREALLOCATED: lambda: y.copy_(x)}
    return {FRESH: lambda: (x.clone(), residual.clone()), PREALLOCATED: lambda: (y.copy_(x), total.copy_(residual))}
