"""isonorm's Python package beside other libraries: one run, all contestants in turn, medians.

    python run.py                       # both thread counts, about seven minutes; results/speed.json
    python run.py --cells RMSNorm --threads 1 --rounds 5 --output some.json
    python report.py                    # the table and the plot of docs/python-speed.md

It needs torch, ml_dtypes and those of the peers that are to be compared: onednn, onnx, onnxruntime, jax.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import record

RESULTS = pathlib.Path(__file__).parent / "results"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=4.0, help="after which a cell has no more rounds than five")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", default="", help="only cells whose name contains this")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "speed.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    parts = [part(options, threads) for threads in options.threads]
    whole = parts[0] | {"cells": [cell for each in parts for cell in each["cells"]]}
    record.save(options.output, whole)


def part(options, threads):
    """The results of one thread count, from a process of its own: a pool's size is settled when it starts."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        sys.exit(f"{threads} threads need as many cores, and this process may use {len(cores)}: choose fewer --threads")
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "part.json"
        same = ["--rounds", str(options.rounds), "--seconds", str(options.seconds), "--cells", options.cells]
        command = [sys.executable, __file__, "--child", "--threads", str(threads), "--output", str(output), *same]
        subprocess.run(command, env=environment(threads), check=True)
        return json.loads(output.read_text())


def environment(threads):
    """What libraries read when they are loaded. Those that are not named here follow the affinity."""
    count = str(threads)
    pools = {name: count for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    return os.environ | pools | {"JAX_PLATFORMS": "cpu"}


def child(options):
    threads = options.threads[0]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # before any library counts cores
    import torch

    import peers
    from cells import CELLS, FORWARD

    torch.set_num_threads(threads)
    contestants, missing = peers.load()
    for name, why in missing.items():
        print(f"without {name}: {why}", file=sys.stderr)
    cells = []
    for cell in (cell for cell in CELLS if options.cells in cell.name):
        start = time.perf_counter()
        with torch.set_grad_enabled(cell.work != FORWARD):
            cells.append({"threads": threads, **cell_results(cell, contestants, options)})
        print(f"{threads} threads, {cell.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    found = {"rounds": options.rounds, "machine": record.machine()}
    found["peers"] = {module: {"name": peer.NAME, "version": peer.version()} for module, peer in contestants.items()}
    record.save(options.output, found | {"missing": missing, "cells": cells})


def cell_results(cell, contestants, options):
    """The cell and what each contestant took for it; who computes something else is named and not timed."""
    from cells import FLOOR, Tensors, fault, reference
    from timing import measure

    tensors = Tensors(cell)
    expected = reference(cell, tensors)
    calls, wrong = {}, []
    for module, peer in contestants.items():
        for mode, call in peer.contestants(cell, tensors).items():
            for result in tensors.results():
                result.fill_(float("nan"))  # so that another's result cannot pass for this one's
            found = call()
            why = None if module == FLOOR else fault(cell, found, expected)
            if why is None:
                calls[module, mode] = call
            else:
                wrong.append({"peer": module, "mode": mode, "fault": why})
    del expected, found
    timed = measure(calls, options.rounds, options.seconds)
    results = [{"peer": module, "mode": mode, **times} for (module, mode), times in timed.items()]
    described = {name: getattr(cell, name) for name in ("name", "norm", "work", "dtype", "layout", "shape")}
    return described | {"wrong": wrong, "results": results}


if __name__ == "__main__":
    main()
