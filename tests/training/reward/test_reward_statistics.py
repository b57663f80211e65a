"""Ties, winners and agreement of four sessions by hand."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rgalign.training.reward.reward_statistics import (
    CandidateTable,
    agreement,
    mean_rewards,
    tie_statistics,
    winner_shares,
)

ROWS = [
    # session, teacher, query, reward
    ("s1", "a", "x", 1.0),
    ("s1", "b", "y", 0.5),
    ("s1", "c", "z", 1.0),  # top tied by two texts
    ("s2", "a", "x", 0.0),
    ("s2", "b", "y", 0.0),  # all tied
    ("s3", "a", "x", 0.5),
    ("s3", "c", "x", 0.5),  # all tied, but one text: nothing to decide
    ("s4", "b", "y", 1.0),  # alone
]


@pytest.fixture
def table() -> CandidateTable:
    names = ("session_id", "teacher", "query", "reward")
    return CandidateTable(pa.table(dict(zip(names, zip(*ROWS, strict=True), strict=True))), ["a", "b", "c"])


def test_ties(table: CandidateTable) -> None:
    assert tie_statistics(table) == {"sessions": 3, "all_tied": pytest.approx(2 / 3), "top_tied": pytest.approx(2 / 3)}


def test_winners_share_a_tie(table: CandidateTable) -> None:
    shares = winner_shares(table)
    assert shares == {"a": pytest.approx(1.5 / 4), "b": pytest.approx(1.5 / 4), "c": pytest.approx(1 / 4)}
    assert sum(shares.values()) == pytest.approx(1)


def test_means(table: CandidateTable) -> None:
    assert mean_rewards(table) == {"a": 0.5, "b": 0.5, "c": 0.75, "best of each session": 0.625}


def test_agreement(table: CandidateTable) -> None:
    found = {
        tuple(pair["teachers"]): (pair["sessions"], pair["same_text"], pair["same_reward"]) for pair in agreement(table)
    }
    assert found == {("a", "b"): (2, 0.0, 0.5), ("a", "c"): (2, 0.5, 1.0), ("b", "c"): (1, 0.0, 0.0)}


def test_one_teacher_only() -> None:
    rows = pa.table({"session_id": ["s"], "teacher": ["a"], "query": ["x"], "reward": [1.0]})
    table = CandidateTable(rows, ["a", "b"])
    assert tie_statistics(table)["sessions"] == 0
    assert winner_shares(table) == {"a": 1.0, "b": 0.0}
    assert mean_rewards(table)["b"] != mean_rewards(table)["b"]  # NaN
