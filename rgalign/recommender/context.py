"""A context, plain Python values by feature name, to the one-row table that towers and prompts read.

    categorical   string or integer          list of them   sequence, group's categorical member
    numerical     finite number              list of them   group's numerical member
    None, or no such key: missing

A value outside its vocabulary is no mistake: it is unknown, and counted. Anything else that is wrong is refused with
the feature's name; the value itself is not repeated, for it may be personal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rgalign.errors import DataError
from rgalign.schema import CategoricalFeature, FeatureSchema, GroupFeature, NumericalFeature, SequenceFeature

# What a row of a dataset has beside the features: allowed, not read.
ROW_COLUMNS = frozenset({"session_id", "user_id", "ts", "region", "candidates", "clicked"})
MAX_INTEGER = 1 << 63


class ContextReader:
    """Checks contexts for one schema.

    Args:
        schema: bound to its catalogue.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self._schema = schema
        self._names = frozenset(schema.columns)

    def read(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Every column of the schema -> value; ids as strings, histories cut to the newest that are read.

        Raises:
            DataError: names feature, required and received.
        """
        if not isinstance(context, Mapping):
            raise DataError(where="context", required="a mapping of features", received=type(context).__name__)
        for name in context:
            if name not in self._names and name not in ROW_COLUMNS:
                shown = repr(name)[:60] if isinstance(name, str) else type(name).__name__
                raise DataError(where="context", required="features of the schema", received=shown)
        row: dict[str, Any] = {}
        for feature in self._schema.features:
            if isinstance(feature, CategoricalFeature):
                row[feature.name] = _identifier(feature.name, context.get(feature.name))
            elif isinstance(feature, NumericalFeature):
                row[feature.name] = _number(feature.name, context.get(feature.name))
            elif isinstance(feature, SequenceFeature):
                values = _list(feature.name, context.get(feature.name))
                row[feature.name] = [_identifier(feature.name, value) for value in values[: feature.max_length]]
            else:
                row |= _group(feature, context)
        return row

    def table(self, row: Mapping[str, Any]) -> pa.Table:
        """What ``read`` gave, as one row for ``SessionEncoder.encode``; many such tables may be one batch."""
        types: dict[str, pa.DataType] = {}
        for feature in self._schema.features:
            if isinstance(feature, GroupFeature):
                for member in feature.members:
                    types[member.name] = pa.list_(pa.string() if member.kind == "categorical" else pa.float64())
            elif isinstance(feature, SequenceFeature):
                types[feature.name] = pa.list_(pa.string())
            else:
                types[feature.name] = pa.string() if isinstance(feature, CategoricalFeature) else pa.float64()
        return pa.table({name: pa.array([row[name]], kind) for name, kind in types.items()})


def _group(group: GroupFeature, context: Mapping[str, Any]) -> dict[str, list[Any]]:
    columns = {member.name: _list(member.name, context.get(member.name)) for member in group.members}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        received = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(where=f"context, {group.name}", required="members of equal length", received=received)
    read = {member.name: _identifier if member.kind == "categorical" else _number for member in group.members}
    return {name: [read[name](name, value) for value in values[: group.max_length]] for name, values in columns.items()}


def _list(name: str, value: object) -> list[Any] | tuple[Any, ...]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise DataError(where=f"context, {name}", required="a list", received=type(value).__name__)
    return value


def _identifier(name: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        if not _is_text(value):
            raise DataError(where=f"context, {name}", required="Unicode text", received="a lone surrogate")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if not -MAX_INTEGER <= value < MAX_INTEGER:
            raise DataError(where=f"context, {name}", required="a string or 64-bit integer", received="a larger one")
        return str(value)
    raise DataError(where=f"context, {name}", required="a string or integer", received=type(value).__name__)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(where=f"context, {name}", required="a number", received=type(value).__name__)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(where=f"context, {name}", required="a finite number", received="NaN or infinity")
    return number
