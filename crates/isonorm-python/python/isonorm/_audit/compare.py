"""Runs the dimensions over a subject, and finds the smallest call that changes a bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from isonorm._audit.call import PADDING, Call, Outcome
from isonorm._audit.dimensions import Dimension, Scene, Way
from isonorm._audit.memory import KINDS, Bits, Distance, distance
from isonorm._audit.report import Case, Finding
from isonorm._audit.subject import Subject

FEW = (1, 2, 3, 4, 8, 33)  # numbers of rows, besides all there are
SAMPLES = 24  # rows that are tried with each number of rows, at least


@dataclass
class _Tally:
    calls: int = 0
    differing: int = 0
    smallest: Case | None = None


class Comparison:
    """The comparisons of one subject.

    Parameters
    ----------
    subject : Subject
        The norm.
    scene : Scene
        What the ways depend on.
    """

    def __init__(self, subject: Subject, scene: Scene) -> None:
        self._subject, self._scene = subject, scene
        self._dtype, self._rows = subject.pool.dtype, subject.pool.size
        self._kept: dict[Call, Outcome] = {}
        self._repeatable = True  # on one thread
        self.refused: dict[str, str] = {}  # the first error of each dimension that has one

    def reason_against(self, dimension: Dimension) -> str | None:
        """Why a dimension cannot be tried, if so."""
        if dimension.needs and not getattr(self._subject, dimension.needs[0]):
            return f"left out: {dimension.needs[1]}"
        return None if self._repeatable else "left out: the same call on one thread gives other bits each time"

    def findings(self, dimension: Dimension) -> list[Finding]:
        """Try a dimension with ever more rows.

        Where a result changes, the number of rows is halved towards the last one without a change, so the smallest
        case is smaller than the numbers that are tried anyway.
        """
        tallies: dict[str, _Tally] = {}
        clean: dict[str, int] = {}
        for size in _sizes(dimension, self._rows):
            for result, way, apart in self._compared(dimension, size):
                tally = tallies.setdefault(result, _Tally())
                tally.calls += 1
                if apart is None:
                    if tally.smallest is None:
                        clean[result] = size
                    continue
                tally.differing += 1
                self._repeatable &= way.call != way.against or way.call.threads > 1
                if tally.smallest is None:
                    tally.smallest = _case(way, result, apart)
                    tally.smallest = self._smaller(dimension, result, clean.get(result, 0), size) or tally.smallest
        return [
            Finding(dimension.name, self._dtype, result, tally.calls, tally.differing, tally.smallest)
            for result, tally in tallies.items()
        ]

    def _smaller(self, dimension: Dimension, result: str, clean: int, size: int) -> Case | None:
        smallest = None
        while size - clean > 1:
            middle = (clean + size) // 2
            found = (
                _case(way, name, apart)
                for name, way, apart in self._compared(dimension, middle)
                if name == result and apart is not None
            )
            case = next(found, None)
            if case is None:
                clean = middle
            else:
                smallest, size = case, middle
        return smallest

    def _compared(self, dimension: Dimension, size: int) -> Iterator[tuple[str, Way, Distance | None]]:
        for start in _starts(size, self._rows):
            base = Call(tuple(range(start, start + size)))
            for way in dimension.ways(base, self._scene):
                try:
                    found = self._subject.run(way.call)
                    expected = self._alone(way.call) if way.against == "alone" else self._keep(way.against)
                except Exception as error:  # a norm may refuse what others take
                    how = way.how or f"{way.call.threads} threads"
                    self.refused.setdefault(dimension.name, f"{how}: {type(error).__name__}: {error}")
                    continue
                for result, apart in _distances(way, found, expected):
                    yield result, way, apart

    def _alone(self, call: Call) -> Outcome:
        """Each row in a call of its own."""
        outcomes = [self._keep(Call((row,))) for row in call.rows]
        joined = {
            name: Bits(np.concatenate([outcome.rows[name].patterns for outcome in outcomes]), bits.dtype)
            for name, bits in outcomes[0].rows.items()
        }
        return Outcome(joined)

    def _keep(self, call: Call) -> Outcome:
        """The outcome of a call that others are compared with, made once."""
        if call not in self._kept:
            self._kept[call] = self._subject.run(call)
        return self._kept[call]


def _sizes(dimension: Dimension, rows: int) -> list[int]:
    many = {*range(2, 10), *(2**k + extra for k in range(3, rows.bit_length()) for extra in (-1, 0, 1))}
    sizes = many if dimension.sizes == "many" else set(FEW)
    return sorted({size for size in sizes if size < rows} | {rows})


def _starts(size: int, rows: int) -> list[int]:
    """Where in the pool batches begin: so many that they have `SAMPLES` rows together, and at least three.

    Another order of a sum has the same bits now and then: on two threads, PyTorch 2.15's `rms_norm` gave 46 of 60 rows
    of 65536 elements the bits of one thread.
    """
    count = max(3, -(-SAMPLES // size))
    return sorted({round(start) for start in np.linspace(0, rows - size, count)})


def _distances(way: Way, found: Outcome, expected: Outcome) -> Iterator[tuple[str, Distance | None]]:
    if way.compare != "parameters":
        rows = [row for row in way.call.rows if row != PADDING]
        there = rows if way.against == "alone" else way.against.rows
        places = {row: place for place, row in enumerate(there)}
        for name in _both(found.rows, expected.rows):
            if name == "y" and way.compare == "gradients":
                continue
            real = found.rows[name].at(range(len(rows)))  # padding comes last
            yield name, distance(real, expected.rows[name].at([places[row] for row in rows]))
    if way.compare != "rows":
        for name in _both(found.parameters, expected.parameters):
            yield name, distance(_line(found.parameters[name]), _line(expected.parameters[name]))


def _both(found: dict[str, Bits], expected: dict[str, Bits]) -> list[str]:
    return [name for name in expected if name in found]


def _line(bits: Bits) -> Bits:
    return Bits(bits.patterns.reshape(1, -1), bits.dtype)


def _case(way: Way, result: str, apart: Distance) -> Case:
    rows: Sequence[int] = [row for row in way.call.rows if row != PADDING]
    of_rows = result in ("y", "dx")
    return Case(
        how=way.how,
        rows=len(rows),
        threads=way.call.threads,
        position=apart.row if of_rows else None,
        kind=KINDS[rows[apart.row] % len(KINDS)] if of_rows else None,
        differing_rows=apart.rows,
        differing_elements=apart.elements,
        elements=apart.of,
        ulps=apart.ulps,
    )
