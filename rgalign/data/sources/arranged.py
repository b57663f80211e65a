"""The arranged service-line CSVs (Boston 311 of 2011, SP156 of 2020) -> dataset directory.

A source directory holds ``samples.csv.gz`` (one contact a row, in time order, histories joined by "|") and
``intents.csv``. What staff wrote after the fact (``post_case_title``) is never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from rgalign.data.dataset import Dataset
from rgalign.data.sources.service_line import (
    BOSTON,
    SP156,
    Mask,
    ServiceLine,
    View,
    latest,
    view_rows,
    write_dataset,
)
from rgalign.errors import DataError
from rgalign.intents import IntentCatalog

Split = Literal["readme", "wide"]
WIDE_WEEKS = 17  # training weeks of the wide split; the other split trains on them too
TEXTS = ("sample_id", "ts", "intent_id", "user_id", "hour", "dow")
FLAGS = ("internal", "account")
HISTORIES = ("hist_intents", "hist_status", "hist_channel", "street_intents", "cell_intents", "area_top_7d")
AGES = ("hist_hours", "street_hours", "cell_hours")


def import_arranged(
    source: Path | str,
    out: Path | str,
    *,
    view: View = "residents",
    split: Split = "readme",
    max_train: int | None = None,
) -> Dataset:
    """Imports one of the two arranged service lines.

    Args:
        source: directory with samples.csv.gz and intents.csv.
        out: the dataset directory to write; it must not exist.
        view: ``residents`` leaves out contacts raised by city staff, ``accounts`` also those not tied to a street
            address (where the source says so), ``all`` is every contact a session can be: the residents' again.
        split: ``readme`` tests on the source's test week and validates on the week before it; ``wide`` trains on weeks
            0 to 16, validates on 17, tests on all later ones.
        max_train: keep only the last so many training sessions.

    Raises:
        DataError: a missing file or column, an unreadable value, or no row to train on.
    """
    source = Path(source)
    line, contacts = read_contacts(source)
    rows = view_rows(contacts, view)
    splits = {name: rows & mask for name, mask in split_masks(contacts, split).items()}
    splits["train"] = latest(splits["train"], max_train)
    early = view_rows(contacts, "residents") & (contacts.column("week").to_numpy() < WIDE_WEEKS)
    return write_dataset(line, contacts, read_intents(source), splits, Path(out), early)


def split_masks(contacts: pa.Table, split: Split) -> dict[str, Mask]:
    week = contacts.column("week").to_numpy()
    if split == "wide":
        return {"train": week < WIDE_WEEKS, "valid": week == WIDE_WEEKS, "test": week > WIDE_WEEKS}
    if split != "readme":
        raise DataError(where="split", required="readme or wide", received=repr(split))
    test = np.asarray(pc.equal(contacts.column("split"), "test"))
    last = int(week[~test].max())
    return {"train": ~test & (week < last), "valid": ~test & (week == last), "test": test}


def read_contacts(source: Path) -> tuple[ServiceLine, pa.Table]:
    """samples.csv.gz with typed columns: absent values null, histories as lists."""
    table = _read_strings(source / "samples.csv.gz")
    line = BOSTON if "neighborhood" in table.column_names else SP156
    columns = {name: _text(table, name) for name in (*TEXTS, "split", *line.where)}
    columns |= {name: pc.equal(table.column(name), "1") for name in FLAGS if name in table.column_names}
    columns |= {name: _pieces(table, name) for name in HISTORIES if name in table.column_names}
    for name in AGES:
        if name in table.column_names:
            columns[name] = _cast(name, _pieces(table, name), pa.list_(pa.float32()))
    for name in ("week", "hist_n"):
        columns[name] = _cast(name, _text(table, name), pa.int64())
    columns["ts"] = _cast("ts", columns["ts"], pa.timestamp("us"))
    return line, pa.table(columns)


def read_intents(source: Path) -> IntentCatalog:
    """intents.csv: title, its place in the city's organisation, and other names. Training counts are not text."""
    table = _read_strings(source / "intents.csv")
    columns = {name: tuple(_column(table, name).to_pylist()) for name in ("intent_id", "title", "path")}
    aliases = tuple(table.column("aliases").to_pylist()) if "aliases" in table.column_names else ("",) * len(table)
    descriptions = tuple("Also: " + text.replace(" | ", "; ") if text else "" for text in aliases)
    return IntentCatalog(columns["intent_id"], columns["title"], descriptions, {"path": columns["path"]})


def _read_strings(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(where=str(path), required="a file of an arranged service line", received="no such file")
    names = csv.open_csv(path).schema.names
    options = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return csv.read_csv(path, convert_options=options).combine_chunks()


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise DataError(where="arranged service line", required=f"column {name}", received="no such column")
    column = table.column(name)
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _text(table: pa.Table, name: str) -> pa.Array:
    column = _column(table, name)
    return pc.if_else(pc.equal(column, ""), None, column)


def _pieces(table: pa.Table, name: str) -> pa.Array:
    """ "a|b" -> [a, b]; "" -> []."""
    pieces = pc.split_pattern(_text(table, name), "|")
    return pa.ListArray.from_arrays(pieces.offsets, pieces.values)  # drops the nulls: their lists are empty


def _cast(name: str, values: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return values.cast(kind)
    except pa.ArrowInvalid as error:
        raise DataError(where=f"samples.csv.gz, column {name}", required=str(kind), received=str(error)) from error
