"""One line of a table: the rankers behind it, and the lines that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Scored = Literal["own", "frozen", "restandardised"]


@dataclass(frozen=True)
class RowRuns:
    """Rankers of one alignment (or of none), one a ranker seed.

    Args:
        rankers: the step that trained them.
        latents: the step whose latent queries they are scored with; None: those they were trained with, or none.
        alignment_seed: None where nothing was aligned.
        scored: ``own`` latent queries; ``frozen``: a ranker that never saw the latent queries of ``latents``;
            ``restandardised``: the same, with the input statistics of its query tower taken anew from them.
    """

    rankers: str
    latents: str | None = None
    alignment_seed: int | None = None
    scored: Scored = "own"


@dataclass(frozen=True)
class Row:
    """One line.

    Args:
        name: unique in its table; the folder of its sessions' metrics.
        cells: what stands before the metrics, one a column of the table's head.
        runs: one for each alignment seed.
        against: names of the rows that it is compared with, the row of comparison first.
        note: in place of the metrics when there are no runs.
    """

    name: str
    cells: tuple[str, ...]
    runs: tuple[RowRuns, ...] = ()
    against: tuple[str, ...] = ()
    note: str = ""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that it reads, each once."""
        return tuple(dict.fromkeys(step for run in self.runs for step in _steps(run)))


@dataclass(frozen=True)
class Improvement:
    """A line below the table: one row over another, relative to what it had or to what it lacked."""

    label: str
    row: str
    base: str
    kind: Literal["relative", "error_reduction"]


@dataclass(frozen=True)
class TablePlan:
    """A table: its head and its lines in order.

    Args:
        number: in the paper.
        title: what it shows.
        head: of the cells before the metrics.
        improvements: lines below it; each one's ``base`` is among its row's ``against``.
        remarks: where it could not be the paper's to the letter.
    """

    number: int
    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    improvements: tuple[Improvement, ...] = ()
    remarks: tuple[str, ...] = ()


def _steps(run: RowRuns) -> Iterator[str]:
    yield run.rankers
    if run.latents is not None:
        yield run.latents
