"""The dimensions of an audit: each changes one thing about a call, and no bit may change.

To add one, write a function here that yields the ways of changing a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from isonorm._audit.call import PADDING, Call
from isonorm._audit.elsewhere import environments
from isonorm._audit.memory import Layout


@dataclass(frozen=True)
class Way:
    """Another way of computing the rows of a call.

    Attributes
    ----------
    how : str
        What is other, in words.
    call : Call
        The call to make.
    against : Call or "alone"
        The call whose bits it must have; "alone" is each row in a call of its own.
    compare : "all", "rows", "parameters" or "gradients"
        Which results must be the same: "rows" are y and dx, "parameters" the gradients of the parameters, "gradients"
        these and dx.
    """

    how: str
    call: Call
    against: Call | Literal["alone"]
    compare: Literal["all", "rows", "parameters", "gradients"] = "all"


@dataclass(frozen=True)
class Scene:
    """What the ways depend on, besides the call.

    Attributes
    ----------
    hidden : int
        The elements of a row.
    axes : int
        The axes of a row.
    threads : tuple of int
        The numbers of threads to try, without 1.
    """

    hidden: int
    axes: int
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Dimension:
    """A dimension as it is registered.

    Attributes
    ----------
    name, about : str
        What it is called, and what changes.
    ways : callable
        The ways of changing a call of contiguous rows on one thread.
    sizes : "few" or "many"
        How many numbers of rows are tried.
    needs : str
        The attribute that a subject must have, with the reason for leaving the dimension out where it has not.
    """

    name: str
    about: str
    ways: Callable[[Call, Scene], Iterator[Way]]
    sizes: Literal["few", "many"]
    needs: tuple[str, str] | None


DIMENSIONS: dict[str, Dimension] = {}


def dimension(
    name: str, sizes: Literal["few", "many"] = "few", needs: tuple[str, str] | None = None
) -> Callable[[Callable[[Call, Scene], Iterator[Way]]], Callable[[Call, Scene], Iterator[Way]]]:
    """Register a function; its docstring says what changes."""

    def register(ways: Callable[[Call, Scene], Iterator[Way]]) -> Callable[[Call, Scene], Iterator[Way]]:
        DIMENSIONS[name] = Dimension(name, (ways.__doc__ or "").strip(), ways, sizes, needs)
        return ways

    return register


@dimension("repeat")
def repeat(base: Call, scene: Scene) -> Iterator[Way]:
    """The same call, again and again, on one thread and on several."""
    for threads in (1, *scene.threads[:1]):
        call = replace(base, threads=threads)
        for time in ("second", "third", "fourth"):
            yield Way(f"the {time} time", call, call)


@dimension("batch size", sizes="many")
def batch_size(base: Call, scene: Scene) -> Iterator[Way]:
    """A row among others, against the row alone."""
    if len(base.rows) > 1:
        yield Way("in a batch", base, "alone", "rows")


@dimension("row position")
def row_position(base: Call, scene: Scene) -> Iterator[Way]:
    """The rows of a batch in another order."""
    rows = base.rows
    for shift in sorted({1, len(rows) // 2, len(rows) - 1} - {0, len(rows)}):
        yield Way(f"rotated by {shift}", replace(base, rows=rows[-shift:] + rows[:-shift]), base, "rows")


@dimension("leading shape")
def leading_shape(base: Call, scene: Scene) -> Iterator[Way]:
    """The rows split into two axes, as a batch of sequences."""
    rows = len(base.rows)
    if scene.axes == 1:
        for leading in sorted({(1, rows), (rows, 1), *([(2, rows // 2)] if rows % 2 == 0 else [])}):
            yield Way(f"x of shape {(*leading, scene.hidden)}", replace(base, leading=leading), base)


@dimension("row stride")
def row_stride(base: Call, scene: Scene) -> Iterator[Way]:
    """Gaps between the rows of x."""
    for gap in (1, 16, scene.hidden) if len(base.rows) > 1 else ():
        yield Way(f"row stride of x {scene.hidden + gap}", replace(base, x=Layout(gap=gap)), base)


@dimension("element stride")
def element_stride(base: Call, scene: Scene) -> Iterator[Way]:
    """The elements of a row of x apart: every second one of a wider matrix, or a transposed matrix."""
    yield Way("element stride of x 2", replace(base, x=Layout(step=2)), base)
    if len(base.rows) > 1:
        yield Way("x transposed", replace(base, x=Layout(columns_first=True)), base)


@dimension("alignment")
def alignment(base: Call, scene: Scene) -> Iterator[Way]:
    """The beginning of x and dy so many elements after a multiple of 64 bytes."""
    for offset in (1, 2, 3, 5, 8):
        layout = Layout(offset=offset)
        yield Way(f"x and dy {offset} after a multiple of 64 bytes", replace(base, x=layout, dy=layout), base)


@dimension("threads", needs=("threads", "it has no parameter `threads`"))
def threads(base: Call, scene: Scene) -> Iterator[Way]:
    """Several threads against one."""
    for count in scene.threads:
        yield Way("", replace(base, threads=count), base)


@dimension("padding")
def padding(base: Call, scene: Scene) -> Iterator[Way]:
    """Rows of zeros after the others, with a dy of zero, which is masked where a norm has a mask."""
    for count in sorted({1, len(base.rows), 3 * len(base.rows)}):
        how = f"and {count} rows of padding" if count > 1 else "and 1 row of padding"
        yield Way(how, replace(base, rows=base.rows + (PADDING,) * count), base)


@dimension("layout of dy")
def layout_of_dy(base: Call, scene: Scene) -> Iterator[Way]:
    """A dy that is not contiguous, the gradient of a sum over rows among them."""
    yield Way("element stride of dy 2", replace(base, dy=Layout(step=2)), base, "gradients")
    if len(base.rows) > 1:
        gap = replace(base, dy=Layout(gap=1))
        yield Way(f"row stride of dy {scene.hidden + 1}", gap, base, "gradients")
        yield Way("dy transposed", replace(base, dy=Layout(columns_first=True)), base, "gradients")
        same = replace(base, same_dy=True)
        yield Way("row stride of dy 0", replace(same, dy=Layout(broadcast=True)), same, "gradients")


@dimension("micro-batches")
def micro_batches(base: Call, scene: Scene) -> Iterator[Way]:
    """The parameters' gradients, accumulated over parts of the batch, against the whole batch."""
    rows = len(base.rows)
    for count in sorted({2, 3, rows}):
        if 1 < count <= rows:
            pieces = tuple(rows // count + (piece < rows % count) for piece in range(count))
            yield Way(f"in {count} micro-batches", replace(base, pieces=pieces), base, "parameters")


@dimension("gradient mode", needs=("modes", "it has no gradient mode"))
def gradient_mode(base: Call, scene: Scene) -> Iterator[Way]:
    """y where no gradient is wanted, as in inference, against y where it is, as in training."""
    yield Way("without gradients", replace(base, gradients=False), base)


@dimension("instruction set", needs=("elsewhere", "it cannot be imported in another process, as a lambda cannot"))
def instruction_set(base: Call, scene: Scene) -> Iterator[Way]:
    """Older instructions, in a process that is told so at its start, against all that this machine has."""
    for how, environment in environments().items():
        yield Way(how, replace(base, environment=environment), base)
