"""Drop-in modules: constructor arguments, attributes, ``state_dict``, defaults and errors are those of
:mod:`torch.nn`'s classes, which these are subclasses of; the forward and backward passes are isonorm's.
"""

from torch import nn
from torch.compiler import is_compiling

from isonorm._isonorm import torch_row_norm
from isonorm.torch import _partials, _planes, _rows, functional

__all__ = [
    "AddLayerNorm",
    "AddRMSNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
]


class RMSNorm(nn.RMSNorm):
    r"""Normalizes the last dimensions by their root mean square: :class:`torch.nn.RMSNorm`.

    .. math::
        y = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}} \cdot (\text{weight} + \text{weight\_offset})

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as :class:`torch.nn.RMSNorm`'s.
        recipe (str): ``"torch"`` rounds once; ``"llama"`` rounds the normalized values to the input's dtype before the
            weight too.
        weight_offset (float): added to every weight, which starts as ``1 - weight_offset``.

    Shape: input and output :math:`(*, \text{normalized\_shape})`; float32, float64, float16, bfloat16. Sums are in
    float32, in float64 for float64.

    Example::

        >>> norm = isonorm.torch.RMSNorm(4096, eps=1e-6)
        >>> y = norm(torch.randn(2, 10, 4096))
    """

    def __init__(
        self,
        normalized_shape,
        eps=None,
        elementwise_affine=True,
        device=None,
        dtype=None,
        *,
        recipe="torch",
        weight_offset=0.0,
    ):
        functional._is_llama(recipe)
        self.recipe, self.weight_offset = recipe, weight_offset
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)

    def reset_parameters(self):
        if self.elementwise_affine:
            nn.init.constant_(self.weight, 1 - self.weight_offset)

    def forward(self, x):
        weight = self.weight
        if weight is None:
            functional._dims(x, self.normalized_shape)
        eps = self.eps
        if eps is None:
            eps = functional._eps(x)
        if not is_compiling():
            y = torch_row_norm(x, None, weight, None, False, eps, self.weight_offset, self.recipe == "llama")
            if y is not None:
                return y
        options = (len(self.normalized_shape), False, eps, self.weight_offset, self.recipe == "llama")
        if _partials.active:
            return _partials.row_norm(self, x, weight, None, options)
        return _rows.row_norm(x, weight, None, options)

    def extra_repr(self):
        return super().extra_repr() + _options_repr(self)


def _options_repr(norm):
    recipe = f", recipe={norm.recipe!r}" if norm.recipe != "torch" else ""
    return recipe + (f", weight_offset={norm.weight_offset}" if norm.weight_offset else "")


class AddRMSNorm(RMSNorm):
    r"""Adds a residual and normalizes the sum, in one pass: :func:`isonorm.torch.functional.add_rms_norm`.

    .. math::
        r = x + \text{residual}, \qquad y = \operatorname{rms\_norm}(r)

    The arguments are :class:`RMSNorm`'s. ``forward(x, residual)`` returns ``(y, r)``: y in the dtype of x, r in that of
    ``residual``, so that a float32 residual stream beside bfloat16 activations stays one.

    Example::

        >>> norm = isonorm.torch.AddRMSNorm(4096, eps=1e-6, dtype=torch.bfloat16)
        >>> x, residual = torch.randn(2, 10, 4096, dtype=torch.bfloat16), torch.randn(2, 10, 4096)
        >>> y, residual = norm(x, residual)
    """

    def forward(self, x, residual):
        if _partials.active:
            eps = functional._eps(residual) if self.eps is None else self.eps
            options = (len(self.normalized_shape), False, eps, self.weight_offset, self.recipe == "llama")
            return _partials.add_row_norm(self, x, residual, self.weight, None, options)
        return functional.add_rms_norm(
            x,
            residual,
            self.normalized_shape,
            self.weight,
            self.eps,
            recipe=self.recipe,
            weight_offset=self.weight_offset,
        )


class LayerNorm(nn.LayerNorm):
    r"""Takes the mean off the last dimensions and divides by their standard deviation: :class:`torch.nn.LayerNorm`.

    .. math::
        y = \frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{var}(x) + \epsilon}} \cdot \text{weight} + \text{bias}

    The arguments are :class:`torch.nn.LayerNorm`'s.

    Shape: input and output :math:`(*, \text{normalized\_shape})`; float32, float64, float16, bfloat16. Sums are in
    float32, in float64 for float64, of deviations from a corrected mean.

    Example::

        >>> norm = isonorm.torch.LayerNorm(768)
        >>> y = norm(torch.randn(2, 10, 768))
    """

    def forward(self, input):
        weight, bias = self.weight, self.bias
        if weight is None:
            functional._dims(input, self.normalized_shape)
        if not is_compiling():
            y = torch_row_norm(input, None, weight, bias, True, self.eps, 0.0, False)
            if y is not None:
                return y
        options = (len(self.normalized_shape), True, self.eps, 0.0, False)
        if _partials.active:
            return _partials.row_norm(self, input, weight, bias, options)
        return _rows.row_norm(input, weight, bias, options)


