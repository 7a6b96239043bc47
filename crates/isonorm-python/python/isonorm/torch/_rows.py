"""RMSNorm, LayerNorm and the residual add before them: from a call to an operator, with autograd where it is needed.

Options are a tuple: `(dims, centered, eps, weight_offset, llama)`.
"""

import torch
from torch import is_grad_enabled
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

from isonorm.torch import _compose
from isonorm.torch._library import direct, ops
from isonorm.torch._transforms import Norm, are_active, is_transformed

_row_norm = ops.row_norm.default
_row_norm_out = ops.row_norm.out
_row_norm_backward = ops.row_norm_backward.default
_add_row_norm = ops.add_row_norm.default
_add_row_norm_backward = ops.add_row_norm_backward.default


class _Short:
    """The operators of few arguments, for the common calls."""

    def __init__(self, through):
        self.rms_norm, self.llama_rms_norm = through(ops.rms_norm.default), through(ops.llama_rms_norm.default)
        self.layer_norm = through(ops.layer_norm.default)
        self.rms_norm_backward = through(ops.rms_norm_backward.default)
        self.layer_norm_backward = through(ops.layer_norm_backward.default)


_eager, _traced = _Short(direct), _Short(lambda operator: operator)


def _forward(options, x, weight, bias):
    """The operator with the fewest arguments that computes this."""
    _, centered, eps, weight_offset, llama = options
    short = _traced if is_compiling() else _eager
    if weight is not None and weight_offset == 0.0:
        if not centered and bias is None:
            return short.llama_rms_norm(x, weight, eps) if llama else short.rms_norm(x, weight, eps)
        if centered and bias is not None:
            return short.layer_norm(x, weight, bias, eps)
    return _row_norm(x, weight, bias, *options)


def _backward(options, needs, grads, inputs, extras):
    """The same, of the gradients; there may be more of them than are needed."""
    _, dweight, dbias = needs
    x, weight, bias = inputs
    _, centered, eps, weight_offset, llama = options
    if dweight and weight_offset == 0.0:
        short = _traced if is_compiling() else _eager
        if not centered and bias is None:
            return *short.rms_norm_backward(grads[0], x, weight, eps, llama), None
        if centered and dbias:
            return short.layer_norm_backward(grads[0], x, weight, bias, eps)
    return _row_norm_backward(grads[0], *inputs, *options, dweight, dbias)


_norm = Norm(3, 1, _forward, _backward, _compose.row_norm)


class _RowNorm(Function):
    # With a separate `setup_context` a call takes some 15 us more: `_norm` has one, for transforms.
    @staticmethod
    def forward(ctx, x, weight, bias, options):
        ctx.options = options
        ctx.save_for_backward(x, weight, bias)
        return _forward(options, x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        inputs, (dx, dweight, dbias, _) = ctx.saved_tensors, ctx.needs_input_grad
        if is_grad_enabled():
            return *_norm.gradient(ctx.options, (dx, dweight, dbias), (dy,), inputs, ()), None
        found = _backward(ctx.options, (dx, dweight, dbias), (dy,), inputs, ())
        return found[0], found[1] if dweight else None, found[2] if dbias else None, None


# The commonest calls in training once more, in as few steps of Python as there can be: a step takes as long as a row.


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, eps, llama):
        ctx.eps, ctx.llama = eps, llama
        ctx.save_for_backward(x, weight)
        return (_eager.llama_rms_norm if llama else _eager.rms_norm)(x, weight, eps)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        if is_grad_enabled() or is_compiling():
            options, needs = (weight.dim(), False, ctx.eps, 0.0, ctx.llama), (*ctx.needs_input_grad[:2], False)
            return *_norm.gradient(options, needs, (dy,), (x, weight, None), ()), None
        dx, dweight = _eager.rms_norm_backward(dy, x, weight, ctx.eps, ctx.llama)
        return dx, dweight, None, None


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.eps = eps
        ctx.save_for_backward(x, weight, bias)
        return _eager.layer_norm(x, weight, bias, eps)

    @staticmethod
    def backward(ctx, dy):
        inputs = ctx.saved_tensors
        if is_grad_enabled() or is_compiling():
            options, needs = (inputs[1].dim(), True, ctx.eps, 0.0, False), ctx.needs_input_grad[:3]
            return *_norm.gradient(options, needs, (dy,), inputs, ()), None
        dx, dweight, dbias = _eager.layer_norm_backward(dy, *inputs, ctx.eps)
        return dx, dweight, dbias, None


