"""The norms on whole arrays: storage types, options, outputs and gradients of one call."""

from dataclasses import dataclass
from typing import NamedTuple

from arithmetic import COMPUTE, narrow
from norms import (
    Statistics,
    affine,
    batch_norm_dx,
    centered_statistics,
    effective_weight,
    inverse_root,
    layer_norm_dx,
    rms_norm_dx,
    rms_statistics,
    running_update,
    times_weight,
    unbiased,
)
from order import batch_dot, batch_sum, channel_sums, row_sums


class Array(NamedTuple):
    dtype: str
    values: list

    def to(self, dtype):
        return Array(dtype, [narrow(v, dtype) for v in self.values])


@dataclass
class Case:
    """One call. `shape` is (rows, hidden), or (samples, channels, spatial) in logical order."""

    norm: str  # rms_norm, layer_norm, batch_norm_train, batch_norm_eval, group_norm
    shape: tuple
    x: Array
    eps: float
    y_type: str = None
    residual: Array = None
    r_type: str = None
    weight: Array = None
    bias: Array = None
    eps_outside: bool = False
    llama: bool = False
    weight_offset: float = 0.0
    partial: int = None
    groups: int = None
    running_mean: Array = None
    running_var: Array = None
    momentum: float = None
    biased_running_var: bool = False
    dy: Array = None
    dresidual: Array = None

    def normalized(self):
        """x, or the stored r of a residual add."""
        if self.residual is None:
            return self.x
        c = COMPUTE[self.r_type]
        sums = [c.add(a, b) for a, b in zip(self.x.values, self.residual.values)]
        return Array(self.r_type, sums).to(self.r_type)


def values(array):
    return None if array is None else array.values


def rms_norm(case):
    """(outputs, gradients) of RMSNorm: two dicts of arrays."""
    x = case.normalized()
    c = COMPUTE[x.dtype]
    rows, hidden = case.shape
    k = case.partial or hidden
    weight = effective_weight(c, values(case.weight), case.weight_offset)
    bias, eps = values(case.bias), c.round(case.eps)
    y, rstd, dx, used = [], [], [], []
    for r in range(rows):
        span = slice(r * hidden, (r + 1) * hidden)
        stats = rms_statistics(c, x.values[span], k, eps, case.eps_outside)
        x_hat = [narrow(v, x.dtype) for v in stats.x_hat] if case.llama else stats.x_hat
        y += affine(c, x_hat, weight, bias)
        rstd.append(stats.reported(c)["rstd"])
        used.append(x_hat)
        if case.dy is not None:
            g = times_weight(c, case.dy.values[span], weight)
            g = [narrow(v, x.dtype) for v in g] if case.llama else g
            dx += rms_norm_dx(c, g, stats, k, case.eps_outside)
    out = {"y": Array(case.y_type, y).to(case.y_type), "rstd": Array(c.name, rstd)}
    return with_residual(case, x, out), row_gradients(case, c, x, dx, used)


def layer_norm(case):
    x = case.normalized()
    c = COMPUTE[x.dtype]
    rows, hidden = case.shape
    weight = effective_weight(c, values(case.weight), case.weight_offset)
    bias, eps = values(case.bias), c.round(case.eps)
    y, dx, used = [], [], []
    reported = {"mean": [], "var": [], "rstd": []}
    for r in range(rows):
        span = slice(r * hidden, (r + 1) * hidden)
        stats = centered_statistics(c, x.values[span], row_sums(c), eps, case.eps_outside)
        y += affine(c, stats.x_hat, weight, bias)
        report(c, reported, stats)
        used.append(stats.x_hat)
        if case.dy is not None:
            g = times_weight(c, case.dy.values[span], weight)
            dx += layer_norm_dx(c, g, stats, case.eps_outside)
    out = {"y": Array(case.y_type, y).to(case.y_type)} | statistics_arrays(c, reported)
    return with_residual(case, x, out), row_gradients(case, c, x, dx, used)


def report(c, lists, stats):
    for name, value in stats.reported(c).items():
        lists[name].append(value)


def statistics_arrays(c, lists):
    return {name: Array(c.name, list_) for name, list_ in lists.items()}


def with_residual(case, r, out):
    return out if case.residual is None else {"r": r} | out


def row_gradients(case, c, x, dx, x_hats):
    """dx, and the parameter gradients of each column in batch order, in the compute type."""
    if case.dy is None:
        return {}
    rows, hidden = case.shape
    dys = [case.dy.values[r * hidden : (r + 1) * hidden] for r in range(rows)]
    column = lambda table, i: [row[i] for row in table]
    dweight = [batch_dot(c, column(dys, i), column(x_hats, i)) for i in range(hidden)]
    dbias = [batch_sum(c, column(dys, i)) for i in range(hidden)]
    return input_gradients(case, c, Array(x.dtype, dx).to(x.dtype)) | {
        "dweight": Array(c.name, dweight),
        "dbias": Array(c.name, dbias),
    }


def input_gradients(case, c, dx):
    """dx; after a residual add dr in r's type, and x's share of it."""
    if case.residual is None:
        return {"dx": dx}
    dr = dx
    if case.dresidual is not None:
        total = [c.add(a, b) for a, b in zip(dx.values, case.dresidual.values)]
        dr = Array(dx.dtype, total).to(dx.dtype)
    return {"dr": dr, "dx": dr.to(case.x.dtype)}


