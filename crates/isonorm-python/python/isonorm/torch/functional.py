"""The norms as functions, with the arguments of :mod:`torch.nn.functional`'s.

All of them take float32, float64, float16 and bfloat16 on the CPU and on CUDA, compute in float32 (in float64 where
``input`` is float64) and return ``input``'s dtype; weight and bias have dtypes of their own (float64 with float64
alone). A result's bits do not depend on batch, position, strides, threads, instruction set or device. Under
``torch.autocast`` nothing is cast: what autocast is for, sums in float32, happens inside.

``eps`` is finite and at least 0. Any other is an error; torch, but for its BatchNorm, takes the root of what may be
negative then, and returns NaN.
"""

import math

import torch
from torch.compiler import is_compiling

from isonorm._isonorm import torch_row_norm
from isonorm.torch import _planes, _rows

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
]

_RECIPES = {"torch": False, "llama": True}


def _is_llama(recipe):
    try:
        return _RECIPES[recipe]
    except KeyError:
        raise ValueError(f"recipe is {recipe!r}, expected 'torch' or 'llama'") from None


def _dims(input, normalized_shape, **params):
    """The number of normalized dimensions, of shapes that fit one another; errors are torch's."""
    shape = tuple(normalized_shape)
    for name, param in params.items():
        if param is not None and param.shape != shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(param.shape)} and normalized_shape = {list(shape)}"
            )
    if not shape:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            "normalized_shape = []"
        )
    if input.shape[-len(shape) :] != shape:
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [*, {', '.join(map(str, shape))}], but "
            f"got input of size{list(input.shape)}"
        )
    return len(shape)


def _eps(input):
    """RMSNorm's default, as torch's: the smallest step from 1 in the type that is computed in."""
    return 2.0**-52 if input.dtype == torch.float64 else 2.0**-23


def rms_norm(input, normalized_shape, weight=None, eps=None, *, recipe="torch", weight_offset=0.0, out=None):
    r"""Normalizes the last dimensions by their root mean square.

    .. math::
        \hat x = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}}, \qquad
        y = \hat x \cdot (\text{weight} + \text{weight\_offset})

    Args:
        input (Tensor): of shape :math:`(*, \text{normalized\_shape})`, any strides; the normalized dimensions are
            read in place where they are contiguous.
        normalized_shape (list of int): the last dimensions of ``input``.
        weight (Tensor, optional): of shape ``normalized_shape``.
        eps (float, optional): added to the mean square. Default: the machine epsilon of the type computed in, as
            :func:`torch.nn.functional.rms_norm`'s.
        recipe (str): ``"torch"`` rounds once; ``"llama"`` rounds :math:`\hat x` to ``input``'s dtype before the
            weight too, as Hugging Face's ``LlamaRMSNorm``.
        weight_offset (float): added to every weight: 1 for Gemma.
        out (Tensor, optional): where the result is written; it may be ``input``. Not with autograd.

    Example::

        >>> x = torch.tensor([[3.0, 4.0]])
        >>> isonorm.torch.functional.rms_norm(x, (2,), torch.tensor([1.0, 2.0]), eps=0.0)
        tensor([[0.8485, 2.2627]])
    """
    if eps is None:
        eps = _eps(input)
    llama = recipe != "torch" and _is_llama(recipe)
    if not is_compiling():
        y = torch_row_norm(input, normalized_shape, weight, None, False, eps, weight_offset, llama, out)
        if y is not None:  # else something is at work that must see an operator, autograd above all
            return y
    if weight is not None and weight.shape == normalized_shape:
        dims = len(normalized_shape)  # the operator compares weight and input
    else:
        dims = _dims(input, normalized_shape, weight=weight)
    options = (dims, False, eps, weight_offset, llama)
    if out is not None:
        return _rows.out(input, weight, None, options, out)
    return _rows.row_norm(input, weight, None, options)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, *, weight_offset=0.0, out=None):
    r"""Takes the mean off the last dimensions and divides them by their standard deviation.

    .. math::
        \hat x = \frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{var}(x) + \epsilon}}, \qquad
        y = \hat x \cdot (\text{weight} + \text{weight\_offset}) + \text{bias}

    The variance is the biased one, of deviations from a corrected mean: rows of mean 1000 lose nothing.

    Args:
        input (Tensor): of shape :math:`(*, \text{normalized\_shape})`, any strides; the normalized dimensions are
            read in place where they are contiguous.
        normalized_shape (list of int): the last dimensions of ``input``.
        weight (Tensor, optional): of shape ``normalized_shape``.
        bias (Tensor, optional): of shape ``normalized_shape``.
        eps (float): added to the variance. Default: 1e-5.
        weight_offset (float): added to every weight.
        out (Tensor, optional): where the result is written; it may be ``input``. Not with autograd.

    Example::

        >>> isonorm.torch.functional.layer_norm(torch.tensor([[1.0, 2.0, 3.0]]), (3,))
        tensor([[-1.2247,  0.0000,  1.2247]])
    """
    if not is_compiling():
        y = torch_row_norm(input, normalized_shape, weight, bias, True, eps, weight_offset, False, out)
        if y is not None:  # else something is at work that must see an operator, autograd above all
            return y
    if weight is not None and weight.shape == normalized_shape:
        dims = len(normalized_shape)  # the operator compares weight, bias and input
    else:
        dims = _dims(input, normalized_shape, weight=weight, bias=bias)
    options = (dims, True, eps, weight_offset, False)
    if out is not None:
        return _rows.out(input, weight, bias, options, out)
    return _rows.row_norm(input, weight, bias, options)


