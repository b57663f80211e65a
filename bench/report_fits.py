"""How cost grows: exponents fitted to measured points, and what they say of sizes that were not measured.

    cost = c size^a

a by least squares on logarithms: over all points, and over the larger half, where what a call costs whatever its size
no longer hides how it grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rgalign.bench.result_rows import MEASURES, Row, latest, measure, of

FEWEST_POINTS = 3

# Benchmark -> the size that grows, how it is called.
SCALED = {
    "scaling: length": ("T", "prompt tokens"),
    "scaling: batch": ("B", "prompts a call"),
    "scaling: catalogue": ("N", "intents"),
    "scaling: cores, prompt": ("threads", "threads, one prompt"),
    "scaling: cores, catalogue": ("threads", "threads, one scan"),
    "train steps": ("batch", "sessions a step"),
    "data: simulate": ("sessions", "sessions"),
    "data: encode": ("sessions", "sessions"),
}
NOT_OVER_SIZE = ("one session at a time",)  # measured on a sample, whatever the number of sessions


@dataclass(frozen=True)
class Curve:
    """Milliseconds over size of one variant, by size; ``low`` and ``high`` its percentiles 20 and 80."""

    benchmark: str
    variant: str
    size_name: str
    sizes: tuple[float, ...]
    ms: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """``exponent`` with its standard error (NaN from two points), over ``points`` sizes."""

    exponent: float
    error: float
    factor: float
    points: int

    def at(self, size: float) -> float:
        return float(self.factor * size**self.exponent)


def curves(rows: Sequence[Row], benchmark: str) -> list[Curve]:
    """Of every variant with at least two sizes."""
    size, name = SCALED[benchmark]
    found: dict[str, dict[float, dict[str, float]]] = {}
    for row in latest(of(rows, benchmark)):
        milliseconds = cost_ms(row)
        if milliseconds is not None and size in row and row["variant"] not in NOT_OVER_SIZE:
            found.setdefault(row["variant"], {})[row[size]] = milliseconds
    made = []
    for variant, points in found.items():
        sizes = sorted(points)
        if len(sizes) > 1:
            columns = (tuple(points[each][key] for each in sizes) for key in ("median", "p20", "p80"))
            made.append(Curve(benchmark, variant, name, tuple(sizes), *columns))
    return made


def cost_ms(row: Row) -> dict[str, float] | None:
    """Of a call (of simulating and encoding: of the whole run), from whichever value the row has."""
    if isinstance(row.get("seconds"), int | float):
        return dict.fromkeys(("median", "p20", "p80"), 1e3 * float(row["seconds"]))
    for name, scale in (("call_ms", 1.0), ("call_us", 1e-3), ("seconds", 1e3)):
        if isinstance(row.get(name), dict):
            return {key: scale * float(row[name][key]) for key in ("median", "p20", "p80")}
    found = measure(row)
    if found is None or MEASURES[found[0]]:
        return None
    return found[1]


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Fit:
    """Least squares on logarithms; at least two different sizes."""
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(costs, np.float64))
    centred = x - x.mean()
    exponent = float(centred @ (y - y.mean()) / (centred @ centred))
    rest = y - y.mean() - exponent * centred
    freedom = len(x) - 2
    error = math.sqrt(float(rest @ rest) / freedom / float(centred @ centred)) if freedom > 0 else math.nan
    return Fit(exponent, error, math.exp(float(y.mean()) - exponent * float(x.mean())), len(x))


def larger_half(curve: Curve) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sizes and costs of the larger half of the points, at least FEWEST_POINTS where there are so many."""
    count = min(len(curve.sizes), max(FEWEST_POINTS, math.ceil(len(curve.sizes) / 2)))
    return curve.sizes[-count:], curve.ms[-count:]
