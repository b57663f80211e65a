"""A user's own file of sessions, as columns: parquet or CSV; lists, or strings such as a|b|c that are lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pyarrow.types as pt
from numpy.typing import NDArray

from rgalign.data.ragged import lists
from rgalign.errors import DataError

MAX_ROWS = 200_000
MAX_LENGTH = 50
DELIMITERS = ("|", ";", ",")


@dataclass(frozen=True)
class ListColumn:
    """A list column: values end to end, and how long each row's list is."""

    values: pa.Array
    lengths: NDArray[np.int64]
    reason: str

    @property
    def max_length(self) -> int:
        return int(min(MAX_LENGTH, max(1, np.percentile(self.lengths, 99, method="higher"))))


def read_sessions(file: Path, max_rows: int = MAX_ROWS) -> pa.Table:
    """The first ``max_rows`` rows of a .parquet, .csv or .csv.gz file."""
    if not file.is_file():
        raise DataError(where=str(file), required="a parquet or CSV file", received="no such file")
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        with pq.ParquetFile(file) as parquet:
            batches, rows = [], 0
            for batch in parquet.iter_batches():
                batches.append(batch)
                rows += len(batch)
                if rows >= max_rows:
                    break
            table = pa.Table.from_batches(batches, parquet.schema_arrow).slice(0, max_rows)
    elif name.endswith(".csv"):
        table = _read_csv(file).slice(0, max_rows)
    else:
        raise DataError(where=str(file), required="a name ending in .parquet, .csv or .csv.gz", received=file.suffix)
    if not len(table):
        raise DataError(where=str(file), required="at least one row", received="none")
    return table


def _read_csv(file: Path) -> pa.Table:
    """Columns of digits with leading zeros (02124) are ids and stay text."""
    table = csv.read_csv(file)
    integers = [field.name for field in table.schema if pt.is_integer(field.type)]
    texts = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=dict.fromkeys(integers, pa.string())))
    for name in integers:
        if pc.any(pc.match_substring_regex(texts.column(name), r"^0\d")).as_py():
            values = pc.if_else(pc.equal(texts.column(name), ""), None, texts.column(name))
            table = table.set_column(table.column_names.index(name), name, values)
    return table


def as_lists(values: pa.Array) -> ListColumn | None:
    """The column as lists: a list type, or strings with a delimiter that yields few different pieces."""
    if pt.is_list(values.type) or pt.is_large_list(values.type) or pt.is_fixed_size_list(values.type):
        raw = lists(values)
        return ListColumn(raw.values, raw.lengths, "lists")
    if not (pt.is_string(values.type) or pt.is_large_string(values.type)):
        return None
    filled = pc.if_else(pc.equal(values, ""), None, values).drop_null()
    for delimiter in DELIMITERS:
        joined = pc.match_substring(filled, delimiter)
        if not len(filled) or pc.mean(joined.cast(pa.int8())).as_py() < 0.05:
            continue
        pieces = pc.list_flatten(pc.split_pattern(filled, delimiter))
        spaced = pc.mean(pc.starts_with(pieces, " ").cast(pa.int8())).as_py() > 0.2  # "a, b" is prose
        # Pieces repeat between rows where whole strings do not.
        if not spaced and len(pieces.unique()) <= max(20, 0.5 * len(filled)):
            return _split(values, delimiter)
        if not spaced and _all_numbers(pieces):
            return _split(values, delimiter)
    return None


def split_lists(values: pa.Array, delimiter: str) -> pa.Array:
    """A list column: lists as they are, strings cut at ``delimiter``; null and "" are the empty list."""
    if pt.is_list(values.type) or pt.is_large_list(values.type) or pt.is_fixed_size_list(values.type):
        return values
    if pt.is_null(values.type):
        return pa.array([[]] * len(values), pa.list_(pa.string()))
    text = pc.fill_null(values.cast(pa.string()), "")
    pieces = pc.split_pattern(text, delimiter)
    return pc.if_else(pc.equal(text, ""), pa.scalar([], pieces.type), pieces)


def _split(values: pa.Array, delimiter: str) -> ListColumn:
    pieces = pc.split_pattern(pc.if_else(pc.equal(values, ""), None, values), delimiter)
    lengths = pc.fill_null(pc.list_value_length(pieces), 0).cast(pa.int64()).to_numpy(zero_copy_only=False)
    flat_pieces = pc.list_flatten(pieces)
    if _all_numbers(flat_pieces):
        flat_pieces = flat_pieces.cast(pa.float64())
    return ListColumn(flat_pieces, lengths, f"strings joined by {delimiter!r}, to be stored as lists")


def _all_numbers(pieces: pa.Array) -> bool:
    """Decimal numbers; whole ones are rather ids."""
    return bool(pc.all(pc.match_substring_regex(pieces, r"^-?\d+(\.\d+)?$")).as_py()) and bool(
        pc.any(pc.match_substring(pieces, ".")).as_py()
    )


def coupled(columns: dict[str, ListColumn]) -> list[list[str]]:
    """Column names by their rows' lengths: those with the same lengths everywhere belong together."""
    groups: dict[bytes, list[str]] = {}
    for name, column in columns.items():
        groups.setdefault(column.lengths.tobytes(), []).append(name)
    return list(groups.values())
