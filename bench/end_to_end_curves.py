"""What latency-throughput curves say: capacity, throughput at equal p99, p99 at equal load. Rows in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgalign.bench.loadgen_plots import save

OURS, PEER = "rgalign", "fastapi + transformers + faiss"
COLOURS = {OURS: "#1b7837", PEER: "#762a83"}
EQUAL_SHARE = 0.8  # of the peer's capacity, where both are compared
LIMITS_MS = (250.0, 500.0, 1_000.0, 2_000.0)

Point = Mapping[str, Any]  # rate, promised_p99_ms, ... of one service at one rate


def rate_within(points: Sequence[Point], limit_ms: float) -> tuple[float | None, bool]:
    """The highest rate at which p99 is within the limit, and whether the curve ends there (so that it is more).

    Between two points log p99 is taken to be linear in the rate; it is infinite where more than a hundredth got no
    whole answer, and the rate then that of the point before. None: the lowest rate is beyond the limit already.
    """
    ordered = sorted(points, key=lambda point: float(point["rate"]))
    inside: Point | None = None
    for point in ordered:
        p99_ms = _p99(point)
        if p99_ms > limit_ms:
            if inside is None:
                return None, False
            share = math.log(limit_ms / _p99(inside)) / math.log(p99_ms / _p99(inside))
            return float(inside["rate"]) + share * (float(point["rate"]) - float(inside["rate"])), False
        inside = point
    return (None if inside is None else float(inside["rate"])), True


def compared(points: Mapping[str, Sequence[Point]], capacity: Mapping[str, float]) -> dict[str, Any]:
    """The comparison of one template: ``points`` and ``capacity`` (requests a second, saturated) of both services.

    ``equal_p99``: at the p99 that the peer has at EQUAL_SHARE of its capacity. ``equal_load``: at that rate.
    """
    rate = EQUAL_SHARE * capacity[PEER]
    at_rate = {name: _p99(_nearest(points[name], rate)) for name in (OURS, PEER)}
    limits = {f"{limit:g}": _throughputs(points, limit) for limit in LIMITS_MS}
    return {
        "capacity_per_s": {name: round(value, 2) for name, value in capacity.items()},
        "capacity_ratio": _ratio(capacity[OURS], capacity[PEER]),
        "equal_p99": {"p99_ms": _rounded(at_rate[PEER]), **_throughputs(points, at_rate[PEER])},
        "throughput_within_ms": limits,
        "equal_load": {
            "rate": round(rate, 2),
            "p99_ms": {name: _rounded(value) for name, value in at_rate.items()},
            "p99_ratio": _ratio(at_rate[OURS], at_rate[PEER]),
        },
        "own_load_p99_ms": {
            name: _rounded(_p99(_nearest(points[name], EQUAL_SHARE * capacity[name]))) for name in (OURS, PEER)
        },
    }


def _throughputs(points: Mapping[str, Sequence[Point]], limit_ms: float) -> dict[str, Any]:
    found = {name: rate_within(points[name], limit_ms) for name in (OURS, PEER)}
    rates = {name: rate for name, (rate, _) in found.items()}
    return {
        "per_s": {name: _rounded(rate) for name, rate in rates.items()},
        "at_least": [name for name, (rate, at_least) in found.items() if at_least and rate is not None],
        "ratio": _ratio(rates[OURS], rates[PEER]),
    }


def _p99(point: Point) -> float:
    value = point["promised_p99_ms"]
    return math.inf if value is None else float(value)


def _nearest(points: Sequence[Point], rate: float) -> Point:
    return min(points, key=lambda point: abs(float(point["rate"]) - rate))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 2)


def _ratio(above: float | None, below: float | None) -> float | None:
    if above is None or not below or not math.isfinite(above) or not math.isfinite(below):
        return None
    return round(above / below, 2)


def plot(templates: Mapping[str, tuple[Mapping[str, Sequence[Point]], Mapping[str, float]]], path: Path) -> None:
    """A panel a template: p50 and p99 of both services over the offered rate; their capacities as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * len(templates), 4.6))
    panels = figure.subplots(1, len(templates), squeeze=False, sharey=True)[0]
    for axis, (template, (points, capacity)) in zip(panels, templates.items(), strict=True):
        for name in (OURS, PEER):
            ordered = sorted(points[name], key=lambda point: float(point["rate"]))
            rates = [point["rate"] for point in ordered]
            p99s = [point["promised_p99_ms"] or math.nan for point in ordered]
            low = [point["p99_interval_ms"][0] or math.nan for point in ordered]
            high = [point["p99_interval_ms"][1] or math.nan for point in ordered]
            axis.fill_between(rates, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
            axis.plot(rates, p99s, marker="o", color=COLOURS[name], label=f"{name}, p99")
            p50s = [point["latency_ms"]["p50"] for point in ordered]
            axis.plot(rates, p50s, marker=".", linestyle="--", color=COLOURS[name], label=f"{name}, p50")
            axis.axvline(capacity[name], linestyle=":", color=COLOURS[name])
        axis.set(title=f"template {template}", xlabel="offered requests a second (dotted: capacity)")
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="minor", labelsize=7)
        axis.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("milliseconds from the scheduled arrival")
    panels[0].legend(fontsize=8)
    save(figure, path)
