"""Values for golden cases: splitmix64 and exact f64 operations, so that they never change."""

import math

from arithmetic import STORAGE, narrow
from layers import Array

MASK = (1 << 64) - 1


class SplitMix64:
    """Steele, Lea & Flood 2014. Seeded by a text, through FNV-1a."""

    def __init__(self, text):
        self.state = 0xCBF29CE484222325
        for byte in text.encode():
            self.state = (self.state ^ byte) * 0x100000001B3 & MASK

    def word(self):
        self.state = self.state + 0x9E3779B97F4A7C15 & MASK
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        return z ^ z >> 31

    def uniform(self):
        """[0, 1) on a grid of 2^-53."""
        return (self.word() >> 11) * 2.0**-53

    def normal(self):
        """Mean 0, variance 1: the sum of twelve uniforms, less six."""
        total = -6.0
        for _ in range(12):
            total += self.uniform()
        return total


def greatest(dtype):
    to = STORAGE[dtype]
    return 2.0**to.max_exponent * (2.0 - 2.0 ** (1 - to.precision))


def least(dtype):
    """The smallest subnormal."""
    to = STORAGE[dtype]
    return math.ldexp(1.0, to.min_exponent - to.precision + 1)


# How a kind of x is made of N(0, 1) values: (scale, shift) per type.
KINDS = {
    "normal": dict.fromkeys(STORAGE, (1.0, 0.0)),
    "offset": dict.fromkeys(STORAGE, (1.0, 1000.0)),
    "huge": {"f64": (1e200, 0.0), "f32": (1e30, 0.0), "bf16": (1e30, 0.0), "f16": (8e3, 0.0)},
    "tiny": {"f64": (1e-200, 0.0), "f32": (1e-30, 0.0), "bf16": (1e-30, 0.0), "f16": (1e-6, 0.0)},
}


def array(text, dtype, n, kind="normal"):
    """n values of a kind; `text` names the array and seeds it."""
    source = SplitMix64(f"{text}/{dtype}/{n}/{kind}")
    scale, shift = KINDS[kind][dtype] if isinstance(kind, str) else (kind, 0.0)
    return Array(dtype, [source.normal() * scale + shift for _ in range(n)]).to(dtype)


def weight(dtype, n):
    source = SplitMix64(f"weight/{dtype}/{n}")
    return Array(dtype, [1.0 + source.normal() / 4 for _ in range(n)]).to(dtype)


def variance(dtype, n):
    source = SplitMix64(f"variance/{dtype}/{n}")
    return Array(dtype, [source.uniform() + 0.25 for _ in range(n)]).to(dtype)


def hostile_rows(dtype, hidden):
    """Rows of what breaks norms: signed zeros, subnormals, infinities, NaN, the greatest values."""
    great, small, inf = greatest(dtype), least(dtype), math.inf
    source = SplitMix64(f"hostile/{dtype}/{hidden}")
    normal = lambda: [source.normal() for _ in range(hidden)]
    planted = lambda value, at: [value if i == at % hidden else v for i, v in enumerate(normal())]
    cycle = lambda *items: [items[i % len(items)] for i in range(hidden)]
    rows = [
        [0.0] * hidden,
        cycle(-0.0, 0.0),
        [-0.0] * hidden,
        [1.5] * hidden,
        [small] * hidden,
        cycle(small, -small, 0.0),
        cycle(great, -great),
        [great] * hidden,
        planted(inf, 3),
        planted(-inf, hidden - 1),
        planted(math.nan, hidden // 2),
        cycle(inf, -inf, 1.0),
        [v * small * 9 for v in normal()],
        planted(great, 0),
        cycle(1.0, great / 4, small, -0.0, -great / 3, math.ldexp(small, 20)),
        [v * small * 2 if i else math.nan for i, v in enumerate(normal())],
    ]
    return Array(dtype, [v for row in rows for v in row]).to(dtype), len(rows)
