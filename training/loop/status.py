"""What a loop's run has done and what comes next, read from its folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rgalign.config import load_config
from rgalign.errors import ProvenanceError
from rgalign.training.loop.graph import steps
from rgalign.training.loop.loop import CONFIG
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.loop.readiness import foreseen
from rgalign.training.loop.step import State, Step, StepFolder


@dataclass(frozen=True)
class StepStatus:
    """Args: seconds: over all interruptions; size_bytes: on disk."""

    name: str
    state: State
    seconds: float
    size_bytes: int


def loop_status(root: Path) -> list[StepStatus]:
    """Every step of the run in order; rounds that a verdict may yet begin or end are all there. States: readiness.py.

    Raises:
        ProvenanceError: no loop's run.
    """
    root = Path(root).resolve()
    if not (root / CONFIG).is_file():
        required = "the run directory of `rgalign train all`"
        raise ProvenanceError(where=str(root), required=required, received=f"no {CONFIG}")
    loop = load_config(LoopConfig, root / CONFIG)
    return [step_status(step, state, root) for step, state in foreseen(steps(loop, root), root)]


def step_status(step: Step, state: State, root: Path) -> StepStatus:
    folder = StepFolder(root / step.name)
    return StepStatus(step.name, state, folder.seconds, _size(folder.path))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def status_table(rows: Sequence[StepStatus]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=next_line(rows))
    for name, justify in (("step", "left"), ("state", "left"), ("time", "right"), ("size", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    for row in rows:
        begun = row.state != "to do"
        table.add_row(row.name, row.state, time_text(row.seconds) if begun else "", size_text(row.size_bytes))
    total = sum(row.seconds for row in rows), sum(row.size_bytes for row in rows)
    table.add_section()
    table.add_row("all", "", time_text(total[0]), size_text(total[1]))
    return table


def next_line(rows: Sequence[StepStatus]) -> str:
    waiting = [row for row in rows if row.state != "done"]
    return f"next: {waiting[0].name} ({waiting[0].state})" if waiting else "all done"


def time_text(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02.0f} s" if minutes else f"{rest:.1f} s"


def size_text(size_bytes: int) -> str:
    if not size_bytes:
        return ""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
