"""The operators as torch's dispatcher has them: schemas, fakes, memory, errors, versions, threads."""

import gc
import os
import threading

import pytest
import torch
from torch import nn
from torch.library import opcheck

import isonorm.torch
import isonorm.torch.functional as F
from isonorm import _isonorm
from isonorm.torch._library import ops

#: Unfinished gradients of rows of 16 elements, and of samples of 6 channels, for the operators that go on with them.
PARTIALS = _isonorm.TorchPartial(16, False, False, 0), _isonorm.TorchPartial(6, False, True, 0)


def rows(**kwargs):
    return torch.randn(4, 3, 16, **kwargs)


def planes(**kwargs):
    return torch.randn(2, 6, 4, 4, **kwargs)


def param(size, **kwargs):
    return torch.randn(size, **kwargs)


def train(x, out=None, **kwargs):
    return F.batch_norm(x, None, None, training=True, out=out, **kwargs)


def samples():
    x, w, b = rows(), param(16), param(16)
    strided = torch.randn(3, 4, 32).transpose(0, 1)[..., :16]
    unready = torch.randn(16, 3, 4).permute(2, 1, 0)
    row = (1, True, 1e-5, 0.0, False)
    rms = (1, False, 1e-5, 1.0, True)
    yield ops.rms_norm.default, (x, w, 1e-5)
    yield ops.rms_norm.default, (strided, w, 1e-5)
    yield ops.rms_norm.default, (unready, w, 1e-5)
    yield ops.rms_norm.default, (rows(dtype=torch.bfloat16), w, 1e-5)
    yield ops.llama_rms_norm.default, (x, w, 1e-5)
    yield ops.layer_norm.default, (x, w, b, 1e-5)
    yield ops.row_norm.default, (x, None, None, *row)
    yield ops.row_norm.default, (x, param((3, 16)), None, 2, *rms[1:])
    yield ops.row_norm.out, (x, w, b, *row), dict(out=torch.empty_like(x))
    yield ops.row_norm_backward.default, (x, x, w, b, *row, True, True)
    yield ops.rms_norm_backward.default, (x, strided, w, 1e-5, True)
    yield ops.layer_norm_backward.default, (x, x, w, b, 1e-5)
    yield ops.row_norm_backward.default, (x, strided, None, b, *row, True, False)
    yield ops.add_row_norm.default, (x.bfloat16(), x, w, None, *rms)
    yield ops.add_row_norm.default, (x, strided, w, b, *row)
    yield ops.add_row_norm_.default, (x.clone(), rows(), w, b, *row)
    yield ops.add_row_norm_backward.default, (x, None, x, w, b, *row, torch.float32, True, True)
    yield ops.add_row_norm_backward.default, (x.bfloat16(), x, x, None, None, *rms, torch.bfloat16, True, True)
    of_rows, of_samples = (partial.number for partial in PARTIALS)
    mask = torch.tensor([[True, False, True]] * 4)
    yield ops.row_norm_backward_partial.default, (x, strided, w, b, *row, None, of_rows)
    yield ops.row_norm_backward_partial.default, (x, x.bfloat16(), w, None, *rms, mask, of_rows)
    yield ops.add_row_norm_backward_partial.default, (x, None, x, w, b, *row, torch.float32, mask, of_rows)
    x16 = x.bfloat16()
    yield ops.add_row_norm_backward_partial.default, (x16, x, x, w, None, *rms, torch.bfloat16, None, of_rows)
    yield ops.finish_partial.default, (w, None, of_rows)
    c, mean, var = param(6), torch.zeros(6), torch.ones(6)
    yield ops.finish_partial.default, (None, c, of_samples)
    stats = torch.ones(6, 5)
    for x in (planes(), planes().to(memory_format=torch.channels_last), torch.randn(2, 5, 6).transpose(1, 2)):
        yield ops.batch_norm_train.default, (x, c, None, mean, var, 0.1, 1e-5, 0.0)
        yield ops.batch_norm_train.out, (x, c, None, mean, var, 0.1, 1e-5, 0.0), dict(out=torch.empty_like(x))
        yield ops.batch_norm_train.out, (x, None, c, None, None, 0.1, 1e-5, 0.0), dict(out=torch.empty_like(x))
        yield ops.batch_norm_train_backward.default, (x, x, c, c, stats, 1e-5, 0.0, True, True)
        yield ops.batch_norm_eval.default, (x, None, c, mean, var, 1e-5, 0.0)
        yield ops.batch_norm_eval.out, (x, None, c, mean, var, 1e-5, 0.0), dict(out=torch.empty_like(x))
        yield ops.batch_norm_eval_backward.default, (x, x, c, c, mean, var, 1e-5, 0.0, True, True)
        yield ops.group_norm.default, (x, c, c, 3, 1e-5, 0.0)
        yield ops.group_norm.out, (x, c, c, 3, 1e-5, 0.0), dict(out=torch.empty_like(x))
        yield ops.group_norm_backward.default, (x, x, c, c, stats, 3, 1e-5, 0.0, True, True)
        yield ops.group_norm_backward_partial.default, (x, x, c, None, stats, 3, 1e-5, 0.0, of_samples)
    yield ops.group_norm.default, (torch.empty(2, 6, 0), c, c, 3, 1e-5, 0.0)
    yield ops.instance_norm_running.default, (torch.ones(12, 5), mean, var, 0.1, 16)


