"""What the measured rows say of more sessions than were measured; always called an extrapolation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rgalign.bench.report_fits import cost_ms, fit
from rgalign.bench.report_tables import number
from rgalign.bench.result_rows import Row, latest, of

SESSIONS = 10_000_000
ENGINE = "rgalign int8a12"


def describe_extrapolation(rows: Sequence[Row], sessions: int = SESSIONS) -> Iterator[str]:
    """A sentence for each kind of work that was measured at two numbers of sessions or more."""
    for benchmark, variant in (("data: simulate", "rgalign"), ("data: encode", "rgalign, by columns")):
        found = latest(of(rows, benchmark, variant=variant))
        costs = [cost_ms(row) for row in found]
        points = sorted(
            {row["sessions"]: cost["median"] for row, cost in zip(found, costs, strict=True) if cost}.items()
        )
        if len(points) > 1:
            (smaller, before), (largest, last) = points[-2:]
            minutes = number((last + (sessions - largest) * (last - before) / (largest - smaller)) / 60_000)
            yield (
                f"Extrapolated, not measured: {benchmark.removeprefix('data: ')} {sessions:,} sessions, {minutes} min "
                f"(what each session between {smaller:,} and {largest:,}, the largest measured, took)."
            )
    yield from embedding(rows, sessions)


def embedding(rows: Sequence[Row], sessions: int) -> Iterator[str]:
    """Tokens left once equal beginnings are computed once, grown by their exponent, over the engine's token rate."""
    points = sorted((row["sessions"], row["computed_tokens"]) for row in latest(of(rows, "data: embedding work")))
    batches = latest(of(rows, "scaling: batch", variant=ENGINE))
    if len(points) < 2 or not batches:
        return
    largest = max(batches, key=lambda row: int(row["B"]))
    rate = largest["computed_tokens"] / largest["call_ms"]["median"] * 1e3
    fitted = fit(*zip(*points, strict=True))
    tokens = fitted.at(sessions)
    yield (
        f"Extrapolated, not measured: embedding the prompts of {sessions:,} simulated sessions, "
        f"{number(tokens / rate / 3600)} hours of this machine: {number(tokens / 1e6)} million tokens after sharing "
        f"(exponent {fitted.exponent:.2f} from {len(points)} sizes, the largest {points[-1][0]:,}) at the "
        f"{rate:,.0f} tokens a second of {ENGINE} at {largest['B']} prompts a call."
    )
