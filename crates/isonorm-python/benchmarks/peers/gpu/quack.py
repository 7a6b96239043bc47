"""QuACK's norms, written in CuTe DSL. Its LayerNorm has float32 parameters and no autograd."""

from quack import __version__
from quack.rmsnorm import layernorm_bwd, layernorm_fwd, rmsnorm

from cells import BACKWARD, EPS, FORWARD, FRESH
from peers import _passes

NAME = "QuACK"


def version():
    return __version__


def contestants(cell, t):
    x, weight, residual = t.x, t.weight, t.residual
    if cell.norm == "LayerNorm":
        return {FRESH: _layer_norm(cell, x, weight.float(), t.bias.float(), t.dy)}
    call = {
        "RMSNorm": lambda: rmsnorm(x, weight, eps=EPS),
        "add + RMSNorm": lambda: rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True),
    }.get(cell.norm)
    return {} if call is None else {FRESH: _passes.of(cell, t, call)}


def _layer_norm(cell, x, weight, bias, dy):
    if cell.work == FORWARD:
        return lambda: layernorm_fwd(x, weight, bias, EPS)

    def stats():
        return layernorm_fwd(x, weight, bias, EPS, return_rstd=True, return_mean=True)[1:]

    if cell.work == BACKWARD:
        saved = stats()
        return lambda: layernorm_bwd(x, weight, dy, *saved)
    return lambda: layernorm_bwd(x, weight, dy, *stats())
