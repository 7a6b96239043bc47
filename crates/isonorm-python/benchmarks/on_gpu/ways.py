"""How the device computes a case: once, on several streams, in a graph, compiled, again and again."""

import torch

import isonorm.torch  # noqa: F401  registers the operators

STREAMS, TIMES = 4, 20


def _plain(function):
    return function


def copied(tensors):
    """The same values in other memory; what is given to a call may be written by it."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def once(case, tensors):
    return [case.call(_plain, **copied(tensors))]


def again(case, tensors):
    return [case.call(_plain, **copied(tensors)) for _ in range(TIMES)]


def compiled(case, tensors):
    torch.compiler.reset()

    def compile(function):
        return torch.compile(function, fullgraph=True, dynamic=False)

    return [case.call(compile, **copied(tensors))]


def streams(case, tensors):
    """All at once, without waiting for one another."""
    copies = [copied(tensors) for _ in range(STREAMS)]
    torch.cuda.synchronize()
    found = []
    for copy in copies:
        with torch.cuda.stream(torch.cuda.Stream()):
            found.append(case.call(_plain, **copy))
    torch.cuda.synchronize()
    return found


def graph(case, tensors):
    """Captured while the tensors hold ones, replayed with their values."""
    given, stream = {name: torch.ones_like(tensor) for name, tensor in tensors.items()}, torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        case.call(_plain, **copied(given))  # what is done once is not captured
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=stream):
        found = case.call(_plain, **given)
    for name, tensor in tensors.items():
        given[name].copy_(tensor)
    captured.replay()
    torch.cuda.synchronize()
    return [found]


ON_GPU_ALONE = ("streams", "graph")
WAYS = {way.__name__: way for way in (once, again, compiled, streams, graph)}
