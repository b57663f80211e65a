"""Sessions batch by batch: column-pruned, shuffled by shard and then by row, resumable, one share a rank.

    shard order = permutation(seed, epoch)      row order in a shard = permutation(seed, epoch, shard)

Every permutation is drawn from its own key, so resuming replays nothing: it opens one shard and goes on. A batch never
crosses shards, and a shard's batches differ by at most one row, so there is no tiny last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rgalign.data.dataset import Dataset, read_shard
from rgalign.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """Where the next batch starts: in the epoch's ``shard``-th shard, after ``offset`` of its rows (of all ranks)."""

    epoch: int
    shard: int
    offset: int


@dataclass(frozen=True)
class RowIds:
    """Which rows a batch holds: [B] int64 within ``shard``."""

    shard: Path
    rows: Ints


def stream(
    dataset: Dataset,
    split: str,
    columns: Sequence[str] | None,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    position: Position | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[pa.Table, RowIds, Position]]:
    """One epoch of a split, or the rest of it.

    With several ranks each batch of ``batch_size * world`` rows is dealt out row by row, so every row goes to exactly
    one rank and all ranks see equally many batches. Only a shard with fewer rows than ranks breaks that: shuffled
    (training) it is left out, in order (evaluation) the ranks without a row skip it.

    Args:
        columns: parquet columns to read; None reads all.
        batch_size: most rows of a batch on one rank (one more where ranks could not take equal steps otherwise).
        position: as yielded beside the last batch that was used; it must be of the same epoch, batch size and world.

    Yields:
        The rows, their place on disk (for latent queries), and the position behind them. The position behind the last
        batch names a shard that does not exist: streaming on from it yields nothing.

    Raises:
        DataError: a split without shards, an impossible rank, or a position that is not between two batches.
    """
    if batch_size < 1 or not 0 <= rank < world:
        received = f"batch_size {batch_size}, rank {rank}, world {world}"
        raise DataError(where="stream", required="batch_size >= 1 and 0 <= rank < world", received=received)
    shards = dataset.shards(split)
    if not shards:
        raise DataError(where=str(dataset.path / split), required="*.parquet files", received="none")
    start = position or Position(epoch, 0, 0)
    if start.epoch != epoch:
        raise DataError(where="resume position", required=f"epoch {epoch}", received=f"epoch {start.epoch}")
    order = _permutation(len(shards), shuffle, seed, epoch)
    for index in range(start.shard, len(order)):
        shard = shards[order[index]]
        bounds = _bounds(pq.read_metadata(shard).num_rows, batch_size, world)
        first = _first_batch(bounds, start.offset if index == start.shard else 0)
        if first == len(bounds) - 1 or (shuffle and bounds[-1] < world):
            continue
        table = read_shard(shard, columns).combine_chunks()
        rows = _permutation(len(table), shuffle, seed, epoch, int(order[index]))
        for batch in range(first, len(bounds) - 1):
            share = rows[bounds[batch] : bounds[batch + 1]][rank::world]
            if not len(share):
                continue
            done = batch == len(bounds) - 2
            after = Position(epoch, index + 1, 0) if done else Position(epoch, index, int(bounds[batch + 1]))
            yield _take(table, share, shuffle or world > 1), RowIds(shard, share), after


def _take(table: pa.Table, rows: Ints, scattered: bool) -> pa.Table:
    return table.take(pa.array(rows)) if scattered else table.slice(int(rows[0]), len(rows))


def _permutation(count: int, shuffle: bool, *key: int) -> Ints:
    return np.random.default_rng(key).permutation(count) if shuffle else np.arange(count)


def _bounds(num_rows: int, batch_size: int, world: int) -> Ints:
    """0 and the ends of a shard's batches: as few as possible, as equal as possible, each with a row for every rank."""
    num_batches = -(-num_rows // (batch_size * world))
    num_batches = min(num_batches, max(1, num_rows // world))
    return np.arange(num_batches + 1) * num_rows // max(1, num_batches)


def _first_batch(bounds: Ints, offset: int) -> int:
    first = int(np.searchsorted(bounds, offset))
    if first == len(bounds) or bounds[first] != offset:
        required = f"an offset between two batches ({', '.join(map(str, bounds[:4]))}, ...)"
        raise DataError(where="resume position", required=required, received=str(offset))
    return first