def _requires_grad(*tensors):
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def row_norm(x, weight, bias, options):
    """Either norm, with whatever parameters there are."""
    if is_transformed() or forward_ad._current_level >= 0:
        return _norm.apply(options, x, weight, bias)
    if not is_grad_enabled():
        return _forward(options, x, weight, bias)
    if weight is not None and weight.requires_grad and not is_compiling():
        _, centered, eps, weight_offset, llama = options
        if weight_offset == 0.0:
            if not centered and bias is None:
                return _RmsNorm.apply(x, weight, eps, llama)
            if centered and bias is not None and bias.requires_grad:
                return _LayerNorm.apply(x, weight, bias, eps)
    if _requires_grad(x, weight, bias):
        return _RowNorm.apply(x, weight, bias, options)
    return _forward(options, x, weight, bias)


def out(x, weight, bias, options, out):
    """Either norm into `out`, which x may be."""
    check_written((out,), x, weight, bias)
    _row_norm_out(x, weight, bias, *options, out=out)
    written(out)
    return out


def check_written(outs, *inputs):
    """What torch refuses for every function that writes into tensors: gradients of them, and of what it reads."""
    if is_grad_enabled() and _requires_grad(*inputs, *outs):
        raise RuntimeError(
            "isonorm: functions with out=... arguments don't support automatic differentiation, but one of the "
            "arguments requires grad."
        )
    if are_active():
        raise RuntimeError("isonorm: functions with out=... arguments don't support torch.func's transforms")
    if not is_compiling() and any(out.is_neg() for out in outs):
        raise RuntimeError(
            "isonorm: what is written is a negative view (of a conjugate's imag): write into a copy of it"
        )


def written(*tensors):
    """Tells autograd that these have other values now. In a traced graph the tracer knows it from the schema."""
    if not is_compiling():
        for tensor in tensors:
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)


def _add_forward(options, x, residual, weight, bias):
    y, r = _add_row_norm(x, residual, weight, bias, *options)
    # The norm's backward pass reads the sum. As an extra it is a result of its own, which no transform confuses with r.
    return y, r


def _add_backward(options, needs, grads, inputs, extras):
    x, residual, *params = inputs
    r = (x.to(torch.promote_types(x.dtype, residual.dtype)) + residual).to(residual.dtype)
    return _add_gradients(options, needs[2:], *grads, r, params, x.dtype)


def _add_gradients(options, wanted, dy, dr, r, params, x_dtype):
    found = _add_row_norm_backward(dy, dr, r, *params, *options, x_dtype, *wanted)
    dx, dresidual, *gradients = found
    return dx, dx if r.dtype == x_dtype else dresidual, *gradients


_add_norm = Norm(4, 2, _add_forward, _add_backward, _compose.add_row_norm)


class _AddRowNorm(Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, options):
        y, r = _add_row_norm(x, residual, weight, bias, *options)
        ctx.options, ctx.x_dtype = options, x.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(r, weight, bias)
        return y, r

    @staticmethod
    def backward(ctx, dy, dr):
        (r, *params), wanted = ctx.saved_tensors, ctx.needs_input_grad[2:4]
        if dy is None and dr is None:
            return None, None, None, None, None
        if dy is None:
            dy = torch.zeros(r.shape, dtype=ctx.x_dtype, device=r.device)
        if is_grad_enabled():
            return *_add_differentiable(ctx, wanted, dy, dr, r, params), None
        dx, dresidual, *found = _add_gradients(ctx.options, wanted, dy, dr, r, params, ctx.x_dtype)
        return dx, dresidual, *[gradient if want else None for gradient, want in zip(found, wanted, strict=True)], None


def _add_differentiable(ctx, wanted, dy, dr, r, params):
    """Gradients that can be differentiated: those of the norm of r, to which the sum adds dr."""
    dx, *gradients = _norm.gradient(ctx.options, (True, *wanted), (dy.to(r.dtype),), (r, *params), ())
    if dr is not None:
        dx = dx + dr
    return dx.to(ctx.x_dtype), dx, *gradients


def add_row_norm(x, residual, weight, bias, options):
    """Either norm of the sum, and the sum."""
    if are_active():
        return _add_norm.apply(options, x, residual, weight, bias)
    if is_grad_enabled() and _requires_grad(x, residual, weight, bias):
        return _AddRowNorm.apply(x, residual, weight, bias, options)
    return _add_row_norm(x, residual, weight, bias, *options)


def add_row_norm_(x, residual, weight, bias, options):
    """The same, into x and the residual."""
    check_written((x, residual), weight, bias)
    ops.add_row_norm_.default(x, residual, weight, bias, *options)
    written(x, residual)
    return x, residual
