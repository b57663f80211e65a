"""Cells against sums by hand: several ranker and alignment seeds, weights, relative changes, the paper's arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rgalign.errors import DataError
from rgalign.metrics.ranking import SessionMetrics
from rgalign.metrics.significance import Resampling
from rgalign.training.tables.cells import Cells
from rgalign.training.tables.measure import MeasuredRow, RunKey, read_measured, write_measured

SESSIONS = 60
IDS = tuple(f"s{number}" for number in range(SESSIONS))
HOW = Resampling(resamples=300)


def run_metrics(rng: np.random.Generator, shift: float) -> SessionMetrics:
    """``auc`` is undefined in one session and weighted by the number of candidates."""
    auc, ndcg = np.clip(rng.random((2, SESSIONS)) * 0.4 + 0.3 + shift, 0, 1)
    auc[7] = np.nan
    counts = np.arange(SESSIONS) % 5 + 2
    return SessionMetrics(
        {"auc": auc, "ndcg@3": ndcg}, counts, np.ones(SESSIONS, np.int64), np.ones(SESSIONS, np.int64)
    )


def row(seed: int, keys: list[RunKey], shift: float = 0.0) -> MeasuredRow:
    rng = np.random.default_rng(seed)
    return MeasuredRow(IDS, {key: run_metrics(rng, shift) for key in keys})


ROWS = {
    "base": row(0, [(0, None), (1, None)]),
    "ours": row(1, [(ranker, alignment) for alignment in (0, 1, 2) for ranker in (0, 1)], 0.1),
    "other": row(2, [(ranker, alignment) for alignment in (0, 1, 2) for ranker in (0, 1)], 0.05),
}


def averaged(name: str, metric: str) -> np.ndarray:
    return np.mean([run.values[metric] for run in ROWS[name].runs.values()], axis=0)


@pytest.fixture(scope="module")
def cells() -> Cells:
    return Cells(ROWS, "impressions", np.arange(SESSIONS) // 2, HOW)


def test_a_mean_is_over_all_runs_and_its_spread_over_each_kind_of_seed(cells: Cells) -> None:
    found = cells.metrics_of("ours")["ndcg@3"]
    assert found["mean"] == pytest.approx(averaged("ours", "ndcg@3").mean())
    assert found["low"] < found["mean"] < found["high"]
    table = np.array([run.values["ndcg@3"].mean() for run in ROWS["ours"].runs.values()]).reshape(3, 2)
    assert found["alignment_sd"] == pytest.approx(table.mean(axis=1).std(ddof=1))
    assert found["ranker_sd"] == pytest.approx(table.mean(axis=0).std(ddof=1))
    assert [each["mean"] for each in found["runs"]] == pytest.approx(table.ravel().tolist())
    assert cells.metrics_of("base")["ndcg@3"]["alignment_sd"] is None


def test_differences_are_paired_weighted_and_skip_what_is_undefined(cells: Cells) -> None:
    found = cells.difference("ours", "base")["auc"]
    ours, theirs = averaged("ours", "auc"), averaged("base", "auc")
    defined = ~np.isnan(ours)
    weights = (np.arange(SESSIONS) % 5 + 2)[defined]
    change = weights * (ours - theirs)[defined]
    assert found["difference"] == pytest.approx(change.sum() / weights.sum())
    assert found["relative"]["mean"] == pytest.approx(change.sum() / (weights * theirs[defined]).sum())
    assert found["error_reduction"]["mean"] == pytest.approx(change.sum() / (weights * (1 - theirs[defined])).sum())
    assert found["low"] > 0
    assert found["verdict"] == "better"
    assert cells.difference("base", "ours")["auc"]["verdict"] == "worse"
    for key in ("relative", "error_reduction"):
        assert found[key]["low"] < found[key]["mean"] < found[key]["high"]


def test_alignment_seeds_are_compared_with_their_own_in_the_other_row_if_it_has_them(cells: Cells) -> None:
    def mean_of(name: str, seed: int | None) -> float:
        runs = [run for key, run in ROWS[name].runs.items() if seed is None or key[1] == seed]
        return float(np.mean([run.values["ndcg@3"].mean() for run in runs]))

    with_own = cells.difference("ours", "other")["ndcg@3"]["alignment_seeds"]
    assert with_own == pytest.approx({str(seed): mean_of("ours", seed) - mean_of("other", seed) for seed in (0, 1, 2)})
    with_all = cells.difference("ours", "base")["ndcg@3"]["alignment_seeds"]
    assert with_all == pytest.approx({str(seed): mean_of("ours", seed) - mean_of("base", None) for seed in (0, 1, 2)})
    assert cells.difference("base", "ours")["ndcg@3"]["alignment_seeds"] == {}


def test_equal_rows_are_inconclusive_and_a_perfect_base_has_no_error_to_reduce() -> None:
    ones = {(0, None): run_metrics(np.random.default_rng(0), 1.0)}
    cells = Cells({"a": MeasuredRow(IDS, ones), "b": MeasuredRow(IDS, ones)}, "uniform", None, HOW)
    found = cells.difference("a", "b")["ndcg@3"]
    assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)
    assert found["verdict"].startswith("inconclusive")
    assert found["error_reduction"] is None
    assert found["relative"]["mean"] == 0


def test_the_paper_s_arithmetic() -> None:
    """R@3 67.73 -> 68.11: +0.56 % relative, 1.18 % of the error."""
    sizes = np.full(10, 3), np.ones(10, np.int64), np.ones(10, np.int64)
    rows = {
        name: MeasuredRow(IDS[:10], {(0, None): SessionMetrics({"recall@3": np.full(10, value)}, *sizes)})
        for name, value in (("baseline", 0.6773), ("full", 0.6811))
    }
    found = Cells(rows, "uniform", None, HOW).difference("full", "baseline")["recall@3"]
    assert found["relative"]["mean"] == pytest.approx(0.0056, abs=5e-5)
    assert found["error_reduction"]["mean"] == pytest.approx(0.0118, abs=5e-5)


def test_measures_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "sessions.parquet"
    write_measured(path, ROWS["ours"])
    found = read_measured(path)
    assert found.session_ids == IDS
    assert list(found.runs) == list(ROWS["ours"].runs)
    for key, run in ROWS["ours"].runs.items():
        for name, values in run.values.items():
            np.testing.assert_array_equal(found.runs[key].values[name], values)
        np.testing.assert_array_equal(found.runs[key].impressions, run.impressions)
    write_measured(path, ROWS["base"])
    assert list(read_measured(path).runs) == [(0, None), (1, None)]


def test_rows_of_other_sessions_are_refused() -> None:
    other = MeasuredRow(tuple(reversed(IDS)), ROWS["base"].runs)
    with pytest.raises(DataError, match="row 'other': required the sessions of the other rows"):
        Cells({"base": ROWS["base"], "other": other}, "uniform", None, HOW)
