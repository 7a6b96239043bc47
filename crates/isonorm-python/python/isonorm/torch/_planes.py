"""BatchNorm, GroupNorm and InstanceNorm: from a call to an operator, with autograd where it is needed."""

import math

import torch
from torch.autograd import Function

from isonorm.torch import _compose
from isonorm.torch._library import ops
from isonorm.torch._rows import _requires_grad, check_written, written
from isonorm.torch._transforms import Norm, are_active


def _train_forward(options, x, weight, bias, running_mean, running_var):
    eps, weight_offset, momentum = options
    return ops.batch_norm_train.default(x, weight, bias, running_mean, running_var, momentum, eps, weight_offset)


def _train_backward(options, needs, grads, inputs, extras):
    found = ops.batch_norm_train_backward.default(grads[0], *inputs[:3], extras[0], *options[:2], *needs[1:3])
    return *found, None, None


def _compose_train(x, weight, bias, running_mean, running_var, eps, weight_offset, momentum):
    return _compose.batch_norm_train(x, weight, bias, eps, weight_offset)


def _eval_forward(options, x, weight, bias, running_mean, running_var):
    return ops.batch_norm_eval.default(x, weight, bias, running_mean, running_var, *options)


def _eval_backward(options, needs, grads, inputs, extras):
    found = ops.batch_norm_eval_backward.default(grads[0], *inputs, *options, *needs[1:3])
    return *found, None, None


def _group_forward(options, x, weight, bias):
    return ops.group_norm.default(x, weight, bias, *options)


def _group_backward(options, needs, grads, inputs, extras):
    return ops.group_norm_backward.default(grads[0], *inputs, extras[0], *options, *needs[1:])


# The running statistics are moved after the call: its backward pass must not look at them.
_train = Norm(5, 1, _train_forward, _train_backward, _compose_train, reads=3)
_eval = Norm(5, 1, _eval_forward, _eval_backward, _compose.batch_norm_eval)
_group = Norm(3, 1, _group_forward, _group_backward, _compose.group_norm)


def _function(norm):
    """The short way to a norm with autograd: without the `setup_context` that transforms need."""

    class PlaneNorm(Function):
        @staticmethod
        def forward(ctx, options, *inputs):
            results = norm.forward(options, *inputs)
            extras = results[1:] if isinstance(results, tuple) else ()
            ctx.options = options
            ctx.save_for_backward(*norm.read(inputs), *extras[:1])
            ctx.mark_non_differentiable(*extras)
            return results

        @staticmethod
        def backward(ctx, dy, *_):
            saved, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
            inputs, extras = saved[: norm.inputs], saved[norm.inputs :]
            if torch.is_grad_enabled():
                return None, *norm.gradient(ctx.options, needs, (dy,), inputs, extras)
            found = norm.backward(ctx.options, needs, (dy,), inputs, extras)
            return None, *[g if need else None for g, need in zip(found, needs, strict=True)]

    return PlaneNorm


_Train, _Eval, _Group = _function(_train), _function(_eval), _function(_group)


def _apply(norm, function, options, *inputs):
    if are_active():
        return norm.apply(options, *inputs)
    if torch.is_grad_enabled() and _requires_grad(*inputs):
        return function.apply(options, *inputs)
    return norm.forward(options, *inputs)


def batch_norm_train(x, weight, bias, running_mean, running_var, momentum, eps, weight_offset, out=None):
    """By the batch's statistics; the running ones, where there are any, are moved."""
    inputs = x, weight, bias, running_mean, running_var
    if out is None:
        y, _, mean, var = _apply(_train, _Train, (eps, weight_offset, momentum), *inputs)
    else:
        check_written((out,), x, weight, bias)
        mean, var = ops.batch_norm_train.out(*inputs, momentum, eps, weight_offset, out=out)
        written(out)
        y = out
    if running_mean is not None and running_var is not None:
        _move(running_mean, running_var, mean, var)
    return y


def _move(running_mean, running_var, mean, var):
    with torch.no_grad():
        running_mean.copy_(mean)
        running_var.copy_(var)


def batch_norm_eval(x, weight, bias, running_mean, running_var, eps, weight_offset, out=None):
    """By the running statistics."""
    options = (eps, weight_offset)
    if out is not None:
        check_written((out,), x, weight, bias)
        ops.batch_norm_eval.out(x, weight, bias, running_mean, running_var, *options, out=out)
        written(out)
        return out
    return _apply(_eval, _Eval, options, x, weight, bias, running_mean, running_var)


def group_norm(x, weight, bias, groups, eps, weight_offset, out=None):
    """Each group of channels of each sample."""
    return group_norm_with_stats(x, weight, bias, (groups, eps, weight_offset), out)[0]


def group_norm_with_stats(x, weight, bias, options, out=None):
    """The same; y and the groups' statistics."""
    if out is None:
        return _apply(_group, _Group, options, x, weight, bias)
    check_written((out,), x, weight, bias)
    stats = ops.group_norm.out(x, weight, bias, *options, out=out)
    written(out)
    return out, stats


def instance_norm_train(x, weight, bias, running_mean, running_var, momentum, eps, weight_offset, out=None):
    """Each channel of each sample; the running statistics move."""
    y, stats = group_norm_with_stats(x, weight, bias, (x.shape[1], eps, weight_offset), out)
    move_running(x, stats, running_mean, running_var, momentum)
    return y


def move_running(x, stats, running_mean, running_var, momentum):
    """Moves the running statistics, where there are any, towards the means over the samples of the channels'."""
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            positions = math.prod(x.shape[2:])
            after = ops.instance_norm_running.default(stats, running_mean, running_var, momentum, positions)
        _move(running_mean, running_var, *after)
