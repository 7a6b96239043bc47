"""The operators: found in the extension module, registered with torch's dispatcher, and known to its tracers."""

import functools
import glob
import os
import sys

import torch

from isonorm import _isonorm


def _libtorch():
    names = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}
    return os.path.join(os.path.dirname(torch.__file__), "lib", names.get(sys.platform, "libtorch_cpu.so"))


def _nvrtc():
    """Where the packages that torch brings along have CUDA's compiler."""
    packages = os.path.dirname(os.path.dirname(torch.__file__))
    return sorted(glob.glob(os.path.join(packages, "nvidia", "*", "*", "*nvrtc*[0-9]*")), reverse=True)


_isonorm.register_torch(_libtorch(), [path for path in _nvrtc() if "builtins" not in path])

ops = torch.ops.isonorm


def direct(operator):
    """What an operator calls in the end: a call of it takes 0.2 us less, but tracers know the operator alone."""
    return operator._op


# What follows tells FakeTensor, meta tensors, torch.export and torch.compile what an operator returns.


def _fake(operator):
    """Registers a function as that, for tensors that are all on one device; an `out` is as x is."""

    def register(function):
        @functools.wraps(function)
        def checked(*args, **kwargs):
            tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)]
            for tensor in tensors[1:]:
                if tensor.device != tensors[0].device:
                    raise RuntimeError(
                        f"isonorm: Expected all tensors to be on the same device, but found at least two devices, "
                        f"{tensors[0].device} and {tensor.device}"
                    )
            out = kwargs.get("out")
            if out is not None and out.shape != args[0].shape:
                found, expected = list(out.shape), list(args[0].shape)
                raise RuntimeError(f"out has shape {found}, expected {expected} as the input has")
            return function(*args, **kwargs)

        torch.library.register_fake(operator)(checked)
        return checked

    return register


def _rows_like(x, dims, *params):
    """A contiguous result of the shape of x, whose last dimensions must be those of the parameters."""
    for param in params:
        if param is not None and tuple(param.shape) != tuple(x.shape[x.dim() - dims :]):
            raise RuntimeError(
                f"Given normalized_shape={list(param.shape)}, expected input with shape "
                f"[*, {', '.join(map(str, param.shape))}], but got input of size{list(x.shape)}"
            )
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _planes_like(x):
    """A result of the shape of x, with channels side by side where x has them so."""
    order = (0, *range(2, x.dim()), 1)
    if x.dim() > 2 and not x.is_contiguous() and x.permute(order).is_contiguous():
        y = torch.empty([x.shape[d] for d in order], dtype=x.dtype, device=x.device)
        return y.permute(0, x.dim() - 1, *range(1, x.dim() - 1))
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _gradient(param, wanted, x):
    if param is None or not wanted:
        return x.new_empty(0)
    return torch.empty(param.shape, dtype=param.dtype, device=param.device)


def _stats_of_samples(x, groups):
    return _stats(x, 0 if 0 in x.shape[1:] else x.shape[0] * groups)


def _add_gradients_like(r, dims, x_dtype):
    dresidual = r.new_empty(0) if r.dtype == x_dtype else _rows_like(r, dims)
    return torch.empty(r.shape, dtype=x_dtype, device=r.device), dresidual


def _stats(x, count):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty((count, 5), dtype=dtype, device=x.device)


@_fake("isonorm::rms_norm")
@_fake("isonorm::llama_rms_norm")
def _(x, weight, eps):
    return _rows_like(x, weight.dim(), weight)


@_fake("isonorm::layer_norm")
def _(x, weight, bias, eps):
    return _rows_like(x, weight.dim(), weight, bias)


@_fake("isonorm::row_norm")
def _(x, weight, bias, dims, centered, eps, weight_offset, llama):
    return _rows_like(x, dims, weight, bias)


@_fake("isonorm::row_norm.out")
def _(x, weight, bias, dims, centered, eps, weight_offset, llama, *, out):
    _rows_like(x, dims, weight, bias)


