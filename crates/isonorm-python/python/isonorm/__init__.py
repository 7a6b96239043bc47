"""Normalization layers with the same bits everywhere, at the speed of memory."""

from isonorm._isonorm import __version__

__all__ = ["__version__"]
