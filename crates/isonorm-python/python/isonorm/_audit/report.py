"""What an audit found, to read and to keep."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isonorm._isonorm import __version__


@dataclass(frozen=True)
class Case:
    """A call that changed bits.

    Attributes
    ----------
    how : str
        What was other than in the call whose bits it should have.
    rows, threads : int
        Of the call; padding is not counted.
    position : int or None
        Where in the call the first row is that differs; None for the gradient of a parameter.
    kind : str or None
        The kind of that row's values.
    differing_rows, differing_elements : int
        How many have other bits; the gradient of a parameter is one row.
    elements : int
        How many were compared.
    ulps : int or None
        The largest distance, counted in representable values; None where NaN is opposite a number, or types
        or shapes are others.
    """

    how: str
    rows: int
    threads: int
    position: int | None
    kind: str | None
    differing_rows: int
    differing_elements: int
    elements: int
    ulps: int | None

    def __str__(self) -> str:
        apart = (
            "NaN, another type or another shape is among them"
            if self.ulps is None
            else f"by up to {_count(self.ulps, 'ulp')}"
        )
        where = (
            "" if self.position is None else f" in {_count(self.differing_rows, 'row')}, first in row {self.position}"
        )
        kind = f" ({self.kind})" if self.kind else ""
        call = ", ".join(filter(None, (_count(self.rows, "row"), self.how, _count(self.threads, "thread"))))
        return f"{call}: {self.differing_elements} of {self.elements} elements differ{where}{kind}, {apart}"


@dataclass(frozen=True)
class Finding:
    """What one dimension did to one result.

    Attributes
    ----------
    dimension, dtype, result : str
        Which; results are y, dx, and d and the name of each parameter.
    calls, differing : int
        How many calls were compared, and how many of them had other bits.
    smallest : Case or None
        The one of the fewest rows; None where all bits are the same.
    """

    dimension: str
    dtype: str
    result: str
    calls: int
    differing: int
    smallest: Case | None


@dataclass(frozen=True)
class Left:
    """A dimension that was left out, wholly or for some calls, and why."""

    dimension: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The result of an audit; printed, a table.

    Attributes
    ----------
    name : str
        What was audited.
    row : tuple of int
        The shape of a row.
    findings : tuple of Finding
        One for each dimension, type and result that was compared.
    left : tuple of Left
        What was left out.
    environment : dict
        Versions, machine, date, and the seed of the inputs.
    """

    name: str
    row: tuple[int, ...]
    findings: tuple[Finding, ...]
    left: tuple[Left, ...]
    environment: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether no bit changed anywhere."""
        return not self.differing

    @property
    def differing(self) -> tuple[Finding, ...]:
        """The findings where bits changed."""
        return tuple(finding for finding in self.findings if finding.differing)

    @property
    def shape(self) -> str:
        """The shape of a row, to print."""
        return " x ".join(map(str, self.row))

    def to_dict(self) -> dict[str, Any]:
        """All of it, of types that JSON has."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        parts = [f"{self.name}, rows of {self.shape}\n{place(self.environment)}", *self._tables()]
        if self.differing:
            parts.append("\n".join(["Smallest cases with other bits", *map(_line, self.differing)]))
        calls = sum(finding.calls for finding in self.findings)
        differing = sum(finding.differing for finding in self.differing)
        same = f"The same bits in all {calls} comparisons."
        return "\n\n".join([*parts, f"{differing} of {calls} comparisons have other bits." if differing else same])

    def _tables(self) -> list[str]:
        return [self._table(dtype) for dtype in dict.fromkeys(finding.dtype for finding in self.findings)]

    def _table(self, dtype: str) -> str:
        here = {(f.dimension, f.result): f for f in self.findings if f.dtype == dtype}
        results = sorted(dict.fromkeys(result for _, result in here), key=_order)
        rows = [[dtype, *results]]
        for dimension in dict.fromkeys(dimension for dimension, _ in here):
            rows.append([dimension, *(_cell(here.get((dimension, result))) for result in results)])
        rows += [[left.dimension, left.reason] for left in self.left if left.dtype == dtype]
        return table(rows)


def summary(reports: Sequence[Report]) -> str:
    """A Markdown table with a line for each norm and type, and the dimensions that change bits in its cells."""
    results = sorted(dict.fromkeys(f.result for report in reports for f in report.findings), key=_order)
    rows = [["norm", "row", "type", *results]]
    for report in reports:
        for dtype in dict.fromkeys(finding.dtype for finding in report.findings):
            here = [finding for finding in report.findings if finding.dtype == dtype]
            cells = [_changing([f for f in here if f.result == result]) for result in results]
            rows.append([report.name, report.shape, dtype, *cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def place(environment: dict[str, Any]) -> str:
    """Where an audit was made, in a line."""
    versions = [f"{package} {version}" for package, version in environment["versions"].items()]
    machine = f"{environment['processor']}, {_count(environment['cores'], 'core')}, {environment['machine']}"
    python = f"Python {environment['python']}"
    return f"{', '.join([*versions, python])}; {machine}; {environment['date']}; seed {environment['seed']}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be, a line below the first row."""
    count = len(rows[0])
    widths = [max(len(row[i]) for row in rows if len(row) == count) for i in range(count)]
    widths[0] = max(widths[0], *(len(row[0]) for row in rows))
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def environment(seed: int) -> dict[str, Any]:
    """Where and when an audit is made."""
    from importlib import metadata  # takes as long to import as the rest of this package

    versions = {"isonorm": __version__}
    for package in ("numpy", "torch", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "seed": seed,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _line(finding: Finding) -> str:
    return f"  {finding.dtype} {finding.result}, {finding.dimension}: {finding.smallest}"


def _changing(findings: Sequence[Finding]) -> str:
    return (", ".join(f.dimension for f in findings if f.differing) or "same") if findings else "-"


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    return f"{finding.differing} of {finding.calls} differ" if finding.differing else "same"


def _order(result: str) -> tuple[int, str]:
    known = ("y", "dx", "dweight", "dbias")
    return (known.index(result) if result in known else len(known), result)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
