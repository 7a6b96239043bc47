"""The residual add before RMSNorm and LayerNorm: the bits of its two steps, a float32 stream, derivatives, aliases."""

import copy
import pickle

import pytest
import torch

import isonorm.torch
import isonorm.torch.functional as F

BOTH = pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def module(norm, hidden=16, **kwargs):
    cls = isonorm.torch.AddRMSNorm if norm == "rms_norm" else isonorm.torch.AddLayerNorm
    made = cls(hidden, eps=1e-6, **kwargs)
    for param in made.parameters():
        torch.nn.init.normal_(param)
    return made


def functions(norm):
    return getattr(F, norm), getattr(F, f"add_{norm}")


def params(norm, hidden=16, dtype=torch.float32):
    return [torch.randn(hidden, dtype=dtype) for _ in range(1 if norm == "rms_norm" else 2)]


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_has_the_bits_of_its_two_steps(norm, dtype):
    inputs = torch.randn(5, 3, 16, dtype=dtype), torch.randn(5, 32, 3, dtype=dtype).transpose(1, 2)[..., ::2]
    given, dy, dr = params(norm, dtype=dtype), torch.randn(5, 3, 16, dtype=dtype), torch.randn(5, 3, 16, dtype=dtype)
    one, add = functions(norm)
    found = []
    for fused in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, *given)]
        if fused:
            y, r = add(leaves[0], leaves[1], (16,), *leaves[2:], 1e-6)
        else:
            r = leaves[0] + leaves[1]
            y = one(r, (16,), *leaves[2:], 1e-6)
        torch.autograd.backward((y, r), (dy, dr))
        found.append((y, r, *[leaf.grad for leaf in leaves]))
    assert all(map(torch.equal, *found))
    with torch.no_grad():
        x, residual = inputs[0].clone(), inputs[1].contiguous()
        y, r = add(x, residual, (16,), *given, 1e-6, inplace=True)
        assert y is x and r is residual and all(map(torch.equal, (y, r), found[0][:2]))


@BOTH
def test_a_float32_stream_stays_one(norm):
    norm = module(norm, dtype=torch.bfloat16)
    x = torch.randn(4, 16, dtype=torch.bfloat16, requires_grad=True)
    residual = torch.randn(4, 16, requires_grad=True)
    y, r = norm(x, residual)
    assert (y.dtype, r.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(r, x.float() + residual)
    (y.float().square().sum() + r.sum()).backward()
    assert (x.grad.dtype, residual.grad.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(x.grad, residual.grad.bfloat16())


@BOTH
def test_derivatives(norm):
    _, add = functions(norm)
    inputs = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (*inputs, *params(norm, 5, torch.float64))]

    def call(x, residual, *given):
        return add(x, residual, (5,), *given, 1e-3)

    assert torch.autograd.gradcheck(call, leaves, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, leaves)
    plain = [leaf.detach() for leaf in leaves]

    def loss(*inputs):
        y, r = call(*inputs)
        return (y.square() + r).sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    assert all(map(torch.equal, torch.func.grad(loss, tuple(range(len(plain))))(*plain), expected))
    only_r = torch.autograd.grad(call(*leaves)[1].sum(), leaves[:2])
    assert all(torch.equal(gradient, torch.ones_like(gradient)) for gradient in only_r)


@BOTH
def test_parameters_may_be_what_is_written(norm):
    _, add = functions(norm)
    for place in (0, 1):
        inputs = torch.randn(4000), torch.randn(4000)
        expected = add(*inputs, (4000,), inputs[place].clone(), eps=1e-6)
        assert all(map(torch.equal, add(*inputs, (4000,), inputs[place], eps=1e-6, inplace=True), expected))


@BOTH
def test_modules(norm):
    own = module(norm)
    one, add = functions(norm)
    x, residual = torch.randn(4, 16), torch.randn(4, 16)
    expected = add(x, residual, (16,), *own.parameters(), 1e-6)
    for twin in (own, copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert all(map(torch.equal, twin(x, residual), expected))
    plain = getattr(torch.nn, "RMSNorm" if norm == "rms_norm" else "LayerNorm")(16, eps=1e-6)
    plain.load_state_dict(own.state_dict())
    torch.testing.assert_close(expected[0], plain(x + residual))
    if norm == "layer_norm":
        for kwargs in ({"bias": False}, {"elementwise_affine": False}):
            bare = module(norm, **kwargs)
            y, r = bare(x, residual)
            assert torch.equal(y, one(r, (16,), *bare.parameters(), eps=1e-6))


@BOTH
def test_accumulated_gradients_have_the_bits_of_the_batch(norm):
    norm = module(norm)
    x, residual = torch.randn(37, 16), torch.randn(37, 16)
    y, r = norm(x, residual)
    (y.square().sum() + r.sum()).backward()
    expected = [param.grad for param in norm.parameters()]
    for sizes in ([37], [16, 21], [1] * 37):
        norm.zero_grad()
        with isonorm.torch.accumulate(norm):
            for micro in zip(x.split(sizes), residual.split(sizes), strict=True):
                y, r = norm(*micro)
                (y.square().sum() + r.sum()).backward()
        assert all(map(torch.equal, [param.grad for param in norm.parameters()], expected))


@pytest.mark.slow
@BOTH
def test_compiled(norm):
    torch._dynamo.reset()
    norm = module(norm)
    compiled, found = torch.compile(copy.deepcopy(norm), fullgraph=True), []
    x, residual = torch.randn(4, 16), torch.randn(4, 16)
    for each in (norm, compiled):
        leaves = x.clone().requires_grad_(), residual.clone().requires_grad_()
        y, r = each(*leaves)
        (y.square().sum() + r.sum()).backward()
        found.append((y, r, *[leaf.grad for leaf in leaves], *[param.grad for param in each.parameters()]))
    assert all(map(torch.equal, *found))
