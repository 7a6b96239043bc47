"""The norms as compositions of torch's operations, which torch can differentiate any number of times.

Values come from isonorm's operators; these give the derivatives that the operators have no kernel for: of gradients
(double backward) and along tangents (forward mode).
"""

import math

import torch


def _compute_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _affine(x_hat, weight, bias, weight_offset):
    if weight is not None:
        x_hat = x_hat * (weight.to(x_hat.dtype) + weight_offset)
    if bias is not None:
        x_hat = x_hat + bias.to(x_hat.dtype)
    return x_hat


def row_norm(x, weight, bias, dims, centered, eps, weight_offset, llama):
    """RMSNorm, or LayerNorm where `centered`, of the last `dims` dimensions."""
    axes, dtype = tuple(range(-dims, 0)), _compute_dtype(x)
    x_hat = x.to(dtype)
    if centered:
        x_hat = x_hat - x_hat.mean(axes, keepdim=True)
    x_hat = x_hat * torch.rsqrt(x_hat.square().mean(axes, keepdim=True) + eps)
    if llama:
        x_hat = x_hat.to(x.dtype).to(dtype)
    return _affine(x_hat, weight, bias, weight_offset).to(x.dtype)


def add_row_norm(x, residual, weight, bias, *options):
    """Either norm of `x + residual`, and the sum in the residual's type."""
    r = (x.to(_compute_dtype(residual)) + residual).to(residual.dtype)
    return row_norm(r, weight, bias, *options).to(x.dtype), r


def _of_channels(param, x):
    return None if param is None else param.reshape(1, -1, *[1] * (x.dim() - 2))


def _planes(x, x_hat, weight, bias, weight_offset):
    return _affine(x_hat, _of_channels(weight, x), _of_channels(bias, x), weight_offset).to(x.dtype)


def batch_norm_train(x, weight, bias, eps, weight_offset):
    """BatchNorm by the batch's statistics."""
    axes = (0, *range(2, x.dim()))
    x_hat = x.to(_compute_dtype(x))
    x_hat = x_hat - x_hat.mean(axes, keepdim=True)
    x_hat = x_hat * torch.rsqrt(x_hat.square().mean(axes, keepdim=True) + eps)
    return _planes(x, x_hat, weight, bias, weight_offset)


def batch_norm_eval(x, weight, bias, running_mean, running_var, eps, weight_offset):
    """BatchNorm by the running statistics."""
    dtype = _compute_dtype(x)
    mean, var = (_of_channels(running.to(dtype), x) for running in (running_mean, running_var))
    return _planes(x, (x.to(dtype) - mean) * torch.rsqrt(var + eps), weight, bias, weight_offset)


def group_norm(x, weight, bias, groups, eps, weight_offset):
    """GroupNorm, and InstanceNorm with as many groups as channels."""
    samples, channels, *spatial = x.shape
    x_hat = x.to(_compute_dtype(x)).reshape(samples, groups, channels // groups * math.prod(spatial))
    x_hat = x_hat - x_hat.mean(-1, keepdim=True)
    x_hat = x_hat * torch.rsqrt(x_hat.square().mean(-1, keepdim=True) + eps)
    return _planes(x, x_hat.reshape(x.shape), weight, bias, weight_offset)
