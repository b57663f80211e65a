"""The gate: does a service keep its promise, so many requests a second, the 99th percentile within so many ms?

    rgalign bench serve BUNDLE --qps 50 --p99-ms 120 [--seconds 60] [--target http://host:port]
    python -m rgalign.bench.gate BUNDLE ...      the same

Exit code 0: it does. 1: it does not. 2: nothing can be said, because nothing was measured, too little, or the load
generator was what was slow. The 99th percentile is of all requests, from their scheduled arrivals; one that was
refused, failed, or answered without the reasoner waited for ever: with more than a hundredth of those the gate fails.

    fails        p99 > limit even from when the requests were really sent
    no verdict   else, if the generator was late by more than a tenth of the limit (p99), or was busy all the time
    passes       p99 <= limit, else fails
"""

from __future__ import annotations

import asyncio
import csv
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from rgalign.bench.loadgen import BUSY, load_http
from rgalign.bench.loadgen_contexts import drawn_contexts, read_contexts
from rgalign.bench.loadgen_histogram import percentiles, write_histograms
from rgalign.bench.loadgen_ledger import (
    STAGES,
    UNREACHED,
    WHOLE,
    Ledger,
    by_second,
    interval_of_percentile,
    plain,
    summary,
    where_time_went,
)
from rgalign.bench.loadgen_plots import run_page
from rgalign.bench.loadgen_server import our_command, started
from rgalign.bench.loadgen_targets import Context, HttpTarget
from rgalign.bench.rows import append, row
from rgalign.bundle import read_bundle
from rgalign.errors import ConfigError
from rgalign.planner.arrivals import Arrivals, dispersion

PERCENTILE = 99.0
MIN_REQUESTS = 100  # fewer have no 99th percentile
LATE_SHARE = 0.1  # of the limit
DRAWN = 500

Outcome = Literal["pass", "fail", "error"]
EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "error": 2}