@_fake("isonorm::row_norm_backward")
def _(dy, x, weight, bias, dims, centered, eps, weight_offset, llama, dweight, dbias):
    return _rows_like(x, dims, weight, bias), _gradient(weight, dweight, x), _gradient(bias, dbias, x)


@_fake("isonorm::rms_norm_backward")
def _(dy, x, weight, eps, llama):
    return _rows_like(x, weight.dim(), weight), torch.empty_like(weight)


@_fake("isonorm::layer_norm_backward")
def _(dy, x, weight, bias, eps):
    return _rows_like(x, weight.dim(), weight), torch.empty_like(weight), torch.empty_like(bias)


@_fake("isonorm::row_norm_backward_partial")
def _(dy, x, weight, bias, dims, centered, eps, weight_offset, llama, mask, partial):
    return _rows_like(x, dims, weight, bias)


@_fake("isonorm::add_row_norm_backward_partial")
def _(dy, dr, r, weight, bias, dims, centered, eps, weight_offset, llama, x_dtype, mask, partial):
    return _add_gradients_like(r, dims, x_dtype)


@_fake("isonorm::group_norm_backward_partial")
def _(dy, x, weight, bias, stats, groups, eps, weight_offset, partial):
    return _planes_like(x)


@_fake("isonorm::finish_partial")
def _(weight, bias, partial):
    like = bias if weight is None else weight
    return _gradient(weight, True, like), _gradient(bias, True, like)


@_fake("isonorm::add_row_norm")
def _(x, residual, weight, bias, dims, centered, eps, weight_offset, llama):
    return _rows_like(x, dims, weight, bias), _rows_like(residual, dims, weight, bias)


@_fake("isonorm::add_row_norm_")
def _(x, residual, weight, bias, dims, centered, eps, weight_offset, llama):
    _rows_like(x, dims, weight, bias)


@_fake("isonorm::add_row_norm_backward")
def _(dy, dr, r, weight, bias, dims, centered, eps, weight_offset, llama, x_dtype, dweight, dbias):
    gradients = _gradient(weight, dweight, r), _gradient(bias, dbias, r)
    return *_add_gradients_like(r, dims, x_dtype), *gradients


@_fake("isonorm::batch_norm_train")
def _(x, weight, bias, running_mean, running_var, momentum, eps, weight_offset):
    running = [_gradient(running, True, x) for running in (running_mean, running_var)]
    return _planes_like(x), _stats(x, x.shape[1]), *running


@_fake("isonorm::batch_norm_train.out")
def _(x, weight, bias, running_mean, running_var, momentum, eps, weight_offset, *, out):
    return tuple(_gradient(running, True, x) for running in (running_mean, running_var))


@_fake("isonorm::batch_norm_train_backward")
def _(dy, x, weight, bias, stats, eps, weight_offset, dweight, dbias):
    return _planes_like(x), _gradient(weight, dweight, x), _gradient(bias, dbias, x)


@_fake("isonorm::batch_norm_eval")
def _(x, weight, bias, running_mean, running_var, eps, weight_offset):
    return _planes_like(x)


@_fake("isonorm::batch_norm_eval.out")
def _(x, weight, bias, running_mean, running_var, eps, weight_offset, *, out):
    pass


@_fake("isonorm::batch_norm_eval_backward")
def _(dy, x, weight, bias, running_mean, running_var, eps, weight_offset, dweight, dbias):
    return _planes_like(x), _gradient(weight, dweight, x), _gradient(bias, dbias, x)


@_fake("isonorm::group_norm")
def _(x, weight, bias, groups, eps, weight_offset):
    return _planes_like(x), _stats_of_samples(x, groups)


@_fake("isonorm::group_norm.out")
def _(x, weight, bias, groups, eps, weight_offset, *, out):
    return _stats_of_samples(x, groups)


@_fake("isonorm::group_norm_backward")
def _(dy, x, weight, bias, stats, groups, eps, weight_offset, dweight, dbias):
    return _planes_like(x), _gradient(weight, dweight, x), _gradient(bias, dbias, x)


@_fake("isonorm::instance_norm_running")
def _(stats, running_mean, running_var, momentum, positions):
    return torch.empty_like(running_mean), torch.empty_like(running_var)
