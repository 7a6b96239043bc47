"""Gradients of parameters over micro-batches: the bits of the whole batch, however it is cut."""

import pytest
import torch
from torch import nn

import isonorm.torch


class Block(nn.Module):
    """Norms with nothing between them whose bits depend on the batch."""

    def __init__(self, dtype):
        super().__init__()
        self.first = isonorm.torch.LayerNorm(40, dtype=dtype)
        self.add = isonorm.torch.AddRMSNorm(40, eps=1e-6, dtype=dtype)
        self.last = isonorm.torch.RMSNorm(40, eps=1e-6, recipe="llama", dtype=dtype)

    def forward(self, x):
        y, r = self.add(torch.tanh(self.first(x)), x)
        return self.last(y) * 2 + r


def gradients(model, x, sizes):
    model.zero_grad()
    with isonorm.torch.accumulate(model):
        for micro in x.split(sizes):
            model(micro).square().sum().backward()
    return [param.grad for param in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_cut_has_the_same_bits(dtype):
    model, x = Block(dtype), torch.randn(37, 40, dtype=dtype)
    whole = gradients(model, x, [37])
    for sizes in ([1] * 37, [16, 16, 5], [3, 20, 14]):
        assert all(map(torch.equal, gradients(model, x, sizes), whole))


def test_the_bits_are_those_of_a_plain_backward_pass():
    model, x = Block(torch.float32), torch.randn(37, 40)
    accumulated = gradients(model, x, [10, 27])
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(map(torch.equal, [param.grad for param in model.parameters()], accumulated))


def test_an_add_has_the_bits_of_the_fused_backward_pass():
    norm = isonorm.torch.AddRMSNorm(40, eps=1e-6, dtype=torch.bfloat16)
    inputs = torch.randn(9, 40, dtype=torch.bfloat16), torch.randn(9, 40)

    def run():
        x, residual = (tensor.clone().requires_grad_() for tensor in inputs)
        y, r = norm(x, residual)
        (y.float().square().sum() + r.square().sum()).backward()
        return x.grad, residual.grad

    plain = run()
    with isonorm.torch.accumulate(norm):
        assert all(map(torch.equal, run(), plain))


def test_finished_gradients_are_added():
    norm, x = isonorm.torch.RMSNorm(8, 1e-6), torch.randn(4, 8)
    accumulation = isonorm.torch.accumulate(norm)
    norm(x).sum().backward()
    assert norm.weight.grad is None
    accumulation.finish()
    once = norm.weight.grad.clone()
    norm(x).sum().backward()  # the accumulation is over
    assert torch.equal(norm.weight.grad, 2 * once)


def test_what_is_refused():
    norm = isonorm.torch.RMSNorm(8)
    with isonorm.torch.accumulate(norm), pytest.raises(RuntimeError, match="accumulated already"):
        isonorm.torch.accumulate(norm)
    with pytest.raises(ZeroDivisionError), isonorm.torch.accumulate(norm):
        norm(torch.randn(2, 8)).sum().backward()
        raise ZeroDivisionError
    assert norm.weight.grad is None  # the sums were given up
    with isonorm.torch.accumulate(norm):
        norm(torch.randn(2, 8)).sum().backward()
    assert norm.weight.grad is not None
