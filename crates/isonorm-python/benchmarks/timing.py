"""How it is measured: every contestant of a cell in turn, round by round, the order alternated, so that what the
machine does meanwhile falls on all of them alike."""

import gc
import time
from itertools import repeat

import numpy as np

SAMPLE = 1e-2  # a sample repeats the call until it lasts about this many seconds
LEAST_ROUNDS = 5
_SETTLED = 0.1  # of a core, between samples


def measure(contestants, rounds, seconds):
    """Microseconds per call of each; `contestants` are functions by name.

    After `seconds` no more rounds are begun, but there are `LEAST_ROUNDS` at least.
    """
    names = list(contestants)
    plan = {name: _calibrate(contestants[name]) for name in names}
    times = {name: [] for name in names}
    gc.collect()
    gc.disable()
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name in order(names, turn):
            settle()
            before, calls = plan[name]
            _run(contestants[name], before)
            times[name].append(_run(contestants[name], calls) / calls * 1e6)
    gc.enable()
    return {name: summary(times[name]) | {"rounds": len(times[name]), "calls": plan[name][1]} for name in names}


def settle():
    """Waits until no thread of this process is at work.

    Threads of OpenMP and onnxruntime wait actively for some milliseconds after a call, which their own next call
    gains from, so nobody is forbidden to; but another's call would have to share its core with them.
    """
    deadline = time.perf_counter() + 0.25
    while time.perf_counter() < deadline:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(1e-3)
        if time.process_time() - used < _SETTLED * (time.perf_counter() - start):
            return


def order(names, turn):
    """Forwards in even rounds, backwards in odd ones, a different first every two rounds."""
    turned = names if turn % 2 == 0 else names[::-1]
    first = turn // 2 % len(names)
    return turned[first:] + turned[:first]


def _run(call, times):
    start = time.perf_counter()
    for _ in repeat(None, times):
        call()
    return time.perf_counter() - start


def _calibrate(call):
    """How many calls come before a sample, untimed, and how many it has.

    Those before undo what another contestant left in caches and threads; a call of many milliseconds does it itself.
    """
    once = _run(call, 1)
    if once > SAMPLE:
        return 0, 1
    once = min(once, _run(call, 1), _run(call, 1))
    few = max(1, int(SAMPLE / 10 / once))
    calls = max(1, int(SAMPLE * few / _run(call, few)))
    return -(-calls // 8), calls


def summary(times):
    least, q1, median, q3, most = np.percentile(times, (0, 25, 50, 75, 100))
    found = {"median_us": median, "q1_us": q1, "q3_us": q3, "min_us": least, "max_us": most}
    return {name: round(float(value), 3) for name, value in found.items()}
