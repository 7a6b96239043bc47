"""PyTorch's own samples and error inputs for its modules, as its test suite has them, on those of the same names."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import isonorm.torch

pytest.importorskip("expecttest", reason="torch's samples import expecttest")
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.testing._internal.common_utils import noncontiguous_like

INFOS = {
    info.module_cls.__name__: info
    for info in module_db
    if info.module_cls.__name__ in isonorm.torch.__all__ and hasattr(nn, info.module_cls.__name__)
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# torch rounds x_hat to the half type before the weight in some of these, isonorm rounds once.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def each(test):
    """For each module in training and in evaluation."""
    modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    return pytest.mark.parametrize("name", INFOS)(modes(test))


def each_dtype(test):
    return pytest.mark.parametrize("dtype", DTYPES, ids=str)(each(test))


def samples(name, dtype, training, requires_grad=False):
    """A module with parameters and statistics of its own, torch's with the same ones, and the sample."""
    inputs = INFOS[name].module_inputs_func(INFOS[name], "cpu", dtype, requires_grad, training)
    for sample in inputs:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        own = getattr(isonorm.torch, name)(*args, **kwargs, dtype=dtype)
        other = getattr(nn, name)(*args, **kwargs, dtype=dtype)
        for tensor in own.parameters():
            nn.init.normal_(tensor)
        for tensor in own.buffers():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 2.0)
        other.load_state_dict(own.state_dict())
        yield own.train(training), other.train(training), sample


def run(module, x, dy=None):
    """y, and with dy the gradients of x and of the parameters."""
    x = x.detach().requires_grad_()
    y = module(x)
    grads = () if dy is None else torch.autograd.grad(y, (x, *module.parameters()), dy)
    return y.detach(), *grads


def assert_close(found, expected, dtype, what):
    tolerance = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(found, expected, **tolerance, msg=lambda message: f"{what}: {message}")


def assert_same(found, expected, what):
    for i, pair in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(*pair), f"{what}, result {i}"


def test_all_norms_of_torch_have_samples():
    batch, instance = [f"BatchNorm{n}d" for n in (1, 2, 3)], [f"InstanceNorm{n}d" for n in (1, 2, 3)]
    assert set(INFOS) == {"RMSNorm", "LayerNorm", "GroupNorm", *batch, *instance}


@each_dtype
def test_values_and_statistics_are_torchs(name, dtype, training):
    for own, other, sample in samples(name, dtype, training):
        x = sample.forward_input.args[0]
        for time in range(2):  # the second time with moved statistics
            assert_close(own(x), other(x), dtype, f"{sample.desc}, call {time}")
            for buffer, expected in zip(own.buffers(), other.buffers(), strict=True):
                assert_close(buffer, expected, dtype, f"{sample.desc}, statistics after call {time}")
        if sample.reference_fn is not None and dtype != torch.float64:  # some compute in float32
            assert_close(own.eval()(x), sample.reference_fn(other.eval(), x), dtype, f"{sample.desc}, reference")


@each_dtype
def test_gradients_are_torchs(name, dtype, training):
    for own, other, sample in samples(name, dtype, training):
        x = sample.forward_input.args[0]
        dy = torch.randn_like(x)
        expected = run(copy.deepcopy(other).double(), x.double(), dy.double())
        for found, gradient in zip(run(own, x, dy), expected, strict=True):
            assert found.dtype == dtype
            size = max([1.0, *gradient.abs().flatten().tolist()])  # of sums over many rows
            assert_close(found.double() / size, gradient / size, dtype, sample.desc)


@each
def test_gradients_of_gradients(name, training):
    for own, _, sample in samples(name, torch.float64, training, requires_grad=True):
        x = sample.forward_input.args[0]
        parameters = dict(own.named_parameters())

        def call(x, *values, own=own, names=tuple(parameters)):
            return torch.func.functional_call(own, dict(zip(names, values, strict=True)), x)

        inputs = (x, *parameters.values())
        assert torch.autograd.gradcheck(call, inputs, check_batched_grad=True, fast_mode=True), sample.desc
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True), sample.desc


