"""Problem: one kind of trouble a user may have, when it is plausible, what it leaves behind, and what may be asked.

Everything the generative process knows of a problem is said in these few fields, in words of ``words.WORDS``. The four
``topics_*.yaml`` beside this file are the hand-written grammar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from rgalign.config import Config
from rgalign.data.simulator.words import PHRASES, WORDS

LATER = 3.0  # how much less plausible a trouble is with each step of ``waiting`` outside its time


class Question(Config):
    """A question about a problem. ``title`` has no question mark; ``urgency`` > 0: asked more the longer one waits."""

    title: str
    answer: str
    weight: float = Field(default=1.0, gt=0)
    urgency: float = 0.0


class Problem(Config):
    """A situation users get into.

    Args:
        weight: how often it happens, where it is plausible at all.
        when: vocabulary -> value -> relative plausibility (in the file a list stands for 1 each, and ``{early: 3}``,
            ``{late: 4}`` for the times up to the third, from the fourth step of ``waiting``); a value that is not
            named is implausible. A vocabulary that is not named does not matter.
        axes: the two vocabularies that specific forms of its questions name.
        entries, pages, events, articles: what a user with this problem opens, visits, runs into and reads more often.
        companions: other problems asked about in the same session, key -> weight.
        cold: the knowledge base has it only from the last week on.
    """

    key: str
    name: str
    topic: str
    weight: float = Field(gt=0)
    about: str
    cold: bool = False
    when: dict[str, dict[str, float]] = Field(default_factory=dict)
    axes: tuple[str, str]
    entries: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    articles: tuple[str, ...] = ()
    companions: dict[str, float] = Field(min_length=3)
    questions: tuple[Question, ...] = Field(min_length=2, max_length=3)

    @property
    def about_order(self) -> bool:
        return "order_status" in self.when

    @field_validator("when", mode="before")
    @classmethod
    def _spell_out(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _weights(name, rule) for name, rule in value.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = {"entry_point": self.entries, "page": self.pages, "app_event": self.events, "article": self.articles}
        for vocabulary, values in {**named, **self.when}.items():
            if unknown := set(values) - set(WORDS.get(vocabulary, ())):
                raise ValueError(f"{self.key}: no such {vocabulary}: {sorted(unknown)}")
        if unknown := set(self.axes) - set(PHRASES):
            raise ValueError(f"{self.key}: no such axis: {sorted(unknown)}")
        return self


def _weights(vocabulary: str, rule: Any) -> dict[str, float]:
    if isinstance(rule, list):
        return dict.fromkeys(rule, 1.0)
    if vocabulary == "waiting":
        ((kind, edge),) = rule.items()
        sign = {"early": 1, "late": -1}[kind]
        return {name: LATER ** -max(0, sign * (step - edge)) for step, name in enumerate(WORDS["waiting"], start=1)}
    return dict(rule)
