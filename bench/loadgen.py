"""Open-loop load on the service or on a Recommender in this process: latency over offered rate, and the knee.

    python -m rgalign.bench.loadgen contexts DATASET -o contexts.jsonl      sessions of the validation split
    python -m rgalign.bench.loadgen http 127.0.0.1:8080 contexts.jsonl --rates 5 10 20 50 --seconds 60 [--plot FILE]
    python -m rgalign.bench.loadgen library BUNDLE contexts.jsonl --rates ... [--arrivals bursty]

Arrivals are fixed beforehand (rgalign/planner/arrivals.py) and latency counts from them (loadgen_targets.py). Every
request ends in the ledger once, and over HTTP the ledger must equal the server's own counters. A rate at which the
generator was late and busy is measured again by twice as many processes, while there are cores for them;
``generator_verdict`` says what is left of that. In this process the generator has the Recommender's event loop, so
its lateness is the Recommender's. Rows go to bench/results/loadgen.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import rgalign
from rgalign.bench.loadgen_contexts import dataset_contexts, read_contexts, write_contexts
from rgalign.bench.loadgen_ledger import UNREACHED, WHOLE, Ledger, plain, summary
from rgalign.bench.loadgen_plots import latency_over_rate
from rgalign.bench.loadgen_processes import Generators
from rgalign.bench.loadgen_targets import Ask, Context, HttpTarget, open_loop, until_whole
from rgalign.bench.loadgen_targets import library_ask as library_ask
from rgalign.bench.rows import RESULTS, append, row
from rgalign.planner.arrivals import Arrivals, dispersion, read_trace

KNEE_SHARE = 0.95  # of the offered rate, answered
LATE_MS = 10.0  # p99 of the generator's lateness from which on it is said
BUSY = 0.7  # share of a core from which on a generating process is what limits

console = Console()


def measure_http(
    target: HttpTarget, contexts: Sequence[Context], arrivals: Arrivals, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row a rate."""
    rows = []
    for number, rate in enumerate(arguments.rates):
        times = arrivals.at(rate, arguments.seconds, arguments.seed + number)
        ledger = load_http(target, contexts, times, arguments.processes, arguments.connections)
        rows.append(described(rate, arguments.seconds, times, ledger))
        console.print(rows[-1])
    return rows


def load_http(
    target: HttpTarget, contexts: Sequence[Context], times: Sequence[float], processes: int | None, connections: int
) -> Ledger:
    """One run; with ``processes`` None by as many as it takes.

    Raises:
        SystemExit: the server counted otherwise.
    """
    count = processes or 1
    while True:
        with Generators(target, contexts, times, processes=count, connections=connections) as generators:
            before = asyncio.run(target.counted())
            ledger = generators.run()
        if before is not None:
            check_counted(ledger, asyncio.run(target.counted()), before)
        more = processes is None and is_limiting(ledger) and 2 * count <= len(os.sched_getaffinity(0))
        if not more:
            return ledger
        console.print(f"{verdict_on_generator(ledger)}: the same again by {2 * count} processes")
        count *= 2


def check_counted(ledger: Ledger, after: int | None, before: int) -> None:
    """What was answered here against what the server says it answered.

    Raises:
        SystemExit: they differ by more than the connections that broke.
    """
    reached = len(ledger.ended) - sum(ledger.outcomes[name] for name in UNREACHED)
    counted = (after or 0) - before
    if not reached <= counted <= reached + ledger.outcomes["closed"]:
        raise SystemExit(f"{reached} answers here, but the server counted {counted}")


def is_limiting(ledger: Ledger) -> bool:
    """Whether requests went out late because a generating process had no more time."""
    return ledger.late_ms(99) > LATE_MS and ledger.busy > BUSY


def verdict_on_generator(ledger: Ledger) -> str | None:
    """What is to be said of a generator that was late; None of one that was not."""
    late_ms = ledger.late_ms(99)
    if not late_ms > LATE_MS:
        return None
    shown = f"the generator was {late_ms:.0f} ms late (p99) at {ledger.busy:.0%} of a core a process"
    return shown if ledger.busy > BUSY else f"{shown}: this machine has too few cores for it and the server"


