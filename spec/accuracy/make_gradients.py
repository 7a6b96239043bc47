"""Makes gradients.json: PyTorch's gradients in f64, and how far its gradients in narrower types are from exact.

A test makes the same data, runs isonorm's backward pass on it, and holds its f64 gradients to PyTorch's, and
its errors to PyTorch's errors. README.md says how to run this and how to check the file.

# The data

Values are made as `make_torch.py` says. With the case's seed: x is v, scaled and shifted as `KINDS` has it; with
seed + 1 weight is v; with seed + 2 dy is v; with seed + 3 running_mean is v / 4, scaled and shifted as x; with
seed + 4 running_var is (|v| + 1 / 2) * scale^2. Each is rounded to the case's type as `make_torch.py` says, and all
have that type. There is a weight always, and a bias (of zeros: no gradient depends on it) for its gradient's sake,
except in rms_norm, where PyTorch has none.

# The gradients

`f64_bits` holds the gradients that torch.autograd computes in f64, from the stored values: not all, but those at the
places 7919 * i modulo the length (row-major), i = 0, 1, ... up to the smaller of 32 and the length, each as 16
hexadecimal digits.

# The errors

`exact` is the gradient's textbook formula, evaluated from the stored values with a mantissa of 160 bits. The script
stops where PyTorch's f64 gradients are not near it. `errors` (of autograd in the case's type) and `f64_errors` (of
autograd in f64) hold, for dx, dweight and dbias, the largest and the mean over all elements of

    |gradient - exact| / ulp(scale)

with ulp of the gradient's type, as in `make_torch.py`, rounded up to four digits; null where a gradient of PyTorch's
is infinite or NaN. A gradient is a difference or a sum of terms, and where they cancel, a small result carries the
rounding of large terms: in ulps of that result any arithmetic of one precision errs by thousands. So scale is the
larger of |exact| and the size of the terms:

    dx                 g * rstd, of which the row's means are taken away: its root mean square over the row
    dx, batch_norm_eval    nothing is taken away: |exact| alone
    dweight, dbias     dy * x_hat, dy, which are summed: the root of the sum of their squares, the size of a sum of
                       terms of random sign
"""

import json

import mpmath
import numpy as np
import torch
import torch.nn.functional as F

from make_torch import EPS, FOUR_DIGITS_UP, SIGNIFICAND, normal, stored, write_or_check

KINDS = {  # scale, shift, eps
    "plain": (1.0, 0.0, EPS),
    "offset": (1.0, 1000.0, EPS),
    "large": (2.0**20, 0.0, EPS),
    "small": (2.0**-10, 0.0, EPS),  # variance and eps are of one size
    "huge": (1e30, 0.0, EPS),  # squares overflow in f32
    "tiny": (1e-30, 0.0, 2.0**-400),  # squares underflow in f32; eps is 0 there (batch_norm wants one above 0)
}
PLACES, STEP = 32, 7919
ROWS = {
    "plain": [(257, 1), (33, 7), (64, 33), (257, 128), (16, 300), (5, 1024), (17, 4096)],
    "offset": [(64, 33), (257, 128), (17, 4096)],
    "large": [(33, 300)],
    "small": [(33, 300)],
    "huge": [(33, 300)],
    "tiny": [(33, 300)],
}
PLANES = {  # samples, channels, spatial
    "plain": [(257, 64, 1), (2, 6, 35), (17, 24, 49), (4, 64, 81), (5, 8, 1023)],
    "offset": [(17, 24, 49), (5, 8, 1023)],
    "large": [(3, 16, 121)],
    "small": [(3, 16, 121)],
    "huge": [(3, 16, 121)],
    "tiny": [(3, 16, 121)],
}
# What f64 loses shows in the f64 gradients of every case, and what 16-bit types lose in a few.
SMALLER = {
    "f64": {"rows": {"plain": [(33, 7), (64, 33), (5, 1024)], "offset": [(64, 33), (5, 1024)]},
            "planes": {"plain": [(257, 64, 1), (17, 24, 49)], "offset": [(17, 24, 49)]}},
    "bf16": {"rows": {"plain": [(64, 33), (33, 300), (5, 1024)]}, "planes": {"plain": [(17, 24, 49), (4, 64, 81)]}},
}  # fmt: skip
ROW_NORMS = ("rms_norm", "layer_norm")
PLANE_NORMS = ("group_norm", "instance_norm", "batch_norm_train", "batch_norm_eval")


