"""Which steps a run has done and which are to come, and what those would miss hours later.

A step is ``outdated`` if its settings are not the configuration's any more, or if a step that it reads has another
outcome by now or is itself not done; ``interrupted`` also while another process runs it, which no file tells apart.
Datasets and models are not hashed again: running the steps does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from rgalign.training.loop.step import State, Step, StepFolder


def foreseen(steps: Iterable[Step], root: Path) -> Iterator[tuple[Step, State]]:
    """Each step with its state, as far as the folders tell."""
    states: dict[str, State] = {}
    for step in steps:
        states[step.name] = _state(step, states, root)
        yield step, states[step.name]


def require_ready(steps: Iterable[Step], root: Path) -> None:
    """Asks every step that is not done whether it could run.

    Raises:
        RgalignError: what the first of them that could not says.
    """
    for step, state in foreseen(steps, root):
        if state != "done":
            step.ready()


def _state(step: Step, states: dict[str, State], root: Path) -> State:
    folder = StepFolder(root / step.name)
    recorded = folder.recorded()
    if recorded is None:
        return "to do"
    if recorded["settings"] != json.loads(json.dumps(dict(step.settings))):
        return "outdated"
    for name in step.after:
        if states[name] != "done" or StepFolder(root / name).outcome() != recorded["steps"].get(name):
            return "outdated"
    return "done" if folder.is_done else "interrupted"