@pytest.mark.parametrize("sample", list(samples()), ids=lambda sample: str(sample[0]))
def test_opcheck(sample):
    op, args, *kwargs = sample
    opcheck(op, args, *kwargs)


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.ones(12), "a mask is a tensor of bools"),
        (torch.ones(12, 2, dtype=torch.bool)[:, 0], "a mask is contiguous"),
        (torch.ones(11, dtype=torch.bool), "mask has 11 elements, expected 12: one for each row"),
    ],
)
def test_masks_of_other_kinds_are_refused(mask, message):
    partial = _isonorm.TorchPartial(16, False, False, 0)
    with pytest.raises(RuntimeError, match=message):
        ops.row_norm_backward_partial.default(
            rows(), rows(), param(16), None, 1, False, 1e-5, 0.0, False, mask, partial.number
        )
    assert partial.end == 0


def test_a_mask_may_have_other_bytes_than_0_and_1():
    mask = torch.tensor([0, 2, 255, 1] * 3, dtype=torch.uint8).view(torch.bool)
    partial = _isonorm.TorchPartial(16, False, False, 0)
    ops.row_norm_backward_partial.default(
        rows(), rows(), param(16), None, 1, False, 1e-5, 0.0, False, mask, partial.number
    )
    assert partial.end == 9


