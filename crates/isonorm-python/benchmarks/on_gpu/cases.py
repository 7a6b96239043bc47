"""The cases of the norms of rows: each is computed on the CPU and on the device, and the bits are compared.

A case has `name`, `way` (one of ways.py), `tensors()` on the CPU, and `call(wrap, **tensors)`, which computes the same
on any device and returns a tuple of tensors; `wrap` is put around the function that is tested.
"""

import itertools
import zlib
from dataclasses import dataclass, fields

import torch

import isonorm.torch.functional as F
from on_gpu.layouts import LAYOUTS, allocated, hostile, rows_of

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
MOST_ROWS = 70_000
CANARY = 7.0  # what memory beside a result holds, before and after


def generator(case):
    return torch.Generator().manual_seed(zlib.crc32(case.name.encode()))


def normal(shape, dtype, random, scale=1.0, shift=0.0):
    drawn = torch.float64 if dtype == "f64" else torch.float32
    return torch.randn(shape, generator=random, dtype=drawn).mul_(scale).add_(shift).to(DTYPES[dtype])


def named(case):
    """The values of the fields that are not the default."""
    shown = [(field.name, getattr(case, field.name), field.default) for field in fields(case)]
    return " ".join(_word(name, value) for name, value, default in shown if value != default)


def _word(name, value):
    if isinstance(value, tuple):  # a shape, or options
        return "x".join(map(str, value)) if name == "shape" else " ".join(f"{key}={entry}" for key, entry in value)
    return str(value) if name in ("norm", "x", "layout", "values", "way") else f"{name} {value}"


@dataclass(frozen=True)
class Rows:
    """RMSNorm or LayerNorm of rows, or of their sum with a residual: without gradients, and with all of them.

    `writes` names where a call writes instead: `out`, `x`, `strided`, or `inplace` of the residual add.
    """

    norm: str
    shape: tuple[int, int]
    x: str = "bf16"
    weight: str | None = "as x"
    bias: str | None = "as x"
    residual: str | None = None
    options: tuple = ()
    layout: str = "plain"
    values: str = "normal"
    writes: str | None = None
    way: str = "once"

    @property
    def name(self):
        return named(self)

    def tensors(self):
        random, (rows, hidden) = generator(self), self.shape
        memory = allocated(self.layout, rows, hidden)
        found = {"dy": normal(memory, self.x, random), "x": normal(memory, self.x, random)}
        if self.values == "hostile":
            found["x"] = hostile(memory, DTYPES[self.x], random)
        if self.values == "far":
            found["x"] = normal(memory, self.x, random, 1.0, 1000.0)
        if self.residual:
            found["residual"] = normal(memory, self.residual, random)
        for param, shift in (("weight", 1.0), ("bias", 0.0)):
            dtype = getattr(self, param)
            if dtype and not (param == "bias" and self.norm == "rms_norm"):
                found[param] = normal((hidden,), self.x if dtype == "as x" else dtype, random, 0.5, shift)
        return found

    def call(self, wrap, x, dy, weight=None, bias=None, residual=None):
        whole = x
        x, dy, residual = (t if t is None else rows_of(self.layout, t, *self.shape) for t in (x, dy, residual))
        inputs = [t for t in (x, residual, weight, bias) if t is not None]
        function = wrap(self._function(residual is not None, weight is not None, bias is not None))
        with torch.no_grad():
            if self.writes:
                return self._written(function, inputs, whole)
            plain = results(function(*inputs))
        return plain + differentiated(function, inputs, [dy] if residual is None else [dy, dy.to(residual.dtype)])

    def _function(self, adds, has_weight, has_bias):
        """The norm of what there is of x, residual, weight and bias."""
        options = {"eps": 1e-6} | dict(self.options)
        norm, shape = getattr(F, f"add_{self.norm}" if adds else self.norm), (self.shape[1],)

        def function(*inputs, **more):
            tensors, params = inputs[: 1 + adds], iter(inputs[1 + adds :])
            given = {"weight": next(params) if has_weight else None}
            if self.norm == "layer_norm":
                given["bias"] = next(params) if has_bias else None
            return norm(*tensors, shape, **given, **options, **more)

        return function

    def _written(self, function, inputs, whole):
        x = inputs[0]
        if self.writes == "inplace":
            return *results(function(*inputs, inplace=True)), whole
        if self.writes == "x":
            return function(*inputs, out=x), whole
        rows, hidden = self.shape
        memory = torch.full((rows, hidden + 2 * (self.writes == "strided")), CANARY, dtype=x.dtype, device=x.device)
        function(*inputs, out=memory[:, 1:-1] if self.writes == "strided" else memory)
        return (memory,)


def results(found):
    return found if isinstance(found, tuple) else (found,)


