"""The modules against torch.nn's: constructors, state, errors, copies; and bits that depend on nothing else."""

import copy
import multiprocessing
import pickle

import pytest
import torch
from torch import nn

import isonorm.torch
from isonorm.torch import functional as F

CASES = [
    ("RMSNorm", (16,), {}, (4, 3, 16)),
    ("RMSNorm", ((3, 16), 1e-6), {}, (4, 3, 16)),
    ("RMSNorm", (16, 1e-3, False), {}, (4, 16)),
    ("LayerNorm", (16,), {}, (4, 3, 16)),
    ("LayerNorm", ([3, 16],), {"eps": 1e-3}, (4, 3, 16)),
    ("LayerNorm", (16,), {"elementwise_affine": False}, (4, 16)),
    ("LayerNorm", (16,), {"bias": False}, (4, 16)),
    ("GroupNorm", (3, 6), {}, (4, 6, 5)),
    ("GroupNorm", (6, 6), {"affine": False}, (4, 6, 5, 5)),
    ("BatchNorm1d", (6,), {}, (4, 6)),
    ("BatchNorm1d", (6,), {"momentum": None}, (4, 6, 5)),
    ("BatchNorm2d", (6,), {"momentum": 0.3}, (4, 6, 5, 5)),
    ("BatchNorm2d", (6,), {"affine": False, "track_running_stats": False}, (4, 6, 5, 5)),
    ("BatchNorm3d", (6,), {}, (2, 6, 3, 3, 3)),
    ("InstanceNorm1d", (6,), {"affine": True}, (4, 6, 5)),
    ("InstanceNorm2d", (6,), {"affine": True, "track_running_stats": True}, (4, 6, 5, 5)),
    ("InstanceNorm2d", (6,), {}, (6, 5, 5)),
    ("InstanceNorm3d", (6,), {}, (2, 6, 3, 3, 3)),
]


def pair(name, args, kwargs):
    own, other = getattr(isonorm.torch, name)(*args, **kwargs), getattr(nn, name)(*args, **kwargs)
    for param in other.parameters():
        nn.init.normal_(param)
    own.load_state_dict(other.state_dict())
    return own, other


