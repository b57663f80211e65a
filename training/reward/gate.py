"""The gate: can the ranker read candidates that stand where they do?

On validation sessions, whose clicks no ranker was trained on, the clicked intent's own title is put to the ranker as a
candidate, and a random other title too. Where the two rewards differ, the own title must win in a share of sessions.
Below it, NDCG-best labels would be noise, so the reward refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError, RewardError
from rgalign.training.reward.candidate_prompts import Placement

MIN_UNTIED = 10  # sessions: a share of fewer says nothing

Ints = NDArray[np.int64]
# (placement, rows of validation sessions, a text for each) -> reward of each
Judge = Callable[[Placement, Ints, Sequence[str]], NDArray[np.float64]]


@dataclass(frozen=True)
class GateResult:
    """Args: share: of the untied sessions in which the own title won; NaN without one."""

    placement: Placement
    sessions: int
    untied: int
    share: float
    own_reward: float
    random_reward: float

    def passes(self, required: float) -> bool:
        return self.untied >= MIN_UNTIED and self.share >= required

    def __str__(self) -> str:
        return f"{self.placement}: {self.share:.1%} of {self.untied} untied sessions ({self.sessions} asked)"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class GateSessions:
    """Validation sessions with one clicked intent's title and a random other title each."""

    rows: Ints
    own: list[str]
    other: list[str]

    @classmethod
    def of(cls, dataset: Dataset, count: int, seed: int) -> GateSessions:
        """Evenly spaced sessions with a click of the catalogue; the other intent is drawn among the ones not clicked.

        Raises:
            DataError: no such session, or a catalogue with nothing else in it.
        """
        catalog = dataset.catalog
        clicked: list[list[str]] = dataset.table("valid", ["clicked"]).column("clicked").to_pylist()
        known = [[catalog.rows[each] for each in intents or () if each in catalog.rows] for intents in clicked]
        usable = np.array([row for row, rows in enumerate(known) if 0 < len(set(rows)) < len(catalog)], np.int64)
        if not len(usable):
            required = "validation sessions with a click, and other intents to compare with"
            raise DataError(where=str(dataset.path / "valid"), required=required, received="none")
        rows = usable[np.unique(np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(np.int64))]
        rng = np.random.default_rng(seed)
        own, other = [], []
        for row in rows:
            others = np.setdiff1d(np.arange(len(catalog)), known[row])
            own.append(catalog.titles[known[row][0]])
            other.append(catalog.titles[int(rng.choice(others))])
        return cls(rows, own, other)


def pass_gate(
    sessions: GateSessions, placements: Sequence[Placement], required: float, judge: Judge
) -> tuple[Placement, list[GateResult]]:
    """The first placement that passes, with all that were measured.

    Raises:
        RewardError: none passes; says the share of each.
    """
    results: list[GateResult] = []
    for placement in placements:
        result = measure(sessions, placement, judge)
        results.append(result)
        if result.passes(required):
            return placement, results
    raise RewardError(
        where="gate of the reward model",
        required=f"a clicked intent's own title to beat a random one in {required:.0%} of at least {MIN_UNTIED} "
        "untied validation sessions (another placement, a stronger query tower or a smaller omega may help)",
        received="; ".join(map(str, results)),
    )


def measure(sessions: GateSessions, placement: Placement, judge: Judge) -> GateResult:
    count = len(sessions.rows)
    rewards = judge(placement, np.tile(sessions.rows, 2), [*sessions.own, *sessions.other])
    own, other = rewards[:count], rewards[count:]
    defined = ~np.isnan(own)
    untied = defined & (own != other)
    share = float((own > other)[untied].mean()) if untied.any() else float("nan")
    means = (float(each[defined].mean()) if defined.any() else float("nan") for each in (own, other))
    return GateResult(placement, count, int(untied.sum()), share, *means)
