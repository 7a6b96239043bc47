"""torch.compile of RMSNorm as Hugging Face's models write it, `LlamaRMSNorm.forward`.

The default mode: `max-autotune-no-cudagraphs` chooses among templates of matrix products, and makes the same code of
a norm.
"""

import torch

from cells import BACKWARD, EPS, FORWARD, FRESH, PREALLOCATED
from peers import _passes

NAME = "torch.compile"


def version():
    return torch.__version__


def _llama_rms_norm(x, weight):
    dtype = x.dtype
    x = x.to(torch.float32)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * x.to(dtype)


def _rms_norm(x, weight, y=None):
    found = _llama_rms_norm(x, weight)
    return found if y is None else y.copy_(found)


def _add_rms_norm(x, residual, weight, y=None, total=None):
    found = x + residual
    if y is None:
        return _llama_rms_norm(found, weight), found
    return y.copy_(_llama_rms_norm(found, weight)), total.copy_(found)


def contestants(cell, t):
    # Autograd compiles forward and backward pass together: one of them alone is not what it is for.
    if cell.norm not in ("RMSNorm", "add + RMSNorm") or cell.work == BACKWARD:
        return {}
    torch.compiler.reset()  # or the guards of each cell would be asked in all later ones
    x, residual, weight, y, total = t.x, t.residual, t.weight, t.y, t.sum
    if cell.norm == "RMSNorm":
        run = torch.compile(_rms_norm, fullgraph=True, dynamic=False)
        fresh, into = lambda: run(x, weight), lambda: run(x, weight, y)
    else:
        run = torch.compile(_add_rms_norm, fullgraph=True, dynamic=False)
        fresh, into = lambda: run(x, residual, weight), lambda: run(x, residual, weight, y, total)
    if cell.work != FORWARD:
        return {FRESH: _passes.of(cell, t, fresh)}
    return {FRESH: fresh, PREALLOCATED: into}
