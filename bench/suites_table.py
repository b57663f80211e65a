"""The suites as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rgalign.bench.suites import SUITES, Place, Suite, missing


def describe_suites(place: Place | None = None) -> Table:
    done = (place or Place()).done()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("suite", "beside its baselines", "steps", "last done"):
        table.add_column(name, overflow="fold")
    for name, suite in SUITES.items():
        table.add_row(name, suite.about, ", ".join(step.name for step in suite.steps), last_done(name, suite, done))
    return table


def last_done(name: str, suite: Suite, done: dict[str, Any]) -> str:
    absent = missing(suite)
    if absent:
        return f"not in this checkout: {', '.join(absent)}"
    lines = []
    for effort in ("quick", "standard", "full"):
        steps = [done[key] for step in suite.steps if (key := f"{name}/{step.name}/{effort}") in done]
        if len(steps) == len(suite.steps):
            seconds = sum(each["seconds"] for each in steps)
            lines.append(f"{effort} {max(each['at'] for each in steps)[:16]}, {seconds / 60:.1f} min")
    return "\n".join(lines) or "never"
