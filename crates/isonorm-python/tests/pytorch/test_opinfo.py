"""PyTorch's own samples and error inputs for its norms, as its test suite has them."""

import pytest
import torch

import isonorm.torch.functional as F

pytest.importorskip("expecttest", reason="torch's samples import expecttest")
from torch.testing._internal.common_methods_invocations import op_db


def native_layer_norm(input, normalized_shape, weight, bias, eps):
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps):
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


OURS = {
    "nn.functional.layer_norm": F.layer_norm,
    "nn.functional.rms_norm": F.rms_norm,
    "nn.functional.group_norm": F.group_norm,
    "nn.functional.instance_norm": F.instance_norm,
    "nn.functional.batch_norm": F.batch_norm,
    "native_layer_norm": native_layer_norm,
    "native_batch_norm": native_batch_norm,
}
INFOS = {info.name: info for info in op_db if info.name in OURS and info.variant_test_name == ""}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# torch rounds x_hat to the half type before the weight in some of these, isonorm rounds once: a step of the type, of
# values of some tens.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def calls(name, dtype, requires_grad=False):
    """The samples, but for those that torch takes and isonorm refuses: a negative eps, an empty vector as a batch."""
    for sample in INFOS[name].sample_inputs("cpu", dtype, requires_grad=requires_grad):
        try:
            OURS[name](sample.input, *clones(sample.args), **sample.kwargs)
            yield sample
        except RuntimeError as error:
            if "eps is -" not in str(error) and sample.input.shape != (0,):
                raise


def clones(args):
    return [arg.clone() if isinstance(arg, torch.Tensor) and not arg.requires_grad else arg for arg in args]


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_values_are_torchs(name, dtype):
    count = 0
    for sample in calls(name, dtype):
        args, own_args = clones(sample.args), clones(sample.args)
        try:
            expected = first(INFOS[name].op(sample.input, *args, **sample.kwargs))
        except (RuntimeError, NotImplementedError):
            continue  # torch has no kernel of its own for these types
        found = OURS[name](sample.input, *own_args, **sample.kwargs)
        torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], msg=str(sample))
        for own, other in zip(own_args, args, strict=True):  # the running statistics
            if isinstance(own, torch.Tensor):
                torch.testing.assert_close(own, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        count += 1
    assert count > 0


@pytest.mark.parametrize("name", OURS)
def test_gradients_of_gradients(name):
    for sample in calls(name, torch.float64, requires_grad=True):
        tensors = [arg for arg in (sample.input, *sample.args) if isinstance(arg, torch.Tensor) and arg.requires_grad]
        if not tensors or sample.input.numel() > 200:
            continue
        # The running statistics would move from call to call.
        kwargs = {key: value for key, value in sample.kwargs.items() if key not in ("running_mean", "running_var")}
        frozen = [arg if not isinstance(arg, torch.Tensor) or arg.requires_grad else arg.clone() for arg in sample.args]

        def call(*tensors, sample=sample, frozen=frozen, kwargs=kwargs):
            tensors = iter(tensors)
            input = next(tensors)
            args = [next(tensors) if isinstance(a, torch.Tensor) and a.requires_grad else a for a in frozen]
            args = [a.clone() if isinstance(a, torch.Tensor) and not a.requires_grad else a for a in args]
            return OURS[name](input, *args, **{**sample.kwargs, **kwargs})

        assert torch.autograd.gradcheck(call, tensors, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("name", OURS)
def test_errors_are_torchs(name):
    info = INFOS[name]
    if info.error_inputs_func is None:
        pytest.skip("torch has no error inputs for it")
    for error in info.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            OURS[name](sample.input, *sample.args, **sample.kwargs)
