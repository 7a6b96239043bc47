"""The operators on CUDA, with a GPU that is emulated: its memory is the CPU's, its kernels are compiled by g++ from
the very same sources. All else is the real thing: dispatcher, checks, allocation, choice of kernels, launches. The
operators that run so are registered a second time, as `isonorm_emulated`, for tensors on the CPU."""

import os
import pathlib
import subprocess

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import isonorm.torch
import isonorm.torch.functional as F
from isonorm import _isonorm
from isonorm.torch import _library, patching

ROOT = pathlib.Path(__file__).resolve().parents[4]
EMULATION = ROOT / "crates" / "isonorm-cuda" / "tests" / "emulation"
CPU = torch.ops.isonorm


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the process uses its driver")
    folder = tmp_path_factory.mktemp("gpu")
    for variable, name in (("ISONORM_CUDA_DRIVER", "driver"), ("ISONORM_NVRTC", "nvrtc")):
        library = folder / f"{name}.so"
        flags = ["-std=c++20", "-O1", "-fPIC", "-shared", f'-DEMULATION="{EMULATION}"']
        subprocess.run(["g++", *flags, "-o", library, EMULATION / f"{name}.cpp"], check=True)
        os.environ[variable] = str(library)
    os.environ["ISONORM_CACHE"] = str(folder / "cache")
    _isonorm.register_emulated_gpu(_library._libtorch())
    return torch.ops.isonorm_emulated


def same(expected, found):
    expected, found = [(x,) if isinstance(x, torch.Tensor) else x for x in (expected, found)]
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        assert torch.equal(a.view(integer), b.view(integer))


