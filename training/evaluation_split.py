"""What evaluation needs to know of a split besides the scores: relevant intents, users, slices, the simulator's truth.

Training never imports this module: ``test/`` and the simulator's ``truth/test`` are read for evaluation alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rgalign.data.dataset import COLUMNS, Dataset
from rgalign.data.simulator.truth import Truth, read_truth
from rgalign.errors import DataError
from rgalign.metrics.ranking import PADDING
from rgalign.metrics.significance import cluster_codes
from rgalign.metrics.slices import Slice, column_slices, frequency_slices, history_slices, is_category, training_counts
from rgalign.training.scores import padded

SPLIT = "test"
FIRST_FAMILIES = ("region", "channel", "account")
Labels = Literal["auto", "clicked", "annotated"]
Rows = NDArray[np.integer[Any]]
Ints = NDArray[np.int64]


class EvaluationSplit:
    """The test sessions named by ``session_ids``, in that order.

    Raises:
        DataError: a session that the split does not have.
    """

    def __init__(self, dataset: Dataset, session_ids: Sequence[str]) -> None:
        self.dataset = dataset
        self.session_ids = pa.array(session_ids, pa.string())
        self._rows = _positions(dataset.table(SPLIT, ["session_id"]), self.session_ids, "test split")

    def table(self, columns: Sequence[str]) -> pa.Table:
        return self.dataset.table(SPLIT, columns).take(self._rows)

    def sessions(self, positions: Ints) -> list[dict[str, Any]]:
        """Whole rows of some of the sessions."""
        columns = list(dict.fromkeys(["session_id", *self.dataset.schema.columns, "ts"]))
        chosen = self.dataset.table(SPLIT, columns).take(self._rows.take(pa.array(positions)))
        rows: list[dict[str, Any]] = chosen.to_pylist()
        return rows

    def users(self) -> Ints:
        """[S] code of each session's user."""
        return cluster_codes(self.table(["user_id"]).column("user_id").to_pylist())

    def truth(self) -> Truth | None:
        """The simulator's truth of these sessions; None for real data."""
        if not (self.dataset.path / "truth" / SPLIT).is_dir():
            return None
        truth = read_truth(self.dataset.path, SPLIT, self.dataset.catalog)
        return truth.aligned(np.asarray(self.session_ids.to_pylist()))

    def _catalogue_rows(self, column: pa.ChunkedArray) -> NDArray[np.int32]:
        rows = self.dataset.catalog.rows
        return padded([[rows[intent] for intent in intents if intent in rows] for intents in column.to_pylist()])

    def slices(self, relevant: Rows, names: Sequence[str] | None) -> list[Slice]:
        """Region, channel, account, history and intent frequency first, then every other column with few values.

        Args:
            names: columns to slice by besides history and frequency; None: all that can be.
        """
        columns = self._slice_columns() if names is None else list(names)
        first = [name for name in FIRST_FAMILIES if name in columns]
        table = self.table(columns)
        found = [part for name in first for part in column_slices(name, table.column(name))]
        histories = self._history_columns()
        found += history_slices({name: self.table([column]).column(column) for name, column in histories.items()})
        found += frequency_slices(relevant, self._training_counts())
        others = [name for name in columns if name not in first]
        return found + [part for name in others for part in column_slices(name, table.column(name))]

    def _slice_columns(self) -> list[str]:
        schema = pq.read_schema(self.dataset.shards(SPLIT)[0])
        fixed = set(COLUMNS) - {"region"}
        return [field.name for field in schema if field.name not in fixed and is_category(field.type)]

    def _history_columns(self) -> dict[str, str]:
        """Of each behaviour feature that is a list, one of its columns."""
        return {
            feature.name: feature.columns()[0]
            for feature in self.dataset.schema.features
            if feature.kind in ("group", "sequence") and feature.dimension == "behaviour"
        }

    def _training_counts(self) -> Ints:
        clicked = self.dataset.table("train", ["clicked"]).column("clicked")
        return training_counts(self._catalogue_rows(clicked), len(self.dataset.catalog))


def has_several(relevant: Rows) -> bool:
    """Whether some session has more than one relevant intent."""
    return bool(((relevant != PADDING).sum(axis=1) > 1).any())


def _positions(table: pa.Table, session_ids: pa.Array, where: str) -> pa.Array:
    positions = pc.index_in(session_ids, value_set=table.column("session_id").combine_chunks())
    if positions.null_count:
        absent = session_ids.filter(positions.is_null())[0].as_py()
        raise DataError(where=where, required="every scored session", received=f"no session {absent!r}")
    return positions
