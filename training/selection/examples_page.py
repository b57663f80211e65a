"""examples.md: some sessions of a selection to read, with what the user chose and what each query is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rgalign.training.selection.strategies import Choice, Scored


@dataclass(frozen=True)
class Example:
    """Args: context: the session's verbalised slots; clicked: titles; choices: one, or V4's two."""

    session_id: str
    context: Sequence[str]
    clicked: Sequence[str]
    choices: Sequence[Choice]


def examples_page(title: str, examples: Sequence[Example]) -> str:
    parts = [f"# {title}\n"]
    for example in examples:
        lines = [f"## Session {_plain(example.session_id)}\n"]
        lines += [f"- {_plain(slot)}" for slot in example.context]
        lines += [f"\nClicked: **{_plain(', '.join(example.clicked)) or 'nothing of the catalogue'}**\n"]
        lines += ["| | reward | margin | teacher | query |", "|---|---|---|---|---|"]
        lines += [_row("chosen", choice.chosen) for choice in example.choices if choice.chosen is not None]
        rejected = dict.fromkeys(each for choice in example.choices for each in choice.rejected)
        lines += [_row("rejected", each) for each in rejected]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(name: str, each: Scored) -> str:
    cells = (name, f"{each.reward:.3f}", f"{each.margin:+.3f}", each.teacher, _plain(each.query))
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """One line that Markdown leaves as it is."""
    text = " ".join(text.split())
    for char in "\\`*_[]<>|#":
        text = text.replace(char, "\\" + char)
    return text