def values(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("hidden", [96, 1024, 1500])
def test_rms_norm(gpu, hidden):
    x, weight = values(3, 5, hidden), values(hidden, seed=1)
    for operator in ("rms_norm", "llama_rms_norm"):
        same(getattr(CPU, operator)(x, weight, 1e-6), getattr(gpu, operator)(x, weight, 1e-6))


def test_rows_of_a_view(gpu):
    qkv, weight = values(2, 7, 3, 4, 64), values(64, seed=1)
    for x in (qkv[:, :, 0], qkv[:, :, 1].transpose(1, 2), qkv[:1, 1:, 2], qkv[..., 0, :, :].movedim(1, 0)):
        same(CPU.rms_norm(x, weight, 1e-6), gpu.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("param", [torch.bfloat16, torch.float32, torch.float16])
def test_layer_norm_backward(gpu, param):
    x, dy, weight, bias = values(40, 96), values(40, 96, seed=1), values(96, dtype=param), values(96, dtype=param)
    same(CPU.layer_norm(x, weight, bias, 1e-5), gpu.layer_norm(x, weight, bias, 1e-5))
    same(CPU.layer_norm_backward(dy, x, weight, bias, 1e-5), gpu.layer_norm_backward(dy, x, weight, bias, 1e-5))


def test_gradients_of_some(gpu):
    x, dy, weight = values(33, 96), values(33, 96, seed=1), values(96)
    for wanted in ((True, False), (False, False)):
        options = (dy, x, weight, None, 1, False, 1e-6, 1.0, False, *wanted)
        same(CPU.row_norm_backward(*options), gpu.row_norm_backward(*options))


def test_into_out_and_in_place(gpu):
    x, weight = values(4, 96), values(96)
    expected, out = CPU.rms_norm(x, weight, 1e-6), torch.empty_like(x)
    options = (weight, None, 1, False, 1e-6, 0.0, False)
    gpu.row_norm.out(x, *options, out=out)
    same(expected, out)
    columns = torch.empty(96, 4, dtype=x.dtype).t()
    gpu.row_norm.out(x, *options, out=columns)
    same(expected, columns.contiguous())
    gpu.row_norm.out(x, *options, out=x)
    same(expected, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_add(gpu, dtype):
    x, residual, weight = values(9, 96), values(9, 96, dtype=dtype, seed=1), values(96)
    options = (weight, None, 1, False, 1e-6, 0.0, True)
    expected = CPU.add_row_norm(x, residual, *options)
    same(expected, gpu.add_row_norm(x, residual, *options))
    dy, dr = values(9, 96, seed=2), values(9, 96, dtype=dtype, seed=3)
    options = (dy, dr, expected[1], *options, torch.bfloat16, True, False)
    same(CPU.add_row_norm_backward(*options), gpu.add_row_norm_backward(*options))
    in_place = x.clone(), residual.clone()
    gpu.add_row_norm_(*in_place, weight, None, 1, False, 1e-6, 0.0, True)
    same(expected, in_place)


def test_no_rows(gpu):
    x, weight = values(0, 96), values(96)
    same(CPU.rms_norm_backward(x, x, weight, 1e-6, False), gpu.rms_norm_backward(x, x, weight, 1e-6, False))


def test_refusals_are_the_same(gpu):
    x, weight = values(4, 96), values(96)
    for arguments in ((x, values(95), 1e-6), (x, weight, -1.0), (x, weight.double(), 1e-6)):
        with pytest.raises(RuntimeError) as expected:
            CPU.rms_norm(*arguments)
        with pytest.raises(RuntimeError) as found:
            gpu.rms_norm(*arguments)
        assert str(expected.value) == str(found.value)


def test_export_for_cuda():
    """What a compiler sees of the operators does not need a GPU: the results are on x's device."""
    with FakeTensorMode():
        norm = isonorm.torch.LayerNorm(64, device="cuda", dtype=torch.bfloat16)
        x = torch.empty(3, 64, device="cuda", dtype=torch.bfloat16)
        y, r = F.add_rms_norm(x, x, (64,), norm.weight)
        assert y.device == r.device == x.device == torch.device("cuda", 0)
        program = torch.export.export(norm, (x,))
        names = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert names == [CPU.layer_norm.default]
        with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
            F.rms_norm(x, (64,), torch.ones(64))


def test_patch_leaves_other_devices():
    norm = torch.nn.Sequential(torch.nn.LayerNorm(64, device="meta"))
    assert "its weight is on meta" in str(isonorm.torch.patch(norm))


def test_patch_leaves_gpus_that_have_no_kernels(monkeypatch):
    def refuse(*_):
        raise RuntimeError("GPU 0 has compute capability 7.5, expected 8.0 (Ampere) or later")

    monkeypatch.setattr(patching, "_compute", refuse)
    report = isonorm.torch.patch(torch.nn.Sequential(torch.nn.LayerNorm(64), torch.nn.RMSNorm(64)))
    assert report.count == 0 and str(report).count("compute capability 7.5") == 2


@pytest.mark.parametrize("shape", [(40, 6), (3, 6, 7, 5)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_batch_norm(gpu, shape, last):
    order = torch.channels_last if last and len(shape) == 4 else torch.contiguous_format
    x, dy = [values(*shape, seed=seed).contiguous(memory_format=order) for seed in (0, 1)]
    weight, bias = values(6, dtype=torch.float32, seed=2), values(6, dtype=torch.float32, seed=3)
    mean, var = torch.zeros(6), torch.ones(6)
    options = (x, weight, bias, mean, var, 0.1, 1e-5, 0.0)
    expected = CPU.batch_norm_train(*options)
    same(expected, gpu.batch_norm_train(*options))
    outs = torch.empty_like(x), x.clone()
    for i, operators in enumerate((CPU, gpu)):
        out = outs[1] if i else outs[0]
        running = operators.batch_norm_train.out(out if i else x, *options[1:], out=out)
        same(expected[:1] + expected[2:], (out, *running))
    options = (dy, x, weight, bias, expected[1], 1e-5, 0.0, True, True)
    same(CPU.batch_norm_train_backward(*options), gpu.batch_norm_train_backward(*options))
    options = (x, weight, bias, *expected[2:], 1e-5, 0.0)
    same(CPU.batch_norm_eval(*options), gpu.batch_norm_eval(*options))
    same(
        CPU.batch_norm_eval_backward(dy, *options, True, False), gpu.batch_norm_eval_backward(dy, *options, True, False)
    )


@pytest.mark.parametrize("groups", [2, 6])
def test_group_norm(gpu, groups):
    x, dy, weight, bias = values(3, 6, 7, 5), values(3, 6, 7, 5, seed=1), values(6, seed=2), values(6, seed=3)
    for order in (torch.contiguous_format, torch.channels_last):
        options = (x.contiguous(memory_format=order), weight, bias, groups, 1e-5, 0.0)
        y, stats = expected = CPU.group_norm(*options)
        same(expected, gpu.group_norm(*options))
        out = torch.empty_like(x)
        same((stats,), gpu.group_norm.out(*options, out=out))
        same(y.contiguous(), out)
        options = (dy, options[0], weight, bias, stats, groups, 1e-5, 0.0, True, True)
        same(CPU.group_norm_backward(*options), gpu.group_norm_backward(*options))
    if groups == 6:
        options = (stats, torch.zeros(6), torch.ones(6), 0.1, 35)
        same(CPU.instance_norm_running(*options), gpu.instance_norm_running(*options))


def test_statistics_that_no_call_saved(gpu):
    x, weight, mean, var = values(4, 6, 5), values(6), torch.zeros(6), torch.ones(6)
    stats = CPU.group_norm(x, weight, None, 6, 1e-5, 0.0)[1]
    for wrong in (stats.t().contiguous().t(), stats.flatten(), stats.bfloat16()):
        for operators in (CPU, gpu):
            with pytest.raises(RuntimeError, match="no saved statistics"):
                operators.group_norm_backward(x, x, weight, None, wrong, 6, 1e-5, 0.0, True, False)
            with pytest.raises(RuntimeError, match="no saved statistics"):
                operators.instance_norm_running(wrong, mean, var, 0.1, 5)


@pytest.mark.parametrize("groups", [4, 0, -1, 2**62])
def test_groups_that_do_not_divide(gpu, groups):
    x, stats = values(4, 6, 5), torch.zeros(24, 5)
    for operators in (CPU, gpu):
        with pytest.raises(RuntimeError, match="groups do not divide 6 channels"):
            operators.group_norm(x, None, None, groups, 1e-5, 0.0)
        with pytest.raises(RuntimeError, match="groups do not divide 6 channels"):
            operators.group_norm.out(x, None, None, groups, 1e-5, 0.0, out=x.clone())
        with pytest.raises(RuntimeError, match="groups do not divide 6 channels"):
            operators.group_norm_backward(x, x, x[0, :, 0], None, stats, groups, 1e-5, 0.0, True, False)
