"""How the device computes a case: once, again and again, compiled, on several streams, in a graph, among many rows."""

import dataclasses

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


def far(case, tensors):
    """Repeated until elements need 32 bits and bytes more: the first block of rows, the last, and that at the border.

    The case has no parameters, whose gradients would be those of all rows.
    """
    count, border = case.shape[0], 2**31 // tensors["x"].numel()
    times = border + 2
    many = {name: tensor.repeat(times, *[1] * (tensor.dim() - 1)) for name, tensor in tensors.items()}
    whole = dataclasses.replace(case, shape=(count * times, *case.shape[1:])).call(_plain, **many)
    found = [tuple(y[count * at : count * (at + 1)].clone() for y in whole) for at in (0, border, times - 1)]
    del many, whole
    torch.cuda.empty_cache()  # other processes need memory too
    return found


ON_GPU_ALONE = ("streams", "graph", "far")
WAYS = {way.__name__: way for way in (once, again, compiled, streams, graph, far)}
