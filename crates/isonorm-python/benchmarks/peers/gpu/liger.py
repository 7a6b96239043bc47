"""Liger-Kernel's operators, written in Triton."""

import importlib.metadata

from liger_kernel.ops import LigerFusedAddRMSNormFunction, LigerLayerNormFunction, LigerRMSNormFunction

from cells import EPS, FORWARD, FRESH
from peers import _passes

NAME = "Liger"


def version():
    return importlib.metadata.version("liger-kernel")


def contestants(cell, t):
    x, weight, bias, residual = t.x, t.weight, t.bias, t.residual
    call = {
        "RMSNorm": lambda: LigerRMSNormFunction.apply(x, weight, EPS),
        "LayerNorm": lambda: LigerLayerNormFunction.apply(x, weight, bias, EPS),
        "add + RMSNorm": lambda: LigerFusedAddRMSNormFunction.apply(x, residual, weight, EPS),
    }.get(cell.norm)
    if call is None:
        return {}
    # RMSNorm's dx is written over dy, as it comes; otherwise it would be filled with zeros first.
    dy = None if cell.work == FORWARD else t.dy.clone()
    return {FRESH: _passes.of(cell, t, call, dy)}
