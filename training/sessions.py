"""Encoded sessions for training and scoring: a whole split in memory, or streamed shard by shard.

Both give the same batches in the same order, to the bit: the order is the reader's, and every batch is cut to the
widths of its own longest lists, whatever it was cut out of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from rgalign.data.batch import SessionBatch
from rgalign.data.dataset import Dataset
from rgalign.data.encode import SessionEncoder
from rgalign.data.reader import Position, RowIds, stream
from rgalign.intents import IntentCatalog
from rgalign.training.latents import LatentStore

Ints = NDArray[np.int64]
READ_ROWS = 65_536


@dataclass(frozen=True)
class Order:
    """Which batches to give: of ``batch_size`` sessions a rank, of the epoch's order or (shuffle=False) the split's."""

    batch_size: int
    seed: int = 0
    epoch: int = 0
    shuffle: bool = False
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Step:
    """One batch: the encoded sessions, their [B] rows within the split, and the position behind them."""

    sessions: SessionBatch
    rows: Ints
    after: dict[str, Any]


class Sessions(Protocol):
    """One split, encoded."""

    def __len__(self) -> int: ...

    def steps(self, order: Order, position: dict[str, Any] | None = None) -> Iterator[Step]:
        """The batches of one rank, from ``position`` on."""

    def num_steps(self, order: Order) -> int:
        """Batches of one epoch, the same on every rank."""


class Latents:
    """Latent queries of one split: [rows] -> [n, D]."""

    def __init__(self, store: LatentStore, dataset: Dataset, split: str) -> None:
        self.store = store
        self.rows = store.rows(dataset, split)

    def attach(self, sessions: SessionBatch, rows: Ints) -> SessionBatch:
        return replace(sessions, latent=torch.from_numpy(self.store.take(self.rows[rows])))


class StreamedSessions:
    """Reads and encodes each batch when it is due: memory for one shard."""

    def __init__(self, dataset: Dataset, split: str, encoder: SessionEncoder, latents: Latents | None) -> None:
        self.dataset, self.split, self.encoder, self.latents = dataset, split, encoder, latents
        self.places = ShardPlaces(dataset, split)

    def __len__(self) -> int:
        return self.places.num_rows

    def steps(self, order: Order, position: dict[str, Any] | None = None) -> Iterator[Step]:
        for table, ids, after in read(self.dataset, self.split, self.encoder.columns, order, position):
            rows = self.places.rows(ids)
            sessions = trimmed(self.encoder.encode(table), len(self.encoder.catalog))
            if self.latents is not None:
                sessions = self.latents.attach(sessions, rows)
            yield Step(sessions, rows, asdict(after))

    def num_steps(self, order: Order) -> int:
        return self.places.num_steps(order)


class SessionsInMemory:
    """Encodes everything once and indexes into it.

    Args:
        encoded: the sessions at ``subset`` of the split, in that order.
        subset: ascending rows of the split; None: all of it.
    """

    def __init__(
        self, dataset: Dataset, split: str, encoded: SessionBatch, subset: Ints | None, latents: Latents | None
    ) -> None:
        self.dataset, self.split, self.encoded, self.latents = dataset, split, encoded, latents
        self.subset = subset
        self.places = ShardPlaces(dataset, split)
        self.num_intents = len(dataset.catalog)

    def __len__(self) -> int:
        return len(self.encoded)

    def steps(self, order: Order, position: dict[str, Any] | None = None) -> Iterator[Step]:
        for index, after in self._plan(order, position):
            sessions = trimmed(self.encoded.select(torch.from_numpy(index)), self.num_intents)
            rows = index if self.subset is None else self.subset[index]
            if self.latents is not None:
                sessions = self.latents.attach(sessions, rows)
            yield Step(sessions, rows, asdict(after))

    def num_steps(self, order: Order) -> int:
        if self.subset is None:
            return self.places.num_steps(order)
        return -(-len(self.subset) // (order.batch_size * order.world))

    def _plan(self, order: Order, position: dict[str, Any] | None) -> Iterator[tuple[Ints, Position]]:
        """Places in ``encoded`` of each batch: the reader's, or for a subset those of a single shard of its rows."""
        if self.subset is None:
            for _, ids, after in read(self.dataset, self.split, ["session_id"], order, position):
                yield self.places.rows(ids), after
            return
        count = len(self.subset)
        places = (
            np.random.default_rng((order.seed, order.epoch)).permutation(count) if order.shuffle else np.arange(count)
        )
        offset = 0 if position is None else position["offset"]
        done = 0
        for batch in np.array_split(places, self.num_steps(order)):
            done += len(batch)
            if done > offset:
                yield batch[order.rank :: order.world], Position(order.epoch, 0, done)