def differentiated(function, inputs, given):
    """The results once more, by autograd, and the gradients of all inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        found = results(function(*leaves))
        return *found, *torch.autograd.grad(found, leaves, given)


BOTH = ("rms_norm", "layer_norm")
_SIZES = (4096, 1, 128, 8192, 129, 31, 16384, 1024, 255, 131072, 257, 32, 5120, 1000, 32768, 262144, 127, 33, 513, 2048)
_SIZES += (32769, 16385, 2, 64, 4099, 384, 896, 65536, 3, 1023, 8193, 7168, 100_003, 17, 511, 12288, 640, 2049, 28672)
_SIZES += (262_143, 5, 96, 1152, 3072, 20_000, 49_152, 7, 200_001)
_COUNTS = (70_000, 1, 16, 17, 4096, 2, 15, 4097, 33, 65_536, 65_537, 257, 31, 8191, 1000, 3, 128, 20_000, 511, 69_999)


def _fit(rows, hidden, most):
    """A shape of at most about `most` elements."""
    return max(1, min(rows, MOST_ROWS, most // hidden)), hidden


def _sizes(most):
    types = itertools.cycle(("f32", "bf16", "f16", "bf16", "f64", "bf16"))
    for hidden, norm in itertools.product(_SIZES, BOTH):
        for x in dict.fromkeys(("bf16", next(types))):
            yield Rows(norm, (min(MOST_ROWS, most // hidden | 1), hidden), x)


def _rows(most):
    for rows, norm in itertools.product(_COUNTS, BOTH):
        for hidden, x in ((64, "bf16"), (48, "f32")):
            yield Rows(norm, _fit(rows, hidden, 8 * most), x)


def _types(most):
    narrow = ("f32", "bf16", "f16")
    shape = _fit(37, 1000, most)
    for x, weight in itertools.product(("bf16", "f32", "f16"), (*narrow, None)):
        yield Rows("rms_norm", shape, x, weight)
        yield Rows("layer_norm", shape, x, weight, bias=narrow[(narrow.index(x) + 1) % 3])
    for x in ("bf16", "f32", "f64"):
        yield Rows("layer_norm", shape, x, bias=None)
        yield Rows("layer_norm", shape, x, weight=None, bias=None)


_OPTIONS = ({"recipe": "llama"}, {"weight_offset": 1.0}, {"eps": 0.0}, {"eps": 1.0}, {"eps": 1e-12})
_OPTIONS += ({"recipe": "llama", "weight_offset": 1.0}, {"weight_offset": -0.3, "eps": 1e-5})


def _options(most):
    for options, norm, x in itertools.product(_OPTIONS, BOTH, ("bf16", "f32")):
        if norm == "rms_norm" or "recipe" not in options:
            yield Rows(norm, _fit(64, 1536, most), x, options=tuple(options.items()))
    for x in ("bf16", "f16"):
        llama = (("recipe", "llama"),)
        yield Rows("rms_norm", _fit(64, 1536, most), x, weight=None, options=llama)
        yield Rows("rms_norm", _fit(64, 1536, most), x, weight="f32", options=llama)


def _layouts(most):
    for layout, norm, x in itertools.product(list(LAYOUTS)[1:], BOTH, ("bf16", "f32")):
        yield Rows(norm, _fit(48, 1024, most), x, layout=layout)
        yield Rows(norm, _fit(48, 77, most), x, layout=layout)


def _values(most):
    for x, norm in itertools.product(("bf16", "f32", "f16", "f64"), BOTH):
        for eps, values, hidden in itertools.product((1e-6, 0.0), ("hostile", "far"), (1000, 128, 20_000)):
            yield Rows(norm, _fit(200, hidden, most), x, options=(("eps", eps),), values=values)
    llama = (("recipe", "llama"),)
    yield Rows("rms_norm", _fit(200, 1000, most), options=llama, values="hostile")


def _adds(most):
    pairs = (("bf16", "bf16"), ("bf16", "f32"), ("f32", "f32"), ("f16", "f16"), ("f32", "bf16"), ("f64", "f64"))
    for (x, residual), norm in itertools.product(pairs, BOTH):
        for shape in (_fit(64, 4096, most), _fit(33, 1001, most)):
            yield Rows(norm, shape, x, residual=residual)
            yield Rows(norm, shape, x, residual=residual, writes="inplace")
    yield Rows("rms_norm", _fit(4, 65_537, most), residual="bf16")
    yield Rows("rms_norm", _fit(48, 1024, most), residual="bf16", layout="row stride odd")


def _writes(most):
    for writes, norm, x in itertools.product(("out", "x", "strided"), BOTH, ("bf16", "f32")):
        yield Rows(norm, _fit(64, 4096, most), x, writes=writes)
        yield Rows(norm, _fit(64, 131, most), x, writes=writes, layout="row stride odd")


def _ways(most):
    for way, norm in itertools.product(("streams", "graph", "compiled", "again"), BOTH):
        yield Rows(norm, _fit(512, 4096, most), way=way)
        yield Rows(norm, _fit(300, 1000, most), "f32", residual="f32", way=way)
        yield Rows(norm, _fit(20_000, 64, most), way=way)
        yield Rows(norm, _fit(3, 100_003, most), way=way)
    for norm in BOTH:
        yield Rows(norm, _fit(1024, 1024, most), weight=None, bias=None, way="far")


SECTIONS = (_sizes, _rows, _options, _types, _adds, _layouts, _values, _writes, _ways)


def in_turn(sections):
    """The first of each section, then the second of each: the most telling come first."""
    found = itertools.chain.from_iterable(itertools.zip_longest(*sections))
    return list({case.name: case for case in found if case is not None}.values())


def few():
    """One of each kind of kernel, small: what a sanitizer can do in its time."""
    for norm in BOTH:
        for (rows, hidden), x in itertools.product(((37, 7), (9, 130), (5, 1000), (3, 5000)), ("bf16", "f32")):
            yield Rows(norm, (rows, hidden), x)
        yield Rows(norm, (2, 33_000))
        yield Rows(norm, (600, 64), "f64", weight=None, bias=None)
        yield Rows(norm, (9, 77), "f16", layout="row stride odd, offset")
        yield Rows(norm, (50, 130), values="hostile")
        yield Rows(norm, (5, 1000), residual="f32")
        yield Rows(norm, (5, 77), residual="bf16", writes="inplace")
    yield Rows("rms_norm", (5, 1000), options=(("recipe", "llama"), ("weight_offset", 1.0)))
