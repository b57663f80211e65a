"""End to end: our service beside FastAPI, transformers and FAISS put together by a competent user (bench/peers/).

    python -m rgalign.bench.end_to_end [--bundle DIR | --run DIR] [--contexts FILE]    rows in results/end_to_end.jsonl
    python -m rgalign.bench.end_to_end --quick                                         some minutes, to build/bench/

Both serve the same weights over HTTP, each with all cores; one is idle while the other is loaded. For each template:

1. their answers to the same contexts are compared; nothing is timed unless they agree
2. capacity of each: answers a second with 32 requests always under way
3. open loop (Poisson) at rising shares of each one's capacity, the two in turn, and both at 80 % of the peer's
4. the curves are compared: throughput at equal p99, p99 at equal load (end_to_end_curves.py)

Server and load generator share the machine's cores; rows say so. A request without a whole answer waited for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rgalign.bench.end_to_end_bundles import OWN, bundles
from rgalign.bench.end_to_end_curves import EQUAL_SHARE, OURS, PEER, compared, plot
from rgalign.bench.loadgen import described, load_http
from rgalign.bench.loadgen_contexts import drawn_contexts, read_contexts
from rgalign.bench.loadgen_ledger import UNREACHED, WHOLE, Ledger, interval_of_percentile, plain
from rgalign.bench.loadgen_server import NICENESS, our_command, started
from rgalign.bench.loadgen_targets import Context, HttpTarget
from rgalign.bench.peers.environment import peer_python, peer_versions
from rgalign.bench.rows import RESULTS, ROOT, append, row
from rgalign.bundle import Bundle, read_bundle
from rgalign.chat_format import TEMPLATES
from rgalign.planner.arrivals import poisson

WORK = ROOT / "build" / "bench" / "end_to_end"
K = 3
DEADLINE_MS = 10_000.0  # the service's longest: the peer keeps none, so ours must not answer early without the reasoner
UNDER_WAY = 32  # two batches of the peer
CHECKED_K = 10
# Largest difference of a score, which is at most 1, between float32 in transformers and this engine.
SCORE_TOLERANCE = {"fp32": 1e-3, "int8a12": 0.05, "int8": 0.2}
CLEAR = 2.0  # tolerances by which the best must lead for both to have to agree on it
MAX_SECONDS = 180.0  # of a point

console = Console()
Targets = Mapping[str, HttpTarget]


def main(given: Sequence[str] | None = None) -> None:
    arguments = parsed(sys.argv[1:] if given is None else given)
    found = bundles(arguments.templates, WORK, bundle=arguments.bundle, run=arguments.run, model=arguments.model)
    contexts: Sequence[Context] = [] if arguments.contexts is None else read_contexts(arguments.contexts)
    python = peer_python()
    curves = {}
    for template, bundle in found.items():
        opened = read_bundle(bundle)
        asked = contexts or drawn_contexts(opened, 500)
        common = {
            "template": template,
            "contexts": str(arguments.contexts or "drawn from the schema"),
            "model": arguments.model,
            "threads": arguments.threads,
            "servers_niceness": NICENESS,
            "shared": f"server and load generator share {len(os.sched_getaffinity(0))} cores",
            "tokens": prompt_tokens(opened, asked),
            "peer": peer_versions(python),
            "quick": arguments.quick,
        }
        log = WORK / f"log-{template}"
        with services(bundle, arguments.model, arguments.threads, python, log) as targets:
            common["agreement"] = agreement(targets, asked[: arguments.checked], opened)
            console.print(f"[bold]{template}[/]: answers agree, {common['agreement']}")
            capacity = capacities(targets, asked, arguments.capacity_seconds)
            points = measured(targets, asked, capacity, arguments, common)
        curves[template] = (points, capacity)
        verdict = compared(points, capacity)
        console.print(verdict)
        append(arguments.out, [row("end_to_end verdict", **common, **plain(verdict))])
        plot(curves, arguments.plot)
    console.print(f"rows in {RESULTS / arguments.out}, plot in {arguments.plot}")


def parsed(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, help="whose weights both serve; made of simulated sessions without")
    parser.add_argument("--run", type=Path, help="a training run to make the bundle of")
    parser.add_argument("--model", default="smollm2", help="the bundle's reasoner in transformers")
    parser.add_argument("--contexts", type=Path, help="a JSON object a line; drawn from the schema without")
    parser.add_argument("--templates", nargs="+", choices=[*TEMPLATES, OWN], default=["paper", "prefix_cached"])
    parser.add_argument("--shares", type=float, nargs="+", help="of each one's capacity")
    parser.add_argument("--seconds", type=float, help="of a point, at least")
    parser.add_argument("--requests", type=int, help=f"of a point, at least; up to {MAX_SECONDS:g} seconds")
    parser.add_argument("--capacity-seconds", type=float)
    parser.add_argument("--checked", type=int, help="contexts whose answers are compared before")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each service")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few and short points: whether it works, not how fast")
    parser.add_argument("--out", help=f"file in {RESULTS}, or an absolute path")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args(given)
    quick: dict[str, Any] = {
        "shares": [0.4, 0.8],
        "seconds": 10.0,
        "requests": 1,
        "capacity_seconds": 8.0,
        "checked": 6,
        "out": str(WORK / "quick.jsonl"),
        "plot": WORK / "quick.png",
    }
    full: dict[str, Any] = {
        "shares": [0.3, 0.5, 0.7, 0.8, 0.9, 1.0],
        "seconds": 60.0,
        "requests": 300,
        "capacity_seconds": 40.0,
        "checked": 24,
        "out": "end_to_end.jsonl",
        "plot": RESULTS / "end_to_end.png",
    }
    for name, value in (quick if arguments.quick else full).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    WORK.mkdir(parents=True, exist_ok=True)
    return arguments


@contextmanager
def services(bundle: Path, model: str, threads: int, python: Path, logs: Path) -> Iterator[Targets]:
    """Both, of one bundle, with as many threads each."""
    peer = [str(python), "-m", "rgalign.bench.peers.fastapi_service", str(bundle)]
    commands = {
        OURS: our_command(bundle, [f"threads={threads}"]),
        PEER: [*peer, "--model", model, "--threads", str(threads)],
    }
    environment = {"OMP_NUM_THREADS": str(threads)}
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(started(command, logs / f"{name.split()[0]}.log", environment))
            for name, command in commands.items()
        }
        yield {name: HttpTarget(each.host, each.port, K, DEADLINE_MS) for name, each in addresses.items()}


def prompt_tokens(bundle: Bundle, contexts: Sequence[Context]) -> dict[str, float]:
    """Of the constant prefix, and the mean of what follows it."""
    assert bundle.prompts is not None
    own = [len(bundle.prompts.encode(context).slot_ids) for context in contexts[:100]]
    after = float(np.mean(own)) + len(bundle.prompts.suffix_ids)
    return {"prefix": len(bundle.prompts.prefix_ids), "own_mean": round(after, 1)}


# ---- the same answers ------------------------------------------------------------------------------------------------


def agreement(targets: Targets, contexts: Sequence[Context], bundle: Bundle) -> dict[str, float]:
    """How near the answers of both to these contexts are.

    Raises:
        SystemExit: a score differs by more than the engine's type may, or a clear best intent is another.
    """
    assert bundle.manifest.reasoner is not None
    tolerance = SCORE_TOLERANCE[bundle.manifest.reasoner.dtype]
    ours, peers = (asyncio.run(rankings(targets[name], contexts)) for name in (OURS, PEER))
    largest, same_best = 0.0, 0
    for number, (mine, theirs) in enumerate(zip(ours, peers, strict=True)):
        largest = max([largest, *(abs(mine[each] - theirs[each]) for each in mine.keys() & theirs.keys())])
        (best, first), (_, second) = itertools.islice(theirs.items(), 2)
        same = next(iter(mine)) == best
        same_best += same
        if largest > tolerance or (not same and first - second > CLEAR * tolerance):
            shown = f"context {number}: {mine} of ours, {theirs} of the peer"
            raise SystemExit(f"the services do not agree within {tolerance:g}, so nothing is timed; {shown}")
    if not any(len(set(each.values())) > 1 for each in peers):
        raise SystemExit("all scores are alike: the comparison would say nothing")
    return {"contexts": len(ours), "largest_difference": round(largest, 6), "same_best": same_best / len(ours)}


async def rankings(target: HttpTarget, contexts: Sequence[Context]) -> list[dict[str, float]]:
    """Of each context: intent id -> score, best first."""
    several = HttpTarget(target.host, target.port, CHECKED_K, DEADLINE_MS)
    answers = [await several.answer(context) for context in contexts]
    await several.close()
    return [{each["id"]: each["score"] for each in answer["intents"]} for answer in answers]


# ---- speed -----------------------------------------------------------------------------------------------------------


def capacities(targets: Targets, contexts: Sequence[Context], seconds: float) -> dict[str, float]:
    """Answers a second of each with UNDER_WAY requests always under way: two halves each, in turn."""
    counted: dict[str, list[float]] = {name: [] for name in targets}
    for _ in range(2):
        for name, target in targets.items():
            counted[name].append(asyncio.run(saturated(target, contexts, seconds / 2)))
    found = {name: float(np.mean(rates)) for name, rates in counted.items()}
    console.print({f"capacity of {name}": round(rate, 2) for name, rate in found.items()})
    return found


async def saturated(target: HttpTarget, contexts: Sequence[Context], seconds: float) -> float:
    """Whole answers a second, closed loop.

    Raises:
        SystemExit: no answer at all.
    """
    coming = itertools.cycle(contexts)
    await target.warm(contexts, UNDER_WAY)
    began = time.perf_counter()
    answered = 0

    async def keep_asking() -> None:
        nonlocal answered
        while time.perf_counter() - began < seconds:
            reply = await target.ask(next(coming))
            if reply.outcome in UNREACHED:
                raise SystemExit(f"{target.host}:{target.port}: {reply.outcome}")
            answered += reply.outcome == WHOLE

    await asyncio.gather(*(keep_asking() for _ in range(UNDER_WAY)))
    elapsed = time.perf_counter() - began  # those under way at the end are in it with their time
    await target.close()
    if not answered:
        raise SystemExit(f"{target.host}:{target.port} gave no whole answer in {elapsed:.0f} s")
    return answered / elapsed


def measured(
    targets: Targets,
    contexts: Sequence[Context],
    capacity: Mapping[str, float],
    arguments: argparse.Namespace,
    common: Mapping[str, Any],
) -> dict[str, list[dict[str, Any]]]:
    """Points of both, from low rates to high ones; appended to the rows as they come."""
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
    equal = EQUAL_SHARE * capacity[PEER]
    for share in sorted(arguments.shares):
        for name in targets:
            points[name].append(point(targets[name], contexts, share * capacity[name], arguments))
            record(name, points[name][-1], arguments.out, common)
    for name in targets:  # both at one rate, with the same arrivals, one after the other
        if not any(abs(each["rate"] - equal) < 1e-9 for each in points[name]):
            points[name].append(point(targets[name], contexts, equal, arguments))
            record(name, points[name][-1], arguments.out, common)
    return points


def point(
    target: HttpTarget, contexts: Sequence[Context], rate: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    seconds = min(max(arguments.seconds, arguments.requests / rate), max(MAX_SECONDS, arguments.seconds))
    times = poisson(rate, seconds, arguments.seed) or [0.0]
    ledger = load_http(target, contexts, times, None, UNDER_WAY)
    return described(rate, seconds, times, ledger) | promised(ledger)


def promised(ledger: Ledger) -> dict[str, Any]:
    waits = [each.latency_ms for each in ledger.ended if each.outcome == WHOLE]
    p99_ms = ledger.promised_ms(99)
    return {
        "promised_p99_ms": p99_ms if np.isfinite(p99_ms) else None,
        "p99_interval_ms": plain({"": interval_of_percentile(waits, len(ledger.ended), 99)})[""],
    }


def record(name: str, values: Mapping[str, Any], out: str, common: Mapping[str, Any]) -> None:
    p99_ms = values["promised_p99_ms"]
    shown = "no whole answer for more than 1 %" if p99_ms is None else f"p99 {p99_ms:.0f} ms"
    console.print(f"{name}: {values['rate']:.2f} requests a second, {shown}", highlight=False)
    append(out, [row("end_to_end", service=name, **common, **plain(values))])


if __name__ == "__main__":
    main()