def add_rms_norm(
    input, residual, normalized_shape, weight=None, eps=None, *, recipe="torch", weight_offset=0.0, inplace=False
):
    r"""Adds a residual and normalizes the sum by its root mean square, in one pass over memory.

    .. math::
        r = \text{input} + \text{residual}, \qquad y = \operatorname{rms\_norm}(r)

    The sum is rounded to ``residual``'s dtype, and that is what is normalized: a float32 residual stream beside
    bfloat16 activations stays one.

    Args:
        input (Tensor): of shape :math:`(*, \text{normalized\_shape})`.
        residual (Tensor): of ``input``'s shape, in a dtype of its own.
        normalized_shape, weight, eps, recipe, weight_offset: as for :func:`rms_norm`.
        inplace (bool): writes y into ``input`` and r into ``residual``. Not with autograd.

    Returns:
        (Tensor, Tensor): y in ``input``'s dtype, and r in ``residual``'s.

    Example::

        >>> y, r = isonorm.torch.functional.add_rms_norm(torch.ones(1, 2), torch.tensor([[2.0, 3.0]]), (2,), eps=0.0)
        >>> y, r
        (tensor([[0.8485, 1.1314]]), tensor([[3., 4.]]))
    """
    eps = _eps(residual) if eps is None else eps
    options = (False, eps, weight_offset, recipe != "torch" and _is_llama(recipe))
    return _add(input, residual, normalized_shape, weight, None, options, inplace)


def add_layer_norm(
    input, residual, normalized_shape, weight=None, bias=None, eps=1e-5, *, weight_offset=0.0, inplace=False
):
    r"""Adds a residual and normalizes the sum as :func:`layer_norm` does, in one pass over memory.

    .. math::
        r = \text{input} + \text{residual}, \qquad y = \operatorname{layer\_norm}(r)

    Args:
        input, residual, inplace: as for :func:`add_rms_norm`.
        normalized_shape, weight, bias, eps, weight_offset: as for :func:`layer_norm`.

    Returns:
        (Tensor, Tensor): y in ``input``'s dtype, and r in ``residual``'s.

    Example::

        >>> y, r = isonorm.torch.functional.add_layer_norm(torch.ones(1, 2), torch.tensor([[2.0, 6.0]]), (2,), eps=0.0)
        >>> y, r
        (tensor([[-1.,  1.]]), tensor([[3., 7.]]))
    """
    return _add(input, residual, normalized_shape, weight, bias, (True, eps, weight_offset, False), inplace)


def _add(input, residual, normalized_shape, weight, bias, options, inplace):
    if input.shape != residual.shape:
        raise RuntimeError(f"residual has shape {list(residual.shape)}, expected {list(input.shape)} as the input has")
    dims = _dims(input, normalized_shape, weight=weight, bias=bias)
    function = _rows.add_row_norm_ if inplace else _rows.add_row_norm
    return function(input, residual, weight, bias, (dims, *options))


def _check_channels(input, **params):
    channels = input.shape[1]
    for name, param in params.items():
        if param is not None and param.shape != (channels,):
            found = f"{param.numel()} elements" if param.dim() == 1 else f"shape {list(param.shape)}"
            raise RuntimeError(f"{name} should contain {channels} elements not {found}: one for each channel")