class AddLayerNorm(LayerNorm):
    r"""Adds a residual and normalizes the sum, in one pass: :func:`isonorm.torch.functional.add_layer_norm`.

    .. math::
        r = x + \text{residual}, \qquad y = \operatorname{layer\_norm}(r)

    The arguments are :class:`LayerNorm`'s; for the rest, see :class:`AddRMSNorm`.

    Example::

        >>> norm = isonorm.torch.AddLayerNorm(768)
        >>> y, residual = norm(torch.randn(2, 10, 768), torch.randn(2, 10, 768))
    """

    def forward(self, x, residual):
        weight, bias = self.weight, self.bias
        if _partials.active:
            options = (len(self.normalized_shape), True, self.eps, 0.0, False)
            return _partials.add_row_norm(self, x, residual, weight, bias, options)
        return functional.add_layer_norm(x, residual, self.normalized_shape, weight, bias, self.eps)


class GroupNorm(nn.GroupNorm):
    r"""Normalizes each group of channels of each sample: :class:`torch.nn.GroupNorm`.

    The arguments are :class:`torch.nn.GroupNorm`'s; :func:`isonorm.torch.functional.group_norm` has the equation.

    Shape: input and output :math:`(N, C, *)`, in either memory format.

    Example::

        >>> norm = isonorm.torch.GroupNorm(32, 128)
        >>> y = norm(torch.randn(2, 128, 16, 16))
    """

    def forward(self, input):
        if _partials.active:
            functional._check_groups(input, self.num_groups, self.weight, self.bias)
            return _partials.group_norm(self, input, self.weight, self.bias, self.num_groups, self.eps)[0]
        return functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class _Batch:
    """The forward pass of :class:`torch.nn.BatchNorm2d` and its kin."""

    def forward(self, input):
        self._check_input_dim(input)
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches
                factor = 1.0 / float(self.num_batches_tracked)
        by_batch = self.training or (self.running_mean is None and self.running_var is None)
        is_running_used = not self.training or self.track_running_stats
        return functional.batch_norm(
            input,
            self.running_mean if is_running_used else None,
            self.running_var if is_running_used else None,
            self.weight,
            self.bias,
            by_batch,
            factor,
            self.eps,
        )


class BatchNorm1d(_Batch, nn.BatchNorm1d):
    r"""Normalizes each channel over the batch: :class:`torch.nn.BatchNorm1d`.

    The arguments are :class:`torch.nn.BatchNorm1d`'s; :func:`isonorm.torch.functional.batch_norm` has the equation.

    Shape: input and output :math:`(N, C)` or :math:`(N, C, L)`.
    """


class BatchNorm2d(_Batch, nn.BatchNorm2d):
    r"""Normalizes each channel over the batch: :class:`torch.nn.BatchNorm2d`.

    The arguments are :class:`torch.nn.BatchNorm2d`'s; :func:`isonorm.torch.functional.batch_norm` has the equation.

    Shape: input and output :math:`(N, C, H, W)`, in either memory format.
    """


class BatchNorm3d(_Batch, nn.BatchNorm3d):
    r"""Normalizes each channel over the batch: :class:`torch.nn.BatchNorm3d`.

    The arguments are :class:`torch.nn.BatchNorm3d`'s; :func:`isonorm.torch.functional.batch_norm` has the equation.

    Shape: input and output :math:`(N, C, D, H, W)`, in either memory format.
    """


class _Instance:
    """The forward pass of :class:`torch.nn.InstanceNorm2d` and its kin, behind their checks."""

    def _apply_instance_norm(self, input):
        running, params = (self.running_mean, self.running_var), (self.weight, self.bias)
        by_input = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        if by_input and _partials.active:
            functional._check_channels(input, weight=self.weight, bias=self.bias)
            functional._check_instances(input)
            y, stats = _partials.group_norm(self, input, *params, input.shape[1], self.eps)
            _planes.move_running(input, stats, *running, momentum)
            return y
        if _partials.active:
            _partials.refuse_ranks(self, "normalizes by running statistics")
        return functional.instance_norm(input, *running, *params, by_input, momentum, self.eps)


class InstanceNorm1d(_Instance, nn.InstanceNorm1d):
    r"""Normalizes each channel of each sample: :class:`torch.nn.InstanceNorm1d`.

    The arguments are :class:`torch.nn.InstanceNorm1d`'s; the equation is
    :func:`isonorm.torch.functional.instance_norm`'s.

    Shape: input and output :math:`(N, C, L)` or :math:`(C, L)`.
    """


class InstanceNorm2d(_Instance, nn.InstanceNorm2d):
    r"""Normalizes each channel of each sample: :class:`torch.nn.InstanceNorm2d`.

    The arguments are :class:`torch.nn.InstanceNorm2d`'s; the equation is
    :func:`isonorm.torch.functional.instance_norm`'s.

    Shape: input and output :math:`(N, C, H, W)` or :math:`(C, H, W)`, in either memory format.
    """


class InstanceNorm3d(_Instance, nn.InstanceNorm3d):
    r"""Normalizes each channel of each sample: :class:`torch.nn.InstanceNorm3d`.

    The arguments are :class:`torch.nn.InstanceNorm3d`'s; the equation is
    :func:`isonorm.torch.functional.instance_norm`'s.

    Shape: input and output :math:`(N, C, D, H, W)` or :math:`(C, D, H, W)`, in either memory format.
    """
