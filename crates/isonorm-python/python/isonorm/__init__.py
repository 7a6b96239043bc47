"""Normalization layers with the same bits everywhere, at the speed of memory.

The functions of this module take NumPy arrays, and what converts to one: float32, float64, float16 and
``ml_dtypes.bfloat16``. A row's result depends on its values, its shape and the named options: not on the other rows, on
strides, threads or the instruction set.

>>> import numpy as np
>>> import isonorm
>>> x = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
>>> isonorm.rms_norm(x)
array([[0.46291   , 0.92582   , 1.38873   ],
       [0.78954196, 0.98692745, 1.1843129 ]], dtype=float32)
"""

from isonorm._audit import AuditError, audit
from isonorm._audit.models import ModelReport, audit_model
from isonorm._audit.report import Report
from isonorm._isonorm import (
    Partial,
    Stats,
    __version__,
    add_layer_norm,
    add_layer_norm_backward,
    add_rms_norm,
    add_rms_norm_backward,
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)

__all__ = [
    "AuditError",
    "ModelReport",
    "Partial",
    "Report",
    "Stats",
    "__version__",
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "audit",
    "audit_model",
    "batch_norm",
    "batch_norm_backward",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]
