"""Gradients of parameters over micro-batches: the bits of the whole batch, however it is cut."""

import copy
import runpy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import isonorm.torch
from isonorm.torch import _partials

EXAMPLE = Path(__file__).parents[4] / "examples" / "accumulate_gradients.py"


class Block(nn.Module):
    """Norms with nothing between them whose bits depend on the batch."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = isonorm.torch.LayerNorm(40, dtype=dtype)
        self.add = isonorm.torch.AddRMSNorm(40, eps=1e-6, dtype=dtype)
        self.last = isonorm.torch.RMSNorm(40, eps=1e-6, recipe="llama", dtype=dtype)

    def forward(self, x):
        y, r = self.add(torch.tanh(self.first(x)), x)
        return self.last(y) * 2 + r


def planes(norm, spatial, **kwargs):
    return norm(6, affine=True, **kwargs), (6, *spatial)


#: Norms, and the shape of a sample.
NORMS = {
    "Block": lambda: (Block(), (40,)),
    "tokens": lambda: (isonorm.torch.RMSNorm(16, 1e-6, weight_offset=1.0), (5, 16)),
    "two dimensions": lambda: (isonorm.torch.LayerNorm((3, 4)), (2, 3, 4)),
    "without a bias": lambda: (isonorm.torch.LayerNorm(24, bias=False), (24,)),
    "GroupNorm": lambda: (isonorm.torch.GroupNorm(3, 6), (6, 5, 7)),
    "GroupNorm of vectors": lambda: (isonorm.torch.GroupNorm(3, 12), (12,)),
    "InstanceNorm1d": lambda: planes(isonorm.torch.InstanceNorm1d, (9,)),
    "InstanceNorm2d": lambda: planes(isonorm.torch.InstanceNorm2d, (4, 5), track_running_stats=True),
    "InstanceNorm3d": lambda: planes(isonorm.torch.InstanceNorm3d, (2, 3, 4)),
}
CUTS = ([37], [1] * 37, [16, 16, 5], [3, 20, 14], [0, 37, 0])


def plain(model, x, dy):
    """dx and the parameters' gradients, by autograd over the whole batch."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x).backward(dy)
    return [x.grad, *[param.grad for param in model.parameters()]]


def accumulated(model, x, dy, sizes, mask=None):
    """The same, over micro-batches."""
    model.zero_grad()
    dx = []
    with isonorm.torch.accumulate(model) as accumulation:
        for i, (micro_x, micro_dy) in enumerate(zip(x.split(sizes), dy.split(sizes), strict=True)):
            micro_x = micro_x.clone().requires_grad_()
            if mask is None:
                model(micro_x).backward(micro_dy)
            else:
                with accumulation.mask(mask.split(sizes)[i]):
                    model(micro_x).backward(micro_dy)
            dx.append(micro_x.grad)
    return [torch.cat(dx), *[param.grad for param in model.parameters()]]


def same(found, expected):
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_any_cut_has_the_bits_of_a_plain_backward_pass(name, dtype):
    norm, sample = NORMS[name]()
    norm = norm.to(dtype)
    for param in norm.parameters():
        nn.init.normal_(param)
    x, dy = torch.randn(2, 37, *sample, dtype=dtype)
    expected = plain(norm, x, dy)
    for sizes in CUTS:
        same(accumulated(norm, x, dy, sizes), expected)


def test_channels_last_has_the_same_bits():
    norm = isonorm.torch.GroupNorm(3, 6)
    x, dy = torch.randn(2, 37, 6, 5, 7)
    expected = plain(norm, x, dy)
    x = x.to(memory_format=torch.channels_last)
    for mask in (None, torch.ones(37, 4, dtype=torch.bool)):
        same(accumulated(norm, x, dy, [3, 20, 14], mask), expected)
        same(accumulated(norm, x, dy.to(memory_format=torch.channels_last), [30, 7], mask), expected)


def test_sums_have_the_type_of_x():
    norm = isonorm.torch.LayerNorm(24)  # with f32 weights
    x, dy = torch.randn(2, 37, 24, dtype=torch.float64)
    same(accumulated(norm, x, dy, [3, 20, 14]), plain(norm, x, dy))


