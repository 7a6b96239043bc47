"""Gradients of weight and bias over a batch in pieces, in the bits of the whole batch.

torch adds up rounded gradients, one for each micro-batch, so their bits depend on how the batch was cut. Here each norm
goes on with one unfinished sum and rounds it once, at the end.
"""

import operator
import weakref
from contextlib import contextmanager

import torch

from isonorm import _isonorm
from isonorm.torch import modules
from isonorm.torch._partials import Mask, Part, Sums, active

_NORMS = (modules.RMSNorm, modules.LayerNorm, modules.GroupNorm, modules._Instance)


class Accumulation:
    """The unfinished gradients of the norms of a model; made by :func:`accumulate`."""

    def __init__(self, norms, part, group):
        self._part, self._group = part, group
        self._sums = {norm: Sums(name, params, part) for norm, (name, params) in norms.items()}
        for norm, sums in self._sums.items():
            if norm in active:
                raise RuntimeError(f"isonorm: the gradients of {sums.name} are accumulated already: finish that first")
            hooked = [param for param in sums.params if param is not None and _has_hooks(param)]
            if hooked:
                raise RuntimeError(
                    f"isonorm: a parameter of {sums.name} has hooks on its gradient, which would see none before the "
                    "end: remove them, or call `accumulate` without this norm"
                )
        active.update(self._sums)
        self._give_up = weakref.finalize(self, _give_up, part, self._sums)

    @contextmanager
    def mask(self, mask):
        """Within this context, which has a micro-batch's forward and backward pass in it, rows of padding are no rows.

        They take no place in the order of the sums, so the gradients' bits do not depend on the amount of padding. And
        nothing flows back from them: their part of dx is 0, so that what a loss makes of them (a first token predicted
        from padding to its left) is left out.

        Args:
            mask (Tensor): the micro-batch's ``attention_mask``: not 0 (or True) where a token is real, of the first
                dimensions of x. Where x has more (the heads of a QK-norm), all rows of a token are as it is; where x
                has fewer (pooled states, samples of a GroupNorm), a row is real if one of its tokens is.

        Example::

            >>> with isonorm.torch.accumulate(model) as accumulation:
            ...     for micro in micro_batches:
            ...         with accumulation.mask(micro["attention_mask"]):
            ...             model(**micro, num_items_in_batch=labels_of_batch).loss.backward()
        """
        self._check()
        before, self._part.mask = self._part.mask, Mask(mask)
        try:
            yield
        finally:
            self._part.mask = before

    def finish(self):
        """Rounds the sums once and adds them to the parameters' ``grad``; then nothing is accumulated any more.

        With a group it is a collective call, after which all ranks have the gradients of the whole batch. It is what
        the end of the context does.

        Raises:
            RuntimeError: if it is over already, or the parts of the ranks are not one batch. No ``grad`` is changed.
        """
        self._check()
        sums = list(self._sums.values())
        self._give_up()
        self._sums = {}
        if self._group is not None:
            _gather(sums, self._group)
        for param, gradient in [pair for each in sums for pair in each.finish()]:
            if not param.requires_grad:
                continue
            if param.grad is None:
                param.grad = gradient
            else:
                with torch.no_grad():
                    param.grad.add_(gradient)  # as autograd does, for those who hold it

    def _check(self):
        if self._part.is_over:
            raise RuntimeError("isonorm: this accumulation is over: it was finished, or given up after an error")

    def __enter__(self):
        self._check()
        return self

    def __exit__(self, kind, *_):
        if not self._part.is_over:
            self.finish() if kind is None else self._give_up()


def _give_up(part, sums):
    """Accumulates no more: at the end, after an error, or when nobody has the accumulation any more."""
    part.is_over = True
    for norm, own in sums.items():
        if active.get(norm) is own:
            del active[norm]


def _has_hooks(param):
    return bool(param._backward_hooks) or bool(getattr(param, "_post_accumulate_grad_hooks", None))


def _gather(sums, group):
    """Gives each norm the sums of all ranks."""
    from torch import distributed

    ranks = [None] * distributed.get_world_size(group)
    own = {each.name: each.partial.to_bytes() if each.partial else None for each in sums}
    distributed.all_gather_object(ranks, own, group)
    names = [list(parts) for parts in ranks]
    for other, found in enumerate(names):
        if found != names[0]:
            differing = sorted(set(found) ^ set(names[0]))
            raise RuntimeError(f"isonorm: rank {other} has other norms than rank 0, or in another order: {differing}")
    for each in sums:
        parts = {rank: parts[each.name] for rank, parts in enumerate(ranks) if parts[each.name] is not None}
        each.partial = _joined(each.name, parts) if parts else None


def _joined(name, parts):
    """The sums of all ranks, from bytes."""
    reason = "rows are missing before the first"
    try:
        joined = _isonorm.TorchPartial.join(list(parts.values()))
        if joined.start == 0:
            return joined
    except ValueError as error:
        reason = str(error)
    each = {rank: _isonorm.TorchPartial.join([part]) for rank, part in parts.items()}
    places = ", ".join(f"{part.start} to {part.end} on rank {rank}" for rank, part in each.items())
    raise RuntimeError(
        f"isonorm: the ranks' parts of {name} are not one batch ({reason}). Rows: {places}. `start` is the number of "
        "samples, and `start_tokens` of real tokens, on the ranks before"
    )


