"""The device's time of isonorm, its peers and a copy of as many bytes, row by row; and the host's time of a call."""

import gc

import torch
import torch.nn.functional as F

import isonorm.torch.functional
import peers
from cells import EPS, FLOOR, FORWARD, FRESH, Tensors, fault, reference
from on_gpu.compare import difference
from on_gpu.rotation import Lane, measure, pool
from on_gpu.rows import rows
from peers import isonorm_torch
from timing import measure as measure_host

OURS, HOST = "isonorm_torch", "host"
ROUNDS, SECONDS = {"cuda": 31, "cpu": 5}, {"cuda": 4.0, "cpu": 0.1}  # of a row, as run.py's


def run(progress, device):
    contestants, missing = peers.load_gpu()
    del contestants[FLOOR]  # which is measured of all of a row's bytes
    versions = {module: {"name": peer.NAME, "version": peer.version()} for module, peer in contestants.items()}
    progress.record("peers", {"found": versions, "missing": missing})
    table = rows(device)
    progress.record("names", {name: {"of_copy": row.of_copy} for name, row in table.items()})
    for name in progress.steps([HOST, *table]):
        try:
            result = host(device) if name == HOST else of_row(table[name], contestants, device)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        progress.record(name, result)
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()  # which raises where the process is lost: it is started again
            torch.cuda.empty_cache()


def of_row(row, contestants, device):
    """Everything there is to say of a row."""
    cell = row.cell
    with torch.set_grad_enabled(cell.work != FORWARD):
        tensors = pool(cell, device)
        lanes, wrong, differs = {}, [], None
        if row.streams:
            lanes[FLOOR] = Lane(lambda t: copy(t, row.streams), tensors, device)
        expected = reference(cell, tensors[0])
        for module, peer in contestants.items():
            try:
                if FRESH not in peer.contestants(cell, tensors[0]):
                    continue
                lane = Lane(lambda t, peer=peer: peer.contestants(cell, t)[FRESH], tensors, device)
                first = lane.first()
                why = fault(cell, first, expected)
                if module == OURS:
                    differs = difference(as_tuple(first), on_cpu(cell, tensors[0]))
                del first
            except Exception as error:
                why = f"{type(error).__name__}: {error}"[:300]
            if why is None:
                lanes[module] = lane
            else:
                wrong.append({"peer": module, "fault": why})
        del expected
        for lane in lanes.values():
            lane.capture()
        times = measure(lanes, ROUNDS[device], SECONDS[device])
    size = (row.streams or 0) * tensors[0].x.nbytes
    found = {"bytes": size, "pool": len(tensors), "difference": differs, "wrong": wrong}
    return found | {"results": [{"peer": module, **time} for module, time in times.items()]}


def as_tuple(found):
    return found if isinstance(found, tuple) else (found,)


def on_cpu(cell, tensors):
    """isonorm's results on the CPU."""
    return as_tuple(isonorm_torch.contestants(cell, tensors.to("cpu"))[FRESH]())


def copy(tensors, streams):
    """One copy that reads half of the streams and writes the other half."""
    parts = [tensor.detach().flatten() for tensor in (tensors.x, tensors.residual, tensors.dy) if tensor is not None]
    source = torch.cat(parts)[: tensors.x.numel() * streams // 2].clone()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def host(device):
    """What a call takes the host, without waiting for the device."""
    x, weight, bias = (torch.randn(shape, device=device) for shape in ((1, 64), (64,), (64,)))
    isonorm_F = isonorm.torch.functional
    calls = {
        "F.layer_norm": lambda: F.layer_norm(x, (64,), weight, bias, EPS),
        "F.rms_norm": lambda: F.rms_norm(x, (64,), weight, EPS),
        "isonorm layer_norm": lambda: isonorm_F.layer_norm(x, (64,), weight, bias, EPS),
        "isonorm rms_norm": lambda: isonorm_F.rms_norm(x, (64,), weight, EPS),
    }
    with torch.no_grad():
        times = measure_host(calls, ROUNDS[device], SECONDS[device])
    return {"results": [{"peer": name, **time} for name, time in times.items()]}


def warm(module, progress, device):
    """Compiles what a peer needs for all rows, so that measuring finds it in the peer's cache on disk."""
    peer = peers.load_gpu()[0].get(module)
    table = rows(device) if peer else {}
    for name in progress.steps(table):
        cell = table[name].cell
        try:
            with torch.set_grad_enabled(cell.work != FORWARD):
                call = peer.contestants(cell, Tensors(cell, device)).get(FRESH)
                result = {"compiled": call is not None and call() is not None}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
        progress.record(name, result)