def test_an_add_has_the_bits_of_the_fused_backward_pass():
    norm = isonorm.torch.AddRMSNorm(40, eps=1e-6, dtype=torch.bfloat16)
    inputs = torch.randn(9, 40, dtype=torch.bfloat16), torch.randn(9, 40)

    def run(uses_y=True):
        x, residual = (tensor.clone().requires_grad_() for tensor in inputs)
        y, r = norm(x, residual)
        (r.square().sum() + (y.float().square().sum() if uses_y else 0)).backward()
        return x.grad, residual.grad

    expected, without_y = run(), run(uses_y=False)
    with isonorm.torch.accumulate(norm) as accumulation:
        same(run(), expected)
        same(run(uses_y=False), without_y)
        with accumulation.mask(torch.arange(9) < 4):
            for found, gradient in zip(run(), expected, strict=True):
                assert torch.equal(found[:4], gradient[:4]) and not found[4:].any()


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_may_be_frozen(bias):
    norm = isonorm.torch.LayerNorm(24)
    norm.weight.requires_grad_(not bias)
    norm.bias.requires_grad_(bias)
    assert isonorm.torch.accumulated_parameters(norm) == ["bias" if bias else "weight"]
    (x, dy), trained = torch.randn(2, 37, 24), norm.bias if bias else norm.weight
    norm(x).backward(dy)
    expected = trained.grad
    for param in norm.parameters():
        param.grad = None
    with isonorm.torch.accumulate(norm):
        for micro_x, micro_dy in zip(x.split(10), dy.split(10), strict=True):
            norm(micro_x).backward(micro_dy)
    assert torch.equal(trained.grad, expected)
    assert [param.grad is None for param in norm.parameters()] == [bias, not bias]
    norm.requires_grad_(False)
    assert isonorm.torch.accumulated_parameters(norm) == []
    with isonorm.torch.accumulate(norm):  # nothing to do
        norm(x)


def test_finished_gradients_are_added():
    norm, x = isonorm.torch.RMSNorm(8, 1e-6), torch.randn(4, 8)
    accumulation = isonorm.torch.accumulate(norm)
    norm(x).sum().backward()
    assert norm.weight.grad is None
    accumulation.finish()
    once = norm.weight.grad.clone()
    with isonorm.torch.accumulate(norm):
        norm(x).sum().backward()
    assert torch.equal(norm.weight.grad, 2 * once)
    norm(x).sum().backward()  # the accumulation is over
    assert torch.equal(norm.weight.grad, 3 * once)


def test_what_is_not_accumulated():
    model = nn.Sequential(isonorm.torch.RMSNorm(8, 1e-6), nn.Linear(8, 6), isonorm.torch.BatchNorm1d(6))
    isonorm.torch.accumulate(model[0]).finish()
    assert isonorm.torch.accumulated_parameters(model) == ["0.weight"]
    with isonorm.torch.accumulate(model):
        model(torch.randn(4, 8)).square().sum().backward()
        assert [param.grad is None for param in model.parameters()] == [True, False, False, False, False]
    assert not _partials.active
    with pytest.raises(ValueError, match="BatchNorm1d has no norm of isonorm's"):
        isonorm.torch.accumulate(model[2])


@pytest.mark.parametrize("name", ["Block", "GroupNorm"])
def test_gradients_that_are_asked_for_are_not_accumulated(name):
    norm, sample = NORMS[name]()
    x, dy = torch.randn(2, 6, *sample)
    expected = plain(norm, x, dy)
    norm.zero_grad()
    with isonorm.torch.accumulate(norm):
        x.requires_grad_()
        asked = torch.autograd.grad(norm(x), [x, *norm.parameters()], dy)
        same(asked, expected)
        same(torch.autograd.grad(norm(x), [x], dy), expected[:1])
        norm(x).backward(dy, inputs=[x])
        penalty = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)[0].square().sum()
        assert penalty.requires_grad
        params = {name: param.detach().requires_grad_() for name, param in norm.named_parameters()}
        torch.func.functional_call(norm, params, (x,)).backward(dy)
        same([param.grad for param in params.values()], expected[1:])
        same([torch.func.grad(lambda x: (norm(x) * dy).sum())(x.detach())], expected[:1])
        with torch.no_grad():
            norm(x)
        norm(x)  # without a backward pass
        norm(x).backward(dy)
    same([param.grad for param in norm.parameters()], expected[1:])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activations_may_be_computed_again(use_reentrant):
    model = Block()
    x, dy = torch.randn(2, 37, 40)
    expected = plain(model, x, dy)
    again = nn.Module()
    again.block, again.forward = model, lambda x: checkpoint(model, x, use_reentrant=use_reentrant)
    same(accumulated(again, x, dy, [16, 21], torch.ones(37, dtype=torch.bool)), expected)


def test_a_module_that_is_called_twice_has_right_values():
    norm = isonorm.torch.LayerNorm(24)
    model = nn.Sequential(norm, nn.Tanh(), norm)
    x, dy = torch.randn(2, 37, 24)
    torch.testing.assert_close(accumulated(model, x, dy, [16, 21]), plain(model, x, dy))


