"""Best-of-N: which candidate of a session is chosen, which are rejected (paper section 4.2; reading of A8).

    V1  the best reward                                            full retention
    V2  V1, and the session is dropped when the winner is the base teacher's
    V3  of the other teachers' candidates, the one that is both farthest in edit distance from the base teacher's query
        and nearest in cosine to the golden intent; without one the session is dropped
    V4  as V3 with either instead of both; the better of the two, or both chosen (``v4_keep``)

Of several that qualify, the higher reward wins; equal rewards fall to ``tie_break``: the teachers' priority, or first
the larger margin (best clicked score minus best other). Rejected are the candidates of strictly lower reward (eq. 9)
that are not chosen themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rgalign.training.selection.edit_distance import word_edit_distance

Strategy = Literal["V1", "V2", "V3", "V4"]
TieBreak = Literal["priority", "margin"]
V4Keep = Literal["best", "both"]

KEPT = "kept"
BASE_WON = "the base teacher won"
NO_BASE = "no query of the base teacher to compare with"
NO_OTHER = "no candidate but the base teacher's"
NO_INTERSECTION = "no candidate is both farthest from the base and nearest to the intent"
TOO_POOR = "a reward below min_reward"


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
    """A chosen query with the rejected ones: ``why`` is KEPT, or why there is none."""

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
    v4_keep: V4Keep = "best",
    min_reward: float = 0.0,
) -> list[Choice]:
    """The choices among one session's candidates, one or none a teacher: the best first, or one that says why not.

    Args:
        priority: all teachers, the best first.
        base: the teacher that is the reasoner itself.
        v4_keep: "both": the farthest and the nearest, two choices where they differ.
        min_reward: what a chosen query must be worth.
    """
    groups: list[list[Scored]] = [list(candidates) if strategy == "V1" else _without_copies(candidates, base)]
    if strategy in ("V3", "V4"):
        filtered = _filtered(groups[0], strategy, base, v4_keep)
        if isinstance(filtered, str):
            return [Choice(filtered)]
        groups = filtered
    rank = {name: place for place, name in enumerate(priority)}

    def order(each: Scored) -> tuple[float, float, int]:
        return -each.reward, _or_last(-each.margin) if tie_break == "margin" else 0.0, rank[each.teacher]

    winners = sorted({min(group, key=order) for group in groups}, key=order)
    if strategy == "V2" and winners[0].teacher == base:
        return [Choice(BASE_WON)]
    winners = [winner for winner in winners if winner.reward >= min_reward]
    if not winners:
        return [Choice(TOO_POOR)]
    texts: dict[str, Scored] = {}
    for each in sorted(candidates, key=order):  # teachers that said the same are rejected once
        texts.setdefault(each.query, each)
    others = [each for text, each in texts.items() if text not in {winner.query for winner in winners}]
    return [Choice(KEPT, won, tuple(each for each in others if each.reward < won.reward)) for won in winners]


def _without_copies(candidates: Sequence[Scored], base: str) -> list[Scored]:
    """A query in the base teacher's own words is the base teacher's, whoever else wrote it."""
    own = next((each for each in candidates if each.teacher == base), None)
    return [each for each in candidates if own is None or each is own or each.query.split() != own.query.split()]


def _filtered(candidates: Sequence[Scored], strategy: Strategy, base: str, v4_keep: V4Keep) -> list[list[Scored]] | str:
    """The candidates that V3 or V4 chooses from, those of each choice; or why there is none."""
    own = next((each for each in candidates if each.teacher == base), None)
    others = [each for each in candidates if each.teacher != base]
    if own is None:
        return NO_BASE
    if not others:
        return NO_OTHER
    distances = [word_edit_distance(each.query, own.query) for each in others]
    cosines = [-_or_last(-each.cosine) for each in others]
    farthest = [each for each, distance in zip(others, distances, strict=True) if distance == max(distances)]
    nearest = [each for each, cosine in zip(others, cosines, strict=True) if cosine == max(cosines)]
    if strategy == "V3":
        kept = [each for each in farthest if each in nearest]
        return [kept] if kept else NO_INTERSECTION
    return [farthest, nearest] if v4_keep == "both" else [farthest + nearest]


def _or_last(value: float) -> float:
    """NaN sorts behind everything."""
    return value if value == value else float("inf")