def all_cases():
    """norm, dtype, kind, shape, in the order of their seeds."""
    for norm in ROW_NORMS + PLANE_NORMS:
        for dtype in ("f32", "f64", "bf16"):
            kinds = {"rows": ROWS, "planes": PLANES} if dtype == "f32" else SMALLER[dtype]
            for kind, shapes in kinds["rows" if norm in ROW_NORMS else "planes"].items():
                for shape in shapes:
                    # Of one value there is no variance; in evaluation there is no range rule.
                    if norm in ("layer_norm", "instance_norm") and shape[-1] == 1:
                        continue
                    if norm == "batch_norm_eval" and kind in ("huge", "tiny"):
                        continue
                    yield norm, dtype, kind, shape


def groups(norm, shape):
    return {"group_norm": 2, "instance_norm": shape[1]}.get(norm)


def inputs(norm, dtype, kind, shape, seed):
    scale, shift, _ = KINDS[kind]
    channels = (shape[1],)
    values = {
        "x": normal(seed, shape) * scale + shift,
        "weight": normal(seed + 1, channels),
        "dy": normal(seed + 2, shape),
        "running_mean": normal(seed + 3, channels) / 4 * scale + shift,
        "running_var": (np.abs(normal(seed + 4, channels)) + 0.5) * scale**2,
    }
    if norm != "batch_norm_eval":
        del values["running_mean"], values["running_var"]
    return {name: stored(value, dtype) for name, value in values.items()}


def by_torch(norm, data, eps):
    """dx, dweight, dbias by autograd, in the type of `data`."""
    x, weight = data["x"].clone().requires_grad_(), data["weight"].clone().requires_grad_()
    bias = torch.zeros_like(weight, requires_grad=True)
    leaves = (x, weight, bias)
    if norm == "rms_norm":
        leaves = (x, weight)
        y = F.rms_norm(x, x.shape[1:], weight, eps)
    elif norm == "layer_norm":
        y = F.layer_norm(x, x.shape[1:], weight, bias, eps)
    elif norm == "group_norm":
        y = F.group_norm(x, groups(norm, x.shape), weight, bias, eps)
    elif norm == "instance_norm":
        y = F.instance_norm(x, None, None, weight, bias, eps=eps)
    elif norm == "batch_norm_train":
        y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    else:
        y = F.batch_norm(x, data["running_mean"], data["running_var"], weight, bias, training=False, eps=eps)
    names = ("dx", "dweight", "dbias")
    return dict(zip(names, torch.autograd.grad(y, leaves, data["dy"])))


def as_sets(norm, t):
    """x's shape as sets: the elements that are normalized together."""
    if norm in ROW_NORMS:
        return t
    if norm.startswith("batch_norm"):
        return np.swapaxes(t, 0, 1).reshape(t.shape[1], -1)
    return t.reshape(t.shape[0] * groups(norm, t.shape), -1)


def from_sets(norm, sets, shape):
    if norm.startswith("batch_norm"):
        return np.swapaxes(sets.reshape(shape[1], shape[0], shape[2]), 0, 1)
    return sets.reshape(shape)


def sum_of_channels(norm, t):
    return t.sum(axis=0 if norm in ROW_NORMS else (0, 2))


exactly = np.frompyfunc(mpmath.mpf, 1, 1)
sqrt = np.frompyfunc(mpmath.sqrt, 1, 1)


