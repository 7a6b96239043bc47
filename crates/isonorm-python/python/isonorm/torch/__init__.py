"""isonorm for PyTorch: norms with the same bits everywhere, as functions and as drop-in modules."""

from isonorm.torch import functional
from isonorm.torch._accumulate import Accumulation, accumulate, accumulated_parameters
from isonorm.torch.modules import (
    AddLayerNorm,
    AddRMSNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
)
from isonorm.torch.patching import Report, patch, unpatch

__all__ = [
    "Accumulation",
    "AddLayerNorm",
    "AddRMSNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "Report",
    "accumulate",
    "accumulated_parameters",
    "functional",
    "patch",
    "unpatch",
]
