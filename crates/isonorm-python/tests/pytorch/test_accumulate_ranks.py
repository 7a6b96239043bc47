"""Gradients of parameters over ranks: real processes, each with a part of the batch; any number has the same bits."""

from datetime import timedelta

import pytest
import torch
from test_accumulate import Block, same
from test_accumulate_mask import padded
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import isonorm.torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="needs gloo"),
]

RANKS = 3
#: The samples of each rank.
PARTS = [(7,), (3, 4), (4, 0, 3), (0, 2, 5)]
#: The real tokens of each sample.
LENGTHS = [3, 7, 1, 4, 5, 6, 2]


class Scored(nn.Module):
    """Norms, and a matrix for DDP: row by row, so that a row's bits do not depend on its neighbours."""

    def __init__(self):
        super().__init__()
        self.block, self.linear = Block(), nn.Linear(40, 3)

    def forward(self, x):
        rows = [self.linear(row[None]) for row in self.block(x).flatten(0, 1)]
        return torch.cat(rows) if rows else self.linear(x.flatten(0, 1))


def cases():
    """Models and batches, the same in every process."""
    torch.manual_seed(1)
    return {
        "planes": (isonorm.torch.GroupNorm(3, 6), torch.randn(7, 6, 5, 5)),
        "tokens": (Block(), torch.randn(sum(LENGTHS), 40)),
        "DDP": (Scored(), torch.randn(7, 4, 40)),
    }


def backward(model, micro):
    model(micro).square().sum().backward()


def gradients(model):
    return [param.grad for name, param in model.named_parameters() if not name.startswith("linear")]


def of_planes(model, x, parts, rank, group):
    """Samples, in micro-batches of two."""
    start = sum(parts[:rank])
    with isonorm.torch.accumulate(model, start=start, group=group):
        for micro in x[start : start + parts[rank]].split(2) if parts[rank] else ():
            backward(model, micro)


def of_tokens(model, x, parts, rank, group):
    """Samples with padding, as much as the rank's longest one needs."""
    start = sum(parts[:rank])
    before, lengths = sum(LENGTHS[:start]), LENGTHS[start : start + parts[rank]]
    with isonorm.torch.accumulate(model, start=start, start_tokens=before, group=group) as accumulation:
        if lengths:
            batch, real = padded(x[before : before + sum(lengths)], max(lengths), lengths=lengths)
            for micro, mask in zip(batch.split(2), real.split(2), strict=True):
                with accumulation.mask(mask):
                    backward(model, micro)


def summed(group, bucket):
    """DDP's hook without the division by the number of ranks."""
    sums = distributed.all_reduce(bucket.buffer(), group=group, async_op=True)
    return sums.get_future().then(lambda done: done.value()[0])


def with_ddp(model, x, parts, rank, group):
    """A batch in one piece: DDP wants as many backward passes on each rank."""
    names, start = isonorm.torch.accumulated_parameters(model), sum(parts[:rank])
    assert names == ["block.first.weight", "block.first.bias", "block.add.weight", "block.last.weight"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    ddp = DistributedDataParallel(model, process_group=group)
    ddp.register_comm_hook(group, summed)
    with isonorm.torch.accumulate(ddp, start=start, group=group):
        backward(ddp, x[start : start + parts[rank]])
    assert model.linear.weight.grad is not None


RUNS = {"planes": of_planes, "tokens": of_tokens, "DDP": with_ddp}


def refusals(rank, group):
    """The texts of what goes wrong on two ranks."""
    norm, texts = isonorm.torch.RMSNorm(8), {}
    more = nn.ModuleDict({"norm": norm, "more": isonorm.torch.LayerNorm(8)})
    alone = distributed.new_group([0])

    def refused(name, start, x, model=norm, group=group):
        with pytest.raises(RuntimeError) as error, isonorm.torch.accumulate(model, start=start, group=group):
            backward(norm, x)
        assert norm.weight.grad is None
        texts[name] = str(error.value)

    if rank < 2:
        refused("gap", 5 * rank, torch.randn(2, 3, 8))
        refused("overlap", rank, torch.randn(2, 3, 8))
        refused("late", 3 + 2 * rank, torch.randn(2, 3, 8))
        refused("types", 2 * rank, torch.randn(2, 3, 8, dtype=torch.float64 if rank else torch.float32))
        refused("norms", 2 * rank, torch.randn(2, 8), more if rank else norm)
    if rank == 1:
        refused("outside", 0, torch.randn(2, 8), group=alone)
        accumulation = isonorm.torch.accumulate(norm, start=2, group=group)
        with accumulation.mask(torch.ones(2, 3, dtype=torch.bool)), pytest.raises(RuntimeError) as error:
            norm(torch.randn(2, 3, 8))
        texts["tokens"] = str(error.value)
    return texts


def work(rank, folder):
    torch.set_num_threads(1)
    options = {"init_method": f"file://{folder}/store", "timeout": timedelta(minutes=2)}
    distributed.init_process_group("gloo", rank=rank, world_size=RANKS, **options)
    groups = {count: distributed.new_group(range(count)) for count in (1, 2, 3)}
    found = {}
    for parts in PARTS:
        if rank < len(parts):
            for name, (model, x) in cases().items():
                RUNS[name](model, x, parts, rank, groups[len(parts)])
                found[name, parts] = gradients(model)
    found["refusals"] = refusals(rank, groups[2])
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder),), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", RUNS)
def test_any_number_of_ranks_has_the_bits_of_one_process(ranks, name):
    model, x = cases()[name]
    backward(model, x)
    for parts in PARTS:
        for found in ranks[: len(parts)]:
            same(found[name, parts], gradients(model))


@pytest.mark.parametrize(
    "name, texts",
    [
        ("gap", ["parts of RMSNorm are not one batch", "Rows: 0 to 6 on rank 0, 15 to 21 on rank 1", "`start` is the"]),
        ("overlap", ["are not one batch", "Rows: 0 to 6 on rank 0, 3 to 9 on rank 1"]),
        ("late", ["rows are missing before the first", "Rows: 9 to 15 on rank 0, 15 to 21 on rank 1"]),
        ("types", ["are not one batch", "f32", "f64"]),
        ("norms", ["rank 1 has other norms than rank 0", "more", "norm"]),
    ],
)
def test_parts_that_are_not_one_batch_are_refused_on_all_ranks(ranks, name, texts):
    for found in ranks[:2]:
        for text in texts:
            assert text in found["refusals"][name]
    assert ranks[0]["refusals"][name] == ranks[1]["refusals"][name]


def test_other_refusals(ranks):
    found = ranks[1]["refusals"]
    assert "this process is not in the group" in found["outside"]
    assert "with a mask, start=2 samples do not tell how many rows come before: give" in found["tokens"]
