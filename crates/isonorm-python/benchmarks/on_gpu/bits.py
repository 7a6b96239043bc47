"""Whether the device computes the bits of the CPU, case by case."""

import time

import torch

from on_gpu import cases, planes
from on_gpu.compare import difference
from on_gpu.ways import ON_GPU_ALONE, WAYS, once

MOST = {"cuda": 2**20, "cpu": 2**11}  # elements of most cases: the CPU has to compute them too


def all_cases(device):
    sections = (*cases.SECTIONS, *planes.SECTIONS)
    return cases.in_turn([section(MOST[device]) for section in sections])


def few_cases(device):
    return cases.in_turn([cases.few(), planes.few()])


def run(progress, chosen, device, share=(0, 1)):
    """Every case whose number is the share's."""
    mine = {case.name: case for case in chosen[share[0] :: share[1]]}
    for name in progress.steps(mine):
        start = time.perf_counter()
        try:
            result = compared(mine[name], device)
        except torch.OutOfMemoryError:
            result = {"skipped": "out of the device's memory"}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        progress.record(name, result | {"seconds": round(time.perf_counter() - start, 3)})
        if "error" in result and device == "cuda":
            torch.cuda.synchronize()  # which raises where the process is lost: it is started again


def compared(case, device):
    """What there is to say of a case: `same`, `difference`, or why it was `skipped`."""
    if device == "cpu" and case.way in ON_GPU_ALONE:
        return {"skipped": f"{case.way}: a GPU's alone"}
    tensors = case.tensors()
    (expected,) = once(case, tensors)
    there = {name: tensor.to(device) for name, tensor in tensors.items()}
    for found in WAYS[case.way](case, there):
        differs = difference(found, expected)
        if differs:
            return {"difference": differs}
    return {"same": len(expected)}
