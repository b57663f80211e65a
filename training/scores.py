"""SplitScores: what a ranker said of every session of one split. Written by scoring, read by evaluation.

On disk a directory: the arrays as ``.npy`` (read memory-mapped, never pickled), the lists as ``sessions.parquet`` and,
written last, ``scores.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.files import atomic_path, read_json, write_json
from rgalign.metrics.ranking import PADDING

Rows = NDArray[np.integer[Any]]
Scores = NDArray[np.floating[Any]]
MATRICES = ("total", "user_part", "query_part")


@dataclass(frozen=True)
class SplitScores:
    """Scores of S sessions against the N intents of the catalogue, in catalogue row order.

    Args:
        session_ids: [S] unique.
        total: [S, N] float, what intents are ranked by.
        user_part, query_part: [S, N] float, the two terms that add up to ``total``; None where there are no parts.
        clicked: [S, P] catalogue rows padded with -1.
        candidates: [S, C] catalogue rows padded with -1; None: the whole catalogue.
        provenance: what produced the scores (hashes of catalogue, dataset split, run), compared by evaluation.

    Raises:
        DataError: shapes that do not fit together, repeated session ids, rows outside the catalogue.
    """

    session_ids: tuple[str, ...]
    total: Scores
    user_part: Scores | None
    query_part: Scores | None
    clicked: Rows
    candidates: Rows | None
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_sessions = len(self.session_ids)
        if len(set(self.session_ids)) != num_sessions:
            raise DataError(where="scores", required="unique session ids", received="repeated ones")
        if self.total.ndim != 2 or len(self.total) != num_sessions:
            required = f"total [{num_sessions}, N]"
            raise DataError(where="scores", required=required, received=f"shape {self.total.shape}")
        for name in ("user_part", "query_part"):
            part: Scores | None = getattr(self, name)
            if part is not None and part.shape != self.total.shape:
                required = f"{name} of shape {self.total.shape}"
                raise DataError(where="scores", required=required, received=f"shape {part.shape}")
        for name in ("clicked", "candidates"):
            rows: Rows | None = getattr(self, name)
            if rows is not None:
                _check_rows(name, rows, num_sessions, self.total.shape[1])

    def __len__(self) -> int:
        return len(self.session_ids)

    def save(self, path: Path) -> None:
        """Writes the directory ``path``; the file that makes it readable is written last."""
        path.mkdir(parents=True, exist_ok=True)
        (path / "scores.json").unlink(missing_ok=True)
        matrices = [name for name in MATRICES if getattr(self, name) is not None]
        for name in matrices:
            with atomic_path(path / f"{name}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, np.asarray(getattr(self, name)), allow_pickle=False)
        lists = {name: getattr(self, name) for name in ("clicked", "candidates") if getattr(self, name) is not None}
        columns = {"session_id": pa.array(self.session_ids, pa.string())}
        columns |= {name: _to_lists(rows) for name, rows in lists.items()}
        with atomic_path(path / "sessions.parquet") as temporary:
            pq.write_table(pa.table(columns), temporary)
        write_json(path / "scores.json", {"matrices": matrices, "provenance": self.provenance})

    @classmethod
    def load(cls, path: Path) -> SplitScores:
        """Reads what :meth:`save` wrote; the matrices stay on disk until they are used."""
        if not (path / "scores.json").is_file():
            raise DataError(where=str(path), required="complete scores (scores.json)", received="no such file")
        manifest = read_json(path / "scores.json")
        matrices = {
            name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in manifest["matrices"]
        }
        table = pq.read_table(path / "sessions.parquet")
        return cls(
            session_ids=tuple(table.column("session_id").to_pylist()),
            total=matrices["total"],
            user_part=matrices.get("user_part"),
            query_part=matrices.get("query_part"),
            clicked=_to_rows(table.column("clicked")),
            candidates=_to_rows(table.column("candidates")) if "candidates" in table.column_names else None,
            provenance=dict(manifest["provenance"]),
        )


@dataclass(frozen=True)
class RunScores:
    """One training run's scores.

    Args:
        model: name of the model, equal for its seeds.
        test: what is evaluated.
        valid: for fitting the logit scale that makes the scores probabilities.
        run_dir: where ``history.jsonl`` lies, for the learning curves.
        logit_scale: the run's own, learnt in training.
    """

    model: str
    seed: int
    test: SplitScores
    valid: SplitScores | None = None
    run_dir: Path | None = None
    logit_scale: float | None = None


def padded(lists: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Lists of catalogue rows -> [S, longest (at least 1)] padded with -1."""
    rows = np.full((len(lists), max([1, *map(len, lists)])), PADDING, np.int32)
    for session, values in enumerate(lists):
        rows[session, : len(values)] = values
    return rows


def _check_rows(name: str, rows: Rows, num_sessions: int, num_intents: int) -> None:
    if rows.ndim != 2 or len(rows) != num_sessions or not np.issubdtype(rows.dtype, np.integer):
        required = f"{name} as integers [{num_sessions}, *]"
        raise DataError(where="scores", required=required, received=f"{rows.dtype} {rows.shape}")
    if rows.size and (rows.min() < PADDING or rows.max() >= num_intents):
        required = f"{name} as catalogue rows below {num_intents}, or {PADDING}"
        raise DataError(where="scores", required=required, received=f"{rows.min()} to {rows.max()}")


def _to_lists(rows: Rows) -> pa.ListArray:
    present = rows != PADDING
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows[present].astype(np.int32)))


def _to_rows(column: pa.ChunkedArray) -> NDArray[np.int32]:
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy()
    lengths = np.diff(offsets)
    rows = np.full((len(lengths), max(1, int(lengths.max(initial=0)))), PADDING, np.int32)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = array.values.to_numpy()[offsets[0] : offsets[-1]]
    return rows
