"""A call of a norm on some rows of a pool, in one way of computing them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from isonorm._audit.memory import CONTIGUOUS, Bits, Layout, Patterns, draw, elements

Environment = tuple[tuple[str, str], ...]

PADDING = -1  # the number of a row of zeros, whose dy is zero too


@dataclass(frozen=True)
class Call:
    """Which rows are given to the norm, and how.

    Attributes
    ----------
    rows : tuple of int
        The rows' numbers in the pool, in the order in which they are given.
    threads : int
        How many threads the norm may use.
    x, dy : Layout
        How the rows of x and dy lie in memory.
    leading : tuple of int, optional
        The axes into which the rows are split, for an x of more than two axes.
    pieces : tuple of int, optional
        The sizes of the micro-batches; one batch without.
    same_dy : bool
        Whether every row's dy is the first row's, as the gradient of a sum over rows is.
    gradients : bool
        Whether gradients are wanted.
    environment : tuple of pairs of str
        The variables of a process of its own in which the norm is called; in this one without.
    """

    rows: tuple[int, ...]
    threads: int = 1
    x: Layout = CONTIGUOUS
    dy: Layout = CONTIGUOUS
    leading: tuple[int, ...] | None = None
    pieces: tuple[int, ...] | None = None
    same_dy: bool = False
    gradients: bool = True
    environment: Environment = ()


@dataclass(frozen=True)
class Outcome:
    """What a call gave.

    Attributes
    ----------
    rows : dict
        y and dx, a row for each row of the call.
    parameters : dict
        The gradients of the parameters.
    """

    rows: dict[str, Bits]
    parameters: dict[str, Bits] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """The inputs of one micro-batch, as patterns in the layouts of the call."""

    x: Patterns
    dy: Patterns
    real: tuple[bool, ...]  # False for padding


class Pool:
    """Rows of x and dy that are the same in every call.

    Parameters
    ----------
    size : int
        How many.
    row : tuple of int
        The shape of a row.
    dtype : str
        The type of x.
    seed : int
        Where the random numbers begin.
    """

    def __init__(self, size: int, row: tuple[int, ...], dtype: str, seed: int) -> None:
        self.size, self.row, self.dtype = size, row, dtype
        hidden = elements(row)
        self._x = draw(size, hidden, dtype, seed)
        self._dy = draw(size, hidden, dtype, seed + 1, scale=2.0**-7)
        self._zeros = np.zeros((1, hidden), self._x.dtype)

    def pieces(self, call: Call) -> list[Piece]:
        """The inputs of a call, in memory of their own."""
        sizes = call.pieces or (len(call.rows),)
        ends = np.cumsum(sizes)
        return [self._piece(call, call.rows[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def _piece(self, call: Call, rows: tuple[int, ...]) -> Piece:
        shape = (call.leading or (len(rows),)) + self.row
        dy_rows = (call.rows[0],) * len(rows) if call.same_dy else rows
        return Piece(
            call.x.place(self._take(self._x, rows)).reshape(shape),
            call.dy.place(self._take(self._dy, dy_rows)).reshape(shape),
            tuple(row != PADDING for row in rows),
        )

    def _take(self, pool: Patterns, rows: tuple[int, ...]) -> Patterns:
        return np.concatenate([pool, self._zeros])[list(rows)] if PADDING in rows else pool[list(rows)]
