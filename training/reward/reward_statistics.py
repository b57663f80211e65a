"""What the rewards of a candidate pool can tell apart: ties, winners, and how far the teachers agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class CandidateTable:
    """Rewards as a matrix of sessions and teachers.

    Attributes:
        rewards: [S, T], NaN where a teacher has no candidate.
        texts: [S, T] int64 code of each text, -1 where there is none.
    """

    def __init__(self, rewards: pa.Table, teachers: Sequence[str]) -> None:
        self.teachers = list(teachers)
        session = rewards.column("session_id").combine_chunks().dictionary_encode().indices.to_numpy()
        teacher = pa.compute.index_in(rewards.column("teacher"), pa.array(self.teachers)).to_numpy()
        shape = (int(session.max()) + 1, len(self.teachers))
        self.rewards = np.full(shape, np.nan)
        self.texts = np.full(shape, -1, np.int64)
        self.rewards[session, teacher] = rewards.column("reward").to_numpy()
        self.texts[session, teacher] = rewards.column("query").combine_chunks().dictionary_encode().indices.to_numpy()


def tie_statistics(table: CandidateTable) -> dict[str, float | int]:
    """Shares among sessions with two candidates or more.

    Returns:
        ``all_tied``: every reward equal; ``top_tied``: the best reward is that of two different texts or more.
    """
    several = (~np.isnan(table.rewards)).sum(axis=1) > 1
    rewards, texts = table.rewards[several], table.texts[several]
    if not len(rewards):
        return {"sessions": 0, "all_tied": float("nan"), "top_tied": float("nan")}
    best = np.nanmax(rewards, axis=1, keepdims=True)
    top = np.where(rewards == best, texts, -1)
    distinct = [len(set(row.tolist()) - {-1}) for row in top]
    return {
        "sessions": len(rewards),
        "all_tied": float((np.nanmin(rewards, axis=1) == best[:, 0]).mean()),
        "top_tied": float(np.mean(np.array(distinct) > 1)),
    }


def winner_shares(table: CandidateTable) -> dict[str, float]:
    """Share of the sessions each teacher is best in; those that tie share a session evenly."""
    best = np.nanmax(table.rewards, axis=1, keepdims=True)
    won = (table.rewards == best).astype(np.float64)
    shares = (won / won.sum(axis=1, keepdims=True)).mean(axis=0)
    return dict(zip(table.teachers, map(float, shares), strict=True))


def mean_rewards(table: CandidateTable) -> dict[str, float]:
    """Mean reward of each teacher's candidates, and of the best one of each session."""
    means = {}
    for place, name in enumerate(table.teachers):
        column = table.rewards[:, place]
        means[name] = float(np.nanmean(column)) if (~np.isnan(column)).any() else float("nan")
    return {**means, "best of each session": float(np.nanmax(table.rewards, axis=1).mean())}


def agreement(table: CandidateTable) -> list[dict[str, Any]]:
    """Of each pair of teachers, in the sessions both have a candidate for: shares of equal texts and equal rewards."""
    pairs = []
    for left, right in combinations(range(len(table.teachers)), 2):
        both = ~np.isnan(table.rewards[:, left]) & ~np.isnan(table.rewards[:, right])
        same = {
            name: float((values[both, left] == values[both, right]).mean()) if both.any() else float("nan")
            for name, values in (("same_text", table.texts), ("same_reward", table.rewards))
        }
        pair = [table.teachers[left], table.teachers[right]]
        pairs.append({"teachers": pair, "sessions": int(both.sum()), **same})
    return pairs
