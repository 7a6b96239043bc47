"""Gradients of weight and bias over a batch in pieces, in the bits of the whole batch.

torch adds up rounded gradients, one for each micro-batch, so their bits depend on how the batch was cut. Here each norm
goes on with one unfinished sum (the core's `Partial`) and rounds it once, at the end.
"""

from weakref import WeakKeyDictionary

import torch
from torch.autograd import Function

from isonorm import _isonorm
from isonorm.torch import _rows
from isonorm.torch._library import ops

#: The norms whose gradients are being accumulated, each with its unfinished gradients.
active = WeakKeyDictionary()


class Accumulation:
    """The unfinished gradients of the norms of a model; made by :func:`accumulate`."""

    def __init__(self, norms):
        busy = [norm for norm in norms if norm in active]
        if busy:
            raise RuntimeError(f"the gradients of {len(busy)} norms are being accumulated already: finish that first")
        self._norms = list(norms)
        self._reset()

    def _reset(self):
        for norm in self._norms:
            is_f64 = norm.weight.dtype == torch.float64
            active[norm] = _isonorm.TorchPartial(norm.weight.numel(), is_f64)

    def finish(self):
        """Rounds the sums once and adds them to the parameters' ``grad``; then nothing is accumulated any more."""
        for norm in self._norms:
            partial = active.pop(norm)
            if partial.end == 0:
                continue
            bias = getattr(norm, "bias", None)
            dweight, dbias = ops.finish_partial.default(norm.weight.detach(), _detached(bias), partial.number)
            for param, gradient in ((norm.weight, dweight), (bias, dbias)):
                if param is not None and param.requires_grad:
                    param.grad = gradient if param.grad is None else param.grad + gradient
        self._norms = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.finish()
        for norm in self._norms:  # after an error: the sums are given up
            active.pop(norm, None)


def _detached(tensor):
    return None if tensor is None else tensor.detach()


def accumulate(model):
    """Accumulates the gradients of a model's RMSNorm, AddRMSNorm and LayerNorm modules over micro-batches.

    ``weight.grad`` and ``bias.grad`` of these modules have the same bits however the batch is cut into micro-batches,
    as long as the micro-batches come in the batch's order and their rows have the same bits. Each module is called once
    in a micro-batch; one that is called more often (shared) gets right values, in an order of its own. Not inside
    ``torch.compile``.

    Args:
        model (torch.nn.Module): the norms among its modules, or a norm itself.

    Returns:
        Accumulation: a context whose end finishes the gradients; or call its ``finish()``.

    Example::

        >>> with isonorm.torch.accumulate(model):
        ...     for micro in batch.split(4):
        ...         loss(model(micro)).backward()
        >>> optimizer.step()
    """
    from isonorm.torch.modules import LayerNorm, RMSNorm

    norms = [module for module in model.modules() if isinstance(module, (RMSNorm, LayerNorm))]
    return Accumulation([norm for norm in norms if norm.weight is not None and norm.weight.requires_grad])


class _RowNormPartial(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, options, partial):
        ctx.options, ctx.partial = options, partial
        ctx.save_for_backward(x, weight, bias)
        return _rows._forward(options, x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        dx = ops.row_norm_backward_partial.default(dy, *ctx.saved_tensors, *ctx.options, ctx.partial.number)
        return dx, None, None, None, None


def row_norm(norm, x, weight, bias, options):
    """A call of `norm` while gradients are accumulated: its own or others'."""
    if norm not in active or not torch.is_grad_enabled():
        return _rows.row_norm(x, weight, bias, options)
    return _RowNormPartial.apply(x, weight, bias, options, active[norm])


class _AddRmsNormPartial(Function):
    @staticmethod
    def forward(ctx, x, residual, weight, options, partial):
        y, r = ops.add_rms_norm.default(x, residual, weight, *options)
        dims, *others = options
        ctx.options, ctx.partial, ctx.dtype = (dims, False, *others), partial, x.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(r, weight)
        return y, r

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dr):
        r, weight = ctx.saved_tensors
        dy = torch.zeros(r.shape, dtype=ctx.dtype) if dy is None else dy
        dx = ops.row_norm_backward_partial.default(dy, r, weight, None, *ctx.options, ctx.partial.number)
        dx = dx if dr is None else dx + dr
        return dx.to(ctx.dtype), dx, None, None, None


def add_rms_norm(norm, x, residual, weight, options):
    """As `row_norm`, with a residual."""
    if norm not in active or not torch.is_grad_enabled():
        return _rows.add_rms_norm(x, residual, weight, options)
    return _AddRmsNormPartial.apply(x, residual, weight, options, active[norm])
