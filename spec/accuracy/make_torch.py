"""Makes torch.json: how far PyTorch's norms are from the exact result, on data anyone can make again.

A test makes the same data, runs isonorm on it, measures the same errors and asserts that they are no
larger. README.md says how to run this and how to check the file.

# The data

`splitmix64(seed)` gives the k-th (k = 0, 1, ...) 64-bit number as mix(seed + (k + 1) * GOLDEN), modulo 2^64:

    z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB; z ^= z >> 31

Value i of a tensor (row-major) takes the numbers u[12 i] .. u[12 i + 11] and is, near enough, normally
distributed (Irwin and Hall: twelve uniform numbers, less six):

    v = f64(i64(sum of (u >> 12)) - 6 * 2^52) * 2^-52        one rounding, to nearest even, in f64(...)

x is v (kind "plain") or 1000 + v, added in f64 ("offset"), with the case's seed; weight is v with
seed + 1; bias is v with seed + 2. Each is then rounded to the type: f64 as it is, f32 from f64, f16 and
bf16 from that f32 (two roundings, because some languages cannot do it in one). weight and bias have
the type of x. RMSNorm has no bias. eps is 2^-17, which every type holds exactly.

# The cases

    rms_norm, layer_norm   x [16, n], normalized over the last axis
    group_norm             x [4, 16, n / 4], 4 groups: a row is 4 channels of n / 4 elements
    batch_norm             x [n / S, 16, S], S = 8, 48, 256, 256: training, a row is a channel

# The errors

`exact` is the same formula, evaluated from the stored values of x, weight and bias: in f64, two passes,
or, where the type is f64, with a 160-bit mantissa (double-double arithmetic is enough). ulp(v) of a type with p bits of
significand (24, 53, 11, 8) and least normal exponent e (-126, -1022, -14, -126) is
2^(max(floor(log2 |v|), e) - p + 1).

    max_ulps, mean_ulps    |y - exact| / ulp(max(|exact|, |bias|)), over all elements
    max_row                |y - exact| / (largest |exact| of the same row), over all elements

The bias is in the first because where it nearly cancels x_hat * weight, a small result carries the rounding
of large terms: in ulps of that result any arithmetic of one precision errs by thousands. All three are rounded
up to four digits.

# What can be asserted

For a mean of 1000 PyTorch loses three to four digits, and 16-bit BatchNorm more. On plain f32 and f64 data
both sides are a few roundings from exact and either may lead in a single case, so "never worse" means:
max_row of a case is at most the larger of PyTorch's and 4 * 2^-p (a root, a quotient and two products are four
roundings of at most 2^-p each); and the largest max_ulps of a norm and type, over its eight cases, is at most
PyTorch's largest.
"""

import argparse
import decimal
import itertools
import json
import sys
from pathlib import Path

import mpmath
import numpy as np
import torch
import torch.nn.functional as F

EPS = 2.0**-17
TYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
SIGNIFICAND = {"f32": (24, -126), "f64": (53, -1022), "f16": (11, -14), "bf16": (8, -126)}
NORMS = ("rms_norm", "layer_norm", "group_norm", "batch_norm")
SIZES = {64: 8, 768: 48, 4096: 256, 8192: 256}  # n, and the spatial size of batch_norm
GROUPS = 4
GOLDEN = 0x9E3779B97F4A7C15
FOUR_DIGITS_UP = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)


def splitmix64(seed, count):
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def normal(seed, shape):
    u = splitmix64(seed, 12 * int(np.prod(shape))) >> np.uint64(12)
    total = u.reshape(-1, 12).sum(axis=1).astype(np.int64) - 6 * 2**52
    return (total.astype(np.float64) * 2.0**-52).reshape(shape)


def stored(values, dtype):
    values = torch.from_numpy(values)
    return values if dtype == "f64" else values.float().to(TYPES[dtype])