def described(rate: float, seconds: float, times: Sequence[float], ledger: Ledger) -> dict[str, Any]:
    shown = {"dispersion": dispersion(times, seconds), "generator_verdict": verdict_on_generator(ledger)}
    return summary(rate, seconds, len(times), ledger) | shown


async def measure_library(
    ask: Ask, contexts: Sequence[Context], arrivals: Arrivals, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row a rate."""
    rows = []
    for number, rate in enumerate(arguments.rates):
        await until_whole(ask, contexts)
        times = arrivals.at(rate, arguments.seconds, arguments.seed + number)
        ledger = await open_loop(ask, contexts, list(enumerate(times)))
        rows.append(described(rate, arguments.seconds, times, ledger) | {"generator_verdict": None})
        console.print(rows[-1])
    return rows


def knee(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The highest rate at which, as at all lower ones, at least KNEE_SHARE of the requests got an undegraded answer."""
    highest = None
    for each in sorted(rows, key=lambda each: float(each["rate"])):
        if each["outcomes"].get(WHOLE, 0) < KNEE_SHARE * each["requests"]:
            break
        highest = float(each["rate"])
    return highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="what", required=True)
    contexts = commands.add_parser("contexts")
    contexts.add_argument("dataset", type=Path)
    contexts.add_argument("-o", "--out", type=Path, required=True)
    contexts.add_argument("--count", type=int, default=1_000)
    for name, target in (("http", "HOST:PORT of the public listener"), ("library", "a bundle directory")):
        command = commands.add_parser(name)
        command.add_argument("target", help=target)
        command.add_argument("contexts", type=Path)
        command.add_argument("--rates", type=float, nargs="+", default=[5.0, 10.0, 20.0, 50.0])
        command.add_argument("--seconds", type=float, default=60.0, help="for each rate")
        command.add_argument("--arrivals", choices=("poisson", "bursty", "trace"), default="poisson")
        command.add_argument("--trace", type=Path, help="a line a request: its time, or its time and context")
        if name == "http":
            command.add_argument("--processes", type=int, help="that generate; default: as many as it takes")
        command.add_argument("--connections", type=int, default=16, help="opened, and used once, before each rate")
        command.add_argument("-k", type=int, default=3)
        command.add_argument("--deadline-ms", type=float)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--note", default="", help="what is served, for the row")
        command.add_argument("--out", default="loadgen.jsonl", help=f"file in {RESULTS}, or an absolute path")
        command.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "contexts":
        found = dataset_contexts(arguments.dataset, arguments.count)
        write_contexts(found, arguments.out)
        console.print(f"{len(found)} contexts in {arguments.out}")
        return
    if (arguments.arrivals == "trace") != (arguments.trace is not None):
        parser.error("--arrivals trace and --trace FILE go together")
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    asked: Sequence[Context] = read_contexts(arguments.contexts)
    arrivals = Arrivals(arguments.arrivals)
    if arguments.trace is not None:
        times, recorded = read_trace(arguments.trace)
        arrivals, asked = Arrivals("trace", trace=tuple(times)), recorded or asked
    if arguments.what == "http":
        host, _, port = arguments.target.rpartition(":")
        measured = measure_http(
            HttpTarget(host, int(port), arguments.k, arguments.deadline_ms), asked, arrivals, arguments
        )
    else:
        with rgalign.load(arguments.target) as recommender:
            ask = library_ask(recommender, arguments.k, arguments.deadline_ms)
            measured = asyncio.run(measure_library(ask, asked, arrivals, arguments))
    shape = {
        "target": arguments.what,
        "arrivals": arguments.arrivals,
        "k": arguments.k,
        "deadline_ms": arguments.deadline_ms,
        "note": arguments.note,
    }
    path = append(arguments.out, [row("loadgen", **shape, **plain(each)) for each in measured])
    console.print(f"knee: {knee(measured)} requests a second; appended to {path}")
    if arguments.plot:
        latency_over_rate(measured, knee(measured), arguments.plot)


if __name__ == "__main__":
    main()
