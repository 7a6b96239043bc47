"""Calls of norms whose gradients are accumulated: autograd gets dx, and the gradients of weight and bias go on with an
unfinished sum (the core's `Partial`).
"""

import math
from weakref import WeakKeyDictionary

import torch
from torch.compiler import is_compiling

from isonorm import _isonorm
from isonorm.torch import _planes, _rows
from isonorm.torch._library import ops
from isonorm.torch._transforms import are_active

#: The norms whose gradients are being accumulated, each with its `Sums`.
active = WeakKeyDictionary()


class Mask:
    """Which tokens are real, and which are padding."""

    def __init__(self, mask):
        if not isinstance(mask, torch.Tensor):
            raise TypeError(f"a mask is a tensor, got {type(mask).__name__}")
        if mask.is_floating_point() or mask.is_complex() or not mask.dim():
            raise ValueError(
                f"a mask is of bools or integers, not 0 where a token is real, with a dimension for samples, got "
                f"{mask.dtype} of shape {list(mask.shape)}"
            )
        self.real = mask.detach().cpu() != 0
        self._flags = {}

    def flags(self, name, leading):
        """One for each row of an x whose rows are counted by `leading`."""
        if leading not in self._flags:
            self._flags[leading] = self._expanded(name, leading)
        return self._flags[leading]

    def _expanded(self, name, leading):
        real, dims = self.real, len(leading)
        if real.dim() > dims:  # a sample is real where one of its tokens is
            real = real.flatten(dims).any(-1)
        if real.shape != leading[: real.dim()]:
            raise RuntimeError(
                f"isonorm: the mask has shape {list(self.real.shape)}, but the rows of {name} have shape "
                f"{list(leading)}: expected x's first dimensions, [samples, tokens] for x of [samples, tokens, ...]"
            )
        return real.reshape(*real.shape, *[1] * (dims - real.dim())).expand(leading).contiguous()


class Part:
    """What this process has of the batch: where it begins, and the mask of the micro-batch that it is at."""

    def __init__(self, start, start_tokens, is_of_ranks):
        self.start, self.start_tokens, self.is_of_ranks = start, start_tokens, is_of_ranks
        self.mask, self.is_over = None, False

    def rows_before(self, leading):
        """How many rows that are counted by `leading` come before this part."""
        if self.start == 0 and not self.start_tokens:
            return 0
        counted = 1 if self.mask is None else min(self.mask.real.dim(), len(leading))
        if counted < 2:  # each sample has as many rows
            return self.start * math.prod(leading[1:])
        if self.start_tokens is None:
            raise RuntimeError(
                f"isonorm: with a mask, start={self.start} samples do not tell how many rows come before: give "
                "`accumulate` start_tokens too, the number of real tokens in those samples"
            )
        return self.start_tokens * math.prod(leading[counted:])


class Sums:
    """The unfinished gradients of one norm."""

    def __init__(self, name, params, part):
        self.name, self.params, self.part = name, params, part
        self.is_f64 = self.partial = None  # until the first backward pass

    def finish(self):
        """The parameters and their gradients, rounded once."""
        if self.partial is None:
            return []
        params = [None if param is None else param.detach() for param in self.params]
        gradients = ops.finish_partial.default(*params, self.partial.number)
        return [pair for pair in zip(self.params, gradients, strict=True) if pair[0] is not None]


class Call:
    """A call of a norm, for its backward pass."""

    def __init__(self, sums, options, x, leading):
        self.sums, self.options, self.mask = sums, options, sums.part.mask
        self.is_f64 = x.dtype == torch.float64
        if sums.partial is not None and sums.is_f64 != self.is_f64:
            before = "float64" if sums.is_f64 else "another dtype"
            raise RuntimeError(
                f"isonorm: {sums.name} is called with {x.dtype} after {before}, but its gradients are summed in one "
                "type, float64 for float64 alone: finish the accumulation before the other"
            )
        self.flags = None if self.mask is None else self.mask.flags(sums.name, leading)
        self.before = sums.part.rows_before(leading)

    def is_for_grad(self, nodes):
        """Whether a backward pass is for the `grad` of the parameters, whose nodes in the graph these are.

        `torch.autograd.grad`, and `backward(inputs=...)` of others, leave `grad` alone.
        """
        try:
            # Of all of them: a sum has no part that is for `grad` and one that is not.
            nodes = [node for node, _ in nodes if node is not None]
            if not nodes or not all(map(torch._C._will_engine_execute_node, nodes)):
                return False
        except RuntimeError:  # torch.autograd.grad of a parameter
            return False
        self._check()
        return True

    def _check(self):
        name, part = self.sums.name, self.sums.part
        if part.is_over:
            raise RuntimeError(
                f"isonorm: a backward pass through {name} after the accumulation that it belongs to: call `backward` "
                "before `finish`, within the context"
            )
        if part.mask is not self.mask:
            raise RuntimeError(
                f"isonorm: the backward pass through {name} has another mask than its forward pass: put both into one "
                "`with accumulation.mask(...)`"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "isonorm: gradients that are accumulated cannot be differentiated again (create_graph=True)"
            )

    def partial(self, columns, is_of_samples=False):
        """The number of the unfinished sum."""
        sums = self.sums
        if sums.partial is None:
            sums.is_f64 = self.is_f64
            sums.partial = _isonorm.TorchPartial(columns, self.is_f64, is_of_samples, self.before)
        return sums.partial.number