@each_dtype
def test_copies_have_the_same_bits(name, dtype, training):
    for own, other, sample in samples(name, dtype, training):
        x, state = sample.forward_input.args[0], io.BytesIO()
        torch.save(own.state_dict(), state)
        state.seek(0)
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        loaded = type(own)(*args, **kwargs, dtype=dtype).train(training)
        loaded.load_state_dict(torch.load(state))
        assert list(own.state_dict()) == list(other.state_dict()) and repr(own) == repr(other)
        twins = [loaded, copy.deepcopy(own), pickle.loads(pickle.dumps(own))]
        expected = own(x), *own.buffers()
        for twin in twins:
            assert twin.training is training
            assert_same((twin(x), *twin.buffers()), expected, sample.desc)


@each_dtype
def test_strides_change_no_bit(name, dtype, training):
    for own, _, sample in samples(name, dtype, training):
        x = sample.forward_input.args[0]
        dy = torch.randn_like(x)
        apart = [noncontiguous_like(x), noncontiguous_like(dy)] if x.numel() else [x, dy]
        twin = copy.deepcopy(own)
        expected = *run(own, x, dy), *own.buffers()
        assert_same((*run(twin, *apart), *twin.buffers()), expected, sample.desc)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", sorted(set(INFOS) - {"RMSNorm", "LayerNorm", "BatchNorm1d", "InstanceNorm1d"}))
def test_channels_last_is_kept_and_changes_no_bit(name, dtype, training):
    for own, _, sample in samples(name, dtype, training):
        x = sample.forward_input.args[0]
        dims, memory_format = (5, torch.channels_last_3d) if name.endswith("3d") else (4, torch.channels_last)
        if x.dim() != dims:
            continue
        dy, twin = torch.randn_like(x), copy.deepcopy(own).to(memory_format=memory_format)
        expected = *run(own, x, dy), *own.buffers()
        last = x.to(memory_format=memory_format)
        for each_dy in (dy, dy.to(memory_format=memory_format)):
            moved = copy.deepcopy(twin)
            found = *run(moved, last, each_dy), *moved.buffers()
            assert_same(found, expected, sample.desc)
            for result in found[:2]:  # y and dx
                assert not result.numel() or result.is_contiguous(memory_format=memory_format), sample.desc


@each
def test_types_and_places_are_as_they_were_asked_for(name, training):
    for own, other, sample in samples(name, torch.float32, training):
        for change in (lambda module: module.double(), lambda module: module.to(torch.bfloat16)):
            for tensor, expected in zip(change(own).parameters(), change(other).parameters(), strict=True):
                assert tensor.dtype == expected.dtype and tensor.shape == expected.shape, sample.desc
        empty = type(own)(*sample.constructor_input.args, **sample.constructor_input.kwargs, device="meta")
        assert all(tensor.device.type == "meta" for tensor in empty.parameters())
        if getattr(empty, "momentum", 0.0) is not None:  # an average over all batches counts them, which meta cannot
            x = sample.forward_input.args[0].to("meta")
            assert empty.train(training)(x).shape == x.shape


@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.module_error_inputs_func])
def test_errors_are_torchs(name):
    info, module = INFOS[name], getattr(isonorm.torch, name)
    for error in info.module_error_inputs_func(info, "cpu", torch.float32, False, True):
        sample = error.module_error_input
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*args, **kwargs)
            continue
        x = sample.forward_input.args[0]
        if kwargs.get("eps") == 0.0:  # refused by torch; the range rule takes care of small variances
            torch.testing.assert_close(module(*args, **kwargs)(x), getattr(nn, name)(*args, eps=1e-30)(x))
            continue
        with pytest.raises(error.error_type, match=error.error_regex.replace("positive", "(positive|non-negative)")):
            module(*args, **kwargs)(x)
