"""The tensors of the cases: where their rows lie in memory, and hostile values."""

import torch


def _heads(rows):
    """Rows as samples x positions of heads that lie position by position."""
    heads = 4 if rows % 4 == 0 else 1
    return heads, rows // heads


def _behind(offset):
    """Starts where no 16 bytes do."""
    return lambda r, h: (r * h + offset,), lambda base, r, h: base[offset:].view(r, h)


LAYOUTS = {
    "plain": (lambda r, h: (r, h), lambda base, r, h: base),
    "offset 1": _behind(1),
    "row stride odd": (lambda r, h: (r, h + 1), lambda base, r, h: base[:, :h]),
    "heads": (lambda r, h: (_heads(r)[1], _heads(r)[0], h), lambda base, r, h: base.transpose(0, 1)),
    "third of columns": (lambda r, h: (r, 3 * h), lambda base, r, h: base[:, h : 2 * h]),
    "offset 3": _behind(3),
    "row stride odd, offset": (lambda r, h: (r, h + 3), lambda base, r, h: base[:, 2:-1]),
    "every other row": (lambda r, h: (2 * r, h), lambda base, r, h: base[::2]),
    "one row for all": (lambda r, h: (1, h), lambda base, r, h: base.expand(r, h)),
    "columns": (lambda r, h: (h, r), lambda base, r, h: base.T),
    "every other column": (lambda r, h: (r, 2 * h), lambda base, r, h: base[:, ::2]),
    "offset 8": _behind(8),
    "three axes": (lambda r, h: (_heads(r)[1], _heads(r)[0], h + 8), lambda base, r, h: base[..., :h]),
}


def allocated(layout, rows, hidden):
    """The shape of the memory."""
    return LAYOUTS[layout][0](rows, hidden)


def rows_of(layout, base, rows, hidden):
    """The rows in it."""
    return LAYOUTS[layout][1](base, rows, hidden)


def hostile(shape, dtype, random):
    """Rows, last axis, of all magnitudes the type has; some with infinities and NaN, zeros, or one value alone."""
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    rows = x.view(-1, shape[-1])
    scales = (1.0, largest / 8, least * 16, largest**0.5, least**0.5 / 64, least / 64, 1.0, 1.0)
    rows *= torch.tensor(scales, dtype=torch.float64).repeat(len(rows) // len(scales) + 1)[: len(rows), None]
    rows[6::8] += 1000.0
    rows[7::8] = 3.0
    for first, value in ((8, float("nan")), (16, float("inf")), (24, float("-inf")), (32, 0.0), (40, -0.0)):
        rows[first::48, -1] = value
    rows[47::48] = 0.0
    return x.to(dtype)
