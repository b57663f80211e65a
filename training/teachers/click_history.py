"""The training log as the log teachers read it: in time order, each session sees strictly earlier sessions only.

A session's own click is never among them (leave-one-out), nor is one made at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rgalign.data.dataset import Dataset
from rgalign.data.ragged import Lookup, Ragged, lists
from rgalign.schema import INTENTS, GroupFeature, SequenceFeature

Ints = NDArray[np.int64]
NONE = -1


def log_identity(dataset: Dataset, split: str) -> dict[str, str]:
    """What a log teacher's answers about a split depend on besides its settings."""
    return {
        "log": dataset.fingerprint("train"),
        "asked": dataset.fingerprint(split),
        "schema": dataset.schema.hash,
        "catalogue": dataset.catalog.hash,
    }


@dataclass(frozen=True)
class ClickHistory:
    """Clicks of the training split and the sessions of one split that look back on them.

    Args:
        clicked: catalogue rows of the training sessions' clicks, one list a training session; unknown ids left out.
        before: [S] of each asking session, how many training sessions are strictly earlier.
        num_intents: N.
    """

    clicked: Ragged
    before: Ints
    num_intents: int

    @classmethod
    def of(cls, dataset: Dataset, split: str) -> ClickHistory:
        train = dataset.table("train", ["ts", "clicked"])
        asking = train if split == "train" else dataset.table(split, ["ts"])
        catalog = dataset.catalog
        raw = lists(train.column("clicked"))
        rows = raw.replace(Lookup(catalog.ids, first=0, missing=NONE, unknown=NONE)(raw.values))
        clicked = rows.keep(rows.values >= 0)
        before = np.searchsorted(_times(train), _times(asking), side="left")
        return cls(clicked, np.asarray(before, np.int64), len(catalog))

    @property
    def starts(self) -> Ints:
        """[S + 1] where each training session's clicks begin in ``clicked.values``."""
        return np.concatenate([[0], np.cumsum(self.clicked.lengths)])

    def first_click(self) -> Ints:
        """[S] each training session's first click, NONE without one."""
        first = np.full(len(self.clicked.lengths), NONE, np.int64)
        some = self.clicked.lengths > 0
        first[some] = self.clicked.values[self.starts[:-1][some]]
        return first


def last_known_intent(dataset: Dataset, split: str, history: ClickHistory) -> Ints:
    """[S] catalogue row of the newest intent known of each session's user, NONE without one.

    Read from the schema's behaviour histories over the catalogue, in schema order; where they are empty, the user's
    last click in the training log before the session.
    """
    newest = np.full(len(history.before), NONE, np.int64)
    lookup = Lookup(dataset.catalog.ids, first=0, missing=NONE, unknown=NONE)
    for column in intent_columns(dataset):
        raw = lists(dataset.table(split, [column]).column(column), 1)
        rows = np.full(len(newest), NONE, np.int64)
        rows[raw.rows] = lookup(raw.values)
        newest = np.where(newest == NONE, rows, newest)
    return np.where(newest == NONE, _last_click(dataset, split, history), newest)


def intent_columns(dataset: Dataset) -> list[str]:
    """List columns of behaviour features whose values are intents, newest first."""
    columns: list[str] = []
    for feature in dataset.schema.features:
        if feature.dimension != "behaviour":
            continue
        if isinstance(feature, SequenceFeature) and feature.vocabulary == INTENTS:
            columns.append(feature.name)
        elif isinstance(feature, GroupFeature):
            columns += [m.name for m in feature.members if m.kind == "categorical" and m.vocabulary == INTENTS]
    return columns


def _last_click(dataset: Dataset, split: str, history: ClickHistory) -> Ints:
    """[S] the user's last click among the training sessions before each session."""
    train = dataset.table("train", ["user_id"]).column("user_id")
    asking = dataset.table(split, ["user_id"]).column("user_id")
    users = pa.chunked_array([*train.chunks, *asking.chunks], pa.string()).combine_chunks().dictionary_encode()
    codes = np.asarray(users.indices.fill_null(NONE), np.int64)
    first = history.first_click()
    log = np.flatnonzero((codes[: len(train)] != NONE) & (first != NONE))
    # One number orders by user, then by row; the entry just below (user, before) is the last one of that user.
    size = len(train) + 1
    keys = codes[log] * size + log
    order = np.argsort(keys)
    asked = codes[len(train) :]
    place = np.searchsorted(keys[order], asked * size + history.before, side="left") - 1
    found = log[order[place]] if len(log) else np.zeros(len(asked), np.int64)
    own = (place >= 0) & (asked != NONE) & (codes[found] == asked)
    return np.where(own, first[found], NONE)


def _times(table: pa.Table) -> Ints:
    return np.asarray(table.column("ts").combine_chunks().cast(pa.int64()), np.int64)