def test_partials_that_are_gone_are_refused():
    number = _isonorm.TorchPartial(16, False, False, 0).number
    with pytest.raises(RuntimeError, match="these unfinished gradients are gone"):
        ops.finish_partial.default(param(16), None, number)


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's accounts")
def test_nothing_leaks():
    x, w, b = rows().requires_grad_(), param(16).requires_grad_(), param(16).requires_grad_()
    z = planes().requires_grad_()
    norms = nn.ModuleList([isonorm.torch.LayerNorm(16), isonorm.torch.AddRMSNorm(16), isonorm.torch.GroupNorm(3, 6)])
    mask = torch.tensor([True, False, True, True])

    def work():
        F.layer_norm(x, (16,), w, b).sum().backward()
        F.rms_norm(x, (16,), w, recipe="llama", weight_offset=1.0)
        F.rms_norm(x.detach(), (16,))
        F.batch_norm(z, None, None, training=True).sum().backward()
        F.group_norm(z, 3)
        with pytest.raises(RuntimeError):
            ops.rms_norm.default(x[..., :3].detach(), w.detach(), 1e-5)
        with isonorm.torch.accumulate(norms) as accumulation:
            with accumulation.mask(mask):
                norms[0](x).sum().backward()
                norms[1](x, x)[0].sum().backward()
            with accumulation.mask(mask[:2]):
                norms[2](z).sum().backward()
            with pytest.raises(RuntimeError):
                norms[0](x.double())

    for _ in range(500):
        work()
    gc.collect()
    before = resident()
    for _ in range(3000):
        work()
    gc.collect()
    assert resident() - before < 2 << 20


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ops.rms_norm.default(rows(), param(3), 1e-5), r"Given normalized_shape=\[3\], expected input with"),
        (lambda: ops.rms_norm.default(rows(), param(16, dtype=torch.float64), 1e-5), "weight is f64"),
        (lambda: ops.rms_norm.default(rows().int(), param(16), 1e-5), "float32, float64, float16 or bfloat16"),
        (lambda: F.rms_norm(rows(), (16,), eps=-1.0), "eps is -1, expected a finite number of at least 0"),
        (lambda: F.rms_norm(rows(), (16,), out=torch.empty(3)), r"out has shape \[3\], expected \[4, 3, 16\]"),
        (lambda: F.rms_norm(rows(), (16,), param(16).requires_grad_(), out=rows()), "don't support automatic"),
        (lambda: train(planes().requires_grad_(), out=planes()), "don't support automatic differentiation"),
        (lambda: train(planes(), weight=param(6).requires_grad_(), out=planes()), "don't support automatic"),
        (lambda: torch.func.vmap(lambda x: train(x, out=x))(planes()[None]), "don't support torch.func's transforms"),
        (lambda: train(planes(), out=planes()[:1]), r"out has shape \[1, 6, 4, 4\], expected \[2, 6, 4, 4\]"),
        (lambda: F.add_rms_norm(rows(), rows()[:1], (16,)), "residual has shape"),
        (lambda: F.add_layer_norm(rows(), rows()[:1], (16,)), "residual has shape"),
        (lambda: F.add_layer_norm(rows(), rows(), (16,), bias=param(3)), "Expected bias to be of same shape"),
        (lambda: F.group_norm(planes(), 4), "divisible by num_groups"),
        (lambda: F.batch_norm(planes(), None, None), "running_mean and running_var"),
        (lambda: F.batch_norm(planes(), None, None, param(3), training=True), "weight should contain 6 elements not 3"),
    ],
)
def test_errors_are_runtime_errors(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize("eps", [-1e-5, float("nan"), float("inf")])
def test_an_eps_that_has_no_root_is_refused(eps):
    x, running = planes(), (torch.zeros(6), torch.ones(6))
    calls = [
        lambda: F.rms_norm(x, (4,), eps=eps),
        lambda: F.layer_norm(x, (4,), eps=eps, out=x),
        lambda: F.add_rms_norm(x, x.clone(), (4,), eps=eps, inplace=True),
        lambda: F.group_norm(x, 3, eps=eps, out=x),
        lambda: F.instance_norm(x, *running, eps=eps, out=x),
        lambda: F.instance_norm(x, *running, use_input_stats=False, eps=eps),
        lambda: F.batch_norm(x, *running, training=True, eps=eps, out=x),
        lambda: F.batch_norm(x, *running, eps=eps, out=x),
    ]
    before = x.clone(), *map(torch.clone, running)
    for call in calls:
        with pytest.raises((RuntimeError, ValueError)) as error:
            call()
        is_torchs = eps < 0 and call in calls[-2:]  # torch checks that of BatchNorm alone
        assert error.type is (ValueError if is_torchs else RuntimeError)
        assert "eps" in str(error.value) and ("at least 0" in str(error.value) or "non-negative" in str(error.value))
        assert all(map(torch.equal, (x, *running), before))  # nothing is written


def test_other_errors():
    with pytest.raises(ValueError, match="recipe is 'lama', expected 'torch' or 'llama'"):
        F.rms_norm(rows(), (16,), recipe="lama")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(torch.randn(1, 6), None, None, training=True)
    with pytest.raises(NotImplementedError):
        F.rms_norm(torch.zeros(2, 3, dtype=torch.complex64).to_sparse(), (3,), torch.ones(3))


def test_memory_that_is_gone_is_refused():
    x = rows()
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="no memory"):
        F.rms_norm(x, (16,), param(16))