def batch_norm(
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    *,
    weight_offset=0.0,
    out=None,
):
    r"""Normalizes each channel over the batch, or by running statistics.

    .. math::
        \hat x = \frac{x - \operatorname{mean}_c}{\sqrt{\operatorname{var}_c + \epsilon}}, \qquad
        y = \hat x \cdot (\text{weight}_c + \text{weight\_offset}) + \text{bias}_c

    In training mean and (biased) variance are the batch's and the running statistics move towards it by ``momentum``,
    with the unbiased variance; else they are the running ones.

    Args:
        input (Tensor): of shape :math:`(N, C, *)`; channels-last memory is read in place and kept.
        running_mean, running_var (Tensor, optional in training): of shape :math:`(C)`.
        weight, bias (Tensor, optional): of shape :math:`(C)`.
        training (bool): whether the batch's statistics are used.
        momentum (float): the share of the batch in the running statistics.
        eps (float): added to the variance.
        weight_offset (float): added to every weight.
        out (Tensor, optional): where the result is written; it may be ``input``. Not with autograd.

    Example::

        >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        >>> isonorm.torch.functional.batch_norm(x, None, None, training=True, eps=0.0)
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions (N, C, ...), but got {input.dim()}")
    _check_channels(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if eps < 0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    if not training:
        if running_mean is None or running_var is None:
            raise RuntimeError("Expected running_mean and running_var to be defined when training=False")
        return _planes.batch_norm_eval(input, weight, bias, running_mean, running_var, eps, weight_offset, out)
    if input.numel() == input.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
    running = running_mean, running_var
    return _planes.batch_norm_train(input, weight, bias, *running, momentum, eps, weight_offset, out)


def _check_groups(input, num_groups, weight, bias):
    """As torch does, with its errors."""
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    if num_groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if input.shape[1] == 0:
        raise RuntimeError(f"Expected number of channels to be greater than 0, got input of shape {list(input.shape)}")
    if 0 in input.shape[2:]:
        raise RuntimeError(f"Expected HxW to be greater than 0, got input of shape {list(input.shape)}")
    if input.numel() == num_groups:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
    if input.shape[1] % num_groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    for name, param in (("weight", weight), ("bias", bias)):
        if param is not None and param.shape != (input.shape[1],):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got {name} of "
                f"shape {list(param.shape)} and input of shape {list(input.shape)}"
            )


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, *, weight_offset=0.0, out=None):
    r"""Normalizes each group of channels of each sample.

    .. math::
        \hat x = \frac{x - \operatorname{mean}_{n,g}}{\sqrt{\operatorname{var}_{n,g} + \epsilon}}, \qquad
        y = \hat x \cdot (\text{weight}_c + \text{weight\_offset}) + \text{bias}_c

    Args:
        input (Tensor): of shape :math:`(N, C, *)`; channels-last memory is read in place and kept.
        num_groups (int): a divisor of :math:`C`.
        weight, bias (Tensor, optional): of shape :math:`(C)`.
        eps (float): added to the variance.
        weight_offset (float): added to every weight.
        out (Tensor, optional): where the result is written; it may be ``input``. Not with autograd.

    Example::

        >>> isonorm.torch.functional.group_norm(torch.tensor([[1.0, 3.0, 5.0, 7.0]]), 2, eps=0.0)
        tensor([[-1.,  1., -1.,  1.]])
    """
    _check_groups(input, num_groups, weight, bias)
    return _planes.group_norm(input, weight, bias, num_groups, eps, weight_offset, out)


def _check_instances(input):
    if math.prod(input.shape[2:]) == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {input.size()}")


def instance_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
    *,
    weight_offset=0.0,
    out=None,
):
    r"""Normalizes each channel of each sample, or by running statistics.

    .. math::
        \hat x = \frac{x - \operatorname{mean}_{n,c}}{\sqrt{\operatorname{var}_{n,c} + \epsilon}}, \qquad
        y = \hat x \cdot (\text{weight}_c + \text{weight\_offset}) + \text{bias}_c

    Args:
        input (Tensor): of shape :math:`(N, C, *)`; channels-last memory is read in place and kept.
        running_mean, running_var (Tensor, optional): of shape :math:`(C)`; they move towards the means over the samples
            of the samples' statistics, the variance's unbiased. Samples are summed in batch order, as gradients are.
        weight, bias (Tensor, optional): of shape :math:`(C)`.
        use_input_stats (bool): whether the input's own statistics are used, else the running ones.
        momentum (float): the share of the batch in the running statistics.
        eps (float): added to the variance.
        weight_offset (float): added to every weight.
        out (Tensor, optional): where the result is written; it may be ``input``. Not with autograd.

    Example::

        >>> isonorm.torch.functional.instance_norm(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
        tensor([[[-1.,  1.],
                 [-1.,  1.]]])
    """
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions (N, C, ...), but got {input.dim()}")
    _check_channels(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats=False")
        return _planes.batch_norm_eval(input, weight, bias, running_mean, running_var, eps, weight_offset, out)
    _check_instances(input)
    running = running_mean, running_var
    return _planes.instance_norm_train(input, weight, bias, *running, momentum, eps, weight_offset, out)
