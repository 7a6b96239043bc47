"""isonorm on a GPU: its bits beside the CPU's, NVIDIA's compute-sanitizer, its speed beside a copy's and others'.

    python gpu.py                                  # everything, in at most nine minutes; results/gpu.json
    python gpu.py --only speed --minutes 5 --json some.json
    python gpu.py --device cpu --first 200         # the script itself, in tiny sizes

It needs torch and ml_dtypes; of the peers (requirements-gpu.txt) and compute-sanitizer it says what is not there. What
there was no time for is named in the JSON as not reached. The exit status is 1 where bits differ, isonorm fails or a
sanitizer complains.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import time

import record
from on_gpu import sanitizer, table
from on_gpu.process import GRACE, Child, wait
from on_gpu.progress import Progress
from run import RESULTS, environment

SHARES = {"bits": 0.28, "sanitizer": 0.17, "speed": 0.55}  # of the time; what a part leaves is the next one's
PROCESSES = {"cuda": 4, "cpu": 1}  # that compute bits at once
WARM = ("compiled", "gpu.liger", "gpu.fla", "gpu.quack")  # peers whose compiling takes long


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SHARES, help="this part alone")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, compiling included")
    parser.add_argument("--first", type=int, help="only so many cases of bits, the most telling ones")
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS / "gpu.json")
    parser.add_argument("--device", choices=PROCESSES, default="cuda")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the parts' processes are ended too
    found = {"machine": record.machine(), "device": {"kind": options.device}, "minutes": options.minutes, "cells": []}
    with tempfile.TemporaryDirectory() as folder:
        parts(options, pathlib.Path(folder), found)
    print("\n".join(table.lines(found)))
    sys.exit(1 if table.is_wrong(found) else 0)


def parts(options, folder, found):
    """Runs the parts one after another; their results are on disk after each."""
    chosen = [options.only] if options.only else list(SHARES)
    begin, reserve = time.time(), min(GRACE, 6 * options.minutes)
    whole = sum(SHARES[part] for part in chosen)
    warm = []
    if "speed" in chosen and len(chosen) > 1 and options.device == "cuda":
        # They choose again what is fastest when they are measured, on a quiet machine.
        warm = [background(options, folder, peer, begin + 60 * options.minutes) for peer in WARM]
    past = 0.0
    for part in chosen:
        past += SHARES[part] / whole
        until = begin + (60 * options.minutes - reserve) * past
        for each in warm if part == "speed" else ():
            each.stop()
        start = time.time()
        try:
            {"bits": bits, "sanitizer": sanitized, "speed": speed}[part](options, folder, until, found)
        except Exception as error:  # the others run all the same
            found.setdefault("failed", {})[part] = f"{type(error).__name__}: {error}"
        found["device"].setdefault("seconds", {})[part] = round(time.time() - start, 1)
        record.save(options.json, found)


def background(options, folder, peer, until):
    """Compiles for a peer, beside the parts before speed."""
    same = environment(1) | {"FLA_CACHE_RESULTS": "0"}
    return Child(folder, f"warm {peer}", options.device, until, ("--child", f"warm {peer}"), environment=same.items())


def bits(options, folder, until, found):
    """Several processes share the cases: compiling takes longer than computing."""
    count = PROCESSES[options.device]
    threads = environment(max(1, len(os.sched_getaffinity(0)) // count)).items()
    first = ("--first", str(options.first)) if options.first else ()
    children = []
    for share in map(str, range(count)):
        more = ("--child", "bits", "--share", share, str(count), *first)
        children.append(Child(folder, f"bits {share}", options.device, until, more, environment=threads))
    wait(children)
    steps = {name: result for each in children for name, result in each.found().items()}
    found["device"] |= steps.pop("device", {})
    names = steps.pop("names", [])
    found["bits"] = {"cases": steps, "not_reached": [name for name in names if name not in steps]}
    found["bits"]["logs"] = [each.tail() for each in children if each.process.returncode != 0]


def sanitized(options, folder, until, found):
    found["sanitizer"] = sanitizer.run(folder, options.device, until)


def speed(options, folder, until, found):
    measuring = Child(folder, "speed", options.device, until, ("--child", "speed"))
    wait([measuring])
    steps = measuring.found()
    found["device"] |= steps.pop("device", {})
    names, found["peers"], found["host"] = (steps.pop(name, {}) for name in ("names", "peers", "host"))
    none = {"not_reached": True}
    found["cells"] = [{"name": name} | target | steps.get(name, none) for name, target in names.items()]
    found["speed_log"] = measuring.tail() if measuring.process.returncode != 0 else []


def child(options):
    """A part, in the process that it has."""
    from on_gpu import bits, device, speed

    progress, kind = Progress(options.progress, options.until), options.device
    part, _, peer = options.child.partition(" ")
    if part == "warm":
        return speed.warm(peer, progress, kind)
    progress.record("device", device.described(kind))
    if part == "speed":
        return speed.run(progress, kind)
    chosen = bits.all_cases(kind)[: options.first] if part == "bits" else bits.few_cases(kind)
    progress.record("names", [case.name for case in chosen])
    bits.run(progress, chosen, kind, options.share)


if __name__ == "__main__":
    main()
