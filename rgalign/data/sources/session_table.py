"""A user's own sessions in one parquet or CSV file -> dataset directory, split by time.

The schema is the user's (`rgalign data infer-schema` proposes one). A file may leave out ``user_id`` (every session its
own user), ``region`` ("all") and ``candidates`` (the whole catalogue). In a CSV file lists are strings cut at a
delimiter. Rows without an id or a time are not lost: they go to a quarantine file. What else breaks the schema is for
`rgalign data check` to find, which has a quarantine of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt
from numpy.typing import NDArray

from rgalign.data.dataset import COLUMNS, SPLITS, STRINGS, Dataset, DatasetWriter
from rgalign.data.session_file import read_sessions, split_lists
from rgalign.errors import DataError
from rgalign.files import atomic_path
from rgalign.intents import IntentCatalog
from rgalign.schema import CategoricalFeature, FeatureSchema, GroupFeature, NumericalFeature, NumericalMember

Times = NDArray[np.datetime64]


def import_session_table(
    file: Path,
    schema: Path,
    intents: Path,
    out: Path,
    *,
    delimiter: str = "|",
    valid_from: str | None = None,
    test_from: str | None = None,
    quarantine: Path | None = None,
) -> Dataset:
    """Imports sessions in any order.

    Args:
        file: .parquet, .csv or .csv.gz with ``session_id, ts, clicked`` and the schema's columns.
        schema: schema.yaml.
        intents: the catalogue, parquet or CSV, with ``id, title`` and, if there are any, ``description`` and others.
        delimiter: of lists that are strings.
        valid_from, test_from: ISO times at which validation and test begin; without them the last tenth of the
            sessions is the test split and the twentieth before it validation.
        quarantine: parquet file for rows without an id or a time.

    Raises:
        DataError: a missing column; a time that cannot be read, or such rows and no ``quarantine``; an empty split.
        SchemaError: a schema that cannot be used.
    """
    catalog = read_catalog(intents)
    feature_schema = FeatureSchema.load(schema)
    table = _with_defaults(read_sessions(file, max_rows=np.iinfo(np.int64).max), file)
    table = _with_lists(table, feature_schema, delimiter)
    table = table.set_column(table.column_names.index("ts"), "ts", _times(table.column("ts"), file))
    usable = pc.and_(pc.is_valid(table.column("session_id")), pc.is_valid(table.column("ts")))
    _set_aside(table, usable, file, quarantine)
    # In time order; rows of one moment keep the file's order.
    table = table.append_column("_row", pa.array(np.arange(len(table)))).filter(usable)
    table = table.sort_by([("ts", "ascending"), ("_row", "ascending")]).drop_columns(["_row"])
    times = table.column("ts").to_numpy()
    starts = _starts(times, valid_from, test_from, file)
    with DatasetWriter(out, feature_schema, catalog) as writer:
        for split, first, last in zip(SPLITS, (0, *starts), (*starts, len(table)), strict=True):
            if first == last:
                raise DataError(where=f"{file}, {split} split", required="at least one session", received="none")
            writer.write(split, table.slice(first, last - first))
    return Dataset.open(out)


def read_catalog(path: Path) -> IntentCatalog:
    """A catalogue from parquet or CSV."""
    if path.suffix == ".parquet":
        return IntentCatalog.read_parquet(path)
    table = read_sessions(path)
    missing = sorted({"id", "title"} - set(table.column_names))
    if missing:
        raise DataError(where=str(path), required="columns id and title", received=f"no {', '.join(missing)}")
    columns = {
        name: tuple(pc.fill_null(table.column(name).cast(pa.string()), "").to_pylist()) for name in table.column_names
    }
    ids, titles = columns.pop("id"), columns.pop("title")
    return IntentCatalog(ids, titles, columns.pop("description", ("",) * len(ids)), columns)


def _with_defaults(table: pa.Table, file: Path) -> pa.Table:
    absent = [name for name in ("session_id", "ts", "clicked") if name not in table.column_names]
    if absent:
        received = f"columns {', '.join(table.column_names)}"
        raise DataError(where=str(file), required=f"columns {', '.join(absent)}", received=received)
    ids = table.column("session_id").cast(pa.string())
    table = table.set_column(table.column_names.index("session_id"), "session_id", ids)
    defaults = {
        "user_id": ids,
        "region": pa.array(["all"] * len(table)),
        "candidates": pa.array([[]] * len(table), STRINGS),
    }
    for name, column in defaults.items():
        if name not in table.column_names:
            table = table.append_column(name, column)
    return table


def _with_lists(table: pa.Table, schema: FeatureSchema, delimiter: str) -> pa.Table:
    """The columns of sequences and groups, candidates and clicks as lists; numbers as numbers."""
    members = [member for f in schema.features if isinstance(f, GroupFeature) for member in f.members]
    numbers = {member.name for member in members if isinstance(member, NumericalMember)}
    scalar = {f.name for f in schema.features if isinstance(f, CategoricalFeature | NumericalFeature)}
    listed = [name for name in schema.columns if name not in scalar]
    for name in ("candidates", "clicked", *listed):
        if name in table.column_names:  # the writer says what is missing
            values = split_lists(table.column(name).combine_chunks(), delimiter)
            if name in numbers:
                values = _number_lists(values, name)
            table = table.set_column(table.column_names.index(name), name, values)
    return table


def _number_lists(values: pa.Array, name: str) -> pa.Array:
    try:
        return values.cast(pa.list_(pa.float64()))
    except pa.ArrowException as error:
        raise DataError(where=f"column {name}", required="lists of numbers", received=str(error)) from error


def _times(column: pa.ChunkedArray, file: Path) -> pa.ChunkedArray:
    try:
        if pt.is_string(column.type) or pt.is_large_string(column.type):
            column = pc.if_else(pc.equal(column, ""), None, column)
        elif not (pt.is_timestamp(column.type) or pt.is_date(column.type) or pt.is_null(column.type)):
            raise pa.ArrowInvalid(f"{column.type}: seconds since when?")
        return column.cast(COLUMNS["ts"])
    except pa.ArrowException as error:
        required = "times such as 2026-01-31T08:15:00 (a timestamp column, or text in that form)"
        raise DataError(where=f"{file}, column ts", required=required, received=str(error)) from error


def _set_aside(table: pa.Table, usable: pa.ChunkedArray, file: Path, quarantine: Path | None) -> None:
    rows = np.flatnonzero(~usable.to_numpy())
    if not len(rows):
        return
    if quarantine is None:
        shown = ", ".join(str(row) for row in rows[:5])
        received = f"{len(rows)} rows without one (row {shown}, counted from 0)"
        required = "a session_id and a ts in every row, or a quarantine file for the others"
        raise DataError(where=str(file), required=required, received=received)
    aside = table.take(pa.array(rows)).add_column(0, "quarantine_row", pa.array(rows))
    with atomic_path(quarantine) as temporary:
        pq.write_table(aside, temporary)


def _starts(times: Times, valid_from: str | None, test_from: str | None, file: Path) -> tuple[int, int]:
    """First row of the validation and of the test split; sessions of one moment stay together."""
    if (valid_from is None) != (test_from is None):
        required = "both valid_from and test_from, or neither"
        raise DataError(where=str(file), required=required, received=f"{valid_from} and {test_from}")
    if not len(times):
        raise DataError(where=str(file), required="at least one usable session", received="none")
    if valid_from is not None and test_from is not None:
        try:
            moments = [np.datetime64(valid_from, "us"), np.datetime64(test_from, "us")]
        except ValueError as error:
            required = "ISO times, such as 2026-01-31T08:15:00"
            raise DataError(where="valid_from, test_from", required=required, received=str(error)) from error
    else:
        moments = [times[int(len(times) * 0.85)], times[int(len(times) * 0.9)]]
    valid, test = np.searchsorted(times, np.array(moments, dtype="datetime64[us]"), side="left")
    return int(valid), int(test)
