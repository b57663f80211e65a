"""The gate: passes where titles are read, tries the cheap placement first, refuses with every share it measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError, RewardError
from rgalign.training.reward.candidate_prompts import PLACEMENTS, Placement
from rgalign.training.reward.gate import GateSessions, measure, pass_gate


def judge_with(shares: dict[str, tuple[int, int]], asked: list[str]) -> Callable[..., Any]:
    """A judge in which the own title wins and loses in so many sessions, and ties in the rest."""

    def judge(placement: Placement, rows: Any, texts: Sequence[str]) -> Any:
        asked.append(placement)
        count = len(rows) // 2
        wins, losses = shares[placement]
        rewards = np.full((2, count), 0.5)
        rewards[0, :wins] = 1.0
        rewards[1, wins : wins + losses] = 1.0
        return rewards.ravel()

    return judge


@pytest.fixture
def sessions(echo: Any) -> GateSessions:
    return GateSessions.of(echo.dataset, 40, seed=0)


def test_own_titles_are_clicked_and_others_are_not(echo: Any, sessions: GateSessions) -> None:
    clicked = echo.dataset.table("valid", ["clicked"]).column(0).to_pylist()
    names = echo.dataset.catalog.names
    assert len(sessions.rows) == 40
    for row, own, other in zip(sessions.rows, sessions.own, sessions.other, strict=True):
        titles = [names[each] for each in clicked[row]]
        assert own in titles
        assert other not in titles
    assert len(set(sessions.other)) == 6
    again = GateSessions.of(echo.dataset, 40, seed=0)
    assert again.other == sessions.other
    assert GateSessions.of(echo.dataset, 40, seed=1).other != sessions.other


def test_the_first_placement_that_passes_is_taken(sessions: GateSessions) -> None:
    asked: list[str] = []
    judge = judge_with({"slots": (10, 10), "beside": (15, 5), "appended": (20, 0)}, asked)
    placement, results = pass_gate(sessions, PLACEMENTS, 0.75, judge)
    assert placement == "beside"
    assert asked == ["slots", "beside"]
    assert [result.share for result in results] == [0.5, 0.75]
    assert (results[1].untied, results[1].sessions) == (20, 40)
    assert results[1].own_reward > results[1].random_reward


def test_a_refusal_names_every_share(sessions: GateSessions) -> None:
    judge = judge_with({"slots": (14, 6), "beside": (9, 0), "appended": (0, 0)}, [])
    message = r"75% .*received slots: 70.0% of 20 untied.*; beside: 100.0% of 9 untied.*; appended: nan% of 0 untied"
    with pytest.raises(RewardError, match=message):  # nine untied sessions are too few to say anything
        pass_gate(sessions, PLACEMENTS, 0.75, judge)


def test_sessions_that_cannot_be_judged_do_not_count(sessions: GateSessions) -> None:
    def judge(placement: Placement, rows: Any, texts: Sequence[str]) -> Any:
        rewards = np.tile([1.0, np.nan], len(rows) // 2)
        rewards[len(rows) // 2 :] = np.tile([0.0, np.nan], len(rows) // 4)
        return rewards

    result = measure(sessions, "slots", judge)
    assert (result.untied, result.share, result.own_reward) == (20, 1.0, 1.0)


def test_validation_without_clicks_is_refused(make_echo: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_echo(tmp_path / "data", num_train=10, num_valid=0)
    with pytest.raises(DataError, match=r"\*.parquet files|validation sessions with a click"):
        GateSessions.of(dataset, 10, 0)
