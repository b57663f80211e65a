"""Does a teacher know the label? How often it says the clicked intent's title verbatim where its prompt does not.

A teacher that has not seen the label names the clicked intent's title about as often as it names the title of another
session's click; far above that, the label has leaked into its prompt or its training data. An answer that *is* the
title word for word is not used for teachers that must not know titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rgalign.schema import FeatureSchema
from rgalign.training.teachers.teacher import Context

SUSPECT_RATIO = 5.0  # times the chance rate
SUSPECT_ANSWERS = 5  # a few titles are named by chance
VERBATIM = "the clicked intent's title, word for word, which the prompt does not hold"


@dataclass(frozen=True)
class LeakReport:
    """Counts over the answered sessions of one teacher.

    Args:
        verbatim: answers that are a clicked title and nothing else, with the prompt not holding it.
        named: answers that contain a clicked title that the prompt does not hold.
        named_by_chance: the same against the clicks of another session (each paired with the one half-way round).
        suspect: whether that is too often to be chance. Never for a teacher that may know titles.
    """

    answers: int
    verbatim: int
    named: int
    named_by_chance: int
    suspect: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_verbatim(text: str, prompt: str, titles: Sequence[str]) -> bool:
    """Whether the answer is one of the clicked titles itself, and the prompt has no such title."""
    answer, known = plain(text), plain(prompt)
    return any(answer == plain(title) and plain(title) not in known for title in titles)


def leak_report(
    texts: Sequence[str], prompts: Sequence[str], titles: Sequence[Sequence[str]], *, knows_titles: bool
) -> LeakReport:
    """Args: texts, prompts, titles: of each answered session its answer, what was read, the clicked titles."""
    count = len(texts)
    others = [titles[(place + count // 2) % count] for place in range(count)] if count > 1 else [()] * count
    verbatim = sum(map(is_verbatim, texts, prompts, titles))
    named = sum(map(_names, texts, prompts, titles))
    chance = sum(map(_names, texts, prompts, others))
    many = named >= SUSPECT_ANSWERS and named > SUSPECT_RATIO * max(chance, 1)
    return LeakReport(count, verbatim, named, chance, not knows_titles and (verbatim > 0 or many))


def plain(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.lower().split()).strip(".?!:;\"' ")


def _names(text: str, prompt: str, titles: Sequence[str]) -> bool:
    answer, known = plain(text), plain(prompt)
    return any(plain(title) in answer and plain(title) not in known for title in titles)


def visible_text(context: Context, schema: FeatureSchema) -> str:
    """For teachers without a prompt of ours: all that a prompt of the session could say."""
    return ", ".join(slot.text for slot in schema.slots(context.session, include_pii=True))
