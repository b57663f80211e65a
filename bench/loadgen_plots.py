"""Plots of load: latency over offered rate, a run over time, percentiles, where the milliseconds went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgalign.bench.loadgen_ledger import STAGES, WHOLE

COLOURS = {
    "late": "#bdbdbd",
    "http": "#8073ac",
    "other": "#969696",
    "tokenise": "#e08214",
    "queue": "#d6604d",
    "reason": "#1b7837",
    "rank": "#2166ac",
}
LIMIT, OURS = "#b2182b", "#1b7837"


def latency_over_rate(rows: Sequence[Mapping[str, Any]], knee: float | None, path: Path) -> None:
    """Latency percentiles over offered rate, logarithmic; the knee as a line; below, how many answers were whole."""
    figure = Figure(figsize=(6.4, 5.2))
    axis, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    ordered = sorted(rows, key=lambda each: float(each["rate"]))
    for name in ("p50", "p90", "p99"):
        axis.plot([r["rate"] for r in ordered], [r["latency_ms"][name] for r in ordered], marker="o", label=name)
    if knee is not None:
        axis.axvline(knee, linestyle=":", color="grey", label=f"knee {knee:g}/s")
        below.axvline(knee, linestyle=":", color="grey")
    axis.set(yscale="log", ylabel="ms from the scheduled arrival")
    axis.legend()
    whole = [100 * r["outcomes"].get(WHOLE, 0) / max(1, r["requests"]) for r in ordered]
    below.plot([r["rate"] for r in ordered], whole, marker="o", color=OURS)
    below.set(xscale="log", ylim=(0, 105), xlabel="offered requests a second", ylabel="whole answers, %")
    below.set_xticks(ticks := [r["rate"] for r in ordered], [f"{rate:g}" for rate in ticks])
    below.minorticks_off()
    for each in (axis, below):
        each.grid(alpha=0.3)
    save(figure, path)


def run_page(
    title: str,
    seconds: Sequence[Mapping[str, Any]],
    percentiles: Sequence[tuple[float, float]],
    stages: Mapping[str, Mapping[str, float]],
    limit_ms: float,
    path: Path,
) -> None:
    """One run: over time, its percentiles, and where the time went.

    Args:
        percentiles: (percentile, milliseconds), rising.
    """
    figure = Figure(figsize=(13.5, 4.6))
    grid = figure.add_gridspec(2, 3, width_ratios=(1.5, 1, 0.7), height_ratios=(3, 1))
    over_time = figure.add_subplot(grid[0, 0])
    draw_latencies(over_time, seconds, limit_ms)
    draw_counts(figure.add_subplot(grid[1, 0], sharex=over_time), seconds)
    draw_percentiles(figure.add_subplot(grid[:, 1]), percentiles, limit_ms)
    bars = {"all": (stages, "mean"), "slowest 1 %": (stages, "slowest_1_percent")}
    draw_stages(figure.add_subplot(grid[:, 2]), bars)
    figure.suptitle(title)
    save(figure, path)


def draw_latencies(axis: Axes, seconds: Sequence[Mapping[str, Any]], limit_ms: float) -> None:
    at = [row["second"] for row in seconds]
    axis.plot(at, [row["p50_ms"] for row in seconds], color=OURS, linewidth=1, label="p50 of the second")
    axis.plot(at, [row["max_ms"] for row in seconds], color=OURS, linewidth=1, alpha=0.4, label="slowest")
    axis.axhline(limit_ms, color=LIMIT, linestyle=":", label=f"limit {limit_ms:g} ms")
    axis.set(ylabel="ms from the scheduled arrival", yscale="log")
    axis.tick_params(labelbottom=False)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False)


def draw_counts(axis: Axes, seconds: Sequence[Mapping[str, Any]]) -> None:
    at = [row["second"] for row in seconds]
    axis.bar(at, [row["offered"] for row in seconds], color="#999999", width=1.0)
    axis.bar(at, [row["degraded"] + row["other"] for row in seconds], color=LIMIT, width=1.0)
    axis.set(xlabel="seconds (red: no whole answer)", ylabel="requests")


def draw_percentiles(axis: Axes, percentiles: Sequence[tuple[float, float]], limit_ms: float) -> None:
    """As HdrHistogram's own plotter: 1 / (1 - percentile), logarithmic, so that the tail is as wide as the rest."""
    inside = [(1 / (1 - share / 100), value) for share, value in percentiles if share < 100]
    axis.plot([x for x, _ in inside], [value for _, value in inside], color=OURS)
    axis.axhline(limit_ms, color=LIMIT, linestyle=":")
    axis.axvline(100, color="grey", linestyle=":", linewidth=1)
    last = max([10.0, *(x for x, _ in inside)])
    ticks = [x for x in (1, 2, 10, 100, 1_000, 10_000, 100_000) if x <= last * 1.01]
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{100 * (1 - 1 / x):.{max(0, round(math.log10(x)) - 2)}f} %" for x in ticks])
    axis.minorticks_off()
    axis.set(xlabel="percentile of the answers", ylabel="milliseconds", ylim=(0, None))
    axis.grid(alpha=0.3)


def draw_stages(axis: Axes, bars: Mapping[str, tuple[Mapping[str, Mapping[str, float]], str]]) -> None:
    """A bar for each of ``bars``: of what ``where_time_went`` gave, that column."""
    bottoms = np.zeros(len(bars))
    for stage in STAGES:
        heights = np.array([stages.get(stage, {}).get(column, 0.0) for stages, column in bars.values()])
        axis.bar(range(len(bars)), heights, bottom=bottoms, color=COLOURS[stage], label=stage)
        bottoms += heights
    axis.set_xticks(range(len(bars)), list(bars))
    axis.set_ylabel("milliseconds, mean")
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
