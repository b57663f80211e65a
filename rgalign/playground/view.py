"""What each control of the page does: values of controls in, panels out. No Gradio here.

Errors of a caller's context become the page's; those of ours do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rgalign.errors import DataError, RgalignError
from rgalign.playground import panels
from rgalign.playground.changes import changes
from rgalign.playground.contexts import Context, parse_context, written
from rgalign.playground.shown import Playground, compare, marked

Writer = Callable[[Sequence[Mapping[str, Any]]], list[str]]  # contexts -> generated queries

UNEDITED = "Not edited: the same as the picked context."


@dataclass(frozen=True)
class Panels:
    """HTML of every panel; where ``state`` is an error the others are empty."""

    state: str
    prompt: str = ""
    picked: str = ""
    edited: str = ""
    nearest: str = ""
    comparison: str = ""


class View:
    """Args:
    contexts: to pick from; the first is picked to begin with.
    open_writer: loads what writes queries; called once, when the first is asked for. RgalignError: why it cannot.
    """

    def __init__(self, playground: Playground, contexts: Sequence[Context], open_writer: Callable[[], Writer]) -> None:
        assert contexts
        self.playground = playground
        self.contexts = contexts
        self.changes = changes(playground.bundle.schema)
        self._open_writer = open_writer
        self._writer: Writer | None = None
        self._writing = threading.Lock()  # one query at a time, and one load

    def labels(self) -> list[tuple[str, int]]:
        """(what the list of contexts shows, its value)."""
        return [(f"{row + 1}. {self.playground.label(each)}", row) for row, each in enumerate(self.contexts)]

    def pick(self, row: int) -> str:
        """The picked context as JSON."""
        return written(self.contexts[row])

    def options(self, label: str) -> list[tuple[str, str]]:
        return self.changes[label].options

    def change(self, text: str, label: str, option: str) -> tuple[str, str]:
        """(JSON with the change, error panel); the JSON as it was where there is an error."""
        try:
            return written(self.changes[label].apply(parse_context(text), option)), ""
        except DataError as error:
            return text, panels.error_panel(error)

    def refresh(self, row: int, text: str, k: int, degraded: bool) -> Panels:
        """All panels of the picked context and of the JSON."""
        try:
            context = parse_context(text)
            after = self.playground.show(context, k, degraded=degraded)
            before = self.playground.show(self.contexts[row], k, degraded=degraded)
        except RgalignError as error:
            return Panels(panels.error_panel(error))
        prompt, edited = after.prompt, context != self.contexts[row]
        if prompt is not None and before.prompt is not None:
            prompt = marked(prompt, before.prompt)
        scale = panels.top_span(before, after)
        return Panels(
            state=panels.state_panel(after, after.answer.bundle),
            prompt=panels.prompt_panel(prompt, after.tower_only),
            picked=panels.top_panel(before, scale),
            edited=panels.top_panel(after, scale) if edited else panels.reason_panel(UNEDITED),
            nearest=panels.nearest_panel(after.nearest, after.no_query),
            comparison=panels.comparison_panel(compare(before, after) if edited else None),
        )

    @property
    def silent(self) -> str:
        """Why no query can be generated at all, known without trying; "" where one can be tried."""
        if self.playground.bundle.prompts is not None:
            return ""
        return "This bundle's ranker has no reasoner, so there is nothing that could write a query."

    def write(self, row: int, text: str) -> str:
        """The panel of the generated queries: of the JSON, and of the picked context where that is another."""
        if self.silent:
            return panels.reason_panel(self.silent)
        try:
            context = self.playground.checked(parse_context(text))
            wanted = {"edited context": context, "picked context": self.playground.checked(self.contexts[row])}
            if context == wanted["picked context"]:
                del wanted["edited context"]
            with self._writing:
                self._writer = self._writer or self._open_writer()
                texts = self._writer(list(wanted.values()))
        except RgalignError as error:
            return panels.error_panel(error)
        part = self.playground.bundle.manifest.reasoner
        assert part is not None
        note = "Greedy, by the checkpoint that the engine was built of, in float32"
        note += "." if part.dtype == "fp32" else f"; the engine that answers above computes in {part.dtype}."
        return panels.written_panel(list(zip(wanted, texts, strict=True)), note)
