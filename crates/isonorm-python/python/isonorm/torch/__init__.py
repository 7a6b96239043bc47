"""isonorm for PyTorch: norms with the same bits everywhere, as functions and as drop-in modules."""

from isonorm.torch import functional

__all__ = ["functional"]
