"""torch.compile, torch.export, meta tensors: the same bits as in eager mode, in one graph."""

import copy

import pytest
import torch

import isonorm.torch
import isonorm.torch.functional as F

pytestmark = pytest.mark.slow

NORMS = {
    "RMSNorm": (lambda: isonorm.torch.RMSNorm(64, 1e-6), (4, 64)),
    "Gemma": (lambda: isonorm.torch.RMSNorm(64, 1e-6, weight_offset=1.0), (4, 64)),
    "LayerNorm": (lambda: isonorm.torch.LayerNorm(64), (4, 64)),
    "BatchNorm2d": (lambda: isonorm.torch.BatchNorm2d(6), (4, 6, 5, 5)),
    "GroupNorm": (lambda: isonorm.torch.GroupNorm(3, 6), (4, 6, 5, 5)),
    "InstanceNorm2d": (lambda: isonorm.torch.InstanceNorm2d(6, affine=True, track_running_stats=True), (4, 6, 5, 5)),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", NORMS)
def test_compile(name, dynamic):
    torch._dynamo.reset()
    make, shape = NORMS[name]
    eager = make()
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, dynamic=dynamic)
    for batch in (shape[0], shape[0] + 3):
        x = torch.randn(batch, *shape[1:])
        xs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        ys = [eager(xs[0]), compiled(xs[1])]
        dy = torch.randn_like(x)
        for y in ys:
            y.backward(dy)
        assert torch.equal(*ys) and torch.equal(xs[0].grad, xs[1].grad)
        for own, other in zip(eager.parameters(), twin.parameters(), strict=True):
            assert torch.equal(own.grad, other.grad)
        for own, other in zip(eager.buffers(), twin.buffers(), strict=True):
            assert torch.equal(own, other)
    eager.eval(), twin.eval()
    with torch.no_grad():
        assert torch.equal(eager(x), compiled(x))


def test_compile_in_place():
    torch._dynamo.reset()
    weight = torch.randn(64)

    @torch.compile(fullgraph=True)
    def step(x, residual):
        x = x * 2
        F.rms_norm(x, (64,), weight, 1e-6, out=x)
        return F.add_rms_norm(x, residual, (64,), weight, 1e-6)

    x, residual = torch.randn(4, 64), torch.randn(4, 64)
    y = F.rms_norm(x * 2, (64,), weight, 1e-6)
    assert all(map(torch.equal, step(x, residual), F.add_rms_norm(y, residual, (64,), weight, 1e-6)))


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_compile_in_place_in_training(name):
    torch._dynamo.reset()
    norm, options = getattr(F, name), {"training": True} if name == "batch_norm" else {}

    def step(x, mean, var):
        x = x * 2
        return norm(x, mean, var, **options, out=x) + 1

    calls = torch.compile(step, fullgraph=True), step
    x = torch.randn(4, 6, 5, 5)
    results = []
    for call in calls:
        running = torch.zeros(6), torch.ones(6)
        results.append((call(x, *running), *running))
    assert all(map(torch.equal, *results))


def test_compiled_transforms():
    torch._dynamo.reset()
    x, weight = torch.randn(4, 8), torch.randn(8)

    def loss(weight):
        return F.rms_norm(x, (8,), weight, 1e-6).square().sum()

    expected = torch.func.grad(loss)(weight)
    torch.testing.assert_close(torch.compile(torch.func.grad(loss))(weight), expected)


@pytest.mark.parametrize("name", NORMS)
def test_export(name):
    make, shape = NORMS[name]
    norm = make().eval()
    x = torch.randn(shape)
    batch = torch.export.Dim("batch", min=2)
    with torch.no_grad():
        program = torch.export.export(norm, (x,), dynamic_shapes=({0: batch},))
        more = torch.randn(shape[0] + 5, *shape[1:])
        assert torch.equal(program.module()(more), norm(more))


@pytest.mark.parametrize("name", NORMS)
def test_meta(name):
    make, shape = NORMS[name]
    y = make().to("meta")(torch.empty(shape, device="meta"))
    assert y.device.type == "meta" and y.shape == shape


@pytest.mark.parametrize("is_warm", [False, True])
def test_gradients_are_accumulated_outside_of_graphs(is_warm):
    torch._dynamo.reset()
    model = torch.nn.Sequential(isonorm.torch.LayerNorm(64), torch.nn.Tanh(), isonorm.torch.RMSNorm(64, 1e-6))
    compiled, x = torch.compile(model), torch.randn(37, 64)

    def gradients(model, sizes):
        model.zero_grad()
        for micro in x.split(sizes):
            model(micro).square().sum().backward()
        return [param.grad for param in model.parameters()]

    expected = gradients(model, [37])
    if is_warm:
        gradients(compiled, [37])
    with isonorm.torch.accumulate(model):
        gradients(compiled, [20, 17])
    assert all(map(torch.equal, [param.grad for param in model.parameters()], expected))
    torch._dynamo.reset()
    whole = torch.compile(model, fullgraph=True)
    with isonorm.torch.accumulate(model), pytest.raises(RuntimeError, match="accumulated outside of compiled graphs"):
        whole(x)
