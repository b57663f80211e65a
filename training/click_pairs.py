"""Session × clicked-intent pairs for pre-training the item encoder: a sample of one split, encoded once.

Only the intents that take part in pre-training have a column; a session is kept if it clicked one of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rgalign.data.batch import SessionBatch
from rgalign.data.dataset import Dataset, read_shard
from rgalign.data.encode import SessionEncoder
from rgalign.errors import DataError
from rgalign.intents import IntentCatalog


@dataclass(frozen=True)
class ClickPairs:
    """S sessions with at least one click among M intents.

    batch: their features. clicked: [S, M] bool.
    """

    batch: SessionBatch
    clicked: Tensor

    def __len__(self) -> int:
        return len(self.clicked)

    @classmethod
    def encode(cls, table: pa.Table, encoder: SessionEncoder, columns: Tensor) -> ClickPairs:
        """Args: columns: [N] int64, the column of each catalogue row, -1 for intents that take no part."""
        batch = encoder.encode(table)
        rows = batch.clicked
        found = torch.where(rows >= 0, columns[rows.clamp_min(0)], -1)
        width = int(columns.max()) + 1
        clicked = torch.zeros(len(found), width + 1, dtype=torch.bool)
        clicked = clicked.scatter_(1, torch.where(found < 0, width, found), True)[:, :width]
        kept = clicked.any(dim=1)
        return cls(batch.select(kept), clicked[kept])


def sample_sessions(dataset: Dataset, split: str, max_sessions: int, seed: int) -> pa.Table:
    """At most ``max_sessions`` rows of the split, drawn evenly, in order; shards are read one at a time.

    Raises:
        DataError: the split has no rows.
    """
    shards = dataset.shards(split)
    counts = np.array([pq.read_metadata(shard).num_rows for shard in shards], dtype=np.int64)
    total = int(counts.sum())
    if total == 0:
        raise DataError(where=str(dataset.path / split), required="at least one session", received="none")
    chosen = np.arange(total)
    if total > max_sessions:
        chosen = np.sort(np.random.default_rng([seed, total]).choice(total, max_sessions, replace=False))
    starts = np.concatenate([[0], counts.cumsum()])
    columns = [*dataset.schema.columns, "clicked"]
    parts = []
    for shard, start, end in zip(shards, starts[:-1], starts[1:], strict=True):
        here = chosen[(chosen >= start) & (chosen < end)] - start
        if len(here):
            parts.append(read_shard(shard, columns).take(pa.array(here)))
    return pa.concat_tables(parts).combine_chunks()


def most_clicked(table: pa.Table, catalog: IntentCatalog, max_intents: int) -> list[int]:
    """Ascending catalogue rows of the intents clicked in ``table``: the ``max_intents`` most frequent ones."""
    counts = Counter(pc.list_flatten(table.column("clicked")).cast(pa.string()).to_pylist())
    known = [(count, catalog.rows[intent]) for intent, count in counts.items() if intent in catalog.rows]
    return sorted(row for _, row in sorted(known, key=lambda pair: (-pair[0], pair[1]))[:max_intents])
