"""One IEEE operation at a time, with the Python standard library alone.

A value is a Python float that is exactly representable in its type. `F32` and `F64` are the two
compute types; `narrow` rounds to a storage type; `to_bits` and `from_bits` are the storage itself.
"""

import ctypes
import math
import struct
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Storage:
    """A storage type: precision in bits, exponents of its least and greatest normal numbers."""

    name: str
    precision: int
    min_exponent: int
    max_exponent: int
    hex_digits: int


STORAGE = {
    "f64": Storage("f64", 53, -1022, 1023, 16),
    "f32": Storage("f32", 24, -126, 127, 8),
    "f16": Storage("f16", 11, -14, 15, 4),
    "bf16": Storage("bf16", 8, -126, 127, 4),
}


def narrow(value, dtype):
    """Rounds once, to nearest even; keeps subnormals and the sign of zero, overflows to infinity."""
    to = STORAGE[dtype]
    if dtype == "f64" or value == 0 or not math.isfinite(value):
        return value
    exponent = math.frexp(value)[1] - 1  # value = 1.something * 2^exponent
    last_place = max(exponent, to.min_exponent) - to.precision + 1
    # Exact: a scaling by a power of two of a number that stays normal. `round` is to nearest even.
    whole = round(math.ldexp(value, -last_place))
    rounded = math.ldexp(whole, last_place)
    if abs(rounded) >= 2.0 ** (to.max_exponent + 1):
        rounded = math.inf
    return math.copysign(rounded, value)


NAN_BITS = {"f64": 0x7FF8 << 48, "f32": 0x7FC00000, "f16": 0x7E00, "bf16": 0x7FC0}


def to_bits(value, dtype):
    """The storage of a representable value; every NaN as the one quiet NaN of `NAN_BITS`."""
    if math.isnan(value):
        return NAN_BITS[dtype]
    if dtype == "bf16":
        return to_bits(value, "f32") >> 16
    float_code, int_code = {"f64": "dQ", "f32": "fI", "f16": "eH"}[dtype]
    return struct.unpack("<" + int_code, struct.pack("<" + float_code, value))[0]


def from_bits(bits, dtype):
    """The value of a storage pattern; widening is exact."""
    if dtype == "bf16":
        return from_bits(bits << 16, "f32")
    float_code, int_code = {"f64": "dQ", "f32": "fI", "f16": "eH"}[dtype]
    return struct.unpack("<" + float_code, struct.pack("<" + int_code, bits))[0]


def divide(a, b):
    """IEEE division of f64; Python raises on a zero divisor."""
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def square_root(a):
    """IEEE root of f64; Python raises below zero."""
    return math.nan if a < 0 else math.sqrt(a)


class F64:
    """Compute type f64: Python's floats, with an exact fma."""

    name = "f64"
    zero = 0.0
    # The range rule: a second moment below TINY with eps below these two is computed again.
    tiny, tiny_eps_inside, tiny_eps_outside = 2.0**-900, 2.0**-840, 2.0**-416
    max_scale_exponent = 1022

    @staticmethod
    def round(a):
        return float(a)

    @staticmethod
    def add(a, b):
        return a + b

    @staticmethod
    def sub(a, b):
        return a - b

    @staticmethod
    def mul(a, b):
        return a * b

    @staticmethod
    def div(a, b):
        return divide(a, b)

    @staticmethod
    def sqrt(a):
        return square_root(a)

    @staticmethod
    def fma(a, b, c):
        if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
            # With finite factors the product stands for "some finite number" beside an infinite c.
            product = 0.0 if math.isfinite(a) and math.isfinite(b) else a * b
            return product + c
        if a == 0 or b == 0:
            return a * b + c
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        if exact == 0:
            return 0.0  # cancellation gives +0
        try:
            rounded = exact.numerator / exact.denominator  # correctly rounded by Python
        except OverflowError:
            rounded = math.inf
        return math.copysign(rounded, 1.0 if exact > 0 else -1.0)


def round_f32(a):
    """To f32 by the C conversion: nearest even, subnormals kept, overflow to infinity."""
    return ctypes.c_float(a).value


class F32:
    """Compute type f32 inside f64: 53 >= 2 * 24 + 2 bits, so rounding twice is rounding once
    for + - * / and sqrt. The fma needs the sum rounded to odd first."""

    name = "f32"
    zero = 0.0
    tiny, tiny_eps_inside, tiny_eps_outside = 2.0**-100, 2.0**-76, 2.0**-26
    max_scale_exponent = 126
    round = staticmethod(round_f32)

    @staticmethod
    def add(a, b):
        return round_f32(a + b)

    @staticmethod
    def sub(a, b):
        return round_f32(a - b)

    @staticmethod
    def mul(a, b):
        return round_f32(a * b)

    @staticmethod
    def div(a, b):
        return round_f32(divide(a, b))

    @staticmethod
    def sqrt(a):
        return round_f32(square_root(a))

    @staticmethod
    def fma(a, b, c):
        product = a * b  # exact: 48 bits
        total = product + c
        if not math.isfinite(total):
            return round_f32(total)
        # Knuth's two-sum: what `total` lost.
        part = total - product
        lost = (product - (total - part)) + (c - part)
        if lost != 0 and struct.pack("<d", total)[0] & 1 == 0:
            total = math.nextafter(total, math.copysign(math.inf, lost))
        return round_f32(total)


COMPUTE = {"f64": F64, "f32": F32, "f16": F32, "bf16": F32}

MASK = (1 << 64) - 1


def mix(op, a, b, c):
    """The hash of one operation and its operands."""
    h = op * 0x9E3779B97F4A7C15 & MASK
    for word in (a, b, c):
        h = (h ^ word) * 0xBF58476D1CE4E5B9 & MASK
        h ^= h >> 31
    return h


class Trace:
    """A compute type that hashes operations: two different orders do not hash alike."""

    zero = mix(2, 0, 0, 0)

    @staticmethod
    def load(value):
        return mix(1, to_bits(value, "f32"), 0, 0)

    @staticmethod
    def add(a, b):
        return mix(3, a, b, 0)

    @staticmethod
    def fma(a, b, c):
        return mix(6, a, b, c)
