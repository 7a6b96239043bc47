"""What is measured: the table of cells, the tensors of a cell, and whether a contestant's results are right."""

import copy
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch

EPS = 1e-6  # under every root, in every contestant

FORWARD, BACKWARD, TRAINING = "forward", "backward", "forward + backward"
NCHW, NHWC = "NCHW", "NHWC"
FRESH, PREALLOCATED = "fresh", "preallocated"
OURS, FLOOR = ("isonorm_torch", "isonorm_numpy"), "copy"  # modules of peers/ that are no peers


@dataclass(frozen=True)
class Cell:
    """One operation on one shape of one dtype; parameters have the dtype too.

    `norm` is RMSNorm, LayerNorm, add + RMSNorm (both y and the sum are results) or BatchNorm, which is evaluation
    where it is a forward pass alone and training otherwise. A backward pass gives all gradients.
    """

    norm: str
    shape: tuple[int, ...]
    dtype: str = "f32"
    work: str = FORWARD
    layout: str = ""  # of BatchNorm's tensors in memory; the shape is N, C, H, W always

    @property
    def name(self):
        work = "" if self.work == FORWARD else f" {self.work}"
        layout = f" {self.layout}" if self.layout else ""
        return f"{self.norm}{work} {self.dtype} {'x'.join(map(str, self.shape))}{layout}"

    @property
    def is_rows(self):
        return not self.layout

    @property
    def has_bias(self):
        return self.norm in ("LayerNorm", "BatchNorm")


def _cells():
    """The shapes of the core's benchmark and those of single tokens."""
    image, small = (32, 64, 56, 56), (32, 512, 7, 7)
    for rows in ((1, 64), (1, 2048), (1, 4096), (32, 4096), (512, 4096), (4096, 4096), (65536, 128)):
        for norm in ("RMSNorm", "LayerNorm"):
            for dtype in ("f32", "bf16"):
                yield Cell(norm, rows, dtype)
    for dtype in ("f32", "bf16"):
        yield Cell("add + RMSNorm", (4096, 4096), dtype)
    for layout in (NCHW, NHWC):
        yield Cell("BatchNorm", image, layout=layout)
    for norm in ("RMSNorm", "LayerNorm"):
        for rows in ((1, 64), (1, 4096), (32, 4096), (2048, 4096), (65536, 128), (16384, 1024)):
            yield Cell(norm, rows, work=TRAINING)
        yield Cell(norm, (2048, 4096), "bf16", TRAINING)
        yield Cell(norm, (2048, 4096), work=BACKWARD)
    for shape in (image, small):
        for layout in (NCHW, NHWC):
            yield Cell("BatchNorm", shape, work=TRAINING, layout=layout)


CELLS = tuple(_cells())


class Tensors:
    """The tensors of a cell, which all contestants share.

    They are PyTorch's; `numpy()` gives the same memory as arrays. PyTorch starts tensors at 64 bytes, where every
    contestant likes them. `y` is where preallocated results go, `dx` where gradients do.
    """

    def __init__(self, cell, device="cpu", seed=0):
        random = torch.Generator(device).manual_seed(seed)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[cell.dtype]
        memory = torch.channels_last if cell.layout == NHWC else torch.contiguous_format

        def normal(shape, scale=1.0, shift=0.0):
            return torch.randn(shape, generator=random, device=device).mul_(scale).add_(shift).to(dtype)

        def large():
            return normal(cell.shape).contiguous(memory_format=memory)

        params = cell.shape[-1:] if cell.is_rows else cell.shape[1:2]
        self.x, self.weight = large(), normal(params, 0.1, 1.0)
        self.bias = normal(params, 0.1) if cell.has_bias else None
        self.residual = large() if cell.norm.startswith("add") else None
        self.dy = None if cell.work == FORWARD else large()
        self.mean, self.var = (None, None) if cell.is_rows else (normal(params, 0.1), normal(params, 0.1, 1.0))
        self.y, self.sum, self.dx = (torch.empty_like(self.x) for _ in range(3))

    def to(self, device):
        """The same values in memory of another device."""
        found = copy.copy(self)
        for name, tensor in vars(self).items():
            setattr(found, name, None if tensor is None else tensor.detach().to(device))
        return found

    def results(self):
        """What preallocated results are written into."""
        return self.y, self.sum, self.dx

    def numpy(self, *names):
        """These tensors as arrays, None where there is none."""
        return [None if getattr(self, name) is None else array(getattr(self, name)) for name in names]


def array(tensor):
    """The same memory as a NumPy array; of another device than the CPU a copy."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


# The equations, differentiated by PyTorch.


def _rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def _layer_norm(x, weight, bias):
    deviation = x - x.mean(-1, keepdim=True)
    return deviation / torch.sqrt((deviation * deviation).mean(-1, keepdim=True) + EPS) * weight + bias


def _batch_norm(x, weight, bias, mean=None, var=None):
    weight, bias, mean, var = (p if p is None else p.view(1, -1, 1, 1) for p in (weight, bias, mean, var))
    if mean is None:
        mean = x.mean((0, 2, 3), keepdim=True)
        var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + EPS) * weight + bias


def reference(cell, tensors):
    """The results in float64: y and the sum, or the gradients of x, weight and bias."""
    names = ("x", "weight", "bias", "residual", "mean", "var", "dy")
    t = {name: None if getattr(tensors, name) is None else getattr(tensors, name).double() for name in names}
    if cell.norm == "add + RMSNorm":
        # The sum is rounded to the tensors' dtype, and that is what is normalized.
        total = (t["x"] + t["residual"]).to(tensors.x.dtype).double()
        return _rms_norm(total, t["weight"]), total
    inputs = [t["x"], t["weight"]] + ([t["bias"]] if cell.has_bias else [])
    function = {"RMSNorm": _rms_norm, "LayerNorm": _layer_norm, "BatchNorm": _batch_norm}[cell.norm]
    if cell.work == FORWARD:
        return (function(*inputs, t["mean"], t["var"]) if cell.norm == "BatchNorm" else function(*inputs),)
    with torch.enable_grad():
        y = function(*(tensor.requires_grad_() for tensor in inputs))
        return torch.autograd.grad(y, inputs, t["dy"])


# Of the length of the result: sums over 65536 rows in float32, in any order, and gradients that are summed in bfloat16.
_TOLERANCE = {"f32": 1e-4, "bf16": 0.2}


def fault(cell, results, expected):
    """What is wrong with the results, or None: nobody is timed for doing nothing, or something else."""
    results = results if isinstance(results, (tuple, list)) else (results,)
    if len(results) < len(expected):
        return f"{len(results)} results, expected {len(expected)}"
    names = ("y", "sum") if cell.work == FORWARD else ("dx", "dweight", "dbias")
    for name, found, wanted in zip(names, results, expected, strict=False):
        found = found if isinstance(found, torch.Tensor) else np.asarray(found)
        if found.ndim == 4 and found.shape != wanted.shape:
            found = found.transpose(0, 3, 1, 2)  # an array whose shape is N, H, W, C
        some = slice(None, None, max(1, len(wanted) // 128) if wanted.ndim > 1 else 1)  # of the rows
        found, wanted = found[some], array(wanted[some])
        found = array(found) if isinstance(found, torch.Tensor) else found
        error = np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted)
        if not error <= _TOLERANCE[cell.dtype]:
            return f"{name} is off by {error:.1%} of its length"
    return None