@pytest.mark.parametrize("name, args, kwargs, shape", CASES)
def test_is_a_drop_in(name, args, kwargs, shape):
    own, other = pair(name, args, kwargs)
    assert isinstance(own, getattr(nn, name))
    assert repr(own) == repr(other)
    assert list(own.state_dict()) == list(other.state_dict())
    for train in (True, True, False):
        own.train(train), other.train(train)
        x = torch.randn(shape)
        xs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        ys = [own(xs[0]), other(xs[1])]
        torch.testing.assert_close(*ys, rtol=1e-5, atol=1e-5)
        dy = torch.randn_like(ys[1])
        for y in ys:
            y.backward(dy)
        torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=1e-4, atol=1e-5)
        for a, b in zip(own.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
        for a, b in zip(own.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name, args, kwargs, shape", CASES)
def test_errors_are_torchs(name, args, kwargs, shape):
    own, other = pair(name, args, kwargs)
    for wrong in ((), (3,), (4, 7), (4, 6, 5, 5, 5, 5), (1, 6)):
        try:
            other(torch.randn(wrong))
        except Exception as error:
            # RMSNorm's operator can raise nothing but RuntimeError; torch has a ValueError for too few dimensions.
            with pytest.raises((type(error), RuntimeError) if name == "RMSNorm" else type(error)):
                own(torch.randn(wrong))


@pytest.mark.parametrize("name, args, kwargs, shape", CASES)
def test_copies(name, args, kwargs, shape):
    own, _ = pair(name, args, kwargs)
    own.eval()
    x = torch.randn(shape)
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(twin(x), own(x))


def test_options_of_rms_norm():
    norm = isonorm.torch.RMSNorm(8, eps=1e-6, recipe="llama", weight_offset=1.0)
    assert repr(norm) == "RMSNorm((8,), eps=1e-06, elementwise_affine=True, recipe='llama', weight_offset=1.0)"
    assert torch.equal(norm.weight, torch.zeros(8))
    with pytest.raises(ValueError, match="recipe is 'lama'"):
        isonorm.torch.RMSNorm(8, recipe="lama")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [1, 33, 576, 4096])
def test_a_row_has_the_same_bits_wherever_it_is(dtype, hidden):
    norms = [isonorm.torch.RMSNorm(hidden, 1e-6, dtype=dtype), isonorm.torch.LayerNorm(hidden, dtype=dtype)]
    row = torch.randn(hidden, dtype=dtype)
    for norm in norms:
        with torch.no_grad():
            expected = norm(row[None])[0]
            for batch in (2, 7, 300):
                x = torch.randn(batch, hidden, dtype=dtype)
                x[batch // 2] = row
                wide = torch.randn(batch, hidden + 3, dtype=dtype)[:, 1 : hidden + 1]
                wide[batch // 2] = row
                for rows in (x, wide, x.t().contiguous().t()):
                    assert torch.equal(norm(rows)[batch // 2], expected)
                out = torch.empty(hidden, batch, dtype=dtype).t()
                assert torch.equal(F_of(norm, x, out)[batch // 2], expected)


def F_of(norm, x, out):
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(x, norm.normalized_shape, norm.weight, norm.eps, out=out)
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps, out=out)


def test_threads_change_no_bit():
    norm, x = isonorm.torch.LayerNorm(1024), torch.randn(2048, 1024, requires_grad=True)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norm.zero_grad()
            x.grad = None
            y = norm(x)
            y.backward(y.detach())
            found.append((y.detach(), x.grad, norm.weight.grad, norm.bias.grad))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


@pytest.mark.parametrize("dims", [3, 4, 5])
def test_channels_last_is_kept(dims):
    x = torch.randn(4, 5, *[3] * (dims - 3), 6).movedim(-1, 1)
    plain = x.contiguous()
    norms = [isonorm.torch.GroupNorm(3, 6), getattr(isonorm.torch, f"BatchNorm{dims - 2}d")(6)]
    for norm in norms:
        inputs = x.clone(memory_format=torch.preserve_format).requires_grad_(), plain.clone().requires_grad_()
        ys = [norm(each) for each in inputs]
        assert ys[0].stride() == x.stride() and torch.equal(*ys)
        for y in ys:
            y.sum().backward()
        assert torch.equal(inputs[0].grad, inputs[1].grad) and inputs[0].grad.stride() == x.stride()


def layouts(shape):
    x = torch.randn(shape)
    wide = torch.randn(*shape[:-1], 2 * shape[-1])
    return {
        "channels first": x,
        "channels last": x.to(memory_format=torch.channels_last),
        "strided": wide[..., ::2],
        "half": x.bfloat16(),
    }


@pytest.mark.parametrize("is_there", [False, True], ids=["without running statistics", "with running statistics"])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_out_in_training(name, is_there):
    for layout, x in layouts((4, 6, 5, 5)).items():
        for where in ("new", "x", *layouts((4, 6, 5, 5))):
            weight, before = torch.randn(6), x.clone(memory_format=torch.preserve_format)
            own = [torch.randn(6), torch.rand(6)] if is_there else [None, None]
            other = [running.clone() for running in own] if is_there else own
            options = {"training": True} if name == "batch_norm" else {}
            norm = getattr(F, name)
            expected = norm(x, *own, weight, **options)
            out = {"new": torch.empty(x.shape, dtype=x.dtype), "x": x, **layouts(x.shape)}[where]
            assert norm(x, *other, weight, **options, out=out) is out
            if out.dtype == x.dtype:
                assert torch.equal(out, expected), (layout, where)
            torch.testing.assert_close(out, expected.to(out.dtype), rtol=1e-2, atol=1e-2)
            assert not is_there or all(map(torch.equal, other, own))
            if where == "x":
                x.copy_(before)
            assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)])
def test_empty_images(shape):
    for norm in (isonorm.torch.InstanceNorm2d, isonorm.torch.BatchNorm2d):
        norm = norm(shape[1], affine=True, track_running_stats=True)
        if shape[1] == 0 and isinstance(norm, nn.BatchNorm2d):
            continue  # an error, here and there
        x = torch.randn(shape, requires_grad=True)
        norm(x).sum().backward()
        assert x.grad.shape == shape and torch.equal(norm.weight.grad, torch.zeros(shape[1]))
        assert torch.equal(norm.running_mean, torch.zeros(shape[1]))  # an empty batch says nothing
        assert torch.equal(norm.running_var, torch.ones(shape[1]))


def test_empty_tensors():
    for shape, norm in (((0, 16), isonorm.torch.LayerNorm(16)), ((0, 6, 4, 4), isonorm.torch.GroupNorm(3, 6))):
        x = torch.randn(shape, requires_grad=True)
        y = norm(x)
        y.sum().backward()
        assert y.shape == shape and torch.equal(norm.weight.grad, torch.zeros_like(norm.weight))


def test_autocast_changes_nothing():
    norm, x = isonorm.torch.RMSNorm(16, 1e-6), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), norm(x.clone())) and norm(x).dtype == torch.float32
        assert norm(x.bfloat16()).dtype == torch.bfloat16


class Rows(torch.utils.data.Dataset):
    """Rows that are normalized where they are loaded."""

    def __init__(self):
        self.x, self.norm = torch.randn(8, 4096), isonorm.torch.RMSNorm(4096, 1e-6)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.norm(self.x[i]).detach()


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_of_a_data_loader(method):
    rows = Rows()
    rows.norm(torch.randn(4096, 4096))  # torch's threads have been at work before the fork
    loader = torch.utils.data.DataLoader(rows, batch_size=2, num_workers=2, multiprocessing_context=method)
    assert torch.equal(torch.cat(list(loader)), rows.norm(rows.x))
