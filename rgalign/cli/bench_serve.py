"""`rgalign bench serve`: the gate. A function that `rgalign bench` mounts; alone as `python -m rgalign.bench.gate`."""

from __future__ import annotations

import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from rgalign.errors import RgalignError

NO_VERDICT = 2


def bench_serve(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory.", show_default=False)] = None,
    qps: Annotated[float, typer.Option(help="Requests a second, on average.")] = 50.0,
    p99_ms: Annotated[
        float, typer.Option(help="The 99th percentile may be so much, from the scheduled arrival.")
    ] = 120.0,
    seconds: Annotated[float, typer.Option(help="Of load.")] = 60.0,
    target: Annotated[str | None, typer.Option(help="http://host:port of a service that runs already.")] = None,
    contexts: Annotated[Path | None, typer.Option(help="A JSON object a line; else drawn from the schema.")] = None,
    arrivals: Annotated[Literal["poisson", "bursty", "trace"], typer.Option(help="How requests arrive.")] = "poisson",
    trace: Annotated[Path | None, typer.Option(help="For --arrivals trace: a line a request.")] = None,
    k: Annotated[int, typer.Option(min=1)] = 3,
    deadline_ms: Annotated[float | None, typer.Option(help="Of each request; the service's own without.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="That generate load; as many as it takes.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the started service's recommender. Repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory; by default build/bench/gate-TIME.")
    ] = None,
    rows: Annotated[str, typer.Option(help="File for the row, in bench/results or absolute.")] = "gate.jsonl",
) -> None:
    """Try whether a service keeps QPS requests a second with a 99th percentile of P99_MS.

    Exit code 0: it does; 1: it does not; 2: nothing can be said. docs/load_testing.md has the rules.

    Example: rgalign bench serve bundle --qps 50 --p99-ms 120 --set threads=2
    """
    from rgalign.bench.gate import Gate, run_gate
    from rgalign.bench.rows import ROOT
    from rgalign.errors import ConfigError
    from rgalign.planner.arrivals import Arrivals, read_trace

    if (arrivals == "trace") != (trace is not None):
        raise ConfigError(where="gate --arrivals", required="trace with --trace FILE", received=arrivals)
    times, recorded = ([], []) if trace is None else read_trace(trace)
    load = Arrivals(arrivals, trace=tuple(times))
    gate = Gate(qps, p99_ms, seconds, load, k, deadline_ms, seed=seed, processes=processes)
    where = out or ROOT / "build" / "bench" / f"gate-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    try:
        verdict = run_gate(
            gate,
            bundle,
            where,
            target=target,
            contexts=contexts,
            recorded=recorded,
            settings=settings or (),
            rows=rows,
        )
    except (RgalignError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        # Code 1 says that the service missed the gate: a defect of ours, or a run that is not one, must not.
        if isinstance(error, SystemExit):
            typer.echo(str(error), err=True)
        else:
            traceback.print_exc()
        raise typer.Exit(NO_VERDICT) from error
    raise typer.Exit(verdict.exit_code)


def run() -> int:
    """The command by itself; its exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(bench_serve)
    try:
        app()
    except RgalignError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        return NO_VERDICT
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(run())
