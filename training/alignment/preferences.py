"""Reads a selection: the chosen queries of its sessions, the strictly worse ones, and the target e+ of RG-CL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError, ProvenanceError
from rgalign.files import read_json, sha256_file

PREFERENCES, TARGETS, SUMMARY = "preferences.parquet", "chosen_latents.npy", "selection.json"
COLUMNS = ("session_id", "chosen", "chosen_reward", "rejected", "rejected_reward")


@dataclass(frozen=True)
class Preference:
    """One chosen query of a session; a selection by V4 may have two of one.

    Args:
        row: its row in the selection. split_row: the session's row in the dataset's split.
        rejected: queries of strictly lower reward, in the selection's order.
        clicked: intents, by catalogue row.
    """

    row: int
    split_row: int
    session_id: str
    chosen: str
    rejected: tuple[str, ...]
    clicked: tuple[int, ...]


@dataclass(frozen=True)
class Preferences:
    """A selection joined to its sessions.

    Args:
        targets: [N, D] float32 in the order of ``items``, memory-mapped; None where nothing needs them.
        identity: hashes of what was read.
    """

    items: list[Preference]
    split: str
    targets: NDArray[np.float32] | None
    identity: dict[str, Any]


def read_preferences(
    selection: Path, dataset: Dataset, *, targets: Path | None = None, with_targets: bool
) -> Preferences:
    """Opens a selection.

    Args:
        targets: another .npy than the selection's own.
        with_targets: e+ is needed.

    Raises:
        DataError: no selection, an empty one, a rejected query that is not strictly worse, or unusable targets.
        ProvenanceError: sessions that the dataset's split does not have.
    """
    path = selection / PREFERENCES
    if not path.is_file() or not (selection / SUMMARY).is_file():
        required = f"a selection ({PREFERENCES} and {SUMMARY}; `rgalign train select` writes one)"
        raise DataError(where=str(selection), required=required, received="none")
    table = pq.read_table(path, columns=list(COLUMNS))
    if not len(table):
        required = "at least one session (V3 often keeps few: try V2, or more teachers)"
        raise DataError(where=str(path), required=required, received="an empty selection")
    split = str(read_json(selection / SUMMARY).get("split", "train"))
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        _check(f"{path}, row {number}", row)
    items = _joined(rows, dataset, split)
    file = targets or selection / TARGETS
    loaded = _read_targets(file, len(items)) if with_targets or file.is_file() else None
    identity = {
        "preferences": sha256_file(path),
        "targets": None if loaded is None else sha256_file(file),
        "split": dataset.fingerprint(split),
        "schema": dataset.schema.hash,
        "catalogue": dataset.catalog.hash,
    }
    return Preferences(items, split, loaded, identity)


def _check(where: str, row: dict[str, Any]) -> None:
    rewards = row["rejected_reward"]
    if len(rewards) != len(row["rejected"]):
        raise DataError(where=where, required="one reward a rejected query", received=f"{len(rewards)} rewards")
    if any(reward >= row["chosen_reward"] for reward in rewards):
        required = f"rejected rewards strictly below the chosen one's {row['chosen_reward']:g}"
        raise DataError(where=where, required=required, received=", ".join(f"{reward:g}" for reward in rewards))


def _joined(rows: list[dict[str, Any]], dataset: Dataset, split: str) -> list[Preference]:
    table = dataset.table(split, ["session_id", "clicked"])
    place = {name: number for number, name in enumerate(table.column("session_id").to_pylist())}
    absent = [row["session_id"] for row in rows if row["session_id"] not in place]
    if absent:
        required = f"the sessions of the selection in {dataset.path} split {split!r}"
        received = f"{len(absent)} unknown, such as {absent[0]!r}"
        raise ProvenanceError(where="selection", required=required, received=received)
    clicked = table.column("clicked")
    intents = {name: number for number, name in enumerate(dataset.catalog.ids)}
    return [
        Preference(
            row=number,
            split_row=place[row["session_id"]],
            session_id=row["session_id"],
            chosen=row["chosen"],
            rejected=tuple(row["rejected"]),
            clicked=tuple(intents[each] for each in clicked[place[row["session_id"]]].as_py() if each in intents),
        )
        for number, row in enumerate(rows)
    ]


def _read_targets(file: Path, count: int) -> NDArray[np.float32]:
    if not file.is_file():
        required = "embeddings of the chosen queries (float32 .npy, one row a chosen query)"
        raise DataError(where=str(file), required=required, received="no such file")
    targets: NDArray[np.float32] = np.load(file, mmap_mode="r", allow_pickle=False)
    if targets.ndim != 2 or len(targets) != count:
        raise DataError(where=str(file), required=f"[{count}, D]", received=f"shape {targets.shape}")
    if not np.isfinite(targets).all() or not (np.linalg.norm(targets, axis=1) > 0).all():
        raise DataError(where=str(file), required="finite embeddings that are not zero", received="others")
    return targets
