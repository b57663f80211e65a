"""The dataset directory: what every source writes and every reader reads.

    schema.yaml  intents.parquet  {train,valid,test}/part-00000.parquet ...  [truth/{train,valid,test}/part-....parquet]

One row a session, in time order inside a split: ``session_id, user_id, ts, region``, the schema's columns,
``candidates`` (empty: the whole catalogue), ``clicked``, and any further columns, which serve as slices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rgalign.errors import DataError
from rgalign.files import sha256_file, sha256_json, sync_directory
from rgalign.intents import IntentCatalog
from rgalign.schema import FeatureSchema

SPLITS = ("train", "valid", "test")
STRINGS = pa.list_(pa.string())
# The columns every split has besides the schema's own.
COLUMNS = {
    "session_id": pa.string(),
    "user_id": pa.string(),
    "ts": pa.timestamp("us"),
    "region": pa.string(),
    "candidates": STRINGS,
    "clicked": STRINGS,
}


@dataclass(frozen=True)
class Dataset:
    """An opened dataset directory. ``schema`` is bound to ``catalog``."""

    path: Path
    schema: FeatureSchema
    catalog: IntentCatalog
    _hashes: dict[tuple[Path, int, int], str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Reads schema and catalogue; the rows stay on disk.

        Raises:
            DataError, SchemaError: no such directory, or its schema or catalogue cannot be used.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(where=str(path), required="a dataset directory", received="no such directory")
        catalog = IntentCatalog.read_parquet(path / "intents.parquet")
        return cls(path, FeatureSchema.load(path / "schema.yaml").bind(catalog), catalog)

    def shards(self, split: str) -> list[Path]:
        """The split's files in row order; none where the dataset has no such split."""
        _check_split(split)
        return sorted((self.path / split).glob("*.parquet"))

    def num_rows(self, split: str) -> int:
        return sum(pq.read_metadata(shard).num_rows for shard in self.shards(split))

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a split, in order; only ``columns`` are read.

        Raises:
            DataError: no such split, or a column that is not there.
        """
        shards = self.shards(split)
        if not shards:
            raise DataError(where=str(self.path / split), required="*.parquet files", received="none")
        return pa.concat_tables([read_shard(shard, columns) for shard in shards]).combine_chunks()

    def fingerprint(self, split: str) -> str:
        """Hash of the split's shards: names, sizes, row counts and content."""
        return sha256_json(
            [
                [shard.name, shard.stat().st_size, pq.read_metadata(shard).num_rows, self._content_hash(shard)]
                for shard in self.shards(split)
            ]
        )

    def _content_hash(self, shard: Path) -> str:
        stat = shard.stat()
        key = (shard, stat.st_size, stat.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = sha256_file(shard)
        return self._hashes[key]


def read_shard(shard: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One file's rows, with ``columns`` in the order asked for."""
    if columns is not None:
        absent = sorted(set(columns) - set(pq.read_schema(shard).names))
        if absent:
            raise DataError(where=str(shard), required=f"columns {', '.join(absent)}", received="no such column")
    # ParquetFile, not read_table: the latter would turn parent folders into columns.
    with pq.ParquetFile(shard) as file:
        table = file.read(None if columns is None else list(dict.fromkeys(columns)))
    return table if columns is None else table.select(list(columns))


class DatasetWriter:
    """Writes a dataset directory that is whole or absent.

    A context manager: everything goes to a temporary directory beside ``path``, which is renamed when the block ends
    and removed when it raises. Rows are cut into shards of ``rows_per_shard`` as they come.

    Raises:
        DataError: ``path`` exists and is not an empty directory.
    """

    def __init__(
        self, path: Path | str, schema: FeatureSchema, catalog: IntentCatalog, rows_per_shard: int = 65_536
    ) -> None:
        self.path = Path(path).absolute()
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise DataError(where=str(self.path), required="a path that is free", received="something is there")
        self.schema = schema
        self.catalog = catalog
        self.rows_per_shard = rows_per_shard
        self._directory = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}.tmp")
        self._pending: dict[str, list[pa.Table]] = {}
        self._num_shards: dict[str, int] = {}
        self._last_ts: dict[str, object] = {}

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True)
        self.schema.save(self._directory / "schema.yaml")
        self.catalog.write_parquet(self._directory / "intents.parquet")
        return self

    def write(self, split: str, table: pa.Table) -> None:
        """Appends rows to ``train``, ``valid`` or ``test``, or to a simulator's ``truth/train`` and so on.

        Args:
            split: sessions go to a split in time order; rows under ``truth/`` follow those of their split.
            table: the columns of ``COLUMNS`` (cast to their types), the schema's columns, any others.

        Raises:
            DataError: a missing column, a type that cannot be cast, or a row older than the one before it.
        """
        _check_split(split.removeprefix("truth/"))
        if not split.startswith("truth/"):
            table = self._sessions(split, table)
        pending = self._pending.setdefault(split, [])
        if pending:
            table = table.select(pending[0].column_names).cast(pending[0].schema)
        pending.append(table)
        while sum(map(len, pending)) >= self.rows_per_shard:
            rows = pa.concat_tables(pending)
            self._write_shard(split, rows.slice(0, self.rows_per_shard))
            # An empty rest stays: it carries the arrow schema that later rows are cast to.
            pending[:] = [rows.slice(self.rows_per_shard)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for split, pending in self._pending.items():
                    if any(map(len, pending)):
                        self._write_shard(split, pa.concat_tables(pending))
                self._publish()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _sessions(self, split: str, table: pa.Table) -> pa.Table:
        where = f"{self.path.name}/{split}"
        absent = sorted({*COLUMNS, *self.schema.columns} - set(table.column_names))
        if absent:
            raise DataError(where=where, required=f"columns {', '.join(absent)}", received="no such column")
        for name, kind in COLUMNS.items():
            index = table.column_names.index(name)
            try:
                table = table.set_column(index, name, table.column(name).cast(kind))
            except pa.ArrowException as error:
                received = f"{table.column(name).type} ({error})"
                raise DataError(where=f"{where}, column {name}", required=str(kind), received=received) from error
        self._check_order(where, split, table.column("ts"))
        return table

    def _check_order(self, where: str, split: str, ts: pa.ChunkedArray) -> None:
        if not len(ts):
            return
        ts = ts.combine_chunks()
        falls = pc.any(pc.less(ts.slice(1), ts.slice(0, len(ts) - 1))).as_py()
        last = self._last_ts.get(split)
        if ts.null_count or falls or (last is not None and ts[0].as_py() < last):
            raise DataError(where=f"{where}, column ts", required="times in ascending order", received="others")
        self._last_ts[split] = ts[-1].as_py()

    def _write_shard(self, split: str, table: pa.Table) -> None:
        number = self._num_shards.get(split, 0)
        self._num_shards[split] = number + 1
        shard = self._directory / split / f"part-{number:05d}.parquet"
        shard.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, shard, compression="zstd")

    def _publish(self) -> None:
        for file in _files(self._directory):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            sync_directory(file.parent)
        os.replace(self._directory, self.path)  # replaces an empty directory, refuses any other
        sync_directory(self.path.parent)


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise DataError(where="split", required=" or ".join(SPLITS), received=repr(split))
