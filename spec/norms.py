"""norms.md as a program: one row, one group or one channel at a time.

`c` is a compute type of `arithmetic.py`; x, g, dy and x_hat are lists of its values.
"""

import math
from dataclasses import dataclass

from order import batch_sum, row_dot, row_sum


@dataclass
class Statistics:
    """One computation of a row: what backward needs, and the x_hat it gave."""

    mean: float
    delta: float
    moment: float  # ms or var
    root: float
    inv: float
    s: float
    eps: float
    x_hat: list

    def reported(self, c):
        return {
            "mean": c.div(c.add(self.mean, self.delta), self.s),
            "var": c.div(c.div(self.moment, self.s), self.s),
            "rstd": c.mul(self.inv, self.s),
        }


def inverse_root(c, moment, eps, outside):
    root = c.sqrt(moment)
    below = c.add(root, eps) if outside else c.sqrt(c.add(moment, eps))
    return root, c.div(1.0, below)


def range_scale(c, overflowed, moment, x, eps, outside):
    """The power of two by which x is to be multiplied; 1 where the first result stands."""
    eps_is_tiny = eps < (c.tiny_eps_outside if outside else c.tiny_eps_inside)
    if not overflowed and not (moment < c.tiny and eps_is_tiny):
        return 1.0
    if not all(map(math.isfinite, x)):
        return 1.0
    largest = max(max(map(abs, x)), eps if outside else c.sqrt(eps))
    if largest == 0:
        return 1.0
    exponent = math.frexp(largest)[1] - 1
    limit = c.max_scale_exponent
    return 2.0 ** max(-limit, min(limit, -exponent))


def rescaled(c, x, eps, outside, s):
    """x and eps of the second computation."""
    eps = c.mul(eps, s) if outside else c.mul(c.mul(eps, s), s)
    return [c.mul(v, s) for v in x], eps


def rms_statistics(c, x, k, eps, outside):
    """RMSNorm's row; only the first k elements enter the mean square."""

    def once(x, eps, s):
        ss = row_dot(c, x[:k], x[:k])
        ms = c.div(ss, c.round(k))
        root, inv = inverse_root(c, ms, eps, outside)
        return ss, Statistics(0.0, 0.0, ms, root, inv, s, eps, [c.mul(v, inv) for v in x])

    ss, first = once(x, eps, 1.0)
    s = range_scale(c, math.isinf(ss), first.moment, x[:k], eps, outside)
    return first if s == 1 else once(*rescaled(c, x, eps, outside, s), s)[1]


def centered_statistics(c, x, sums, eps, outside):
    """LayerNorm's row, GroupNorm's group, BatchNorm's channel: the corrected two passes."""
    n = c.round(len(x))

    def once(x, eps, s):
        total = sums.sum(x)
        mean = c.div(total, n)
        d = [c.sub(v, mean) for v in x]
        s1, s2 = sums.sum(d), sums.dot(d, d)
        delta = c.div(s1, n)
        var = c.div(c.fma(-s1, delta, s2), n)
        if var <= 0:
            var = 0.0
        root, inv = inverse_root(c, var, eps, outside)
        x_hat = [c.mul(c.sub(v, delta), inv) for v in d]
        overflowed = not (math.isfinite(total) and math.isfinite(s2))
        return overflowed, Statistics(mean, delta, var, root, inv, s, eps, x_hat)

    overflowed, first = once(x, eps, 1.0)
    s = range_scale(c, overflowed, first.moment, x, eps, outside)
    return first if s == 1 else once(*rescaled(c, x, eps, outside, s), s)[1]


# Affine part and gradients.


def effective_weight(c, weight, offset):
    offset = c.round(offset)
    if weight is None or offset == 0:
        return weight
    return [c.add(w, offset) for w in weight]


def affine(c, x_hat, weight, bias):
    """Before the rounding to y's type; weight and bias are one value per element, or None."""
    if weight is not None and bias is not None:
        return [c.fma(v, w, b) for v, w, b in zip(x_hat, weight, bias)]
    if weight is not None:
        return [c.mul(v, w) for v, w in zip(x_hat, weight)]
    if bias is not None:
        return [c.add(v, b) for v, b in zip(x_hat, bias)]
    return x_hat


def times_weight(c, dy, weight):
    return dy if weight is None else [c.mul(d, w) for d, w in zip(dy, weight)]


def mean_product(c, total, count, stats, outside):
    """(total / count) * q; with eps inside the product with q is not taken."""
    mean = c.div(total, c.round(count))
    if not outside:
        return mean
    q = 0.0 if stats.root == 0 else c.div(c.add(stats.root, stats.eps), stats.root)
    return c.mul(mean, q)


def project(c, g, x_hat, shift, slope, factor, s):
    """((g - shift) - x_hat * slope) * factor * s, in the written order; shift None: no g - shift."""
    out = []
    for gi, xi in zip(g, x_hat):
        centered = gi if shift is None else c.sub(gi, shift)
        out.append(c.mul(c.mul(c.fma(-xi, slope, centered), factor), s))
    return out


def rms_norm_dx(c, g, stats, k, outside):
    slope = mean_product(c, row_dot(c, g, stats.x_hat), k, stats, outside)
    head = project(c, g[:k], stats.x_hat[:k], None, slope, stats.inv, stats.s)
    return head + [c.mul(c.mul(v, stats.inv), stats.s) for v in g[k:]]


def layer_norm_dx(c, g, stats, outside):
    n = len(g)
    shift = c.div(row_sum(c, g), c.round(n))
    slope = mean_product(c, row_dot(c, g, stats.x_hat), n, stats, outside)
    return project(c, g, stats.x_hat, shift, slope, stats.inv, stats.s)


def batch_norm_dx(c, dy, weight, stats, dweight, dbias, outside):
    """One channel in training; `weight` is the channel's value or None."""
    n = len(dy)
    shift = c.div(dbias, c.round(n))
    slope = mean_product(c, dweight, n, stats, outside)
    factor = stats.inv if weight is None else c.mul(weight, stats.inv)
    return project(c, dy, stats.x_hat, shift, slope, factor, stats.s)


def running_update(c, running, value, momentum):
    momentum = c.round(momentum)
    return c.fma(momentum, value, c.mul(c.sub(1.0, momentum), running))


def unbiased(c, var, n):
    return c.mul(var, c.div(c.round(n), c.round(n - 1)))


def mean_of_samples(c, values):
    """What InstanceNorm's running statistics follow."""
    return c.div(batch_sum(c, values), c.round(len(values)))
