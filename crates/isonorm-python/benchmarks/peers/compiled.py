"""torch.compile of RMSNorm as Hugging Face's models write it, `LlamaRMSNorm.forward`; on a GPU of LayerNorm too.

The default mode: `max-autotune-no-cudagraphs` chooses among templates of matrix products, and makes the same code of
a norm.
"""

import functools

import torch
import torch.nn.functional as F

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


def _layer_norm(x, weight, bias, y=None):
    found = F.layer_norm(x, weight.shape, weight, bias, EPS)
    return found if y is None else y.copy_(found)


_FUNCTIONS = {"RMSNorm": _rms_norm, "add + RMSNorm": _add_rms_norm, "LayerNorm": _layer_norm}


@functools.lru_cache(1)
def _compiled(cell):
    torch.compiler.reset()  # or the guards of each cell would be asked in all later ones
    return torch.compile(_FUNCTIONS[cell.norm], fullgraph=True, dynamic=False)


def contestants(cell, t):
    # Autograd compiles forward and backward pass together: one of them alone is not what it is for.
    on_gpu_alone = cell.norm == "LayerNorm" or cell.work == BACKWARD
    if cell.norm not in _FUNCTIONS or (on_gpu_alone and not t.x.is_cuda):
        return {}
    run, x, residual, weight, bias, y, total = _compiled(cell), t.x, t.residual, t.weight, t.bias, t.y, t.sum
    fresh, into = {
        "RMSNorm": (lambda: run(x, weight), lambda: run(x, weight, y)),
        "add + RMSNorm": (lambda: run(x, residual, weight), lambda: run(x, residual, weight, y, total)),
        "LayerNorm": (lambda: run(x, weight, bias), lambda: run(x, weight, bias, y)),
    }[cell.norm]
    if cell.work != FORWARD:
        return {FRESH: _passes.of(cell, t, fresh)}
    return {FRESH: fresh, PREALLOCATED: into}
