"""Which training sessions a ranker learns from: all, evenly spaced ones, or those that the reasoner was not aligned on.

The reasoner has seen the clicks of the sessions it was aligned on, so their latent queries say more than those of any
session to come. A ranker that learns from them trusts the query more than it should.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError, ProvenanceError
from rgalign.training.alignment.preferences import PREFERENCES
from rgalign.training.sessions import Ints, evenly_spaced


def used_rows(dataset: Dataset, *, without: Path | None, max_train: int | None) -> Ints | None:
    """Ascending rows of ``train``; None for all.

    Args:
        without: a selection (``rgalign train select``) whose sessions are left out.
        max_train: so many of the others, evenly spaced.

    Raises:
        DataError: no selection, or one that leaves nothing.
        ProvenanceError: a selection of other sessions.
    """
    if without is None:
        return evenly_spaced(dataset.num_rows("train"), max_train)
    file = without / PREFERENCES
    if not file.is_file():
        raise DataError(where=str(without), required=f"a selection ({PREFERENCES})", received="none")
    aligned = set(pq.read_table(file, columns=["session_id"]).column(0).to_pylist())
    ids = dataset.table("train", ["session_id"]).column(0).to_pylist()
    rows = np.array([row for row, name in enumerate(ids) if name not in aligned], np.int64)
    if len(rows) == len(ids):
        raise ProvenanceError(where=str(without), required=f"sessions of {dataset.path}", received="none of them")
    if not len(rows):
        required = "training sessions that the reasoner was not aligned on (fewer: generate.max_sessions)"
        raise DataError(where=str(without), required=required, received=f"all {len(ids)} in the selection")
    spaced = evenly_spaced(len(rows), max_train)
    return rows if spaced is None else rows[spaced]
