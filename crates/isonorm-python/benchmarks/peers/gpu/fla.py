"""The norms of flash-linear-attention (`fla-core`), written in Triton."""

import importlib.metadata

from fla.modules.norm.layernorm import layer_norm, rms_norm

from cells import EPS, FRESH
from peers import _passes

NAME = "fla"


def version():
    return importlib.metadata.version("fla-core")


def contestants(cell, t):
    x, weight, bias, residual = t.x, t.weight, t.bias, t.residual
    call = {
        "RMSNorm": lambda: rms_norm(x, weight, None, eps=EPS),
        "LayerNorm": lambda: layer_norm(x, weight, bias, eps=EPS),
        "add + RMSNorm": lambda: rms_norm(x, weight, None, residual=residual, eps=EPS, prenorm=True),
    }.get(cell.norm)
    return {} if call is None else {FRESH: _passes.of(cell, t, call)}
