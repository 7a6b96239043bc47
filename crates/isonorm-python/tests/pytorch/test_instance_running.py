"""InstanceNorm's running statistics: the bits that spec/ says, whatever the layout and the threads."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import isonorm
import isonorm.torch

SPEC = Path(__file__).parents[4] / "spec"


def moved(spec, x, before, momentum):
    """The running mean and variance after a batch, by the program of spec/norms.md."""
    arithmetic, norms = spec
    values = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()
    _, stats = isonorm.instance_norm(values, return_stats=True)
    c = arithmetic.F64 if x.dtype == torch.float64 else arithmetic.F32
    count, after = x[0, 0].numel(), []
    for running, each, factor in ((before[0], stats.mean, False), (before[1], stats.var, True)):
        found = []
        for old, samples in zip(running.tolist(), each.T.tolist(), strict=True):
            mean = norms.mean_of_samples(c, samples)
            mean = norms.unbiased(c, mean, count) if factor else mean
            found.append(norms.running_update(c, old, mean, momentum))
        after.append(torch.tensor(found, dtype=torch.float64).to(running.dtype))
    return after


@pytest.fixture
def spec(monkeypatch):
    monkeypatch.syspath_prepend(SPEC)
    import arithmetic
    import norms

    return arithmetic, norms


@pytest.mark.parametrize("momentum", [0.3, 1.0])  # with 1 every bit of the sums is seen
@pytest.mark.parametrize("samples", [1, 5, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_they_are_as_the_spec_says(dtype, samples, momentum, spec):
    x = torch.randn(samples, 6, 5, 4).mul(3).add(1).to(dtype)
    wide = torch.randn(samples, 6, 5, 8, dtype=dtype)
    wide[..., ::2] = x
    running_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    before = torch.randn(6, dtype=running_dtype), torch.rand(6, dtype=running_dtype)
    expected, threads = moved(spec, x, before, momentum), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for each in (x, x.to(memory_format=torch.channels_last), wide[..., ::2]):
                norm = isonorm.torch.InstanceNorm2d(6, momentum=momentum, track_running_stats=True, dtype=running_dtype)
                norm.running_mean.copy_(before[0]), norm.running_var.copy_(before[1])
                norm(each)
                assert torch.equal(norm.running_mean, expected[0]) and torch.equal(norm.running_var, expected[1])
    finally:
        torch.set_num_threads(threads)


def test_half_types_are_rounded_once(spec):
    x = torch.randn(9, 3, 7)
    for dtype in (torch.float16, torch.bfloat16):
        before = torch.randn(3).to(dtype), torch.rand(3).to(dtype)
        own = [tensor.clone() for tensor in before]
        isonorm.torch.functional.instance_norm(x, *own, momentum=0.3)
        assert all(map(torch.equal, own, moved(spec, x, before, 0.3)))


def test_they_are_near_torchs():
    x = torch.randn(20, 4, 6, 6) + 2
    norms = [lib.InstanceNorm2d(4, track_running_stats=True) for lib in (isonorm.torch, torch.nn)]
    for _ in range(5):
        for norm in norms:
            norm(x)
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean)
    torch.testing.assert_close(norms[0].running_var, norms[1].running_var)


def test_a_host_that_flushes_changes_no_bit():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such setting")
    torch.set_flush_denormal(False)
    x = torch.from_numpy(np.arange(1, 2 * 3 * 4 + 1, dtype=np.int32) * 977).view(torch.float32).view(2, 3, 4)
    found = []
    for flushes in (False, True):
        running = torch.zeros(3), torch.zeros(3)
        torch.set_flush_denormal(flushes)
        isonorm.torch.functional.instance_norm(x, *running)
        torch.set_flush_denormal(False)
        found.append(running[0].view(torch.int32).tolist())
    assert found[0] == found[1] and all(found[0])