def test_what_is_refused():
    norm, x = isonorm.torch.RMSNorm(8), torch.randn(2, 8)
    with isonorm.torch.accumulate(norm) as accumulation:
        with pytest.raises(RuntimeError, match="gradients of RMSNorm are accumulated already: finish that first"):
            isonorm.torch.accumulate(norm)
        with pytest.raises(RuntimeError, match="cannot be differentiated again"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of cycles
            norm(x).sum().backward(create_graph=True)
        late = norm(x)
        accumulation.finish()
    for use in (accumulation.finish, accumulation.__enter__, accumulation.mask(x > 0).__enter__):
        with pytest.raises(RuntimeError, match="this accumulation is over"):
            use()
    with pytest.raises(RuntimeError, match="RMSNorm after the accumulation that it belongs to: call `backward` before"):
        late.sum().backward()
    assert norm.weight.grad is None
    with pytest.raises(ValueError, match="start is 2, but there is no group"):
        isonorm.torch.accumulate(norm, start=2)
    with pytest.raises(ValueError, match="start is -2 and start_tokens None, expected numbers of at least 0"):
        isonorm.torch.accumulate(norm, start=-2)
    with pytest.raises(TypeError):
        isonorm.torch.accumulate(norm, start=2.0)


def test_an_error_in_a_micro_batch_gives_the_sums_up():
    norm, x = isonorm.torch.RMSNorm(8), torch.randn(2, 8)
    accumulation = isonorm.torch.accumulate(norm)
    with pytest.raises(ZeroDivisionError), accumulation, accumulation.mask(torch.tensor([1, 0])):
        norm(x).sum().backward()
        raise ZeroDivisionError
    assert norm.weight.grad is None and not _partials.active
    with pytest.raises(RuntimeError, match="this accumulation is over"):
        accumulation.finish()
    with isonorm.torch.accumulate(norm):
        norm(x).sum().backward()
    assert norm.weight.grad is not None


def test_calls_that_do_not_fit_are_refused_and_change_nothing():
    norm = isonorm.torch.LayerNorm(8)
    x, dy = torch.randn(2, 4, 8)
    expected = plain(norm, x, dy)
    norm.zero_grad()
    with isonorm.torch.accumulate(norm):
        norm(x).backward(dy)
        with pytest.raises(RuntimeError, match=r"called with torch.float64 after .* finish the accumulation"):
            norm(x.double())
        with pytest.raises(RuntimeError, match="expected input with shape"):
            norm(x[:, :7])
    same([param.grad for param in norm.parameters()], expected[1:])
    norm.zero_grad()
    with isonorm.torch.accumulate(norm):
        early = norm(x)
        norm(x.double()).backward(dy.double())
        with pytest.raises(RuntimeError, match=r"torch\.float32 after float64"):
            norm(x)
        with pytest.raises(RuntimeError, match=r"a partial sum holds .* f64, expected .* f32"):
            early.backward(dy)
    same([param.grad for param in norm.parameters()], plain(copy.deepcopy(norm), x.double(), dy.double())[1:])


def test_copies_of_a_norm_are_others():
    norm, x = isonorm.torch.RMSNorm(8), torch.randn(2, 8)
    with isonorm.torch.accumulate(norm):
        twin = copy.deepcopy(norm)
        twin(x).sum().backward()
        assert twin.weight.grad is not None and norm.weight.grad is None


def test_the_example_has_the_same_bits(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("the same bits") == 3 and "OTHER" not in printed


def test_gradients_of_some_inputs_are_left_to_autograd():
    norm, x = isonorm.torch.LayerNorm(8), torch.randn(4, 8)
    with isonorm.torch.accumulate(norm):
        norm(x).pow(3).sum().backward(inputs=[norm.bias])
        assert norm.bias.grad is not None
    assert norm.weight.grad is None


def test_a_grad_that_is_there_is_added_to_in_place():
    norm, x, held = isonorm.torch.RMSNorm(8), torch.randn(4, 8), torch.ones(8)
    norm.weight.grad = held[:]
    with isonorm.torch.accumulate(norm):
        norm(x).sum().backward()
    assert norm.weight.grad.data_ptr() == held.data_ptr() and not torch.equal(held, torch.ones(8))


def test_an_accumulation_that_nobody_has_is_over():
    norm, x = isonorm.torch.RMSNorm(8), torch.randn(4, 8)
    isonorm.torch.accumulate(norm)
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    with isonorm.torch.accumulate(norm):
        pass


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_are_refused(register):
    norm = isonorm.torch.RMSNorm(8)
    handle = getattr(norm.weight, register)(lambda tensor: None)
    with pytest.raises(RuntimeError, match="RMSNorm has hooks on its gradient"):
        isonorm.torch.accumulate(norm)
    handle.remove()
    with isonorm.torch.accumulate(norm):
        pass


def test_models_and_groups_are_named():
    with pytest.raises(TypeError, match="model is a list"):
        isonorm.torch.accumulate([])
    with pytest.raises(TypeError, match="group is a str"):
        isonorm.torch.accumulate(isonorm.torch.RMSNorm(8), group="x")


def test_what_autograd_would_keep_to_a_rank_is_refused(tmp_path):
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        group, x = distributed.group.WORLD, torch.randn(4, 6, 5)
        patched = nn.LayerNorm(5)
        isonorm.torch.patch(patched)
        instance = isonorm.torch.InstanceNorm1d(6, affine=True, track_running_stats=True).eval()
        for norm, y in (
            (patched, lambda: patched(x.bfloat16())),
            (instance, lambda: instance(x)),
            (isonorm.torch.RMSNorm(5), None),
        ):
            with isonorm.torch.accumulate(norm, group=group):
                if y is None:
                    norm(x).sum().backward()
                else:
                    with pytest.raises(RuntimeError, match="are left to autograd, and the other ranks do not get them"):
                        y()
    finally:
        distributed.destroy_process_group()
