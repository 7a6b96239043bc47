"""order.md as a program: by definition, not the way fast code walks it.

`c` is a compute type of `arithmetic.py` (or its `Trace`): c.add and c.fma round as that type does.
"""

from typing import NamedTuple

LANES, LEAF, BATCH_LEAF = 32, 128, 16


def tree(add, nodes):
    """The left-aligned binary tree: the left part holds the largest power of two of nodes."""
    if len(nodes) == 1:
        return nodes[0]
    left = 1 << (len(nodes) - 1).bit_length() - 1
    return add(tree(add, nodes[:left]), tree(add, nodes[left:]))


def fold(add, lanes):
    """Halves the lanes until one is left."""
    if len(lanes) == 1:
        return lanes[0]
    half = len(lanes) // 2
    return fold(add, [add(lanes[l], lanes[l + half]) for l in range(half)])


def row_order(c, n, step):
    """Row order over n elements; `step(acc, i)` takes element i into a lane."""
    leaves = []
    for start in range(0, n, LEAF):
        lanes = [c.zero] * LANES
        for i in range(start, min(start + LEAF, n)):
            lanes[i % LANES] = step(lanes[i % LANES], i)
        leaves.append(lanes)
    if not leaves:
        return c.zero
    return fold(c.add, [tree(c.add, [leaf[l] for leaf in leaves]) for l in range(LANES)])


def row_sum(c, terms):
    return row_order(c, len(terms), lambda acc, i: c.add(acc, terms[i]))


def row_dot(c, a, b):
    return row_order(c, len(a), lambda acc, i: c.fma(a[i], b[i], acc))


def batch_order(c, rows, step):
    """Batch order of one column: leaves of 16 rows, then the same tree."""
    leaves = []
    for start in range(0, rows, BATCH_LEAF):
        acc = c.zero
        for r in range(start, min(start + BATCH_LEAF, rows)):
            acc = step(acc, r)
        leaves.append(acc)
    return tree(c.add, leaves) if leaves else c.zero


def batch_sum(c, terms):
    return batch_order(c, len(terms), lambda acc, r: c.add(acc, terms[r]))


def batch_dot(c, a, b):
    return batch_order(c, len(a), lambda acc, r: c.fma(a[r], b[r], acc))


class Sums(NamedTuple):
    """How the elements of one normalized set are summed."""

    sum: callable
    dot: callable


def row_sums(c):
    return Sums(lambda a: row_sum(c, a), lambda a, b: row_dot(c, a, b))


def channel_sums(c, spatial):
    """A channel: each sample's plane in row order, the samples in batch order."""

    def planes(a):
        return [a[i : i + spatial] for i in range(0, len(a), spatial)]

    return Sums(
        lambda a: batch_sum(c, [row_sum(c, p) for p in planes(a)]),
        lambda a, b: batch_sum(c, [row_dot(c, p, q) for p, q in zip(planes(a), planes(b))]),
    )
