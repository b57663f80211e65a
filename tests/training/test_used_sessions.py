"""Which training sessions are used: without a selection's, evenly spaced, never none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError, ProvenanceError
from rgalign.training.used_sessions import used_rows


def selection_of(path: Path, ids: list[str]) -> Path:
    path.mkdir()
    pq.write_table(pa.table({"session_id": pa.array(ids, pa.string())}), path / "preferences.parquet")
    return path


def test_rows_outside_the_selection(small_dataset: Dataset, tmp_path: Path) -> None:
    ids = small_dataset.table("train", ["session_id"]).column(0).to_pylist()
    selection = selection_of(tmp_path / "selection", ids[::3])
    rows = used_rows(small_dataset, without=selection, max_train=None)
    assert rows is not None
    assert rows.tolist() == [row for row in range(len(ids)) if row % 3]
    spaced = used_rows(small_dataset, without=selection, max_train=10)
    assert spaced is not None
    assert len(spaced) == 10
    assert set(spaced.tolist()) < set(rows.tolist())
    assert np.diff(spaced).min() > 1
    assert used_rows(small_dataset, without=None, max_train=None) is None


def test_refused(small_dataset: Dataset, tmp_path: Path) -> None:
    ids = small_dataset.table("train", ["session_id"]).column(0).to_pylist()
    for name, chosen, error, received in (
        ("all", ids, DataError, f"received all {len(ids)} in the selection"),
        ("strangers", ["nobody"], ProvenanceError, "received none of them"),
    ):
        with pytest.raises(error, match=received):
            used_rows(small_dataset, without=selection_of(tmp_path / name, chosen), max_train=None)
    with pytest.raises(DataError, match=r"a selection \(preferences.parquet\)"):
        used_rows(small_dataset, without=tmp_path, max_train=None)
