"""The gate: it passes a service that is fast enough, fails one that is not, and says nothing of a run that is none."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from rgalign.bench import gate as gate_module
from rgalign.bench.gate import Gate, contexts_of, host_and_port, judged, run_gate
from rgalign.bench.loadgen_ledger import STAGES, Ended, Ledger
from rgalign.bench.loadgen_server import started
from rgalign.cli import bench_serve
from rgalign.errors import ConfigError
from rgalign.planner.arrivals import Arrivals

SLOWED = Path(__file__).parent / "slowed_service.py"
# Far more than a tiny model takes: these tests may share a core with many others. A slowed one sleeps in every call.
PATIENT_MS, SLOWED_S = 20_000.0, 2.0


def ledger_of(
    latencies_ms: list[float], *, late_ms: float = 0.0, outcomes: list[str] | None = None, busy: float = 0.1
) -> Ledger:
    names = outcomes or ["ok"] * len(latencies_ms)
    pairs = zip(latencies_ms, names, strict=True)
    ended = [Ended(n, n / 50, late_ms, latency, name) for n, (latency, name) in enumerate(pairs)]
    return Ledger(ended, cpu_s=busy, wall_s=1.0)


GATE = Gate(50.0, 120.0, 10.0)


def test_exactly_a_hundredth_may_be_slower_than_the_limit() -> None:
    assert judged(GATE, ledger_of([120.0] * 198 + [900.0] * 2)).outcome == "pass"
    slower = judged(GATE, ledger_of([120.0] * 197 + [900.0] * 3))
    assert (slower.outcome, slower.exit_code, slower.p99_ms) == ("fail", 1, 900.0)


@pytest.mark.parametrize("outcome", ["degraded", "overloaded", "deadline_exceeded", "closed", "lost"])
def test_who_got_no_whole_answer_waited_for_ever(outcome: str) -> None:
    names = ["ok"] * 198 + [outcome] * 2
    assert judged(GATE, ledger_of([1.0] * 200, outcomes=names)).outcome == "pass"
    names[0] = outcome
    verdict = judged(GATE, ledger_of([1.0] * 200, outcomes=names))
    assert (verdict.outcome, verdict.p99_ms) == ("fail", math.inf)
    assert verdict.because == f"more than a hundredth got no whole answer: 197 ok, 3 {outcome}"


@pytest.mark.parametrize(
    ("ledger", "because"),
    [
        (Ledger(), "0 requests were sent, and a 99th percentile takes 100"),
        (ledger_of([1.0] * 99), "99 requests were sent"),
        (ledger_of([1.0] * 200, outcomes=["closed"] * 150 + ["no connection"] * 50), "no request was answered"),
        (ledger_of([100.0] * 200, late_ms=12.5), "the generator was 12.5 ms late"),
        (ledger_of([125.0] * 200, late_ms=12.5), "the generator was 12.5 ms late"),  # 112.5 from when it was sent
        (ledger_of([900.0] * 200, late_ms=12.5, busy=0.95), "the generator was busy 95% of the time"),
    ],
)
def test_a_run_that_says_nothing_is_an_error_and_no_pass(ledger: Ledger, because: str) -> None:
    verdict = judged(GATE, ledger)
    assert (verdict.outcome, verdict.exit_code) == ("error", 2)
    assert because in verdict.because


def test_a_service_that_is_slow_by_itself_fails_though_the_generator_was_late() -> None:
    assert judged(GATE, ledger_of([140.0] * 200, late_ms=12.5)).outcome == "fail"


def test_a_little_lateness_of_the_generator_counts_against_the_service() -> None:
    assert judged(GATE, ledger_of([119.0] * 200, late_ms=8.0)).outcome == "pass"
    verdict = judged(GATE, ledger_of([125.0] * 200, late_ms=8.0))
    assert (verdict.outcome, verdict.because) == ("fail", "p99 125.0 ms, limit 120 ms")


def test_a_fast_service_passes_and_its_run_is_on_record(bundle_dir: Path, tmp_path: Path) -> None:
    gate = Gate(25.0, PATIENT_MS, 5.0, Arrivals("bursty"), processes=2)
    unhurried = [f"deadline_ms={PATIENT_MS}"]
    verdict = run_gate(gate, bundle_dir, tmp_path / "out", settings=unhurried, rows=str(tmp_path / "rows.jsonl"))
    assert verdict.outcome == "pass", verdict
    values = json.loads((tmp_path / "out/summary.json").read_text())
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["verdict"] == values["verdict"]
    assert (values["verdict"]["outcome"], values["generator_processes"]) == ("pass", 2)
    assert values["outcomes"]["ok"] >= 0.99 * values["requests"] > 100
    stages = values["stages_ms"]
    assert set(stages) == set(STAGES)
    assert all(stages[name]["mean"] > 0 for name in ("http", "tokenise", "reason", "rank"))
    with open(tmp_path / "out/seconds.csv", encoding="utf-8") as file:
        assert sum(int(second["offered"]) for second in csv.DictReader(file)) == values["requests"]
    whole = HdrHistogram(1, 3_600_000_000, 3)
    reader = HistogramLogReader(str(tmp_path / "out/latency.hlog"), whole)
    while reader.add_next_interval_histogram() is not None:
        pass
    assert whole.get_total_count() == sum(values["outcomes"].get(name, 0) for name in ("ok", "degraded"))
    assert whole.get_max_value() / 1_000 == pytest.approx(values["latency_ms"]["max"], rel=0.002, abs=0.1)
    assert "#[Max" in (tmp_path / "out/latency.hgrm").read_text()
    assert (tmp_path / "out/gate.png").stat().st_size > 10_000


def test_a_slowed_reasoner_fails_the_gate(bundle_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SLOWED), str(bundle_dir), str(SLOWED_S)]
    with started(command, tmp_path / "log") as address:
        target = f"http://{address.host}:{address.port}"
        arguments = [str(bundle_dir), "--qps", "60", "--p99-ms", str(SLOWED_S * 900), "--seconds", "3"]
        files = ["--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows.jsonl")]
        code = command_code([*arguments, "--target", target, *files])
    values = json.loads((tmp_path / "out/summary.json").read_text())
    assert code == 1, values["verdict"]
    assert values["stages_ms"]["reason"]["mean"] > SLOWED_S * 900  # it says which part was slow
    assert values["verdict"]["p99_ms"] > SLOWED_S * 900


def command_code(arguments: list[str]) -> int:
    before = sys.argv
    sys.argv = ["gate", *arguments]
    try:
        return bench_serve.run()
    finally:
        sys.argv = before


def test_the_command_ends_with_2_where_nothing_can_be_said(
    bundle_dir: Path, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    files = ["--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows.jsonl")]
    assert command_code([str(bundle_dir), "--target", "http://127.0.0.1:9", *files]) == 2
    assert "required a service; received no connection" in capfd.readouterr().err
    assert command_code(["--target", "http://127.0.0.1:9", *files]) == 2
    assert "required a bundle, or a target and contexts" in capfd.readouterr().err
    assert command_code([str(bundle_dir), "--qps", "0", *files]) == 2
    assert "gate qps: required more than 0" in capfd.readouterr().err
    assert command_code([str(bundle_dir), "--arrivals", "trace", *files]) == 2
    assert command_code([str(tmp_path / "none"), *files]) == 2
    capfd.readouterr()

    def defect(*_: object, **__: object) -> None:
        raise KeyError("a defect of ours")

    monkeypatch.setattr(gate_module, "run_gate", defect)
    assert command_code([str(bundle_dir), *files]) == 2
    assert "a defect of ours" in capfd.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_service_that_does_not_start_is_an_error_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such bundle')"]
    with (
        pytest.raises(ConfigError, match="received code 1: no such bundle"),
        started(command, tmp_path / "log"),
    ):
        pass


def test_contexts_come_from_the_file_else_the_trace_else_the_schema(bundle_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "contexts"
    file.write_text('{"page": "orders"}\n')
    assert contexts_of(bundle_dir, file, [{"page": "home"}], 0) == ([{"page": "orders"}], str(file))
    assert contexts_of(bundle_dir, None, [{"page": "home"}], 0) == ([{"page": "home"}], "the trace's")
    drawn, source = contexts_of(bundle_dir, None, [], 0)
    assert (len(drawn), source) == (500, "drawn from the schema")


@pytest.mark.parametrize("target", ["127.0.0.1:80", "https://host:1", "http://host:x", "http://host:1/path", "http://"])
def test_a_target_that_is_no_address_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="required http://host:port"):
        host_and_port(target)


def test_a_target_is_an_address() -> None:
    assert host_and_port("http://host:81/") == ("host", 81)
    assert host_and_port("http://[::1]") == ("::1", 80)