def channel(case, array, ch):
    """One channel's elements: samples, then spatial."""
    samples, channels, spatial = case.shape
    starts = [(s * channels + ch) * spatial for s in range(samples)]
    return [v for at in starts for v in array[at : at + spatial]]


def scatter(case, per_channel):
    """Per-channel lists back to (sample, channel, spatial) order."""
    samples, channels, spatial = case.shape
    planes = [
        per_channel[ch][s * spatial : (s + 1) * spatial]
        for s in range(samples)
        for ch in range(channels)
    ]
    return [v for plane in planes for v in plane]


def evaluation_statistics(c, x, mean, var, eps, outside):
    root, inv = inverse_root(c, var, eps, outside)
    x_hat = [c.mul(c.sub(v, mean), inv) for v in x]
    return Statistics(mean, 0.0, var, root, inv, 1.0, eps, x_hat)


def batch_norm(case):
    c = COMPUTE[case.x.dtype]
    samples, channels, spatial = case.shape
    training = case.norm == "batch_norm_train"
    weights = effective_weight(c, values(case.weight), case.weight_offset)
    eps, sums = c.round(case.eps), channel_sums(c, spatial)
    ys, dxs, grads = [], [], {"dweight": [], "dbias": []}
    reported = {"mean": [], "var": [], "rstd": []}
    for ch in range(channels):
        x = channel(case, case.x.values, ch)
        if training:
            stats = centered_statistics(c, x, sums, eps, case.eps_outside)
            report(c, reported, stats)
        else:
            mean, var = case.running_mean.values[ch], case.running_var.values[ch]
            stats = evaluation_statistics(c, x, mean, var, eps, case.eps_outside)
        weight = None if weights is None else weights[ch]
        ys.append(channel_affine(c, stats.x_hat, weight, case.bias, ch))
        if case.dy is not None:
            dy = channel(case, case.dy.values, ch)
            dweight, dbias = sums.dot(dy, stats.x_hat), sums.sum(dy)
            grads["dweight"].append(dweight)
            grads["dbias"].append(dbias)
            if training:
                dxs.append(batch_norm_dx(c, dy, weight, stats, dweight, dbias, case.eps_outside))
            else:
                factor = stats.inv if weight is None else c.mul(weight, stats.inv)
                dxs.append([c.mul(d, factor) for d in dy])
    out = {"y": Array(case.y_type, scatter(case, ys)).to(case.y_type)}
    if training:
        out |= statistics_arrays(c, reported) | running_statistics(case, c, reported)
    return out, channel_gradients(case, c, scatter(case, dxs) if dxs else [], grads)


def channel_affine(c, x_hat, weight, bias, ch):
    per_element = lambda v: None if v is None else [v] * len(x_hat)
    return affine(c, x_hat, per_element(weight), per_element(bias and bias.values[ch]))


def running_statistics(case, c, reported):
    if case.running_mean is None:
        return {}
    samples, _, spatial = case.shape
    n = samples * spatial
    means, variances = reported["mean"], reported["var"]
    if not case.biased_running_var:
        variances = [unbiased(c, v, n) for v in variances]

    def updated(running, new):
        pairs = zip(running.values, new)
        moved = [running_update(c, old, value, case.momentum) for old, value in pairs]
        return Array(running.dtype, moved).to(running.dtype)

    return {
        "running_mean": updated(case.running_mean, means),
        "running_var": updated(case.running_var, variances),
    }


def channel_gradients(case, c, dx, grads):
    if case.dy is None:
        return {}
    dx = Array(case.x.dtype, dx).to(case.x.dtype)
    return {"dx": dx} | statistics_arrays(c, grads)


def group_norm(case):
    """Groups of channels of one sample; InstanceNorm has as many groups as channels."""
    c = COMPUTE[case.x.dtype]
    samples, channels, spatial = case.shape
    size = channels // case.groups * spatial
    each = lambda list_: None if list_ is None else [v for v in list_ for _ in range(spatial)] * samples
    weight = each(effective_weight(c, values(case.weight), case.weight_offset))
    bias, eps = each(values(case.bias)), c.round(case.eps)
    part = lambda list_, span: None if list_ is None else list_[span]
    y, dx, x_hat = [], [], []
    reported = {"mean": [], "var": [], "rstd": []}
    for at in range(0, len(case.x.values), size):
        span = slice(at, at + size)
        stats = centered_statistics(c, case.x.values[span], row_sums(c), eps, case.eps_outside)
        report(c, reported, stats)
        x_hat += stats.x_hat
        y += affine(c, stats.x_hat, part(weight, span), part(bias, span))
        if case.dy is not None:
            g = times_weight(c, case.dy.values[span], part(weight, span))
            dx += layer_norm_dx(c, g, stats, case.eps_outside)
    out = {"y": Array(case.y_type, y).to(case.y_type)} | statistics_arrays(c, reported)
    if case.dy is None:
        return out, {}
    sums, grads = channel_sums(c, spatial), {"dweight": [], "dbias": []}
    for ch in range(channels):
        dy = channel(case, case.dy.values, ch)
        grads["dweight"].append(sums.dot(dy, channel(case, x_hat, ch)))
        grads["dbias"].append(sums.sum(dy))
    return out, channel_gradients(case, c, dx, grads)


NORMS = {
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "batch_norm_train": batch_norm,
    "batch_norm_eval": batch_norm,
    "group_norm": group_norm,
}


def run(case):
    """(outputs, gradients); parameter gradients in the compute type, before any rounding."""
    return NORMS[case.norm](case)
