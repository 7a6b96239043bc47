"""The cases of the norms of channels: BatchNorm, GroupNorm, InstanceNorm, in both layouts (see cases.py)."""

import itertools
import math
from dataclasses import dataclass

import torch

import isonorm.torch.functional as F
from on_gpu.cases import DTYPES, differentiated, generator, named, normal, results
from on_gpu.layouts import hostile


@dataclass(frozen=True)
class Planes:
    """A norm of samples x channels x positions: without gradients, and with all of them.

    `layout` is NCHW, NHWC or a view of every second channel; `writes` is `out` or `x`.
    """

    norm: str
    shape: tuple[int, ...]
    x: str = "f32"
    params: str | None = "f32"
    groups: int = 0
    training: bool = True
    running: bool = True
    layout: str = "NCHW"
    values: str = "normal"
    writes: str | None = None
    options: tuple = ()
    way: str = "once"

    @property
    def name(self):
        return named(self)

    def tensors(self):
        random, (samples, channels, *positions) = generator(self), self.shape
        memory = (samples, channels * (2 if self.layout == "sliced" else 1), *positions)
        dtype = DTYPES[self.x]
        x = hostile(memory, dtype, random) if self.values == "hostile" else normal(memory, self.x, random, 1.0, 0.5)
        found = {"x": x, "dy": normal(memory, self.x, random)}
        if self.params:
            found["weight"] = normal((channels,), self.params, random, 0.5, 1.0)
            found["bias"] = normal((channels,), self.params, random)
        if self.running:
            found["mean"] = normal((channels,), "f64" if self.x == "f64" else "f32", random)
            found["var"] = found["mean"].abs() + 0.5
        return {name: self._laid_out(tensor) for name, tensor in found.items()}

    def _laid_out(self, tensor):
        if self.layout != "NHWC" or tensor.dim() < 3:
            return tensor
        last = tensor.movedim(1, -1).contiguous()
        return last.movedim(-1, 1)

    def call(self, wrap, x, dy, weight=None, bias=None, mean=None, var=None):
        x, dy = (tensor[:, ::2] if self.layout == "sliced" else tensor for tensor in (x, dy))
        params, running = [t for t in (weight, bias) if t is not None], (mean, var)
        function = wrap(self._function())
        out = {None: None, "x": x, "out": torch.empty_like(x)}[self.writes]
        with torch.no_grad():
            plain = results(function(running, x, *params, out=out))
        moved = () if mean is None else (mean.clone(), var.clone())
        if self.writes:
            return *plain, *moved
        return *plain, *moved, *differentiated(lambda *leaves: function(running, *leaves), [x, *params], [dy])

    def _function(self):
        options = {"eps": 1e-5} | dict(self.options)

        def function(running, x, weight=None, bias=None, out=None):
            if self.norm == "group_norm":
                return F.group_norm(x, self.groups, weight, bias, out=out, **options)
            norm = getattr(F, self.norm)
            return norm(x, *running, weight, bias, self.training, 0.1, out=out, **options)

        return function


BATCH, GROUP, INSTANCE = "batch_norm", "group_norm", "instance_norm"
_IMAGES = ((32, 64, 56, 56), (8, 512, 7, 7), (5, 6, 33, 31), (2, 3, 224, 224), (64, 256, 14, 14), (1, 1, 2, 1))
_IMAGES += ((3, 130, 1, 5), (17, 32, 9, 9), (2, 2048, 4, 4), (700, 8, 3, 3), (1, 5, 300, 301))
_OTHERS = ((4096, 64), (70_000, 3), (2, 1000), (16, 48, 1024), (4, 12, 5, 6, 7), (1, 16, 70_001))


