"""What PyTorch's contestants share: the pass of a cell, by autograd."""

import torch

from cells import BACKWARD, FORWARD


def of(cell, tensors, call, dy=None):
    """The pass of a cell around `call`, its forward pass without arguments; `dy` in the place of the tensors'."""
    if cell.work == FORWARD:
        return call
    inputs = [tensor.requires_grad_() for tensor in (tensors.x, tensors.weight, tensors.bias) if tensor is not None]
    dy = tensors.dy if dy is None else dy
    if cell.work == BACKWARD:
        y = call()
        return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)
    return lambda: torch.autograd.grad(call(), inputs, dy)
