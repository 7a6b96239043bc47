"""How the device's time of a call is measured: in a captured graph, over a pool of tensors that no cache can hold.

Each call of a graph reads other tensors and writes other memory, which is the graph's own, as if all results were
preallocated; a call's time on the host is not part of it.
"""

import gc
import time

import torch

from cells import Tensors
from timing import LEAST_ROUNDS, order, summary

LEAST_CALLS = 24  # of a graph: what its launch takes is little beside them
POOL = 2  # times the second cache


def cache(device):
    """Bytes of the second cache."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0


def pool(cell, device):
    """Sets of tensors of which each call uses the next."""
    first = Tensors(cell, device)
    used = (first.x, first.weight, first.bias, first.residual, first.dy, first.y)
    size = sum(tensor.nbytes for tensor in used if tensor is not None)
    count = max(2, -(-POOL * cache(device) // size))
    return [first, *(Tensors(cell, device, seed) for seed in range(1, count))]


class Lane:
    """A contestant: its calls, one for each set of tensors, which `make` makes."""

    def __init__(self, make, pool, device):
        self.passes, self.device = max(1, -(-LEAST_CALLS // len(pool))), device
        self.replay, self.how = self._all, "loop"
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        if device == "cuda":
            torch.cuda.synchronize()  # the tensors are made on another stream
        with torch.cuda.stream(self.stream):
            self.calls = [make(tensors) for tensors in pool]
        self.kept = [None] * len(pool)

    def first(self):
        """The first call's results; it compiles and chooses what there is to."""
        with torch.cuda.stream(self.stream):
            found = self.calls[0]()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return found

    def capture(self):
        """Makes a graph of all calls, where the device has graphs and the contestant can be captured."""
        if self.device == "cuda":
            try:
                self.replay, self.how = self._captured(), "graph"
            except Exception as error:  # of whatever library it is
                self.how = f"loop: {error}"[:200]

    def _all(self):
        for _ in range(self.passes):
            for at, call in enumerate(self.calls):
                self.kept[at] = None  # its memory is the next result's
                self.kept[at] = call()

    def _captured(self):
        with torch.cuda.stream(self.stream):
            for call in self.calls[:2]:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._all()
        return graph.replay

    def sample(self):
        """Microseconds of a call: of all the calls of a replay behind another."""
        self.replay()
        return self._timed() * 1e6 / (self.passes * len(self.calls))

    def _timed(self):
        if self.device == "cpu":
            start = time.perf_counter()
            self.replay()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def measure(lanes, rounds, seconds):
    """What a call of each takes, in turn, the order turned round by round as in timing.py."""
    names, times = list(lanes), {name: [] for name in lanes}
    gc.collect()
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name in order(names, turn):
            times[name].append(lanes[name].sample())
    return {name: summary(found) | {"rounds": len(found), "how": lanes[name].how} for name, found in times.items()}
