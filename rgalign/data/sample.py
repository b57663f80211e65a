"""A smaller dataset out of a larger one: a trial run, or an experiment on part of the training sessions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rgalign.data.dataset import SPLITS, Dataset, DatasetWriter

Keep = Literal["latest", "spaced"]


def sample_dataset(dataset: Dataset, out: Path, sizes: Mapping[str, int], train: Keep = "spaced") -> Dataset:
    """Writes a dataset with some of the sessions, and a simulator's truth of them.

    Args:
        sizes: split -> sessions to keep; a split that is not named, or has no more, is kept whole.
        train: ``latest`` keeps the last training sessions in time, ``spaced`` evenly spaced ones. Validation and
            test sessions are always evenly spaced.

    Raises:
        DataError: ``out`` is taken.
    """
    with DatasetWriter(out, dataset.schema, dataset.catalog) as writer:
        for split in SPLITS:
            if not dataset.shards(split):
                continue
            table = dataset.table(split)
            size = min(len(table), max(1, sizes.get(split, len(table))))
            latest = split == "train" and train == "latest"
            rows = np.arange(len(table) - size, len(table)) if latest else spaced_rows(len(table), size)
            kept = table.take(pa.array(rows))
            writer.write(split, kept)
            truth = sorted((dataset.path / "truth" / split).glob("*.parquet"))
            if truth:
                whole = pa.concat_tables([pq.ParquetFile(shard).read() for shard in truth])
                here = pc.is_in(whole.column("session_id"), value_set=kept.column("session_id").combine_chunks())
                writer.write(f"truth/{split}", whole.filter(here))
    return Dataset.open(out)


def spaced_rows(total: int, size: int) -> NDArray[np.int64]:
    """``size`` of ``total`` rows, evenly spaced, the first and the last among them."""
    return np.linspace(0, total - 1, size).round().astype(np.int64)