def _norms(model):
    """The norms that can be accumulated, with their names and their weight and bias."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _NORMS) or "_isonorm_family" in vars(module):
            params = module._parameters.get("weight"), module._parameters.get("bias")
            found[module] = name or type(module).__name__, params
    return found


def _trained(norms):
    """Those of them that have gradients."""
    return {
        norm: (name, params)
        for norm, (name, params) in norms.items()
        if any(param is not None and param.requires_grad for param in params)
    }


def accumulated_parameters(model):
    """The names of the parameters whose gradients :func:`accumulate` takes over, for others to leave them alone.

    Args:
        model (torch.nn.Module): as :func:`accumulate`'s.

    Returns:
        list of str: as ``model.named_parameters()`` has them.
    """
    params = {param for _, params in _norms(model).values() for param in params}
    return [name for name, param in model.named_parameters() if param in params and param.requires_grad]


def accumulate(model, *, start=0, start_tokens=None, group=None):
    """Accumulates the gradients of a model's norms over micro-batches, and over ranks, to the bits of the whole batch.

    ``weight.grad`` and ``bias.grad`` of RMSNorm, LayerNorm, AddRMSNorm, AddLayerNorm, GroupNorm, InstanceNorm1d to 3d,
    and of norms that :func:`patch` changed, have the same bits however the batch is cut: those of one backward pass.
    For that the backward passes come in the batch's order, and rows have the same bits, those of dy too: the loss is
    divided by what the whole batch has, not by what the micro-batch has. Each module is called once in a micro-batch;
    one that is called more often (shared) gets right values, in an order of its own.

    BatchNorm is left to autograd, which rounds after each micro-batch. In training its statistics are the
    micro-batch's, so that it is another function for each cut; in evaluation they are fixed. What is not for ``grad``
    is left to autograd too: :func:`torch.autograd.grad`, ``backward(inputs=...)`` of other tensors, :mod:`torch.func`.
    Code that ``torch.compile`` made leaves its graph at the norms. ``zero_grad`` does not take back what was summed,
    neither does a backward pass that fails on its way: leave the context by an error, and begin the batch again.
    Parameters with hooks on their gradients are refused.

    **Ranks.** Each rank of a group of :mod:`torch.distributed` says where its part of the batch starts; at the end all
    ranks have the gradients of the whole batch::

        names = isonorm.torch.accumulated_parameters(model)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        model = DistributedDataParallel(model)
        with isonorm.torch.accumulate(model, start=8 * rank, group=torch.distributed.group.WORLD):
            for micro in part.split(4):  # the 8 samples of this rank
                loss(model(micro)).backward()

    The first two lines keep DDP off these parameters: it neither averages their gradients nor copies them from rank 0,
    so let every rank start with the same. They are summed over the ranks where DDP averages the others; a communication
    hook that sums makes these sums too. A rank without samples takes part in the end of the context as the others do.

    Args:
        model (torch.nn.Module): the norms among its modules, or a norm itself.
        start (int): the samples (first dimension of x) on the ranks before this one. Where masks are used, those that
            are padding as a whole do not count.
        start_tokens (int, optional): the real tokens on the ranks before this one, where masks of [samples, tokens] are
            used and ``start`` is not 0.
        group (ProcessGroup, optional): the ranks that have the parts of the batch, with a backend for the CPU (gloo).

    Returns:
        Accumulation: a context whose end finishes the gradients; or call its ``finish()``. An error that leaves the
        context gives them up, and the other ranks wait for this one as in any collective call.

    Raises:
        ValueError: if the model has no such norm, or there is a ``start`` but no group.
        RuntimeError: if the gradients of one of the norms are being accumulated already.

    Example::

        >>> with isonorm.torch.accumulate(model):
        ...     for micro in batch.split(4):
        ...         loss(model(micro)).backward()
        >>> optimizer.step()
    """
    start, start_tokens = operator.index(start), None if start_tokens is None else operator.index(start_tokens)
    if start < 0 or (start_tokens or 0) < 0:
        raise ValueError(f"start is {start} and start_tokens {start_tokens}, expected numbers of at least 0")
    if group is None and (start or start_tokens):
        raise ValueError(f"start is {start}, but there is no group whose ranks have what comes before: give one")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    if group is not None:
        _check_group(group)
    norms = _norms(model)
    if not norms:
        raise ValueError(f"{type(model).__name__} has no norm of isonorm's, and none that `patch` changed")
    return Accumulation(_trained(norms), Part(start, start_tokens, group is not None), group)


def _check_group(group):
    from torch import distributed

    if group == distributed.GroupMember.NON_GROUP_MEMBER:
        raise RuntimeError("isonorm: this process is not in the group that the accumulation was given")
    if not isinstance(group, distributed.ProcessGroup):
        raise TypeError(f"group is a {type(group).__name__}, expected a torch.distributed.ProcessGroup")