class ShardPlaces:
    """Rows within shards -> rows within the split."""

    def __init__(self, dataset: Dataset, split: str) -> None:
        self.counts = [pq.read_metadata(shard).num_rows for shard in dataset.shards(split)]
        starts = np.cumsum([0, *self.counts])
        self.num_rows = int(starts[-1])
        self._starts = dict(zip((shard.name for shard in dataset.shards(split)), starts, strict=False))

    def rows(self, ids: RowIds) -> Ints:
        return np.asarray(ids.rows + self._starts[Path(ids.shard).name], np.int64)

    def num_steps(self, order: Order) -> int:
        """As the reader deals: whole shards in batches, shards with fewer rows than ranks left out of training."""
        counts = [count for count in self.counts if not order.shuffle or count >= order.world]
        return sum(-(-count // (order.batch_size * order.world)) for count in counts)


def read(
    dataset: Dataset, split: str, columns: Sequence[str], order: Order, position: dict[str, Any] | None = None
) -> Iterator[tuple[pa.Table, RowIds, Position]]:
    return stream(
        dataset,
        split,
        columns,
        order.batch_size,
        seed=order.seed,
        epoch=order.epoch,
        shuffle=order.shuffle,
        position=None if position is None else Position(**position),
        rank=order.rank,
        world=order.world,
    )


def trimmed(batch: SessionBatch, num_intents: int) -> SessionBatch:
    """The batch with no more padding than its own lists need, and None for candidates that are all the catalogue.

    Wider padding changes no value but the order of floating-point sums; so that a session's gradient does not depend
    on what it was encoded together with, the widths are made a function of the batch.
    """
    lengths = {name: _width(steps) for name, steps in batch.group_lengths.items()}
    candidates = batch.candidates
    if candidates is not None:
        candidates = candidates[:, : _width((candidates >= 0).sum(1))]
        whole = torch.arange(num_intents, device=candidates.device)
        if candidates.shape[1] == num_intents and bool((candidates == whole).all()):
            candidates = None
    return replace(
        batch,
        sequences={name: codes[:, : _width((codes != 0).sum(1))] for name, codes in batch.sequences.items()},
        groups={
            name: {member: values[:, : lengths[name]] for member, values in members.items()}
            for name, members in batch.groups.items()
        },
        candidates=candidates,
        clicked=batch.clicked[:, : _width((batch.clicked >= 0).sum(1))],
    )


def _width(lengths: Tensor) -> int:
    return max(1, int(lengths.max())) if len(lengths) else 1


def evenly_spaced(num_rows: int, count: int | None) -> Ints | None:
    """``count`` rows spread over a split that is in time order; None for all. The same rows whatever the seed."""
    if count is None or count >= num_rows:
        return None
    return np.arange(count, dtype=np.int64) * num_rows // count


def tables(dataset: Dataset, split: str, columns: Sequence[str], subset: Ints | None = None) -> Iterator[pa.Table]:
    """The split in order, piece by piece; with ``subset`` only its rows."""
    places = ShardPlaces(dataset, split)
    for table, ids, _ in read(dataset, split, columns, Order(READ_ROWS)):
        if subset is None:
            yield table
            continue
        rows = places.rows(ids)
        first, last = np.searchsorted(subset, (rows[0], rows[-1] + 1))
        if last > first:
            yield table.take(pa.array(subset[first:last] - rows[0]))


def click_counts(clicked: Iterator[pa.Table], catalog: IntentCatalog) -> Tensor:
    """[N] float32: clicks of each intent in column ``clicked`` of the tables."""
    counts = np.zeros(len(catalog), np.float32)
    for table in clicked:
        for entry in pc.value_counts(pc.list_flatten(table.column("clicked"))).to_pylist():
            if (row := catalog.rows.get(entry["values"])) is not None:
                counts[row] += entry["counts"]
    return torch.from_numpy(counts)


def open_sessions(
    dataset: Dataset,
    split: str,
    encoder: SessionEncoder,
    latents: Latents | None,
    *,
    memory_rows: int,
    subset: Ints | None = None,
) -> Sessions:
    """In memory up to ``memory_rows`` sessions, streamed beyond; a subset is always in memory."""
    num_rows = dataset.num_rows(split) if subset is None else len(subset)
    if subset is None and num_rows > memory_rows:
        return StreamedSessions(dataset, split, encoder, latents)
    table = pa.concat_tables(tables(dataset, split, encoder.columns, subset)).combine_chunks()
    return SessionsInMemory(dataset, split, encoder.encode(table), subset, latents)