def _fit(shape, most):
    """At most about `most` elements, or one sample."""
    return max(1, min(shape[0], most // math.prod(shape[1:]))), *shape[1:]


def _batch(most):
    for shape, layout, x in itertools.product(_IMAGES, ("NCHW", "NHWC"), ("f32", "bf16")):
        if math.prod(_fit(shape, most)) > shape[1]:
            yield Planes(BATCH, _fit(shape, most), x, layout=layout)
    for shape, x in itertools.product(_OTHERS, ("f32", "f16", "f64")):
        fitting = max(2, _fit(shape, most)[0]), *shape[1:]
        yield Planes(BATCH, fitting, x, params="f64" if x == "f64" else "f32")


def _options(most):
    shape = _fit((8, 40, 14, 14), most)
    for layout, x in itertools.product(("NCHW", "NHWC"), ("f32", "bf16")):
        yield Planes(BATCH, shape, x, training=False, layout=layout)
        yield Planes(BATCH, shape, x, training=False, layout=layout, writes="x")
        yield Planes(BATCH, shape, x, layout=layout, writes="out")
        yield Planes(BATCH, shape, x, params=None, running=False, layout=layout)
        yield Planes(BATCH, shape, x, params=x, layout=layout, options=(("weight_offset", 1.0), ("eps", 0.0)))
        yield Planes(BATCH, shape, x, layout=layout, values="hostile", options=(("eps", 0.0),))
        yield Planes(GROUP, shape, x, groups=8, layout=layout, values="hostile", running=False)
        yield Planes(GROUP, shape, x, groups=5, params=x, layout=layout, writes="x", running=False)
        yield Planes(INSTANCE, shape, x, training=False, layout=layout)
        yield Planes(INSTANCE, shape, x, layout=layout, options=(("weight_offset", 1.0),))
    for norm, groups in ((BATCH, 0), (GROUP, 4), (INSTANCE, 0)):
        yield Planes(norm, shape, layout="sliced", groups=groups, running=norm != GROUP)


def _groups(most):
    groups = (32, 1, 8, 4, 2)
    for shape, layout, x in itertools.product(_IMAGES, ("NCHW", "NHWC"), ("bf16", "f32")):
        count = next(count for count in groups if shape[1] % count == 0)
        if math.prod(shape[2:]) * shape[1] // count > 1:
            yield Planes(GROUP, _fit(shape, most), x, groups=count, layout=layout, running=False)
    for shape, x in itertools.product(_OTHERS, ("f32", "f16", "f64")):
        params = "f64" if x == "f64" else "f32"
        yield Planes(GROUP, _fit(shape, most), x, params, groups=1, running=False)


def _instances(most):
    shapes = [shape for shape in (*_IMAGES, *_OTHERS) if math.prod(shape[2:]) > 1]
    for shape, layout in itertools.product(shapes, ("NCHW", "NHWC")):
        for x, running in (("f32", True), ("bf16", False)):
            yield Planes(INSTANCE, _fit(shape, most), x, layout=layout, running=running)


def _ways(most):
    shape = _fit((16, 64, 28, 28), most)
    for way, layout in itertools.product(("streams", "graph", "compiled", "again"), ("NCHW", "NHWC")):
        for norm, groups in ((BATCH, 0), (GROUP, 8), (INSTANCE, 0)):
            running = norm == BATCH and way != "compiled"  # which moves between graphs
            yield Planes(norm, shape, groups=groups, running=running, layout=layout, way=way)
    yield Planes(GROUP, shape, "bf16", params=None, groups=8, running=False, way="far")


SECTIONS = (_batch, _groups, _instances, _options, _ways)


def few():
    """One of each kind of kernel, small: what a sanitizer can do in its time."""
    for layout, shape in itertools.product(("NCHW", "NHWC"), ((3, 6, 5, 5), (2, 64, 9, 9))):
        for norm, groups in ((BATCH, 0), (GROUP, 2), (INSTANCE, 0)):
            yield Planes(norm, shape, "bf16", groups=groups, running=norm != GROUP, layout=layout)
        yield Planes(BATCH, shape, training=False, layout=layout)
        yield Planes(BATCH, shape, layout=layout, values="hostile", options=(("eps", 0.0),))
