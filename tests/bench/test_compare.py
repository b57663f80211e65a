"""Verdicts on two runs: noise is not a change, the machine's drift is not ours, and a change is seen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rgalign.bench.compare import Comparison, compare, load
from rgalign.bench.compare_table import describe
from rgalign.bench.result_rows import cell, latest
from rgalign.cli import app
from rgalign.errors import DataError

VARIANTS = ("rgalign fp32", "rgalign int8", "torch", "numpy", "faiss flat", "faiss sq8")
CALLS = 400


def run(
    rng: np.random.Generator, commit: str, ours: float = 1.0, machine: float = 1.0, jitter: float = 0.02
) -> list[dict[str, Any]]:
    """A scoring run as this machine gives it: each cell has a drift of its own beside that of the whole run."""
    rows = []
    for size in (1_000, 5_000, 20_000):
        for name in VARIANTS:
            true = size / 50 * machine * (ours if name == "rgalign int8" else 1.0) * np.exp(rng.normal(0, jitter))
            calls = true * np.exp(rng.normal(0, 0.2, CALLS))
            low, median, high = np.percentile(calls, [20, 50, 80])
            rows.append({
                "benchmark": "scoring", "variant": name, "N": size, "D": 128, "B": 1, "k": 3, "threads": 2,
                "catalogue": "random", "calls": CALLS, "call_us": {"median": median, "p20": low, "p80": high},
                "commit": commit, "hardware": {"cpu": "a", "cores": 2, "gpu": None},
            })  # fmt: skip
    return rows


def verdicts(found: Comparison) -> dict[str, set[str]]:
    names = {each.name.split(", ")[1] for each in found.changes}
    return {name: {each.verdict for each in found.changes if each.name.split(", ")[1] == name} for name in names}


def test_noise_and_drift_alone_are_no_change() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(
        any(each.verdict != "no difference" for each in compare(run(rng, "a"), run(rng, "b", machine=1.3)).changes)
        for _ in range(60)
    )
    assert alarms <= 8, f"{alarms} of 60, where 5 % may be wrong"  # 1 in 200 if exactly 5 % are


@pytest.mark.parametrize(("ours", "verdict", "code"), [(1.25, "slower", 1), (0.75, "faster", 0)])
def test_a_change_is_seen_through_the_drift_of_the_machine(ours: float, verdict: str, code: int) -> None:
    rng = np.random.default_rng(1)
    found = compare(run(rng, "a"), run(rng, "b", ours=ours, machine=1 / ours))
    told = verdicts(found)
    assert told.pop("rgalign int8") == {verdict}
    assert set().union(*told.values()) == {"no difference"}
    assert found.exit_code == code
    assert found.drifts["scoring"].ratio == pytest.approx(1 / ours, rel=0.05)
    changed = next(each for each in found.changes if each.verdict == verdict)
    assert changed.low < changed.ratio < changed.high
    assert changed.ratio == pytest.approx(ours, rel=0.1)


def test_a_rate_that_rises_is_faster() -> None:
    def rows(rate: float) -> list[dict[str, Any]]:
        spread = {"median": rate, "p20": rate * 0.99, "p80": rate * 1.01}
        return [{"benchmark": "train step", "variant": "qe_rec", "batch": 8, "sessions_per_s": spread, "repeats": 9}]

    assert [each.verdict for each in compare(rows(100), rows(200)).changes] == ["faster"]
    assert [each.verdict for each in compare(rows(200), rows(100)).changes] == ["slower"]
    # Without peers two runs of one commit may differ by as much.
    assert [each.verdict for each in compare(rows(100), rows(110)).changes] == ["no difference"]
    assert [each.verdict for each in compare(rows(100), rows(200), least=1.5).changes] == ["no difference"]


def test_several_runs_of_a_commit_count_by_their_scatter() -> None:
    def rows(*medians: float) -> list[dict[str, Any]]:
        return [
            {"benchmark": "x", "variant": name, "commit": "c", "calls": 10_000,
             "call_ms": {"median": each * factor, "p20": each * factor, "p80": each * factor}}
            for each in medians
            for name, factor in (("rgalign", 1.0), ("torch", 2.0), ("numpy", 3.0), ("faiss flat", 4.0), ("ray", 5.0))
        ]  # fmt: skip

    steady, wild = compare(rows(10, 10, 10), rows(10, 10, 10)), compare(rows(5, 10, 20), rows(5, 10, 20))
    width = [max(each.high / each.low for each in found.changes) for found in (steady, wild)]
    assert width[0] == pytest.approx(1)
    assert width[1] > 2


def test_only_the_last_commit_of_a_cell_counts_and_shapes_part_cells() -> None:
    rng = np.random.default_rng(2)
    old, new = run(rng, "old", ours=3.0), run(rng, "new")
    assert verdicts(compare(old + new, run(rng, "b")))["rgalign int8"] == {"no difference"}
    assert len({cell(row) for row in old}) == len(old)
    assert [row["commit"] for row in latest(old + new)] == ["new"] * len(new)


def test_sources_of_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    file = tmp_path / "scoring.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in run(rng, "abcdef1") + run(rng, "fedcba2")))
    assert len(load(str(file))) == len(load(str(tmp_path))) == 36
    assert {row["commit"] for row in load("abcd", tmp_path)} == {"abcdef1"}
    for what in ("abc", "123456", str(tmp_path / "nosuch.jsonl")):  # shorter than a commit, unknown, absent
        with pytest.raises(DataError, match="no rows"):
            load(what, tmp_path)
    with pytest.raises(DataError, match="none in common"):
        compare(load("abcd", tmp_path), [{"benchmark": "other", "call_ms": {"median": 1, "p20": 1, "p80": 1}}])


def test_other_hardware_is_said() -> None:
    rng = np.random.default_rng(4)
    other = [row | {"hardware": {"cpu": "b", "cores": 2}} for row in run(rng, "b")]
    assert compare(run(rng, "a"), other).warnings == ("different cpu: a and b",)
    assert "different cpu" in str(describe(compare(run(rng, "a"), other), everything=True).caption)


def test_the_command_ends_with_the_verdict(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, ours in zip(paths, (1.0, 1.5), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in run(rng, path.stem, ours=ours)))
    command = ["bench", "compare", *map(str, paths)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 1
    assert "slower" in told.output
    assert CliRunner().invoke(app, [*command[:2], *map(str, paths[::-1])]).exit_code == 0
    everything = CliRunner().invoke(app, [*command, "--all"])
    # The caption says "no difference" once.
    assert everything.output.count("no difference") > told.output.count("no difference") == 1