def exact(norm, data, eps):
    """Each gradient and the size of its terms: (exact, terms)."""
    data = {name: exactly(t.double().numpy()) for name, t in data.items()}
    x, dy, shape = as_sets(norm, data["x"]), as_sets(norm, data["dy"]), data["x"].shape
    spread = data["weight"] if norm in ROW_NORMS else data["weight"][:, None]
    g = as_sets(norm, np.broadcast_to(spread, shape)) * dy
    mean = lambda t: t.sum(axis=1, keepdims=True) / t.shape[1]
    if norm == "batch_norm_eval":
        d, var = x - data["running_mean"][:, None], data["running_var"][:, None]
    else:
        d = x if norm == "rms_norm" else x - mean(x)
        var = mean(d * d)
    rstd = 1 / sqrt(var + eps)
    x_hat = d * rstd
    if norm == "batch_norm_eval":
        dx, terms = g * rstd, 0 * g
    else:
        centre = 0 if norm == "rms_norm" else mean(g)
        dx = (g - centre - x_hat * mean(g * x_hat)) * rstd
        terms = sqrt(mean(g * g)) * rstd + 0 * g
    products = from_sets(norm, dy * x_hat, shape)
    found = {"dx": (from_sets(norm, dx, shape), from_sets(norm, terms, shape))}
    for name, t in (("dweight", products), ("dbias", data["dy"])):
        found[name] = (sum_of_channels(norm, t), sqrt(sum_of_channels(norm, t * t)))
    return found


def errors(dtype, found, expected, terms):
    """The largest and the mean error in ulps of the scale."""
    if not torch.isfinite(found).all():
        return None
    error = np.abs(exactly(found.double().numpy()) - expected).astype(np.float64)
    scale = np.maximum(np.abs(expected), terms).astype(np.float64)
    bits, least = SIGNIFICAND[dtype]
    exponent = np.where(scale == 0, least, np.maximum(np.frexp(scale)[1] - 1, least))  # floor(log2(scale))
    ulps = error / np.ldexp(1.0, exponent - bits + 1)
    return [float(FOUR_DIGITS_UP.create_decimal_from_float(float(v))) for v in (ulps.max(), ulps.mean())]


def sampled(gradient):
    values = gradient.numpy().reshape(-1)
    places = [i * STEP % len(values) for i in range(min(PLACES, len(values)))]
    return "".join(f"{bits:016x}" for bits in values[places].view(np.uint64))


def case(norm, dtype, kind, shape, seed):
    eps = KINDS[kind][2]
    data = inputs(norm, dtype, kind, shape, seed)
    expected = exact(norm, data, eps)
    narrow = by_torch(norm, data, eps)
    double = by_torch(norm, {name: t.double() for name, t in data.items()}, eps)
    found = {
        "norm": norm, "dtype": dtype, "kind": kind, "shape": shape, "groups": groups(norm, shape), "eps": eps, "seed": seed,
        "errors": {name: errors(dtype, gradient, *expected[name]) for name, gradient in narrow.items()},
        "f64_errors": {name: errors("f64", gradient, *expected[name]) for name, gradient in double.items()},
        "f64_bits": {name: sampled(gradient) for name, gradient in double.items()},
    }  # fmt: skip
    # At a mean of 1000 PyTorch loses up to six of sixteen digits.
    assert all(most < 2.0**24 for most, _ in found["f64_errors"].values()), found
    return found


def made():
    torch.set_num_threads(1)
    mpmath.mp.prec = 160
    head = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "first_values_of_seed_0": normal(0, (3,)).tolist(),
    }
    cases = [json.dumps(case(*args, 5 * i)) for i, args in enumerate(all_cases())]
    return json.dumps(head, indent=1)[:-2] + ',\n "cases": [\n  ' + ",\n  ".join(cases) + "\n ]\n}\n"


if __name__ == "__main__":
    write_or_check("gradients.json", made())
