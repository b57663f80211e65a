"""Open-loop load on the service or on a Recommender in this process: latency over offered rate, and the knee.

    python -m rgalign.bench.loadgen contexts DATASET -o contexts.jsonl      sessions of the validation split
    python -m rgalign.bench.loadgen http 127.0.0.1:8080 contexts.jsonl --rates 5 10 20 50 --seconds 60 [--plot FILE]
    python -m rgalign.bench.loadgen library BUNDLE contexts.jsonl --rates ...

Arrivals are a Poisson process fixed beforehand: a slow answer delays no later request. Latency counts from the
scheduled arrival, so what waits because the server, or this generator, is late is in it; how late the generator itself
was is in the row (``generator_late_ms``). Every request ends in the client's ledger once, and over HTTP the ledger must
equal the server's own counters. Rows go to bench/results/loadgen.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import rgalign
from rgalign.bench.http_wire import Closed, Cut, Wire, get, post
from rgalign.bench.rows import RESULTS, append, row
from rgalign.service.errors import fault_of
from rgalign.service.face import Recommender

PERCENTILES = (50, 90, 99, 99.9)
PATIENCE_S = 30.0  # beyond every deadline: who gets no answer by then is lost
KNEE_SHARE = 0.95  # of the offered rate, answered

Ask = Callable[[Mapping[str, Any]], Awaitable[str]]  # a context -> ok, degraded, or why not

console = Console()


@dataclass
class Ledger:
    """What became of each request of one run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answered_ms: list[float] = field(default_factory=list)  # scheduled arrival to answer, of ok and degraded ones
    started_late_ms: list[float] = field(default_factory=list)


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in [0, seconds) at ``rate`` a second, in order."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, math.ceil(rate * seconds + 10 * math.sqrt(rate * seconds) + 10))
    times = np.cumsum(gaps)
    return [float(at) for at in times[times < seconds]]


