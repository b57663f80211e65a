"""A plan as a picture: latency over load at the planned replicas, and how busy they are."""

from __future__ import annotations

from pathlib import Path

from rgalign.planner.search import Plan, PlanConfig

P50, P99, TARGET = "#1b7837", "#2166ac", "#b2182b"


def draw_plan(plan: Plan, config: PlanConfig, path: Path) -> None:
    """Needs matplotlib, which `pip install 'rgalign[train]'` brings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    latency, busy = figure.subplots(1, 2)
    loads = [trial.qps for trial in plan.curve]
    latency.plot(loads, [trial.p50_ms for trial in plan.curve], "o-", color=P50, label="p50")
    latency.plot(loads, [trial.p99_ms for trial in plan.curve], "o-", color=P99, label="p99")
    latency.axhline(config.p99_ms, color=TARGET, linestyle="--", label=f"target {config.p99_ms:g} ms")
    latency.axvline(config.qps, color="grey", linestyle=":", label=f"load {config.qps:,.0f}/s")
    latency.set(yscale="log", ylabel="milliseconds from the arrival", title=f"{plan.replicas} replicas, simulated")
    busy.plot(loads, [trial.worker_busy for trial in plan.curve], "o-", color=P50, label="reasoner busy")
    busy.plot(loads, [trial.host_busy for trial in plan.curve], "o-", color=P99, label="host busy")
    busy.plot(loads, [trial.whole for trial in plan.curve], "s--", color=TARGET, label="whole answers")
    busy.axvline(config.qps, color="grey", linestyle=":")
    busy.set(ylim=(0, 1.05), ylabel="share", title=f"breaks first: {plan.breaks_first}")
    busy.title.set_fontsize(9)
    for axis in (latency, busy):
        axis.set_xlabel("requests a second, all replicas")
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