def test_memory_that_is_not_aligned_is_copied():
    raw = bytearray(torch.randn(33).numpy().tobytes())
    x = torch.frombuffer(raw, dtype=torch.float32, count=32, offset=1).view(2, 16)
    x[:] = torch.randn(2, 16)
    assert torch.equal(F.rms_norm(x, (16,)), F.rms_norm(x.clone(), (16,)))


def test_versions_are_kept():
    w = param(16).requires_grad_()
    x = rows()
    y = F.rms_norm(x, (16,), w)
    version = x._version
    F.rms_norm(x, (16,), out=x)
    assert x._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    for change in (
        lambda x: F.group_norm(x, 3, out=x),
        lambda x: F.batch_norm(x, None, None, training=True, out=x),
        lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6), out=x),
        lambda x: F.add_rms_norm(x, planes(), (4,), inplace=True),
        lambda x: F.add_layer_norm(planes(), x, (4,), inplace=True),
    ):
        x = planes()
        version = x._version
        change(x)
        assert x._version > version


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_out_without_gradients_is_as_a_fresh_result(mode):
    with mode():
        w, b = param(16), param(16)
        for call in (
            lambda x, **out: F.rms_norm(x, (16,), w, **out),
            lambda x, **out: F.layer_norm(x, (16,), w, b, **out),
        ):
            x = rows()
            expected, wide = call(x), torch.zeros(4, 3, 32)
            for out in (torch.empty_like(x), wide[..., :16], torch.empty(16, 3, 4).permute(2, 1, 0), x):
                version = None if out.is_inference() else out._version
                assert call(x.clone(), out=out) is out and torch.equal(out, expected)
                assert version is None or out._version > version
            x, whole = rows(), torch.randn(5, 3, 16)
            whole[1:] = x
            assert torch.equal(call(whole[1:], out=whole[:-1]), call(x))  # it overlaps what is read
            with pytest.raises(RuntimeError, match="out has shape"):
                call(x, out=torch.empty(3))


def test_threads_of_python():
    x, w = torch.randn(64, 512), param(512)
    expected, failures = F.rms_norm(x, (512,), w), []

    def work():
        for _ in range(200):
            if not torch.equal(F.rms_norm(x, (512,), w), expected):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    "make", [lambda **on: isonorm.torch.LayerNorm(16, **on), lambda **on: isonorm.torch.GroupNorm(3, 6, **on)]
)
def test_devices_are_not_mixed(make):
    x = rows() if isinstance(make(), isonorm.torch.LayerNorm) else planes()
    with pytest.raises(RuntimeError, match="same device, but found at least two devices"):
        make(device="meta")(x)
    with torch.no_grad(), pytest.raises(RuntimeError, match="same device, but found at least two devices"):
        make(device="meta")(x)
    assert make(device="meta")(x.to("meta")).shape == x.shape
    for out in (torch.empty_like(x, device="meta"), torch.empty(3, device="meta")):
        with torch.no_grad(), pytest.raises(RuntimeError, match="devices"):
            F.rms_norm(x, x.shape[-1:], out=out)
    with torch.no_grad(), pytest.raises(RuntimeError, match="out has shape"):
        F.rms_norm(x.to("meta"), x.shape[-1:], out=torch.empty(3, device="meta"))


def test_negative_views_are_not_written():
    x, c = planes(), param(6)
    for write in (
        lambda out: F.layer_norm(x, (4,), out=out),
        lambda out: F.rms_norm(x, (4,), param(4), out=out),
        lambda out: F.group_norm(x, 3, out=out),
        lambda out: F.batch_norm(x, None, None, training=True, out=out),
        lambda out: F.batch_norm(x, c, c, out=out),
        lambda out: F.add_rms_norm(x, out, (4,), inplace=True),
    ):
        with torch.no_grad(), pytest.raises(RuntimeError, match="negative view"):
            write(torch._neg_view(torch.zeros_like(x)))
