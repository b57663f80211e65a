"""Arrow columns to numpy without a loop over rows: codes of raw ids, and lists as (values, row, position)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Lookup:
    """Raw id -> code, compared as strings: ``first + position`` in ``raw_ids``, ``unknown`` or ``missing``."""

    def __init__(self, raw_ids: Iterable[str], *, first: int, missing: int, unknown: int) -> None:
        self._ids = pa.array(list(raw_ids), pa.string())
        self._first, self._missing, self._unknown = first, missing, unknown

    def __call__(self, values: pa.Array) -> Ints:
        """[n] array of strings, integers or a dictionary of them -> [n] int64 codes."""
        if pa.types.is_null(values.type):
            return np.full(len(values), self._missing, np.int64)
        # Only distinct values are turned into strings and looked up.
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        distinct = encoded.dictionary
        position = pc.index_in(distinct.cast(pa.string()), value_set=self._ids)
        codes = np.where(_is_null(position), self._unknown, _ints(position) + self._first)
        codes = np.append(np.where(_is_null(distinct), self._missing, codes), self._missing)
        indices = encoded.indices.cast(pa.int64())
        return np.asarray(codes[np.where(_is_null(indices), len(distinct), _ints(indices))], np.int64)


@dataclass(frozen=True)
class Ragged:
    """Lists of B rows laid end to end.

    Args:
        values: [T] the elements, any array type.
        rows: [T] int64, ascending: the row of each element.
        lengths: [B] int64.
    """

    values: Any
    rows: Ints
    lengths: Ints

    def replace(self, values: Any) -> Ragged:
        """The same lists with other elements of the same number."""
        return Ragged(values, self.rows, self.lengths)

    def keep(self, mask: NDArray[np.bool_]) -> Ragged:
        """Only the elements where ``mask`` [T]; numpy values."""
        rows = self.rows[mask]
        return Ragged(self.values[mask], rows, np.bincount(rows, minlength=len(self.lengths)))

    def pad(self, value: float) -> NDArray[Any]:
        """[B, max(1, longest)] with ``value`` behind the elements; numpy values."""
        width = max(1, int(self.lengths.max(initial=0)))
        padded = np.full((len(self.lengths), width), value, self.values.dtype)
        padded[self.rows, positions(self.lengths)] = self.values
        return padded


def positions(lengths: Ints) -> Ints:
    """[B] lengths -> [T] position of each element in its list: 0 1 2, 0 1, ..."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)


def lists(column: pa.ChunkedArray | pa.Array, max_length: int | None = None) -> Ragged:
    """The first ``max_length`` elements of each list of a list column, as an arrow array; a null list is empty."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # what combine_chunks gives for a column without chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    count = len(array)
    if pa.types.is_null(array.type):
        return Ragged(pa.array([], pa.null()), np.zeros(0, np.int64), np.zeros(count, np.int64))
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    starts = _ints(array.offsets)[:-1]
    lengths = _ints(pc.list_value_length(array).cast(pa.int64()))
    if max_length is not None:
        lengths = np.minimum(lengths, max_length)
    rows = np.repeat(np.arange(count, dtype=np.int64), lengths)
    taken = starts[rows] + positions(lengths)
    if len(taken) and taken[-1] - taken[0] + 1 == len(taken):  # nothing was cut out: no copy
        values = array.values.slice(int(taken[0]), len(taken))
    else:
        values = array.values.take(pa.array(taken))
    return Ragged(values, rows, lengths)


def numbers(values: pa.Array) -> NDArray[np.float64]:
    """[n] numbers as float64; null and infinite become NaN."""
    if pa.types.is_null(values.type):
        return np.full(len(values), np.nan)
    array = np.array(values.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def flat(column: pa.ChunkedArray) -> pa.Array:
    """One array of a chunked column."""
    array = column.combine_chunks()
    if not isinstance(array, pa.ChunkedArray):
        return array
    return pa.concat_arrays(array.unify_dictionaries().chunks) if array.num_chunks else pa.array([], array.type)


def _is_null(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _ints(values: pa.Array) -> Ints:
    """Integers as int64; null becomes 0."""
    return np.asarray(values.fill_null(0).to_numpy(zero_copy_only=False), np.int64)