async def open_loop(ask: Ask, contexts: Sequence[Mapping[str, Any]], arrivals: Sequence[float]) -> Ledger:
    """Asks at each of ``arrivals`` (seconds from now), however many are still waiting, and waits for all."""
    ledger = Ledger()

    async def one(context: Mapping[str, Any], scheduled: float) -> None:
        ledger.started_late_ms.append((time.perf_counter() - scheduled) * 1e3)
        try:
            outcome = await asyncio.wait_for(ask(context), PATIENCE_S)
        except TimeoutError:
            outcome = "lost"
        ledger.outcomes[outcome] += 1
        if outcome in ("ok", "degraded"):
            ledger.answered_ms.append((time.perf_counter() - scheduled) * 1e3)

    began = time.perf_counter()
    waiting = set()
    for number, at in enumerate(arrivals):
        if (pause := began + at - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.ensure_future(one(contexts[number % len(contexts)], began + at))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    return ledger


class HttpTarget:
    """Idle keep-alive connections are used first; a request that finds none opens another, in its own time."""

    def __init__(self, host: str, port: int, k: int, deadline_ms: float | None) -> None:
        self._host, self._port = host, port
        self._asked = {"k": k, "deadline_ms": deadline_ms}
        self._idle: list[Wire] = []

    async def ask(self, context: Mapping[str, Any]) -> str:
        try:
            wire = self._idle.pop() if self._idle else await Wire.open(self._host, self._port)
        except OSError:
            return "no connection"
        try:
            answer = await wire.ask(post("/v1/recommend", {"context": context, **self._asked}))
        except (Closed, Cut):
            return "closed"
        except asyncio.CancelledError:
            wire.abort()
            raise
        if answer.headers.get("connection") == "close":
            await wire.close()
        else:
            self._idle.append(wire)
        if answer.status != 200:
            return str(answer.json()["error"]["code"])
        return "ok" if answer.json()["degraded"] is None else "degraded"

    async def warm(self, contexts: Sequence[Mapping[str, Any]], count: int) -> None:
        """Opens ``count`` connections and uses each once."""
        await asyncio.gather(*(self.ask(contexts[number % len(contexts)]) for number in range(count)))

    async def counted(self) -> int:
        """Requests of the route that the server says it has answered."""
        async with await Wire.open(self._host, self._port) as wire:
            lines = (await wire.ask(get("/metrics"))).body.decode().splitlines()
        wanted = "rgalign_http_requests_total{code="
        return sum(int(float(x.rsplit(" ", 1)[1])) for x in lines if x.startswith(wanted) and '"/v1/recommend"' in x)

    async def close(self) -> None:
        for wire in self._idle:
            await wire.close()
        self._idle.clear()


def library_ask(recommender: Recommender, k: int, deadline_ms: float | None) -> Ask:
    """The same without HTTP, on this event loop."""

    async def ask(context: Mapping[str, Any]) -> str:
        try:
            answer = await recommender.arecommend(context, k, deadline_ms=deadline_ms)
        except Exception as error:
            return fault_of(error).code.value
        return "ok" if answer.degraded is None else "degraded"

    return ask


def summary(rate: float, seconds: float, num_arrivals: int, ledger: Ledger) -> dict[str, Any]:
    """A run's numbers.

    Raises:
        SystemExit: a request is missing from the ledger, or was lost.
    """
    if sum(ledger.outcomes.values()) != num_arrivals or ledger.outcomes["lost"]:
        raise SystemExit(f"{num_arrivals} requests, but {dict(ledger.outcomes)}")
    answered = np.asarray(ledger.answered_ms or [math.nan])
    return {
        "rate": rate,
        "seconds": seconds,
        "requests": num_arrivals,
        "outcomes": dict(ledger.outcomes),
        "answered_per_s": round(len(ledger.answered_ms) / seconds, 2),
        "latency_ms": {f"p{p:g}": round(float(np.percentile(answered, p)), 2) for p in PERCENTILES}
        | {"max": round(float(answered.max()), 2)},
        "generator_late_ms": {f"p{p:g}": round(float(np.percentile(ledger.started_late_ms, p)), 2) for p in (50, 99)},
    }


def knee(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The highest rate at which, as at all lower ones, at least KNEE_SHARE of the requests got an undegraded answer."""
    highest = None
    for each in sorted(rows, key=lambda each: float(each["rate"])):
        if each["outcomes"].get("ok", 0) < KNEE_SHARE * each["requests"]:
            break
        highest = float(each["rate"])
    return highest


async def measure_http(target: HttpTarget, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    contexts = read_contexts(arguments.contexts)
    rows = []
    for number, rate in enumerate(arguments.rates):
        await target.warm(contexts, arguments.connections)
        before = await target.counted()
        arrivals = poisson(rate, arguments.seconds, arguments.seed + number)
        ledger = await open_loop(target.ask, contexts, arrivals)
        rows.append(summary(rate, arguments.seconds, len(arrivals), ledger))
        reached = len(arrivals) - ledger.outcomes["no connection"] - ledger.outcomes["closed"]
        if not reached <= (counted := await target.counted() - before) <= reached + ledger.outcomes["closed"]:
            raise SystemExit(f"{reached} answers here, but the server counted {counted}")
        console.print(rows[-1])
    await target.close()
    return rows


async def measure_library(ask: Ask, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    contexts = read_contexts(arguments.contexts)
    rows = []
    for number, rate in enumerate(arguments.rates):
        await asyncio.gather(*(ask(context) for context in contexts[: arguments.connections]))  # warm
        arrivals = poisson(rate, arguments.seconds, arguments.seed + number)
        rows.append(summary(rate, arguments.seconds, len(arrivals), await open_loop(ask, contexts, arrivals)))
        console.print(rows[-1])
    return rows


def read_contexts(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; python -m rgalign.bench.loadgen contexts DATASET -o {path} writes it")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_contexts(dataset: Path, out: Path, count: int) -> None:
    """The features of the first ``count`` validation sessions, as plain JSON values; what is missing is left out."""
    from rgalign.data.dataset import Dataset

    data = Dataset.open(dataset)
    rows = data.table("valid", list(data.schema.columns)).slice(0, count).to_pylist()
    contexts = [{name: value for name, value in each.items() if value is not None} for each in rows]
    text = "".join(json.dumps(context, allow_nan=False, ensure_ascii=False) + "\n" for context in contexts)
    out.write_text(text, encoding="utf-8")
    console.print(f"{len(contexts)} contexts in {out}")


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Latency percentiles over offered rate, logarithmic; the knee as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2))
    axis = figure.subplots()
    ordered = sorted(rows, key=lambda each: float(each["rate"]))
    for name in ("p50", "p90", "p99"):
        axis.plot([r["rate"] for r in ordered], [r["latency_ms"][name] for r in ordered], marker="o", label=name)
    if (at := knee(rows)) is not None:
        axis.axvline(at, linestyle=":", color="grey", label=f"knee {at:g}/s")
    axis.set(yscale="log", xlabel="offered requests a second", ylabel="milliseconds from the scheduled arrival")
    axis.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


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
        command.add_argument("--connections", type=int, default=16, help="opened, and used once, before each rate")
        command.add_argument("-k", type=int, default=3)
        command.add_argument("--deadline-ms", type=float)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--note", default="", help="what is served, for the row")
        command.add_argument("--out", default="loadgen.jsonl", help=f"file in {RESULTS}, or an absolute path")
        command.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "contexts":
        write_contexts(arguments.dataset, arguments.out, arguments.count)
        return
    if arguments.what == "http":
        host, _, port = arguments.target.rpartition(":")
        http = HttpTarget(host, int(port), arguments.k, arguments.deadline_ms)
        measured = asyncio.run(measure_http(http, arguments))
    else:
        with rgalign.load(arguments.target) as recommender:
            ask = library_ask(recommender, arguments.k, arguments.deadline_ms)
            measured = asyncio.run(measure_library(ask, arguments))
    shape = {"target": arguments.what, "k": arguments.k, "deadline_ms": arguments.deadline_ms, "note": arguments.note}
    path = append(arguments.out, [row("loadgen", **shape, **each) for each in measured])
    console.print(f"knee: {knee(measured)} requests a second; appended to {path}")
    if arguments.plot:
        plot(measured, arguments.plot)


if __name__ == "__main__":
    main()
