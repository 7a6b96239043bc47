"""What is audited: a norm on NumPy arrays, seen as patterns in and patterns out."""

from __future__ import annotations

import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from isonorm._audit.call import Call, Outcome, Piece, Pool
from isonorm._audit.memory import FORMATS, Bits, Patterns, elements, encode


class AuditError(ValueError):
    """A norm that cannot be audited, or an audit that cannot be made: what was found, expected, and to be done."""


class Subject(ABC):
    """A norm that can be called on rows of a pool.

    Attributes
    ----------
    threads : bool
        Whether the number of its threads can be chosen.
    modes : bool
        Whether it may compute y differently where gradients are wanted.
    elsewhere : Elsewhere or None
        The same norm in other processes; None where it cannot be taken there.
    """

    threads = False
    modes = False
    elsewhere: Any = None

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def run(self, call: Call) -> Outcome:
        """Call the norm.

        Raises
        ------
        AuditError
            Where the result is no array of x's shape and of a known type.
        """
        if call.environment:
            outcome: Outcome = self.elsewhere.run(call)
            return outcome
        return self._run(self.pool.pieces(call), call)

    @abstractmethod
    def _run(self, pieces: Sequence[Piece], call: Call) -> Outcome: ...

    def _joined(self, parts: Sequence[Bits]) -> Bits:
        """The rows of all pieces."""
        row = elements(self.pool.row)
        return Bits(np.concatenate([part.patterns.reshape(-1, row) for part in parts]), parts[0].dtype)


def make(kind: str, norm: Any, pool: Pool, backward: Callable[..., Any] | None, options: dict[str, Any]) -> Subject:
    """A norm that takes arrays of a kind, as a subject."""
    if kind == "numpy":
        return NumpySubject(pool, norm, backward, options)
    try:
        from isonorm._audit.torch_subject import TorchSubject
    except ImportError as error:
        raise AuditError(f"PyTorch cannot be imported: {error}") from error
    return TorchSubject(pool, norm, options)


class NumpySubject(Subject):
    """A function of NumPy arrays.

    Parameters
    ----------
    forward : callable
        Of x, and of what it names among `weight`, `bias`, `normalized_shape`, `threads` and the options.
    backward : callable, optional
        Of dy and x, and likewise `mask` (False for padding) and `accumulate` (a `Partial`). Returns dx, or dx, dweight
        and dbias. `isonorm`'s functions have theirs without being told.
    """

    def __init__(
        self, pool: Pool, forward: Callable[..., Any], backward: Callable[..., Any] | None, options: Mapping[str, Any]
    ) -> None:
        super().__init__(pool)
        self._forward, self._backward = forward, backward or _own_backward(forward)
        self._signature = Signature(forward)
        self._backward_signature = Signature(self._backward, 2) if self._backward else None
        values = {name: self._array(patterns) for name, patterns in parameters(self._signature.names, pool).items()}
        self._options = dict(options)
        self._given = {**values, **shapes(pool.row), **options}
        self.threads = "threads" in self._signature.names

    def _run(self, pieces: Sequence[Piece], call: Call) -> Outcome:
        given = {**self._given, "threads": call.threads} if self.threads else self._given
        rows: dict[str, list[Bits]] = {}
        sums: list[tuple[Any, ...]] = []
        backward = self._backward_signature
        partial = self._partial() if call.pieces and backward and "accumulate" in backward.names else None
        for piece in pieces:
            x, dy = self._array(piece.x), self._array(piece.dy)
            keywords = self._signature.supply(given) | self._options
            rows.setdefault("y", []).append(self._bits(self._forward(x, **keywords), x.shape))
            if self._backward is None or backward is None or not call.gradients:
                continue
            extra = {"mask": np.reshape(piece.real, x.shape[: x.ndim - len(self.pool.row)])}
            wanted = {"accumulate": partial} if partial is not None else {"dweight": True, "dbias": True}
            dx, *sums_of_piece = _tuple(self._backward(dy, x, **backward.supply(given | extra | wanted)))
            rows.setdefault("dx", []).append(self._bits(dx, x.shape))
            sums.append(tuple(sums_of_piece))
        if partial is not None:
            dtype = _numpy_type(self.pool.dtype)
            sums = [(partial.dweight(dtype), partial.dbias(dtype))]
        return Outcome({name: self._joined(parts) for name, parts in rows.items()}, self._added(sums))

    def _added(self, sums: Sequence[tuple[Any, ...]]) -> dict[str, Bits]:
        gradients = {}
        for name, *parts in zip(("dweight", "dbias"), *sums, strict=False):
            if parts and parts[0] is not None:
                total = parts[0]
                for part in parts[1:]:
                    total = total + part
                parameter = self._given.get(name.removeprefix("d"), total)
                gradients[name] = self._bits(total, np.shape(parameter))
        return gradients

    def _partial(self) -> Any:
        from isonorm import Partial

        return Partial(_numpy_type(self.pool.dtype), elements(self.pool.row))

    def _array(self, patterns: Patterns) -> Any:
        return patterns.view(_numpy_type(self.pool.dtype))

    def _bits(self, array: Any, shape: tuple[int, ...]) -> Bits:
        if not isinstance(array, np.ndarray):
            raise AuditError(f"returned {_kind(array)}, but a NumPy array was expected")
        unsigned = checked(array.dtype.name, array.shape, shape).unsigned
        return Bits(np.ascontiguousarray(array).view(unsigned), array.dtype.name)


