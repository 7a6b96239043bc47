"""What is audited: a function or module of PyTorch. Imported where PyTorch is wanted, and only then."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from isonorm._audit.call import Call, Outcome, Piece, Pool
from isonorm._audit.memory import Bits, Patterns
from isonorm._audit.subject import AuditError, Signature, Subject, checked, parameters, shapes


class TorchSubject(Subject):
    """A function of tensors, a module, or the class of a module; gradients are autograd's.

    Parameters
    ----------
    target : callable
        A module is copied, its weights with it, and cast to the pool's type. A class is given the shape of a row.
    """

    threads = True
    modes = True

    def __init__(self, pool: Pool, target: Any, options: Mapping[str, Any]) -> None:
        super().__init__(pool)
        if inspect.isclass(target):
            target = _instance(target, pool, options)
            options = {}
        if isinstance(target, torch.nn.Module):
            if options:
                raise AuditError(
                    f"a module takes no options, but {', '.join(options)} was given: give them to its class"
                )
            module = copy.deepcopy(target).to("cpu", getattr(torch, pool.dtype)).requires_grad_()
            self._forward: Callable[[torch.Tensor], Any] = module
            self._parameters = dict(module.named_parameters())
        else:
            signature = Signature(target)
            values = parameters(signature.names, pool)
            self._parameters = {name: self._tensor(value).requires_grad_() for name, value in values.items()}
            keywords = signature.supply({**self._parameters, **shapes(pool.row), **options}) | dict(options)
            self._forward = lambda x: target(x, **keywords)

    def _run(self, pieces: Sequence[Piece], call: Call) -> Outcome:
        for parameter in self._parameters.values():
            parameter.grad = None
        rows: dict[str, list[Bits]] = {}
        accumulation = _accumulation(self._forward) if call.pieces else nullcontext()
        with _threads(call.threads), torch.set_grad_enabled(call.gradients), accumulation:
            for piece in pieces:
                x = self._tensor(piece.x).requires_grad_(call.gradients)
                y = self._forward(x)
                rows.setdefault("y", []).append(_bits(y, x.shape))
                if y.requires_grad:
                    y.backward(self._tensor(piece.dy).to(y.dtype))
                if x.grad is not None:
                    rows.setdefault("dx", []).append(_bits(x.grad, x.shape))
        gradients = {
            f"d{name}": _bits(parameter.grad, parameter.shape)
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        return Outcome({name: self._joined(parts) for name, parts in rows.items()}, gradients)

    def _tensor(self, patterns: Patterns) -> torch.Tensor:
        """A tensor in the same memory."""
        signed = patterns.view(np.dtype(f"i{patterns.itemsize}"))
        return torch.from_numpy(signed).view(getattr(torch, self.pool.dtype))


def _accumulation(forward: Any) -> AbstractContextManager[Any]:
    """Micro-batches as isonorm's modules, and those that it patched, take them; all others in autograd's way."""
    isonorm = sys.modules.get("isonorm.torch")  # loaded where there are any
    if isonorm is None or not isinstance(forward, torch.nn.Module) or not isonorm.accumulated_parameters(forward):
        return nullcontext()
    return isonorm.accumulate(forward)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bits(tensor: Any, shape: Sequence[int]) -> Bits:
    if not isinstance(tensor, torch.Tensor):
        raise AuditError(f"returned {type(tensor).__qualname__}, but a tensor was expected")
    dtype = str(tensor.dtype).removeprefix("torch.")
    unsigned = checked(dtype, tuple(tensor.shape), tuple(shape)).unsigned
    signed = getattr(torch, f"int{8 * unsigned.itemsize}")
    return Bits(tensor.detach().cpu().contiguous().view(signed).numpy().view(unsigned), dtype)


def _instance(cls: type, pool: Pool, options: Mapping[str, Any]) -> Any:
    """A module of a class; what it is given goes by the parameters' names, else first comes the shape of a row."""
    row = pool.row[0] if len(pool.row) == 1 else pool.row
    given = {**shapes(pool.row), "dim": row, "normalized_shape": row}
    wanted = list(inspect.signature(cls).parameters.values())
    keywords = {p.name: given[p.name] for p in wanted if p.name in given}
    if keywords:
        return cls(**{**keywords, **options})
    return cls(row, **options)