def _call(norm, params, options, x, leading):
    """A call that is accumulated, else None: no gradient is wanted, or not that of the module's own parameters."""
    if is_compiling():
        raise RuntimeError(
            "isonorm: gradients are accumulated outside of compiled graphs: leave fullgraph=True out while they are"
        )
    sums = active.get(norm)
    if sums is None or not torch.is_grad_enabled() or are_active():
        return None
    is_own = all(own is given for own, given in zip(sums.params, params, strict=True))
    if not is_own:
        refuse_ranks(norm, "is called with other parameters than its own")
        return None
    if not _rows._requires_grad(*params):
        return None
    if not x.is_cpu:
        raise RuntimeError(
            f"isonorm: {sums.name} is called with a tensor on {x.device}, but gradients are accumulated on the CPU "
            "alone so far: call it outside of `accumulate`, where autograd adds up what each micro-batch has"
        )
    return Call(sums, options, x, tuple(leading))


def refuse_ranks(norm, why):
    """Refuses a call that is left to autograd where ranks have parts of the batch: nobody adds its gradients up."""
    sums = active.get(norm)
    if sums is not None and sums.part.is_of_ranks and torch.is_grad_enabled():
        raise RuntimeError(
            f"isonorm: {sums.name} {why}, so its gradients are left to autograd, and the other ranks do not get them: "
            "freeze its parameters, or call `accumulate` without it"
        )


class _RowNorm(_rows._RowNorm):
    @staticmethod
    def forward(ctx, x, weight, bias, call):
        ctx.call = call
        return _rows._RowNorm.forward(ctx, x, weight, bias, call.options)

    @staticmethod
    def backward(ctx, dy):
        call = ctx.call
        if not call.is_for_grad(ctx.next_functions[1:]):
            return _rows._RowNorm.backward(ctx, dy)
        x, weight, bias = ctx.saved_tensors
        partial = call.partial((bias if weight is None else weight).numel())
        dx = ops.row_norm_backward_partial.default(dy, x, weight, bias, *call.options, call.flags, partial)
        return dx, None, None, None


def row_norm(norm, x, weight, bias, options):
    """A call of `norm` while gradients are accumulated: its own or others'."""
    call = _call(norm, (weight, bias), options, x, x.shape[: -options[0]])
    if call is None:
        return _rows.row_norm(x, weight, bias, options)
    return _RowNorm.apply(x, weight, bias, call)


class _AddRowNorm(_rows._AddRowNorm):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, call):
        ctx.call = call
        return _rows._AddRowNorm.forward(ctx, x, residual, weight, bias, call.options)

    @staticmethod
    def backward(ctx, dy, dr):
        call = ctx.call
        if (dy is None and dr is None) or not call.is_for_grad(ctx.next_functions[2:]):
            return _rows._AddRowNorm.backward(ctx, dy, dr)
        r, weight, bias = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros(r.shape, dtype=ctx.x_dtype)
        partial = call.partial((bias if weight is None else weight).numel())
        dx, dresidual = ops.add_row_norm_backward_partial.default(
            dy, dr, r, weight, bias, *call.options, ctx.x_dtype, call.flags, partial
        )
        return dx, dx if r.dtype == ctx.x_dtype else dresidual, None, None, None


def add_row_norm(norm, x, residual, weight, bias, options):
    """As `row_norm`, with a residual."""
    call = _call(norm, (weight, bias), options, residual, residual.shape[: -options[0]])
    if call is None:
        return _rows.add_row_norm(x, residual, weight, bias, options)
    return _AddRowNorm.apply(x, residual, weight, bias, call)


class _GroupNorm(_planes._Group):
    @staticmethod
    def forward(ctx, call, x, weight, bias):
        ctx.call = call
        return _planes._Group.forward(ctx, call.options, x, weight, bias)

    @staticmethod
    def backward(ctx, dy, *_):
        call = ctx.call
        if not call.is_for_grad(ctx.next_functions[1:]):
            return _planes._Group.backward(ctx, dy)
        x, weight, bias, stats = ctx.saved_tensors
        partial = call.partial(x.shape[1], is_of_samples=True)

        def backward(dy, x, stats):
            options = (*call.options, partial)
            return ops.group_norm_backward_partial.default(dy, x, weight, bias, stats.flatten(0, -2), *options)

        if call.flags is None or call.flags.all():
            return None, backward(dy, x, stats), None, None
        dx, real = torch.zeros_like(x), call.flags
        dx[real] = backward(dy[real], x[real], stats.unflatten(0, (len(real), call.options[0]))[real])
        return None, dx, None, None


def group_norm(norm, x, weight, bias, groups, eps):
    """As `row_norm`, of GroupNorm; y and the statistics."""
    options = (groups, eps, 0.0)
    call = _call(norm, (weight, bias), options, x, x.shape[:1])
    if call is None:
        return _planes.group_norm_with_stats(x, weight, bias, options)
    return _GroupNorm.apply(call, x, weight, bias)
