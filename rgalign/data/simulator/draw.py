"""Vectorised draws. Every random number of a shard comes from that shard's own generator, in program order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]
Rng = np.random.Generator


def cumulative(weights: Any) -> Floats:
    """[..., V] weights to cumulative probabilities; the last column is above any draw."""
    sums = np.cumsum(np.asarray(weights, np.float64), axis=-1)
    table = (sums / sums[..., -1:]).astype(np.float32)
    table[..., -1] = 2.0
    return table


def pick(rng: Rng, table: Floats, rows: Ints) -> NDArray[np.int16]:
    """One column of ``table[row]`` ([R, V], cumulative) for every row in ``rows`` [n]."""
    uniform = rng.random(len(rows), dtype=np.float32)
    if len(table) <= 32:  # few conditions: a binary search within each is faster than gathering rows
        out = np.zeros(len(rows), np.int16)
        for row, sums in enumerate(table):
            here = np.flatnonzero(rows == row)
            out[here] = np.searchsorted(sums, uniform[here], side="right")
        return out
    return np.asarray((table[rows] <= uniform[:, None]).sum(axis=1, dtype=np.int16))


def pick_one(rng: Rng, sums: Floats, size: int) -> NDArray[np.int16]:
    """``size`` columns of one cumulative row [V]."""
    return np.searchsorted(sums, rng.random(size, dtype=np.float32), side="right").astype(np.int16)


def pick_row(uniform: Floats, weights: Floats) -> NDArray[np.int64]:
    """One column of each row of ``weights`` [n, V] (need not sum to one) by its uniform [n]."""
    sums = np.cumsum(weights, axis=1)
    chosen = (sums <= (uniform * sums[:, -1])[:, None]).sum(axis=1)
    # Rounding may step past the last column that has weight.
    last = weights.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
    return np.asarray(np.minimum(chosen, last), np.int64)


def lognormal(rng: Rng, median: Any, sigma: float, size: int) -> Floats:
    spread = np.exp(sigma * rng.standard_normal(size, dtype=np.float32))
    return np.asarray(np.asarray(median, np.float32) * spread, np.float32)


def chance(rng: Rng, probability: Any, size: int) -> Bools:
    return np.asarray(rng.random(size, dtype=np.float32) < probability)


def starts(lengths: Ints) -> NDArray[np.int32]:
    """[n] lengths to [n + 1] offsets."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ages(rng: Rng, lengths: Ints, first: float, gap: float, sigma: float = 1.2) -> Floats:
    """Hours ago of every step of every history, newest first: a lognormal first age, then lognormal gaps."""
    offsets = starts(lengths)
    total = int(offsets[-1])
    steps = lognormal(rng, gap, sigma, total).astype(np.float64)
    heads = offsets[:-1][lengths > 0]
    steps[heads] *= first / gap
    sums = np.cumsum(steps)
    before = sums[heads] - steps[heads]
    return (sums - np.repeat(before, lengths[lengths > 0])).astype(np.float32)


def add_steps(out: Floats, table: Floats, rows: Ints, offsets: Ints) -> None:
    """Adds to every ``out`` row [n, P] the sum of its history's ``table`` rows; ``offsets`` [n + 1] into ``rows``."""
    lengths = np.diff(offsets)
    for step in range(int(lengths.max(initial=0))):
        here = np.flatnonzero(lengths > step)
        out[here] += table[rows[offsets[here] + step]]
