"""The load generator: its arrivals, its clock, its ledger, against a service whose times are known."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgalign.bench.loadgen import check_counted, is_limiting, knee, measure_http, measure_library, verdict_on_generator
from rgalign.bench.loadgen_ledger import Ended, Ledger, Reply, summary
from rgalign.bench.loadgen_plots import latency_over_rate
from rgalign.bench.loadgen_targets import HttpTarget, library_ask, open_loop, until_whole
from rgalign.planner.arrivals import Arrivals, poisson


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

    async def ask(context: Mapping[str, Any]) -> Reply:
        async with stalled:
            if context["first"]:
                await asyncio.sleep(0.4)
        return Reply("ok")

    contexts = [{"first": True}, *({"first": False} for _ in range(9))]
    ledger = asyncio.run(open_loop(ask, contexts, [(n, 0.02 * n) for n in range(10)]))
    assert ledger.outcomes == {"ok": 10}
    waits = sorted((each.latency_ms for each in ledger.ended), reverse=True)
    assert all(latency > 390 - 20 * number for number, latency in enumerate(waits))
    assert min(waits) < max(waits) - 100


def test_who_waits_beyond_all_patience_is_lost() -> None:
    async def ask(context: Mapping[str, Any]) -> Reply:
        await asyncio.sleep(10)
        return Reply("ok")

    ledger = asyncio.run(open_loop(ask, [{}], [(0, 0.0)], patience_s=0.01))
    assert ledger.outcomes == {"lost": 1}
    assert ledger.answered == []


def asked(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"seconds": 1.0, "connections": 4, "seed": 0, "processes": 1, **values})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_over_http_agrees_with_the_servers_counters(running: Any, tmp_path: Path, processes: int) -> None:
    contexts: list[dict[str, Any]] = [{"region": "SG"}, {"do": "degraded"}, {"do": "overload"}, {"ms": 30}]
    target = HttpTarget(running.host, running.port, 3, None)
    rows = measure_http(target, contexts, Arrivals(), asked(rates=[20.0, 40.0], processes=processes))
    for each in rows:
        assert set(each["outcomes"]) == {"ok", "degraded", "overloaded"}
        assert each["outcomes"]["overloaded"] == pytest.approx(each["requests"] / 4, abs=1)
        assert each["latency_ms"]["max"] >= 30
        assert each["generator_processes"] == processes
        assert each["stages_ms"]["reason"]["p50"] == pytest.approx(0.3)  # as the fake service says
    assert [each["rate"] for each in rows] == [20.0, 40.0]
    latency_over_rate(rows, knee(rows), tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 5_000


def test_warming_up_asks_for_one_answer_at_a_time_until_one_is_whole() -> None:
    """A burst of them would open the breaker of a reasoner that answers few a second."""
    told = iter(["degraded", "late", "ok"])
    asked: list[int] = []
    under_way = 0

    async def ask(context: Mapping[str, Any]) -> Reply:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0)
        under_way -= 1
        asked.append(context["number"])
        return Reply(next(told, "degraded"))

    contexts = [{"number": 0}, {"number": 1}]
    asyncio.run(until_whole(ask, contexts))
    assert asked == [0, 1, 0]
    asyncio.run(until_whole(ask, contexts, seconds=0.0))  # gives up
    assert asked == [0, 1, 0, 0]


def test_opening_connections_asks_the_model_for_one_answer(running: Any) -> None:
    target = HttpTarget(running.host, running.port, 3, None)

    async def warmed() -> tuple[int | None, int]:
        before = await target.counted()
        await target.warm([{}], 16)
        after, kept = await target.counted(), len(target._idle)
        await target.close()
        assert before is not None
        assert after is not None
        return after - before, kept

    assert asyncio.run(warmed()) == (1, 16)


def test_a_connection_that_the_server_let_go_is_not_used_again() -> None:
    answer = b'{"intents": [], "degraded": null, "timings": null}'
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(answer)}\r\n\r\n".encode()
    opened = 0

    async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + answer)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    async def run() -> list[str]:
        async with await asyncio.start_server(one_answer, "127.0.0.1", 0) as server:
            target = HttpTarget("127.0.0.1", server.sockets[0].getsockname()[1], 3, None)
            outcomes = []
            for _ in range(3):
                outcomes.append((await target.ask({})).outcome)
                await asyncio.sleep(0.3)
            await target.close()
        return outcomes

    assert asyncio.run(run()) == ["ok"] * 3
    assert opened == 3


def test_a_server_that_counts_otherwise_is_an_error(running: Any, monkeypatch: Any) -> None:
    async def counted(self: HttpTarget) -> int:
        return 7

    monkeypatch.setattr(HttpTarget, "counted", counted)
    with pytest.raises(SystemExit, match="but the server counted 0"):
        measure_http(HttpTarget(running.host, running.port, 3, None), [{}], Arrivals(), asked(rates=[20.0]))


def test_who_was_cut_off_may_be_counted_or_not() -> None:
    ledger = Ledger([Ended(0, 0.0, 0.0, 1.0, "ok"), Ended(1, 0.0, 0.0, 1.0, "closed")])
    check_counted(ledger, 11, 10)
    check_counted(ledger, 12, 10)
    for counted in (0, 3):
        with pytest.raises(SystemExit, match=f"1 answers here, but the server counted {counted}"):
            check_counted(ledger, 10 + counted, 10)


def test_a_generator_that_was_late_says_whether_more_processes_would_help() -> None:
    def ran(late_ms: float, cpu_s: float) -> Ledger:
        return Ledger([Ended(0, 0.0, late_ms, 20.0, "ok")], cpu_s=cpu_s, wall_s=1.0)

    assert verdict_on_generator(ran(9.0, 0.99)) is None
    assert is_limiting(ran(11.0, 0.9))
    assert verdict_on_generator(ran(11.0, 0.9)) == "the generator was 11 ms late (p99) at 90% of a core a process"
    assert not is_limiting(ran(11.0, 0.1))
    assert "too few cores" in str(verdict_on_generator(ran(11.0, 0.1)))


def test_the_library_in_this_process(fakes: Any) -> None:
    contexts: list[dict[str, Any]] = [{"region": "SG"}, {"do": "late"}, {"nope": 1}]
    ask = library_ask(fakes.FakeRecommender(), 3, 100.0)
    (each,) = asyncio.run(
        measure_library(ask, contexts, Arrivals("bursty"), asked(rates=[60.0], seconds=0.5, connections=1))
    )
    assert set(each["outcomes"]) == {"ok", "deadline_exceeded", "invalid_context"}
    assert sum(each["outcomes"].values()) == each["requests"] > 10


def test_who_is_lost_or_not_in_the_ledger_is_an_error() -> None:
    ledger = Ledger([Ended(n, 0.0, 0.0, 1.0, "ok" if n else "lost") for n in range(10)])
    with pytest.raises(SystemExit, match="10 requests, but"):
        summary(1.0, 10.0, 10, ledger)
    del ledger.ended[0]
    with pytest.raises(SystemExit, match="10 requests, but"):
        summary(1.0, 10.0, 10, ledger)


def test_the_knee_is_the_last_rate_before_the_first_that_fails() -> None:
    def at(rate: float, ok: int) -> dict[str, Any]:
        return {"rate": rate, "requests": 100, "outcomes": {"ok": ok, "overloaded": 100 - ok}}

    assert knee([at(20, 96), at(10, 100), at(50, 40), at(100, 99)]) == 20
    assert knee([at(10, 94)]) is None