def shape_of(norm, n):
    return {
        "rms_norm": (16, n),
        "layer_norm": (16, n),
        "group_norm": (4, 16, n // 4),
        "batch_norm": (n // SIZES[n], 16, SIZES[n]),
    }[norm]


def by_torch(norm, x, weight, bias):
    if norm == "rms_norm":
        return F.rms_norm(x, x.shape[1:], weight, EPS)
    if norm == "layer_norm":
        return F.layer_norm(x, x.shape[1:], weight, bias, EPS)
    if norm == "group_norm":
        return F.group_norm(x, GROUPS, weight, bias, EPS)
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)


def as_rows(norm, tensor):
    """The elements that are normalized together, as rows."""
    if norm == "batch_norm":
        tensor = np.swapaxes(tensor, 0, 1)
    rows = 4 * GROUPS if norm == "group_norm" else tensor.shape[0]
    return tensor.reshape(rows, -1)


def exact_f64(norm, x, weight, bias):
    mean = 0.0 if norm == "rms_norm" else x.mean(axis=1, keepdims=True)
    d = x - mean
    var = (d * d).mean(axis=1, keepdims=True)
    return d / np.sqrt(var + EPS) * weight + bias


def exact_160_bits(norm, x, weight, bias):
    """y as a pair of f64, whose sum holds 106 bits of it."""
    mpmath.mp.prec = 160
    high, low = np.empty_like(x), np.empty_like(x)
    for r, row in enumerate(x.tolist()):
        row = [mpmath.mpf(v) for v in row]
        mean = 0 if norm == "rms_norm" else mpmath.fsum(row) / len(row)
        d = [v - mean for v in row]
        rstd = 1 / mpmath.sqrt(mpmath.fsum(v * v for v in d) / len(d) + EPS)
        for i, (v, w, b) in enumerate(zip(d, weight[r].tolist(), bias[r].tolist())):
            y = v * rstd * w + b
            high[r, i] = float(y)
            low[r, i] = float(y - high[r, i])
    return high, low


def errors(norm, dtype, y, x, weight, bias):
    rows = [as_rows(norm, t.double().numpy()) for t in (y, x, weight, bias)]
    if dtype == "f64":
        exact, rest = exact_160_bits(norm, *rows[1:])
    else:
        exact, rest = exact_f64(norm, *rows[1:]), 0.0
    error = np.abs((rows[0] - exact) - rest)
    bits, least = SIGNIFICAND[dtype]
    scale = np.maximum(np.abs(exact), np.abs(rows[3]))
    exponent = np.frexp(scale)[1] - 1  # floor(log2(scale))
    ulps = error / np.ldexp(1.0, np.maximum(exponent, least) - bits + 1)
    by_row = error / np.abs(exact).max(axis=1, keepdims=True)
    found = {"max_ulps": ulps.max(), "mean_ulps": ulps.mean(), "max_row": by_row.max()}
    return {name: float(FOUR_DIGITS_UP.create_decimal_from_float(float(value))) for name, value in found.items()}


def inputs(norm, dtype, kind, n, seed):
    shape = shape_of(norm, n)
    channels = (shape[1],)
    x = normal(seed, shape) + (1000.0 if kind == "offset" else 0.0)
    weight, bias = normal(seed + 1, channels), normal(seed + 2, channels)
    if norm == "rms_norm":
        bias = np.zeros(channels)
    return [stored(t, dtype) for t in (x, weight, bias)]


def spread(norm, x, parameter):
    """The parameter with x's shape."""
    row_wise = norm in ("rms_norm", "layer_norm")
    return (parameter if row_wise else parameter[:, None]).expand(x.shape)


def write_or_check(name, text):
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the file is what is made")
    file = Path(__file__).with_name(name)
    if not parser.parse_args().check:
        file.write_text(text)
    elif file.read_text() != text:
        sys.exit(f"{name} is not what this makes")


def main():
    torch.set_num_threads(1)
    cases = []
    for i, (norm, dtype, kind, n) in enumerate(itertools.product(NORMS, TYPES, ("plain", "offset"), SIZES)):
        seed = 4 * i
        x, weight, bias = inputs(norm, dtype, kind, n, seed)
        y = by_torch(norm, x, weight, None if norm == "rms_norm" else bias)
        assert y.dtype == x.dtype, (norm, dtype, y.dtype)
        found = errors(norm, dtype, y, x, spread(norm, x, weight), spread(norm, x, bias))
        case = {"norm": norm, "dtype": dtype, "kind": kind, "n": n, "shape": shape_of(norm, n), "seed": seed}
        cases.append(case | found)
    head = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "first_numbers_of_seed_0": [f"{v:016x}" for v in splitmix64(0, 2)],
        "first_values_of_seed_0": normal(0, (3,)).tolist(),
    }
    text = json.dumps(head, indent=1)[:-2] + ',\n "cases": [\n  '
    text += ",\n  ".join(json.dumps(case) for case in cases) + "\n ]\n}\n"
    assert json.loads(text)["cases"]
    write_or_check("torch.json", text)


if __name__ == "__main__":
    main()
