"""Rows as storage patterns: how they are drawn, where they lie in memory, how far two of them are apart.

Patterns are unsigned integers, so float16 and bfloat16, NumPy and PyTorch, are all one thing here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 64  # bytes of a cache line, and of the widest vector
KINDS = ("normal", "large mean", "wide range")  # row i is of kind i modulo 3

Patterns = NDArray[Any]  # of an unsigned type


@dataclass(frozen=True)
class Format:
    """A floating-point type by its storage.

    Attributes
    ----------
    unsigned : dtype
        The integers of the same width.
    infinity : int
        The pattern of infinity: whatever is above it, but for the sign, is NaN.
    """

    unsigned: np.dtype[Any]
    infinity: int

    @property
    def sign(self) -> int:
        return 1 << (8 * self.unsigned.itemsize - 1)


FORMATS = {
    "float64": Format(np.dtype(np.uint64), 0x7FF0_0000_0000_0000),
    "float32": Format(np.dtype(np.uint32), 0x7F80_0000),
    "float16": Format(np.dtype(np.uint16), 0x7C00),
    "bfloat16": Format(np.dtype(np.uint16), 0x7F80),
}


def encode(values: NDArray[np.float64], dtype: str) -> Patterns:
    """The patterns of values in a type, rounded to nearest even."""
    if dtype != "bfloat16":
        return values.astype(dtype).view(FORMATS[dtype].unsigned)
    wide = values.astype(np.float32).view(np.uint32)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


def draw(rows: int, hidden: int, dtype: str, seed: int, scale: float = 1.0) -> Patterns:
    """Rows of all kinds in turn: normal, of mean 100, and spread over six decades; then scaled."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, hidden))
    values[1::3] += 100.0
    values[2::3] *= 10.0 ** rng.uniform(-3.0, 3.0, values[2::3].shape)
    return encode(values * scale, dtype)


@dataclass(frozen=True)
class Layout:
    """Where the elements of rows lie in memory, counted in elements.

    Attributes
    ----------
    gap : int
        Elements between the end of a row and the next row.
    step : int
        The distance between neighbours of a row.
    offset : int
        The distance of the first element from a multiple of 64 bytes.
    columns_first : bool
        Whether the rows' first elements lie side by side, then their second ones: the transpose of a matrix.
    broadcast : bool
        Whether every row is the first one in memory, with a stride of 0.
    """

    gap: int = 0
    step: int = 1
    offset: int = 0
    columns_first: bool = False
    broadcast: bool = False

    def place(self, rows: Patterns) -> Patterns:
        """Copy rows to fresh memory laid out so; what lies between them is NaN.

        Parameters
        ----------
        rows : ndarray
            Of shape [rows, hidden].

        Returns
        -------
        ndarray
            A view of the same shape.
        """
        if self.columns_first:
            view: Patterns = self._buffer(rows.size, rows.dtype).reshape(rows.shape[::-1]).T
        else:
            kept = rows[:1] if self.broadcast else rows
            pitch = rows.shape[1] * self.step + self.gap
            view = self._buffer(len(kept) * pitch, rows.dtype).reshape(len(kept), pitch)
            view = view[:, : rows.shape[1] * self.step : self.step]
        view[...] = rows[: len(view)]
        strides = (0, view.strides[1]) if self.broadcast else view.strides
        return np.lib.stride_tricks.as_strided(view, rows.shape, strides)

    def _buffer(self, size: int, dtype: np.dtype[Any]) -> Patterns:
        raw = np.full(size * dtype.itemsize + 2 * LINE + self.offset * dtype.itemsize, 0xFF, np.uint8)
        start = -raw.ctypes.data % LINE + self.offset * dtype.itemsize
        return raw[start : start + size * dtype.itemsize].view(dtype)


CONTIGUOUS = Layout()


@dataclass(frozen=True)
class Bits:
    """What a norm returned: patterns and their type. Its first axis is the rows', but for a parameter's gradient."""

    patterns: Patterns
    dtype: str

    def at(self, rows: Sequence[int]) -> Bits:
        return Bits(self.patterns[list(rows)], self.dtype)


@dataclass(frozen=True)
class Distance:
    """How two results differ.

    Attributes
    ----------
    rows, elements : int
        How many rows and elements have other bits.
    of : int
        How many elements were compared.
    row : int
        The first row that differs.
    ulps : int or None
        The largest distance, counted in representable values; None where NaN is opposite a number, or types or
        shapes are others.
    """

    rows: int
    elements: int
    of: int
    row: int
    ulps: int | None


def distance(found: Bits, expected: Bits) -> Distance | None:
    """Compare bit by bit, every NaN as the same one.

    Returns
    -------
    Distance or None
        None where all bits are the same.
    """
    a, b = (np.atleast_2d(bits.patterns) for bits in (found, expected))
    if found.dtype != expected.dtype or a.shape != b.shape:
        return Distance(len(a), a.size, a.size, 0, None)
    layout = FORMATS[found.dtype]
    differ = a != b
    if not differ.any():
        return None
    sizes = [np.bitwise_and(side, layout.sign - 1) for side in (a, b)]
    nan = [size > layout.infinity for size in sizes]
    differ &= ~(nan[0] & nan[1])
    rows = np.flatnonzero(differ.any(axis=1))
    if not len(rows):
        return None
    ulps = None
    if not ((nan[0] ^ nan[1]) & differ).any():
        ulps = _ulps(a[differ], b[differ], layout)
    return Distance(len(rows), int(differ.sum()), differ.size, int(rows[0]), ulps)


def _ulps(a: Patterns, b: Patterns, layout: Format) -> int:
    """The largest distance of numbers, as a count of representable values."""
    magnitudes = [np.bitwise_and(side, layout.sign - 1).astype(np.uint64) for side in (a, b)]
    same_sign = (a >= layout.sign) == (b >= layout.sign)
    apart = np.where(same_sign, np.maximum(*magnitudes) - np.minimum(*magnitudes), magnitudes[0] + magnitudes[1])
    return int(apart.max())


def elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
