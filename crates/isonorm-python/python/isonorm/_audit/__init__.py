"""Where a norm's bits change: with the batch, the layout of memory, threads, or from run to run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from isonorm._audit.call import Call, Pool
from isonorm._audit.compare import Comparison
from isonorm._audit.dimensions import DIMENSIONS, Scene
from isonorm._audit.elsewhere import Elsewhere, processes
from isonorm._audit.memory import FORMATS, elements
from isonorm._audit.report import Case, Finding, Left, Report, environment
from isonorm._audit.subject import AuditError, Subject, make, name_of

__all__ = ["AuditError", "Case", "Finding", "Left", "Report", "audit"]

ELEMENTS = 1 << 18  # of x: so many are worth several threads to PyTorch


def audit(
    norm: Callable[..., Any],
    hidden: int | Sequence[int],
    *,
    dtypes: Sequence[str] | None = None,
    dimensions: Sequence[str] | None = None,
    rows: int | None = None,
    threads: Sequence[int] | None = None,
    arrays: Literal["numpy", "torch"] | None = None,
    backward: Callable[..., Any] | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Report:
    """Find where the bits of a norm change.

    A row's result should depend on the row. Each dimension of the audit changes one thing about a call that has nothing
    to do with a row's values, and compares bits: a batch with each of its rows alone, then that batch with itself in
    another order, with other strides, another alignment, more threads, padding, micro-batches, or just once more.
    Where nothing differs, every way of computing a row has the bits of the row alone.

    Parameters
    ----------
    norm : callable
        A function of x, an array or a tensor of shape [rows, hidden], that returns y of the same shape; or a
        `torch.nn.Module`, which is copied; or a module's class. Parameters named `weight`, `bias`, `normalized_shape`,
        `threads` are supplied.
    hidden : int or sequence of int
        The shape of a row: one axis, or for norms over channels several, such as ``(64, 7, 7)``.
    dtypes : sequence of str, optional
        Of float64, float32, float16, bfloat16. By default a module's own type, else float32.
    dimensions : sequence of str, optional
        Of repeat, batch size, row position, leading shape, row stride, element stride, alignment, threads, padding,
        layout of dy, micro-batches, gradient mode, instruction set. All by default.
    rows : int, optional
        The largest batch. By default what has 262144 elements, but 33 to 2048.
    threads : sequence of int, optional
        The numbers of threads to try: by default 2, 3, 4 and as many as there are cores.
    arrays : "numpy" or "torch", optional
        What the function takes. By default it is tried.
    backward : callable, optional
        For a function of NumPy arrays: of dy and x, returns dx, or dx, dweight and dbias.
    options : dict, optional
        Further keywords for the norm.
    seed : int
        Where the random rows begin.
    name : str, optional
        What the report calls the norm.

    Returns
    -------
    Report
        Its `ok` says whether no bit changed; printed, it is a table with the smallest case of each change.

    Raises
    ------
    AuditError
        A ValueError: where the norm cannot be called on such rows, or a name is unknown.

    Examples
    --------
    >>> import isonorm
    >>> report = isonorm.audit(isonorm.rms_norm, 64, rows=8)
    >>> report.ok
    True
    """
    row = _row(hidden)
    size = _positive("rows", rows) if rows is not None else max(33, min(2048, ELEMENTS // elements(row)))
    counts = tuple(dict.fromkeys(_positive("threads", count) for count in threads or _default_threads()))
    scene = Scene(elements(row), len(row), tuple(count for count in counts if count > 1))
    chosen = [DIMENSIONS[_known("dimension", one, DIMENSIONS)] for one in dimensions or DIMENSIONS]
    findings: list[Finding] = []
    left: list[Left] = []
    for dtype in dtypes or [_own_dtype(norm)]:
        pool = Pool(size, row, _known("dtype", dtype, FORMATS), seed)
        comparison = Comparison(_subject(norm, pool, arrays, backward, options or {}), scene)
        with processes():
            for dimension in chosen:
                reason = comparison.reason_against(dimension)
                if reason is not None:
                    left.append(Left(dimension.name, dtype, reason))
                else:
                    findings += comparison.findings(dimension)
        left += [Left(refused, dtype, f"refused: {error}") for refused, error in comparison.refused.items()]
    if not findings:
        reasons = "; ".join(f"{one.dimension}, {one.reason}" for one in left)
        raise AuditError(f"nothing of {name or name_of(norm)} could be compared: {reasons}")
    return Report(name or name_of(norm), row, tuple(findings), tuple(left), environment(seed))


def _subject(
    norm: Any, pool: Pool, arrays: str | None, backward: Callable[..., Any] | None, options: dict[str, Any]
) -> Subject:
    """The norm, called once to see that it can be."""
    if not callable(norm):
        raise AuditError(f"{norm!r} is not callable: a function of x, a module or a module's class was expected")
    failures: list[str] = []
    cause: Exception | None = None
    for kind in [_known("kind of arrays", arrays, ("numpy", "torch"))] if arrays else _kinds(norm):
        try:
            subject = make(kind, norm, pool, backward, options)
            subject.run(Call((0,)))
            subject.elsewhere = _elsewhere(kind, norm, pool, backward, options)
            return subject
        except Exception as error:
            known = isinstance(error, AuditError)
            failures.append(str(error) if known else f"with {kind}, {type(error).__name__}: {error}")
            cause = error
    shape = (1, *pool.row)
    text = f"{name_of(norm)} cannot be audited with x of shape {shape} and type {pool.dtype}: {'; '.join(failures)}"
    raise AuditError(text) from cause


def _elsewhere(*recipe: Any) -> Elsewhere | None:
    try:
        return Elsewhere(*recipe)
    except Exception:  # pickle's, and those of what is pickled
        return None


def _kinds(norm: Any) -> tuple[str, ...]:
    """What a norm may take: what its type or its module tells, else NumPy's arrays and then PyTorch's."""
    torch = sys.modules.get("torch")
    module = getattr(norm, "__module__", None) or ""
    if isinstance(norm, type) or (torch is not None and isinstance(norm, torch.nn.Module)):
        return ("torch",)
    if module.split(".")[0] == "torch" or module.startswith("isonorm.torch"):
        return ("torch",)
    return ("numpy",) if module == "isonorm._isonorm" else ("numpy", "torch")


def _own_dtype(norm: Any) -> str:
    """The type of a module's parameters."""
    is_module = hasattr(norm, "parameters") and not isinstance(norm, type)
    for parameter in norm.parameters() if is_module else ():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype in FORMATS:
            return dtype
    return "float32"


def _row(hidden: int | Sequence[int]) -> tuple[int, ...]:
    row = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
    if not row:
        raise AuditError("hidden has no axis, but the shape of a row was expected, such as 4096 or (64, 7, 7)")
    return tuple(_positive("hidden", size) for size in row)


def _positive(what: str, number: Any) -> int:
    if not isinstance(number, int) or number < 1:
        raise AuditError(f"{what} is {number!r}, but a number of at least 1 was expected")
    return number


def _known(what: str, name: Any, names: Any) -> str:
    if name not in names:
        raise AuditError(f"{name!r} is no {what}: one of {', '.join(names)} was expected")
    return str(name)


def _default_threads() -> tuple[int, ...]:
    return tuple(sorted({2, 3, 4, os.cpu_count() or 1}))