def checked(dtype: str, found: tuple[int, ...], expected: tuple[int, ...]) -> Any:
    """The format of a result, where it has the shape that it should."""
    if tuple(found) != tuple(expected):
        raise AuditError(f"returned an array of shape {tuple(found)}, but x's {tuple(expected)} was expected")
    if dtype not in FORMATS:
        raise AuditError(f"returned {dtype}, but one of {', '.join(FORMATS)} was expected")
    return FORMATS[dtype]


def parameters(names: Sequence[str], pool: Pool) -> dict[str, Patterns]:
    """A weight near 1 and a bias near 0, in x's type, where there are parameters of these names."""
    whole = len(pool.row) == 1 or "normalized_shape" in names
    shape = pool.row if whole else pool.row[:1]  # of each element of a row, or of each channel
    rng = np.random.default_rng(0)
    values = {"weight": 1.0 + rng.standard_normal(shape) / 8, "bias": rng.standard_normal(shape) / 8}
    return {name: encode(value, pool.dtype) for name, value in values.items() if name in names}


def shapes(row: tuple[int, ...]) -> dict[str, Any]:
    """What a norm may want to know of a row, by the names that are used for it."""
    count = elements(row)
    channels = dict.fromkeys(("num_features", "num_channels"), row[0])
    return {"normalized_shape": row} | channels | dict.fromkeys(("hidden", "hidden_size", "d_model"), count)


class Signature:
    """What a function has parameters for, besides its first ones: x, or dy and x. Read once, since it takes long.

    A function without a signature, as some of C have none, is taken to have no further parameters.
    """

    def __init__(self, function: Callable[..., Any], arrays: int = 1) -> None:
        self._function = function
        try:
            wanted = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            wanted = []
        named = [p for p in wanted if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][arrays:]
        self.names = [p.name for p in named]
        self._required = [p.name for p in named if p.default is p.empty]

    def supply(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords among those given that there is a parameter for.

        Raises
        ------
        AuditError
            Where a parameter has neither a value nor a default.
        """
        missing = ", ".join(name for name in self._required if name not in given)
        if missing:
            name = name_of(self._function)
            raise AuditError(f"{name} needs {missing}: give it as an option, or wrap it in a function of x")
        return {name: given[name] for name in self.names if name in given}


def name_of(target: Any) -> str:
    """A name to print: where it is imported from, as far as that is known."""
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    module = getattr(target, "__module__", None) or type(target).__module__
    return (
        name
        if module in (None, "__main__", "builtins")
        else f"{module}.{name}".replace("isonorm._isonorm.", "isonorm.")
    )


def _own_backward(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The backward pass of one of this package's functions of NumPy arrays."""
    if getattr(function, "__module__", None) != "isonorm._isonorm":
        return None
    return getattr(sys.modules["isonorm"], f"{function.__name__}_backward", None)


def _numpy_type(dtype: str) -> np.dtype[Any]:
    if dtype != "bfloat16":
        return np.dtype(dtype)
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise AuditError("bfloat16 in NumPy needs the package ml_dtypes: install it, or choose another type") from None


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
