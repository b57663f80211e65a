"""Best-of-N: which candidate of a session is chosen, which are rejected (paper section 4.2; reading of A8).

    V1  the best reward                                            full retention
    V2  V1, and the session is dropped when the winner is the base teacher's
    V3  of the other teachers' candidates, the one that is both farthest in edit distance from the base teacher's query
        and nearest in cosine to the golden intent; without one the session is dropped
    V4  as V3 with either instead of both

Of several that qualify, the higher reward wins; equal rewards fall to ``tie_break``: the teachers' priority, or first
the larger margin (best clicked score minus best other). Rejected are the candidates of strictly lower reward (eq. 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rgalign.training.selection.edit_distance import word_edit_distance

Strategy = Literal["V1", "V2", "V3", "V4"]
TieBreak = Literal["priority", "margin"]

KEPT = "kept"
BASE_WON = "the base teacher won"
NO_BASE = "no query of the base teacher to compare with"
NO_OTHER = "no candidate but the base teacher's"
NO_INTERSECTION = "no candidate is both farthest from the base and nearest to the intent"


@dataclass(frozen=True)
class Scored:
    """One candidate. ``cosine`` may be NaN where the session has no golden intent in the catalogue."""

    teacher: str
    query: str
    reward: float
    margin: float
    cosine: float
    latent: int = -1


@dataclass(frozen=True)
class Choice:
    """Outcome of one session: ``why`` is KEPT, or why there is none."""

    why: str
    chosen: Scored | None = None
    rejected: tuple[Scored, ...] = ()


def choose(
    candidates: Sequence[Scored],
    strategy: Strategy,
    *,
    priority: Sequence[str],
    base: str,
    tie_break: TieBreak = "priority",
) -> Choice:
    """The choice among one session's candidates, one or none a teacher.

    Args:
        priority: all teachers, the best first.
        base: the teacher that is the reasoner itself.
    """
    qualified: Sequence[Scored] = candidates
    if strategy != "V1":
        qualified = _without_copies(candidates, base)
    if strategy in ("V3", "V4"):
        filtered = _filtered(qualified, strategy, base)
        if isinstance(filtered, str):
            return Choice(filtered)
        qualified = filtered
    rank = {name: place for place, name in enumerate(priority)}

    def order(each: Scored) -> tuple[float, float, int]:
        return -each.reward, _or_last(-each.margin) if tie_break == "margin" else 0.0, rank[each.teacher]

    chosen = min(qualified, key=order)
    if strategy == "V2" and chosen.teacher == base:
        return Choice(BASE_WON)
    worse = sorted((each for each in candidates if each.reward < chosen.reward), key=order)
    texts: dict[str, Scored] = {}
    for each in worse:  # teachers that said the same are rejected once
        texts.setdefault(each.query, each)
    return Choice(KEPT, chosen, tuple(texts.values()))


def _without_copies(candidates: Sequence[Scored], base: str) -> list[Scored]:
    """A query in the base teacher's own words is the base teacher's, whoever else wrote it."""
    own = next((each for each in candidates if each.teacher == base), None)
    return [each for each in candidates if own is None or each is own or each.query.split() != own.query.split()]


def _filtered(candidates: Sequence[Scored], strategy: Strategy, base: str) -> list[Scored] | str:
    """The candidates that V3 or V4 keeps, or why there is none."""
    own = next((each for each in candidates if each.teacher == base), None)
    others = [each for each in candidates if each.teacher != base]
    if own is None:
        return NO_BASE
    if not others:
        return NO_OTHER
    distances = [word_edit_distance(each.query, own.query) for each in others]
    cosines = [-_or_last(-each.cosine) for each in others]
    farthest = [distance == max(distances) for distance in distances]
    nearest = [cosine == max(cosines) for cosine in cosines]
    if strategy == "V3":
        kept = [each for each, far, near in zip(others, farthest, nearest, strict=True) if far and near]
        return kept or NO_INTERSECTION
    return [each for each, far, near in zip(others, farthest, nearest, strict=True) if far or near]


def _or_last(value: float) -> float:
    """NaN sorts behind everything."""
    return value if value == value else float("inf")
