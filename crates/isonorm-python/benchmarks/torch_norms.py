"""isonorm against PyTorch's own norms: one run, all contestants in turn, medians. `python torch_norms.py [--rounds N]`.

Fresh results are compared with fresh ones, preallocated with preallocated ones.
"""

import argparse
import platform
import statistics
import time

import torch
import torch.nn.functional as T

import isonorm.torch
import isonorm.torch.functional as F


def interleaved(contestants, calls, rounds):
    """The median time of a call of each, in microseconds; each takes its turn in each round."""
    times = {name: [] for name in contestants}
    for call in contestants.values():
        call()
    for _ in range(rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(each) for name, each in times.items()}


def backward(function, inputs, dy):
    return lambda: torch.autograd.grad(function(), inputs, dy)


def rows(shape, dtype):
    hidden = shape[-1]
    x, weight, bias = torch.randn(shape, dtype=dtype), torch.ones(hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
    return x, (hidden,), weight, bias


def forward_cells():
    for shape, dtype, calls in (
        ((1, 64), torch.float32, 2000),
        ((1, 4096), torch.float32, 2000),
        ((512, 4096), torch.float32, 5),
        ((4096, 4096), torch.float32, 1),
        ((4096, 4096), torch.bfloat16, 1),
    ):
        x, size, weight, bias = rows(shape, dtype)
        contestants = {
            "isonorm rms_norm": lambda x=x, s=size, w=weight: F.rms_norm(x, s, w, 1e-6),
            "torch rms_norm": lambda x=x, s=size, w=weight: T.rms_norm(x, s, w, 1e-6),
            "isonorm layer_norm": lambda x=x, s=size, w=weight, b=bias: F.layer_norm(x, s, w, b),
            "torch layer_norm": lambda x=x, s=size, w=weight, b=bias: T.layer_norm(x, s, w, b),
        }
        yield f"forward {shape[0]}x{shape[1]} {dtype}, fresh", contestants, calls
        if x.numel() >= 1 << 20:
            out, (mean, rstd) = torch.empty_like(x), torch.empty(2, shape[0], 1, dtype=dtype)
            yield (
                f"forward {shape[0]}x{shape[1]} {dtype}, preallocated (torch's rms_norm has no out=)",
                {
                    "isonorm rms_norm": lambda x=x, s=size, w=weight, o=out: F.rms_norm(x, s, w, 1e-6, out=o),
                    "torch rms_norm": contestants["torch rms_norm"],
                    "isonorm layer_norm": lambda x=x, s=size, w=weight, b=bias, o=out: F.layer_norm(x, s, w, b, out=o),
                    "torch layer_norm": lambda x=x, s=size, w=weight, b=bias, o=out, m=mean, r=rstd: (
                        torch.ops.aten.native_layer_norm.out(x, s, w, b, 1e-5, out0=o, out1=m, out2=r)
                    ),
                    "copy": lambda x=x, o=out: o.copy_(x),
                },
                calls,
            )


def training_cells():
    for shape, calls in (((1, 64), 500), ((1, 4096), 500), ((2048, 4096), 1)):
        x, size, weight, bias = rows(shape, torch.float32)
        x, weight, bias = (tensor.requires_grad_() for tensor in (x, weight, bias))
        dy = torch.randn(shape)
        two, three = (x, weight), (x, weight, bias)
        functions = {
            "isonorm rms_norm": (lambda x=x, s=size, w=weight: F.rms_norm(x, s, w, 1e-6), two),
            "torch rms_norm": (lambda x=x, s=size, w=weight: T.rms_norm(x, s, w, 1e-6), two),
            "isonorm layer_norm": (lambda x=x, s=size, w=weight, b=bias: F.layer_norm(x, s, w, b), three),
            "torch layer_norm": (lambda x=x, s=size, w=weight, b=bias: T.layer_norm(x, s, w, b), three),
        }
        cell = f"{shape[0]}x{shape[1]} float32"
        yield f"forward + backward {cell}", {n: backward(f, i, dy) for n, (f, i) in functions.items()}, calls
        if shape[0] > 1:
            alone = {}
            for name, (function, inputs) in functions.items():
                y = function()
                alone[name] = lambda y=y, i=inputs, d=dy: torch.autograd.grad(y, i, d, retain_graph=True)
            yield f"backward {cell}", alone, calls


def image_cells():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(32, 64, 56, 56).to(memory_format=memory_format).requires_grad_()
        dy = torch.randn(32, 64, 56, 56).to(memory_format=memory_format)
        norms = {"isonorm": isonorm.torch.BatchNorm2d(64), "torch": torch.nn.BatchNorm2d(64)}
        contestants = {
            f"{name} BatchNorm2d": backward(lambda norm=norm, x=x: norm(x), (x, norm.weight, norm.bias), dy)
            for name, norm in norms.items()
        }
        yield f"forward + backward 32x64x56x56 float32 {memory_format}", contestants, 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads, medians of {options.rounds}\n")
    print("| work | contestant | us | torch's / isonorm's |\n|---|---|---|---|")
    for cells, is_grad in ((forward_cells, False), (training_cells, True), (image_cells, True)):
        for work, contestants, calls in cells():
            with torch.set_grad_enabled(is_grad):
                found = interleaved(contestants, calls, options.rounds)
            for name, micros in found.items():
                other = found.get(name.replace("isonorm", "torch"))
                ratio = f"{other / micros:.2f} x" if name.startswith("isonorm") and other else ""
                print(f"| {work} | {name} | {micros:.2f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
