"""The load generator: its arrivals, its clock, its ledger, against a service whose times are known."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgalign.bench.loadgen import (
    HttpTarget,
    Ledger,
    knee,
    library_ask,
    measure_http,
    measure_library,
    open_loop,
    plot,
    poisson,
    summary,
)


def test_arrivals_are_a_poisson_process_fixed_by_the_seed() -> None:
    times = np.asarray(poisson(100, 200, 0))
    assert poisson(100, 200, 0) == times.tolist() != poisson(100, 200, 1)
    assert ((times >= 0) & (times < 200)).all()
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert len(times) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential
    counts = np.bincount(times.astype(int), minlength=200)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.4)


def test_a_stall_is_in_the_latency_of_all_who_came_during_it() -> None:
    """The omission that a closed loop makes: one stall of 0.4 s would be one slow request."""
    stalled = asyncio.Lock()

    async def ask(context: Mapping[str, Any]) -> str:
        async with stalled:
            if context["first"]:
                await asyncio.sleep(0.4)
        return "ok"

    contexts = [{"first": True}, *({"first": False} for _ in range(9))]
    ledger = asyncio.run(open_loop(ask, contexts, [0.02 * n for n in range(10)]))
    assert ledger.outcomes == {"ok": 10}
    assert all(latency > 390 - 20 * number for number, latency in enumerate(sorted(ledger.answered_ms, reverse=True)))
    assert min(ledger.answered_ms) < max(ledger.answered_ms) - 100


def test_a_run_over_http_agrees_with_the_servers_counters(running: Any, tmp_path: Path) -> None:
    contexts = tmp_path / "contexts.jsonl"
    chosen: list[dict[str, Any]] = [{"region": "SG"}, {"do": "degraded"}, {"do": "overload"}, {"ms": 30}]
    contexts.write_text("".join(json.dumps(context) + "\n" for context in chosen))
    arguments = argparse.Namespace(contexts=contexts, rates=[20.0, 40.0], seconds=1.0, connections=4, seed=0)
    rows = asyncio.run(measure_http(HttpTarget(running.host, running.port, 3, None), arguments))
    for each in rows:
        assert set(each["outcomes"]) == {"ok", "degraded", "overloaded"}
        assert each["outcomes"]["overloaded"] == pytest.approx(each["requests"] / 4, abs=1)
        assert each["latency_ms"]["max"] >= 30
    assert [each["rate"] for each in rows] == [20.0, 40.0]
    plot(rows, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 5_000


def test_a_server_that_counts_otherwise_is_an_error(running: Any, tmp_path: Path, monkeypatch: Any) -> None:
    contexts = tmp_path / "contexts.jsonl"
    contexts.write_text("{}\n")
    arguments = argparse.Namespace(contexts=contexts, rates=[20.0], seconds=0.3, connections=1, seed=0)

    async def counted(self: HttpTarget) -> int:
        return 7

    monkeypatch.setattr(HttpTarget, "counted", counted)
    with pytest.raises(SystemExit, match="but the server counted 0"):
        asyncio.run(measure_http(HttpTarget(running.host, running.port, 3, None), arguments))


def test_the_library_in_this_process(fakes: Any, tmp_path: Path) -> None:
    contexts = tmp_path / "contexts.jsonl"
    contexts.write_text('{"region": "SG"}\n{"do": "late"}\n{"nope": 1}\n')
    arguments = argparse.Namespace(contexts=contexts, rates=[60.0], seconds=0.5, connections=1, seed=0)
    (each,) = asyncio.run(measure_library(library_ask(fakes.FakeRecommender(), 3, 100.0), arguments))
    assert set(each["outcomes"]) == {"ok", "deadline_exceeded", "invalid_context"}
    assert sum(each["outcomes"].values()) == each["requests"] > 10


def test_who_is_lost_or_not_in_the_ledger_is_an_error() -> None:
    ledger = Ledger()
    ledger.outcomes.update(ok=9, lost=1)
    with pytest.raises(SystemExit, match="10 requests, but"):
        summary(1.0, 10.0, 10, ledger)
    ledger.outcomes["lost"] = 0
    with pytest.raises(SystemExit, match="10 requests, but"):
        summary(1.0, 10.0, 10, ledger)


def test_the_knee_is_the_last_rate_before_the_first_that_fails() -> None:
    def at(rate: float, ok: int) -> dict[str, Any]:
        return {"rate": rate, "requests": 100, "outcomes": {"ok": ok, "overloaded": 100 - ok}}

    assert knee([at(20, 96), at(10, 100), at(50, 40), at(100, 99)]) == 20
    assert knee([at(10, 94)]) is None
