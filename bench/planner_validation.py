"""The capacity planner against real runs: p50 and p99 at three loads, each the median of three runs.

    python -m rgalign.bench.planner_validation [--bundle DIR] [--contexts FILE] [--plot docs/planner_validation.png]

Each load is run for real (an open loop on a Recommender in this process) and simulated with the very same arrival times
and lengths. The curve is measured in turn with the loads, and a load is simulated with the mean of those before and
behind it, for a shared machine changes its speed. Rows go to bench/results/planner.jsonl. Let nothing else run.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

import rgalign
from rgalign.bench.end_to_end import WORK
from rgalign.bench.end_to_end_bundles import OWN, bundles
from rgalign.bench.loadgen_contexts import drawn_contexts, read_contexts
from rgalign.bench.loadgen_ledger import WHOLE
from rgalign.bench.loadgen_targets import Context, library_ask, open_loop
from rgalign.bench.rows import append, hardware, row
from rgalign.bundle import read_bundle
from rgalign.planner import Curve, simulate
from rgalign.planner.arrivals import poisson
from rgalign.planner.measure import measure
from rgalign.recommender import Recommender, RecommenderConfig

SHARES = (0.3, 0.5, 0.7)  # of what full batches could do; beyond, one burst decides a run's p99
RUNS = 3
LIMITS = {50: 0.15, 99: 0.25}  # relative error of the median of three

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, help="made of simulated sessions without")
    parser.add_argument("--contexts", type=Path, help="a JSON object a line; drawn from the schema without")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="of the replica's capacity")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", default="planner.jsonl", help="file in bench/results, or an absolute path")
    arguments = parser.parse_args()
    config = RecommenderConfig(threads=arguments.threads, deadline_ms=10_000.0)
    bundle = next(iter(bundles([OWN], WORK, bundle=arguments.bundle).values()))
    contexts = read_contexts(arguments.contexts) if arguments.contexts else drawn_contexts(read_bundle(bundle), 500)
    machine = str(hardware()["cpu"])
    curves = [curve_now(bundle, contexts, config, machine)]
    curve = curves[0]
    alone = 1_000 / curve.ms_of(curve.mean_length)
    console.print(
        f"{alone:.1f} rows/s one by one, {curve.rows_per_second:.1f} in full batches; host {curve.host_ms:.1f} ms"
    )
    points = []
    with rgalign.load(bundle, config) as recommender:
        for share in arguments.shares:
            runs = [real_run(recommender, contexts, share, n, share * curve.rows_per_second, arguments.seconds)
                    for n in range(RUNS)]  # fmt: skip
            curves.append(curve_now(bundle, contexts, config, machine))
            points.append(compared(share, runs, between(*curves[-2:]), config))
            console.print(points[-1], highlight=False)
    kept = all(point["within"] for point in points)
    measured = {"points": points, "kept": kept, "curve": curve.model_dump(mode="json", exclude={"lengths", "jitter"})}
    append(arguments.out, [row("planner_validation", threads=arguments.threads, seconds=arguments.seconds, **measured)])
    if arguments.plot is not None:
        draw(points, arguments.plot)
    console.print(f"{'within' if kept else 'BEYOND'} {LIMITS[50]:.0%} on p50 and {LIMITS[99]:.0%} on p99")


@dataclass(frozen=True)
class Run:
    """Arrivals in seconds, and the percentiles in milliseconds of what they met."""

    times: Sequence[float]
    percentiles: dict[int, float]


def curve_now(bundle: Path, contexts: Sequence[Context], config: RecommenderConfig, machine: str) -> Curve:
    return measure(bundle, contexts, config, repeats=4, requests=40, machine=machine)


def between(before: Curve, after: Curve) -> Curve:
    """Their mean; jitter drawn from both."""
    means = {name: (getattr(before, name) + getattr(after, name)) / 2 for name in ("read_ms", "tower_ms", "answer_ms")}
    ms = tuple((one + other) / 2 for one, other in zip(before.ms, after.ms, strict=True))
    return before.model_copy(update={**means, "ms": ms, "jitter": before.jitter + after.jitter})


def real_run(
    recommender: Recommender, contexts: Sequence[Context], share: float, number: int, rate: float, seconds: float
) -> Run:
    times = poisson(rate, seconds, seed=100 * number + round(100 * share))
    ledger = asyncio.run(open_loop(library_ask(recommender, 3, None), contexts, list(enumerate(times))))
    taken = [ended.latency_ms for ended in ledger.ended if ended.outcome == WHOLE]
    return Run(times, {percent: float(np.percentile(taken, percent)) for percent in LIMITS})


def compared(share: float, runs: Sequence[Run], curve: Curve, config: RecommenderConfig) -> dict[str, Any]:
    """One load: medians over the runs, and their relative differences."""
    results = [simulate(curve, config, run.times, seed=n, draw_lengths=False) for n, run in enumerate(runs)]
    rate = len(runs[0].times) / runs[0].times[-1]
    point: dict[str, Any] = {"share": share, "rate": round(rate, 2), "curve_ms": curve.ms[0], "within": True}
    for percent, limit in LIMITS.items():
        was = median(run.percentiles[percent] for run in runs)
        said = median(result.percentile(percent) for result in results)
        point[f"p{percent}"] = {
            "real_ms": round(was, 1),
            "runs_ms": [round(run.percentiles[percent], 1) for run in runs],
            "simulated_ms": round(said, 1),
            "difference": round(said / was - 1, 3),
        }
        point["within"] &= abs(said / was - 1) <= limit
    return point


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    rates = [point["rate"] for point in points]
    for percent, colour in ((50, "#1b7837"), (99, "#2166ac")):
        name = f"p{percent}"
        axis.plot(rates, [p[name]["simulated_ms"] for p in points], "-", color=colour, label=f"{name} simulated")
        axis.plot(
            rates, [p[name]["real_ms"] for p in points], "o", color=colour, label=f"{name} real, median of {RUNS}"
        )
        for point in points:
            axis.plot([point["rate"]] * RUNS, point[name]["runs_ms"], "_", color=colour, alpha=0.6)
        low, high = ([p[name]["simulated_ms"] / (1 + sign * LIMITS[percent]) for p in points] for sign in (1, -1))
        axis.fill_between(rates, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.set(yscale="log", xlabel="requests a second (Poisson)", ylabel="milliseconds from the arrival")
    axis.set_title("capacity planner and real runs; bands: real within 15 % and 25 %", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