@dataclass(frozen=True)
class Gate:
    """What is promised, and how it is tried.

    Args:
        processes: that generate; None: as many as it takes.
        connections: opened, and used once, before the run.
    """

    qps: float
    p99_ms: float
    seconds: float = 60.0
    arrivals: Arrivals = field(default_factory=Arrivals)
    k: int = 3
    deadline_ms: float | None = None
    seed: int = 0
    processes: int | None = None
    connections: int = 16

    def __post_init__(self) -> None:
        for name in ("qps", "p99_ms", "seconds"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ConfigError(where=f"gate {name}", required="more than 0", received=f"{value:g}")


@dataclass(frozen=True)
class Verdict:
    """Args:
    p99_ms: of all requests; infinite where more than a hundredth got no whole answer. interval_ms: 95 %.
    """

    outcome: Outcome
    because: str
    p99_ms: float = math.inf
    interval_ms: tuple[float, float] = (math.inf, math.inf)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


def judged(gate: Gate, ledger: Ledger) -> Verdict:
    """The verdict on a run."""
    count, outcomes = len(ledger.ended), ledger.outcomes
    if count < MIN_REQUESTS:
        received = f"{count} requests were sent, and a 99th percentile takes {MIN_REQUESTS}: --seconds"
        return Verdict("error", received)
    if count == sum(outcomes[name] for name in UNREACHED):
        return Verdict("error", f"no request was answered: {shown_outcomes(ledger)}")
    waits = [each.latency_ms for each in ledger.ended if each.outcome == WHOLE]
    p99_ms = ledger.promised_ms(PERCENTILE)
    measured = (p99_ms, interval_of_percentile(waits, count, PERCENTILE))
    if ledger.busy > BUSY and ledger.late_ms(PERCENTILE) > gate.p99_ms * LATE_SHARE:
        because = f"the generator was busy {ledger.busy:.0%} of the time and late: more processes, or another machine"
        return Verdict("error", because, *measured)
    if (since_sent := ledger.promised_ms(PERCENTILE, since_sent=True)) > gate.p99_ms:
        return Verdict("fail", missed(ledger, since_sent, gate), *measured)
    if (late_ms := ledger.late_ms(PERCENTILE)) > gate.p99_ms * LATE_SHARE:
        because = f"the generator was {late_ms:.1f} ms late (p99), which is more than a tenth of the limit"
        return Verdict("error", because, *measured)
    if p99_ms > gate.p99_ms:
        return Verdict("fail", missed(ledger, p99_ms, gate), *measured)
    return Verdict("pass", f"p99 {p99_ms:.1f} ms, limit {gate.p99_ms:g} ms", *measured)


def missed(ledger: Ledger, p99_ms: float, gate: Gate) -> str:
    if math.isfinite(p99_ms):
        return f"p99 {p99_ms:.1f} ms, limit {gate.p99_ms:g} ms"
    return f"more than a hundredth got no whole answer: {shown_outcomes(ledger)}"


def shown_outcomes(ledger: Ledger) -> str:
    return ", ".join(f"{count} {name}" for name, count in ledger.outcomes.most_common())


def run_gate(
    gate: Gate,
    bundle: Path | None,
    out: Path,
    *,
    target: str | None = None,
    contexts: Path | None = None,
    recorded: Sequence[Context] = (),
    settings: Sequence[str] = (),
    rows: str = "gate.jsonl",
    console: Console | None = None,
) -> Verdict:
    """Tries the gate on a service of ``bundle``, started here, or on the one at ``target``.

    Args:
        out: directory for ``summary.json``, ``latency.hgrm``, ``latency.hlog``, ``seconds.csv``, ``gate.png``.
        contexts: file; None: ``recorded``, a trace's own, or drawn from the bundle's schema where there are none.
        settings: ``key=value`` of the started service's RecommenderConfig.
        rows: file in bench/results for the row, or an absolute path.

    Raises:
        ConfigError: neither bundle nor target; no contexts; settings of a service that is not started here.
        SystemExit: the service counted other requests than were sent.
    """
    if bundle is None and (target is None or (contexts is None and not recorded)):
        raise ConfigError(where="gate", required="a bundle, or a target and contexts", received="neither")
    if target is not None and settings:
        raise ConfigError(where="gate --set", required="a service that is started here", received=f"target {target}")
    asked, source = contexts_of(bundle, contexts, recorded, gate.seed)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if target is None:
            assert bundle is not None
            address = stack.enter_context(started(our_command(bundle, settings), out / "service.log"))
            host, port = address.host, address.port
        else:
            host, port = host_and_port(target)
        http = HttpTarget(host, port, gate.k, gate.deadline_ms)
        require_reached(http, asked[0])
        times = gate.arrivals.at(gate.qps, gate.seconds, gate.seed)
        ledger = load_http(http, asked, times, gate.processes, gate.connections) if times else Ledger()
    verdict = judged(gate, ledger)
    described = {
        "target": target or "started here",
        "shared_machine": target is None or host in ("127.0.0.1", "localhost", "::1"),
        "contexts": source,
        "settings": list(settings),
        "dispersion": dispersion(times, gate.seconds),
    }
    write_files(gate, ledger, verdict, described, out)
    show(gate, ledger, verdict, out, console or Console())
    append(rows, [row("gate", **plain(described | values_of(gate, ledger, verdict)))])
    return verdict


def contexts_of(
    bundle: Path | None, contexts: Path | None, recorded: Sequence[Context], seed: int
) -> tuple[Sequence[Context], str]:
    """What to ask with, and where it comes from."""
    if contexts is not None:
        return read_contexts(contexts), str(contexts)
    if recorded:
        return recorded, "the trace's"
    assert bundle is not None
    return drawn_contexts(read_bundle(bundle), DRAWN, seed), "drawn from the schema"


def host_and_port(target: str) -> tuple[str, int]:
    """Raises:
    ConfigError: not ``http://host:port``.
    """
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "http" or host is None or parts.path not in ("", "/"):
        raise ConfigError(where="gate --target", required="http://host:port", received=repr(target)[:60])
    return host, port or 80


def require_reached(target: HttpTarget, context: Context) -> None:
    """Raises:
    ConfigError: nobody answers there.
    """
    reply = asyncio.run(_asked_once(target, context))
    if reply in UNREACHED:
        raise ConfigError(where=f"{target.host}:{target.port}", required="a service", received=reply)


async def _asked_once(target: HttpTarget, context: Context) -> str:
    reply = await target.ask(context)
    await target.close()
    return reply.outcome


# ---- what is left of a run -------------------------------------------------------------------------------------------


def values_of(gate: Gate, ledger: Ledger, verdict: Verdict) -> dict[str, Any]:
    shape = asdict(gate) | {"arrivals": gate.arrivals.kind}
    numbers = summary(gate.qps, gate.seconds, len(ledger.ended), ledger) if ledger.ended else {}
    return {"gate": shape, "verdict": asdict(verdict), **numbers}


def write_files(gate: Gate, ledger: Ledger, verdict: Verdict, described: dict[str, Any], out: Path) -> None:
    histogram = write_histograms(ledger, out)
    seconds = by_second(ledger)
    values = plain(described | values_of(gate, ledger, verdict))
    (out / "summary.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if not seconds:
        return
    with open(out / "seconds.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(seconds[0]))
        writer.writeheader()
        writer.writerows(seconds)
    title = f"{gate.qps:g} requests a second ({gate.arrivals.kind}): {verdict.outcome}, {verdict.because}"
    run_page(title, seconds, percentiles(histogram), where_time_went(ledger), gate.p99_ms, out / "gate.png")


def show(gate: Gate, ledger: Ledger, verdict: Verdict, out: Path, console: Console) -> None:
    table = Table("milliseconds", "mean", "p50", "p99", "slowest 1 %", title="where the time went")
    stages = where_time_went(ledger)
    for stage in STAGES if stages else ():
        table.add_row(stage, *(f"{stages[stage][name]:.2f}" for name in ("mean", "p50", "p99", "slowest_1_percent")))
    if stages:
        answers = [each.latency_ms for each in ledger.answered]
        table.add_row("all", f"{sum(answers) / len(answers):.2f}", f"{ledger.latency_ms(50):.2f}",
                      f"{ledger.latency_ms(99):.2f}", "", style="bold")  # fmt: skip
        console.print(table)
    console.print(f"{len(ledger.ended)} requests in {gate.seconds:g} s: {shown_outcomes(ledger) or 'none'}")
    colour = {"pass": "green", "fail": "red", "error": "yellow"}[verdict.outcome]
    console.print(f"[bold {colour}]{verdict.outcome}[/]: {verdict.because}", highlight=False)
    if math.isfinite(verdict.p99_ms):
        low, high = verdict.interval_ms
        console.print(f"p99 {verdict.p99_ms:.1f} ms, 95 % interval {low:.1f} to {high:.1f} ms", highlight=False)
    console.print(f"files: {out}")


if __name__ == "__main__":
    from rgalign.cli.bench_serve import run

    sys.exit(run())
