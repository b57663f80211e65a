"""`rgalign plan …`: how many replicas a load needs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from rgalign.cli.shared import console
from rgalign.errors import ConfigError

if TYPE_CHECKING:
    from rgalign.planner import Plan

app = typer.Typer(invoke_without_command=True)

CurveFile = Annotated[Path, typer.Option(help="A replica's curve: rgalign plan measure.", show_default=False)]
SCENARIOS = {
    "steady": "as asked",
    "bursty": "in bursts of four times the load",
    "update": "one replica drained for an update",
    "crash": "one replica crashed",
}


@app.callback()
def plan_command(
    context: typer.Context,
    qps: Annotated[float | None, typer.Option(help="Requests a second, of the whole service.")] = None,
    p99_ms: Annotated[float, typer.Option(help="The 99th percentile may be so much, from the arrival.")] = 120.0,
    curve: Annotated[Path | None, typer.Option(help="A replica's curve: rgalign plan measure.")] = None,
    arrivals: Annotated[str, typer.Option(help="poisson or bursty.")] = "poisson",
    routing: Annotated[str, typer.Option(help="least_outstanding or random.")] = "least_outstanding",
    spare: Annotated[int, typer.Option(help="Replicas beyond the load's, for crashes and updates.")] = 1,
    whole_share: Annotated[float, typer.Option(help="Of the requests that must get a whole answer.")] = 0.999,
    hourly_price: Annotated[float | None, typer.Option(help="Of a replica, in any currency.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the recommender. Repeatable.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON to write.")] = None,
) -> None:
    """How many replicas keep a load, what is left as headroom, and what breaks first.

    A simulation of the real batcher in virtual time, driven by a measured curve (docs/capacity.md).

    Example: rgalign plan measure bundle contexts.jsonl -o curve.json

    rgalign plan --qps 50000 --p99-ms 120 --curve curve.json --hourly-price 4.2 --plot plan.png
    """
    if context.invoked_subcommand:
        return
    if qps is None or curve is None:
        raise ConfigError(where="plan", required="--qps and --curve", received="--help has an example")
    from rgalign.config import load_config, parse_config
    from rgalign.files import write_atomic
    from rgalign.planner import PlanConfig, plan, read_curve
    from rgalign.recommender import RecommenderConfig

    values = {
        "qps": qps,
        "p99_ms": p99_ms,
        "arrivals": arrivals,
        "routing": routing,
        "spare": spare,
        "whole_share": whole_share,
        "hourly_price": hourly_price,
        "serving": load_config(RecommenderConfig, None, settings or ()),
    }
    config = parse_config(PlanConfig, values, where="plan")
    measured = read_curve(curve)
    with console.status("simulating") as status:
        found = plan(measured, config, status.update)
    _print(found, measured.machine)
    if out is not None:
        body = {"plan": asdict(found), "headroom": found.headroom, "config": config.model_dump(mode="json")}
        write_atomic(out, (json.dumps(body | {"machine": measured.machine}, indent=1) + "\n").encode())
    if plot is not None:
        from rgalign.planner.plots import draw_plan

        draw_plan(found, config, plot)
        console.print(f"plot: {plot}", highlight=False)


@app.command("measure")
def measure_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.", show_default=False)],
    contexts: Annotated[Path, typer.Argument(help="A JSON object a line, as users have them.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Curve file to write.", show_default=False)],
    repeats: Annotated[int, typer.Option(min=3, help="Batches of each size.")] = 15,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the recommender. Repeatable.")
    ] = None,
) -> None:
    """Measure a replica's curve on this machine; half a minute or so. Let nothing else run.

    Example: rgalign plan measure bundle contexts.jsonl -o curve.json --set threads=2
    """
    from rgalign.bench.loadgen_contexts import read_contexts
    from rgalign.bench.rows import hardware
    from rgalign.config import load_config
    from rgalign.planner.measure import measure
    from rgalign.recommender import RecommenderConfig

    config = load_config(RecommenderConfig, None, settings or ())
    asked = read_contexts(contexts)
    machine = f"{hardware()['cpu']}, {config.threads} threads"
    with console.status("measuring") as status:
        curve = measure(bundle, asked, config, repeats=repeats, machine=machine, progress=status.update)
    curve.write(out)
    for tokens, ms in zip(curve.tokens, curve.ms, strict=True):
        console.print(f"{tokens:8.0f} tokens {ms:9.1f} ms", highlight=False)
    host = f"host: {curve.read_ms:.2f} ms read, {curve.tower_ms:.2f} ms tower, {curve.answer_ms:.2f} ms answer"
    console.print(f"{host}; at most {curve.rows_per_second:.1f} requests a second\n{out}", highlight=False)


@app.command("offline")
def offline_command(
    curve: CurveFile,
    sessions: Annotated[int, typer.Option(help="Of a pass.")] = 7_530_000,
    passes: Annotated[int, typer.Option(help="Embeddings of all of them.")] = 3,
    devices: Annotated[int, typer.Option(help="That embed, then train.")] = 1,
    train_sessions: Annotated[int, typer.Option(help="Of the alignment.")] = 0,
    train_epochs: Annotated[float, typer.Option(help="Of the alignment.")] = 10.0,
    train_ms: Annotated[float, typer.Option(help="Of one session's step on one device, measured.")] = 0.0,
    train_efficiency: Annotated[float, typer.Option(help="Of all devices against one.")] = 1.0,
) -> None:
    """Hours of embedding all sessions, and of the alignment.

    Example: rgalign plan offline --curve curve.json --devices 8 --train-sessions 1000000 --train-ms 12
    """
    from rgalign.config import parse_config
    from rgalign.planner import OfflineConfig, plan_offline, read_curve

    values = {
        "sessions": sessions,
        "passes": passes,
        "devices": devices,
        "train_sessions": train_sessions,
        "train_epochs": train_epochs,
        "train_ms": train_ms,
        "train_efficiency": train_efficiency,
    }
    found = plan_offline(read_curve(curve), parse_config(OfflineConfig, values, where="plan offline"))
    console.print(f"embedding: {found.embed_hours:,.1f} h", highlight=False)
    console.print(f"training:  {found.train_hours:,.1f} h", highlight=False)
    console.print(f"devices x hours: {found.device_hours:,.1f}", highlight=False)


def _print(found: Plan, machine: str) -> None:
    table = Table("scenario", "p50 ms", "p99 ms", "whole", "degraded", "refused", "lost", "reasoner", "host", "batch")
    for name, trial in found.trials.items():
        shares = (trial.whole, trial.degraded, trial.refused, trial.lost)
        cells: list[Any] = [SCENARIOS[name], f"{trial.p50_ms:.1f}", f"{trial.p99_ms:.1f}"]
        cells += [f"{share:.2%}" for share in shares]
        cells += [f"{trial.worker_busy:.0%}", f"{trial.host_busy:.0%}", f"{trial.rows_per_batch:.1f}"]
        table.add_row(*cells)
    console.print(table)
    devices = f", {found.gpus} GPUs" if found.gpus else ""
    console.print(f"replicas: {found.replicas} ({found.needed} for the load){devices}   [{machine}]", markup=False)
    console.print(f"headroom: {found.headroom:.0%}, up to {found.most_qps:,.0f} requests a second", highlight=False)
    console.print(f"breaks first: {found.breaks_first}", highlight=False)
    if found.cost_per_million is not None:
        console.print(f"cost of a million sessions: {found.cost_per_million:,.2f}", highlight=False)
