"""Gradients of parameters where a batch has padding: its amount changes no bit."""

import pytest
import torch
from test_accumulate import NORMS, Block, accumulated, plain, same
from torch import nn

import isonorm.torch

LENGTHS = [3, 7, 1, 0, 5, 6, 2]  # of the samples; one is padding as a whole


def padded(tokens, to, left=False, lengths=LENGTHS):
    """The samples' tokens side by side, with arbitrary padding, and which are real."""
    shape = len(lengths), to, *tokens.shape[1:]
    batch, real = torch.full(shape, 7.0, dtype=tokens.dtype), torch.zeros(shape[:2], dtype=torch.int64)
    for i, sample in enumerate(tokens.split(lengths)):
        place = slice(to - len(sample), to) if left else slice(0, len(sample))
        batch[i, place], real[i, place] = sample, 1
    return batch, real


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sample", [(40,), (3, 40)], ids=["tokens", "heads"])
def test_the_amount_of_padding_changes_no_bit(sample, dtype):
    model = Block(dtype)
    x, dy = torch.randn(2, sum(LENGTHS), *sample, dtype=dtype)
    dx, *expected = plain(model, x, dy)
    for to, left, sizes in [(7, False, [7]), (7, True, [1] * 7), (20, False, [3, 4]), (9, True, [5, 2])]:
        micro_x, real = padded(x, to, left)
        micro_dy, _ = padded(dy, to, left)
        for mask in (real, real.bool(), real.to(torch.uint8) * 255):
            found, *gradients = accumulated(model, micro_x, micro_dy, sizes, mask)
            same(gradients, expected)
            assert torch.equal(found[real.bool()], dx) and not found[~real.bool()].any()


@pytest.mark.parametrize("name", ["GroupNorm", "InstanceNorm2d", "two dimensions"])
def test_a_sample_without_a_real_token_is_padding(name):
    norm, sample = NORMS[name]()
    x, dy = torch.randn(2, 7, *sample)
    real = torch.tensor(LENGTHS) > 0
    dx, *expected = plain(norm, x[real], dy[real])
    if name == "two dimensions":
        masks = [real, real[:, None].expand(7, 2)]
    else:
        masks = [real, padded(torch.empty(sum(LENGTHS)), 9)[1]]
    for mask in masks:
        for sizes in ([7], [3, 4], [4, 3]):  # the last but one begins with padding
            found, *gradients = accumulated(norm, x, dy, sizes, mask)
            same(gradients, expected)
            assert torch.equal(found[real], dx) and not found[~real].any()


def test_pooled_states_are_samples():
    norm = isonorm.torch.LayerNorm(40)
    x, dy = torch.randn(2, 7, 40)
    real = torch.tensor(LENGTHS) > 0
    _, *expected = plain(norm, x[real], dy[real])
    _, *found = accumulated(norm, x, dy, [3, 4], padded(torch.empty(sum(LENGTHS)), 9)[1])
    same(found, expected)


def test_masks_that_do_not_fit_are_refused():
    norm, x = isonorm.torch.RMSNorm(8), torch.randn(4, 6, 8)
    group = isonorm.torch.GroupNorm(2, 6)
    ones = torch.ones(4, 5)
    with isonorm.torch.accumulate(nn.ModuleDict({"norm": norm, "group": group})) as accumulation:
        with accumulation.mask(ones > 0), pytest.raises(RuntimeError) as error:
            norm(x)
        assert "the mask has shape [4, 5], but the rows of norm have shape [4, 6]" in str(error.value)
        with accumulation.mask(ones[:3] > 0), pytest.raises(RuntimeError, match=r"shape \[3, 5\], .* group .* \[4\]"):
            group(x)
        for mask, error, message in [
            (ones, ValueError, r"got torch.float32 of shape \[4, 5\]"),
            (torch.tensor(True), ValueError, r"with a dimension for samples, got torch.bool of shape \[\]"),
            ([[1, 0]], TypeError, "a mask is a tensor, got list"),
        ]:
            with pytest.raises(error, match=message), accumulation.mask(mask):
                pass


def test_forward_and_backward_have_one_mask():
    norm, x = isonorm.torch.RMSNorm(8), torch.randn(4, 8)
    real = torch.tensor([1, 1, 0, 1])
    with isonorm.torch.accumulate(norm) as accumulation:
        with accumulation.mask(real):
            masked = norm(x).sum()
        with pytest.raises(RuntimeError, match="backward pass through RMSNorm has another mask than its forward pass"):
            masked.backward()
        unmasked = norm(x).sum()
        with accumulation.mask(real), pytest.raises(RuntimeError, match="another mask"):
            unmasked.backward()
        unmasked.backward()
    assert torch.equal(norm.weight.grad, plain(norm, x, torch.ones(4, 8))[1])
