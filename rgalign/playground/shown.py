"""A context in, what the page shows of it out; and of two contexts, what the change did.

One answer over the whole index carries everything: the first k are the recommendation, and its query parts divided by
1 − ω are the cosines of the latent query with every intent, so its nearest intents are read off them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rgalign.bundle import Bundle
from rgalign.recommender import Recommender, without_reasoner
from rgalign.recommender.answer import RankedIntent, Recommendation
from rgalign.recommender.context import ContextReader
from rgalign.schema import Dimension

Piece = Literal["prefix", "slot", "joint", "suffix"]


@dataclass(frozen=True)
class Segment:
    """A stretch of the prompt's text; ``name`` and ``dimension`` of a slot's feature."""

    kind: Piece
    text: str
    name: str = ""
    dimension: Dimension | None = None
    changed: bool = False  # not so in the other context's prompt


@dataclass(frozen=True)
class Prompt:
    """The prompt, and how many tokens its three parts have."""

    segments: tuple[Segment, ...]
    tokens: tuple[int, int, int]

    def slots(self) -> list[Segment]:
        return [segment for segment in self.segments if segment.kind == "slot"]


@dataclass(frozen=True)
class Near:
    id: str
    title: str
    cosine: float


@dataclass(frozen=True)
class Shown:
    """What is shown of one context.

    Args:
        ranked: the whole index, best first; the page's top-k is its beginning.
        nearest: to the latent query, nearest first; empty where there is none, and ``no_query`` says why.
        tower_only: features of the context that the user tower reads and the prompt does not have.
    """

    prompt: Prompt | None
    answer: Recommendation
    k: int
    nearest: tuple[Near, ...]
    no_query: str
    tower_only: tuple[str, ...]
    omega: float

    @property
    def ranked(self) -> tuple[RankedIntent, ...]:
        return self.answer.intents

    @property
    def top(self) -> tuple[RankedIntent, ...]:
        return self.ranked[: self.k]


@dataclass(frozen=True)
class Move:
    """One intent in two answers; ranks from 1."""

    id: str
    title: str
    before: RankedIntent
    after: RankedIntent
    rank_before: int
    rank_after: int


@dataclass(frozen=True)
class Comparison:
    """Args:
    moves: every intent that is in either top-k, in the order of the new ranking.
    gone, come: slots' texts that only the old, only the new prompt has.
    """

    moves: tuple[Move, ...]
    gone: tuple[str, ...]
    come: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        same = all(move.before.score == move.after.score for move in self.moves)
        return same and not self.gone and not self.come


class Playground:
    """A bundle with its reasoner, and the same bundle without one for ω = 1."""

    def __init__(self, bundle: Bundle, recommender: Recommender) -> None:
        self.bundle = bundle
        self._whole = recommender
        self._user_only = Recommender(bundle, recommender.config, make_reasoner=without_reasoner)
        self._reader = ContextReader(bundle.schema)

    def show(self, context: Mapping[str, Any], k: int, *, degraded: bool = False) -> Shown:
        """What is shown of a context.

        Args:
            degraded: at ω = 1, without the reasoner.

        Raises:
            DataError: the context is refused. NotAnswered: so is the request.
        """
        row = self._reader.read(context)
        recommender = self._user_only if degraded else self._whole
        answer = recommender.recommend(context, max(k, len(self.bundle.index.ids)))
        omega = 1.0 if answer.degraded is not None else self.bundle.manifest.omega
        nearest, no_query = self._nearest(answer, k)
        prompt = None if self.bundle.prompts is None else self._prompt(row)
        return Shown(prompt, answer, k, nearest, no_query, self._tower_only(context), omega)

    def checked(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Every column of the schema -> value. Raises DataError: the context is refused."""
        return self._reader.read(context)

    def label(self, context: Mapping[str, Any]) -> str:
        """A context in one line: what the prompt says of it."""
        slots = self.bundle.schema.slots(self._reader.read(context))
        text = ", ".join(slot.text for slot in slots) or "empty"
        return text if len(text) <= 72 else text[:71].rstrip(" ,") + "…"

    def close(self) -> None:
        self._user_only.close()
        self._whole.close()

    def _nearest(self, answer: Recommendation, k: int) -> tuple[tuple[Near, ...], str]:
        weight = 1.0 - self.bundle.manifest.omega
        if answer.degraded == "no_reasoner":
            return (), "Degraded mode: the reasoner was not asked, and the score is the user part alone (ω = 1)."
        if answer.degraded is not None:
            return (), f"The reasoner gave no latent query ({answer.degraded}); the score is the user part alone."
        if self.bundle.prompts is None:
            return (), "This bundle's ranker has no query tower, so there is no latent query."
        if weight <= 0:
            return (), "ω of this bundle is 1: the latent query has no weight in the score."
        by_query = sorted(answer.intents, key=lambda intent: (-intent.query_part, intent.id))[:k]
        return tuple(Near(each.id, each.title, each.query_part / weight) for each in by_query), ""

    def _prompt(self, row: Mapping[str, Any]) -> Prompt:
        prompts = self.bundle.prompts
        assert prompts is not None
        encoded, chat, words = prompts.encode(row), prompts.chat_format, prompts.template
        segments = [Segment("prefix", chat.opening + words.system + chat.middle + words.before)]
        for place, slot in enumerate(encoded.slots):
            if place:
                segments.append(Segment("joint", ", "))
            segments.append(Segment("slot", slot.text, slot.name, slot.dimension))
        segments.append(Segment("suffix", words.after + chat.closing))
        tokens = len(prompts.prefix_ids), len(encoded.slot_ids), len(prompts.suffix_ids)
        return Prompt(tuple(segments), tokens)

    def _tower_only(self, context: Mapping[str, Any]) -> tuple[str, ...]:
        silent = [feature for feature in self.bundle.schema.features if feature.verbalize is None]
        if self.bundle.prompts is not None and not self.bundle.prompts.include_pii:
            silent += [each for each in self.bundle.schema.features if each.pii and each.verbalize is not None]
        return tuple(f.name for f in silent if any(context.get(column) not in (None, []) for column in f.columns()))


def compare(before: Shown, after: Shown) -> Comparison:
    """What the change from ``before`` to ``after`` did."""
    old, new = _ranks(before.ranked), _ranks(after.ranked)
    wanted = {intent.id for intent in (*before.top, *after.top)}
    moves = [
        Move(each, new[each][1].title, old[each][1], new[each][1], old[each][0], new[each][0])
        for each in sorted(wanted, key=lambda each: new[each][0])
    ]
    texts = [[slot.text for slot in shown.prompt.slots()] if shown.prompt else [] for shown in (before, after)]
    gone = tuple(text for text in texts[0] if text not in texts[1])
    come = tuple(text for text in texts[1] if text not in texts[0])
    return Comparison(tuple(moves), gone, come)


def marked(prompt: Prompt, other: Prompt) -> Prompt:
    """``prompt`` with the slots marked that ``other`` does not have so."""
    known = {slot.text for slot in other.slots()}
    segments = [
        Segment(each.kind, each.text, each.name, each.dimension, each.kind == "slot" and each.text not in known)
        for each in prompt.segments
    ]
    return Prompt(tuple(segments), prompt.tokens)


def _ranks(ranked: Sequence[RankedIntent]) -> dict[str, tuple[int, RankedIntent]]:
    return {intent.id: (rank, intent) for rank, intent in enumerate(ranked, start=1)}
