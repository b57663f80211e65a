"""What the columns of sessions may hold: one numpy pass a column, shard and schema -> broken rules.

warning   the row stays and what happens is defined: unknown values go to the OOV code, long histories are cut
error     the row cannot be used: it goes to quarantine
fatal     the dataset cannot be used: a column is missing or of the wrong type
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from rgalign.data.dataset import COLUMNS
from rgalign.data.ragged import Ints, Lookup, Ragged, flat, lists, numbers
from rgalign.intents import IntentCatalog
from rgalign.schema import FeatureSchema, GroupFeature, NumericalFeature

Severity = Literal["warning", "error", "fatal"]
Mask = NDArray[np.bool_]
Accepts = Callable[[pa.DataType], bool]
MISSING, UNKNOWN = 0, -1  # codes of a raw id; known ones are positive
SHOWN_VALUES, SHOWN_CHARS = 8, 80
_MAX_CODES = 1 << 32  # more than there are codes, so that (row, code) is one number


@dataclass(frozen=True)
class Violation:
    """The rows of one shard, [B] bool, that break one rule about ``field``; ``column`` holds the values to show."""

    field: str
    severity: Severity
    required: str
    rows: Mask
    column: pa.ChunkedArray

    def received(self, row: int) -> str:
        value = self.column[row]
        if not value.is_valid:
            return "null"
        if not _is_list(value.type):
            return repr(value.as_py())[:SHOWN_CHARS]
        values = value.values
        dots = ", ..." if len(values) > SHOWN_VALUES else ""
        return f"{len(values)} values [{', '.join(map(repr, values[:SHOWN_VALUES].to_pylist()))}{dots}]"[:SHOWN_CHARS]


class ColumnRules:
    """The rules of one schema and catalogue."""

    def __init__(self, schema: FeatureSchema, catalog: IntentCatalog) -> None:
        self.schema = schema.bind(catalog)
        self._codes = {
            name: Lookup(names, first=1, missing=MISSING, unknown=UNKNOWN)
            for name, names in self.schema.vocabularies.items()
        }

    def column_types(self) -> dict[str, tuple[str, Accepts]]:
        """Column -> what its type must be, in words and as a test."""
        raw_id: tuple[str, Accepts] = ("strings or integers", _is_raw_id)
        raw_ids: tuple[str, Accepts] = ("lists of strings or integers", lambda kind: _lists_of(kind, _is_raw_id))
        number: tuple[str, Accepts] = ("numbers", _is_number)
        numbers_: tuple[str, Accepts] = ("lists of numbers", lambda kind: _lists_of(kind, _is_number))
        types = {name: raw_ids if pt.is_list(kind) else raw_id for name, kind in COLUMNS.items()}
        types["ts"] = ("timestamps", pt.is_timestamp)
        for feature in self.schema.features:
            if isinstance(feature, GroupFeature):
                types |= {m.name: raw_ids if m.kind == "categorical" else numbers_ for m in feature.members}
            else:
                types[feature.name] = {"categorical": raw_id, "numerical": number, "sequence": raw_ids}[feature.kind]
        return types

    def broken(self, table: pa.Table) -> Iterator[Violation]:
        """Every rule that can be told from one shard alone, with the rows that break it (often none)."""
        yield from _identity(table)
        yield from self._labels(table)
        for feature in self.schema.features:
            if feature.kind == "categorical":
                codes = self._codes[feature.vocabulary](flat(table.column(feature.name)))
                yield _unknown(table, feature.name, feature.vocabulary, codes == UNKNOWN)
            elif feature.kind == "numerical":
                yield from _numerical(table, feature)
            elif feature.kind == "sequence":
                yield _too_long(table, feature.name, feature.max_length)
                yield self._unknown_items(table, feature.name, feature.vocabulary)
            else:
                yield from self._group(table, feature)

    def _labels(self, table: pa.Table) -> Iterator[Violation]:
        column = table.column("clicked")
        clicked, candidates = lists(column), lists(table.column("candidates"))
        known, listed = self._codes["intents"](clicked.values), self._codes["intents"](candidates.values)
        yield Violation("clicked", "warning", "an intent (a row without teaches nothing)", clicked.lengths == 0, column)
        yield Violation("clicked", "error", "ids of the catalogue", _any(clicked, known <= 0), column)
        rows = _any(candidates, listed <= 0)
        required = "ids of the catalogue (others are left out)"
        yield Violation("candidates", "warning", required, rows, table.column("candidates"))
        outside = ~np.isin(_keys(clicked, known), _keys(candidates, listed)) & (known > 0)
        rows = _any(clicked, outside) & (candidates.lengths > 0)
        yield Violation("clicked", "warning", "ids among the row's candidates (others are left out)", rows, column)

    def _unknown_items(self, table: pa.Table, name: str, vocabulary: str) -> Violation:
        raw = lists(table.column(name))
        return _unknown(table, name, vocabulary, _any(raw, self._codes[vocabulary](raw.values) == UNKNOWN))

    def _group(self, table: pa.Table, group: GroupFeature) -> Iterator[Violation]:
        members = {member.name: lists(table.column(member.name)) for member in group.members}
        first_name, first = next(iter(members.items()))
        yield _too_long(table, first_name, group.max_length)
        for member in group.members:
            raw, column = members[member.name], table.column(member.name)
            unequal = raw.lengths != first.lengths
            yield Violation(member.name, "error", f"as many values as {first_name}", unequal, column)
            if member.kind == "categorical":
                yield self._unknown_items(table, member.name, member.vocabulary)
            else:
                yield Violation(member.name, "error", "finite numbers", _any(raw, _not_finite(raw.values)), column)
        if group.age is not None:
            yield from _ages(group.age, members[group.age], table.column(group.age))


def _identity(table: pa.Table) -> Iterator[Violation]:
    severities: dict[str, Severity] = {"session_id": "error", "ts": "error", "user_id": "warning", "region": "warning"}
    for name, severity in severities.items():
        column = table.column(name)
        yield Violation(name, severity, "a value", _mask(column.is_null()), column)


def _numerical(table: pa.Table, feature: NumericalFeature) -> Iterator[Violation]:
    column = table.column(feature.name)
    values = numbers(flat(column))
    yield Violation(feature.name, "error", "a finite number or null", _not_finite(flat(column)), column)
    low = -np.inf if feature.minimum is None else feature.minimum
    high = np.inf if feature.maximum is None else feature.maximum
    required = f"{low:g} to {high:g} (others are clipped)"
    yield Violation(feature.name, "warning", required, (values < low) | (values > high), column)


def _ages(name: str, raw: Ragged, column: pa.ChunkedArray) -> Iterator[Violation]:
    ages = numbers(raw.values)
    yield Violation(name, "error", "hours before ts (>= 0: nothing from the future)", _any(raw, ages < 0), column)
    falls = np.zeros(len(ages), np.bool_)
    falls[1:] = (raw.rows[1:] == raw.rows[:-1]) & (ages[1:] < ages[:-1])
    yield Violation(name, "warning", "newest first (the last ones are cut as the oldest)", _any(raw, falls), column)


def _too_long(table: pa.Table, name: str, max_length: int) -> Violation:
    column = table.column(name)
    rows = lists(column).lengths > max_length
    return Violation(name, "warning", f"at most {max_length} values (the oldest are cut)", rows, column)


def _unknown(table: pa.Table, name: str, vocabulary: str, rows: Mask) -> Violation:
    required = f"values of vocabulary {vocabulary} (others become unknown)"
    return Violation(name, "warning", required, rows, table.column(name))


def _any(raw: Ragged, hits: Mask) -> Mask:
    """[T] elements -> [B]: rows with at least one hit."""
    return np.bincount(raw.rows[hits], minlength=len(raw.lengths)) > 0


def _keys(raw: Ragged, codes: Ints) -> Ints:
    """A number for each (row, known id); different between rows."""
    return raw.rows * _MAX_CODES + codes


def _not_finite(values: pa.Array) -> Mask:
    """NaN and infinite; null is missing, not a violation."""
    if not pt.is_floating(values.type):
        return np.zeros(len(values), np.bool_)
    return _mask(pc.fill_null(pc.invert(pc.is_finite(values)), False))


def _mask(values: pa.Array | pa.ChunkedArray) -> Mask:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.asarray(array.to_numpy(zero_copy_only=False), np.bool_)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _lists_of(kind: pa.DataType, accepts: Accepts) -> bool:
    return bool(pt.is_null(kind)) or (_is_list(kind) and accepts(kind.value_type))


def _is_raw_id(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_integer(kind) or pt.is_null(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_null(kind))
