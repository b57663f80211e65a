"""Slices: named subsets of the sessions, so that a mean does not hide where a ranker helps and where it hurts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rgalign.metrics.ranking import PADDING, Rows

MAX_VALUES = 12  # a column with more values is no slice column
MIN_SESSIONS = 50  # below, an interval says nothing
HEAD_SHARE = 0.8
MISSING = "(missing)"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """A subset of the sessions: ``family`` says how it was cut ("region"), ``name`` which part it is ("SG")."""

    family: str
    name: str
    mask: Mask


def column_slices(family: str, column: pa.ChunkedArray | pa.Array, max_values: int = MAX_VALUES) -> list[Slice]:
    """One slice for each value of a column, in order, missing last; none for a constant or many-valued column."""
    text = pc.fill_null(column.cast(pa.string()), MISSING)
    values = sorted(text.unique().to_pylist(), key=lambda value: (value == MISSING, value))
    if not 2 <= len(values) <= max_values:
        return []
    return [Slice(family, value, _numpy(pc.equal(text, value))) for value in values]


def history_slices(histories: Mapping[str, pa.ChunkedArray]) -> list[Slice]:
    """Of each history (name -> list column): sessions with something in it, and those without."""
    found = []
    for name, column in histories.items():
        filled = _numpy(pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0))
        found += [Slice("history", f"{name}: some", filled), Slice("history", f"{name}: none", ~filled)]
    return found


def frequency_slices(relevant: Rows, train_counts: NDArray[np.int64], head_share: float = HEAD_SHARE) -> list[Slice]:
    """Head, tail and cold intents: a session counts under its rarest relevant intent.

    Args:
        relevant: [S, P] catalogue rows padded with -1.
        train_counts: [N] training sessions in which each intent was clicked. Head: the most frequent intents that
            together hold ``head_share`` of them (ties by row); cold: never clicked; tail: the others.
    """
    order = np.argsort(-train_counts, kind="stable")
    before = np.cumsum(train_counts[order]) - train_counts[order]
    head = np.zeros(len(train_counts), np.bool_)
    head[order] = before < head_share * train_counts.sum()
    kind = np.where(train_counts == 0, 2, np.where(head, 0, 1))
    rarest = np.where(relevant != PADDING, kind[np.maximum(relevant, 0)], -1).max(axis=1, initial=-1)
    return [
        Slice("intent frequency", name, rarest == code)
        for code, name in enumerate(("head intents", "tail intents", "cold intents"))
    ]


def training_counts(clicked: Rows, num_intents: int) -> NDArray[np.int64]:
    """[N] sessions in which each intent was clicked; ``clicked`` [S, P] padded with -1, rows unique by session."""
    return np.bincount(clicked[clicked != PADDING].astype(np.int64), minlength=num_intents)


def usable(slices: Sequence[Slice], min_sessions: int = MIN_SESSIONS) -> list[Slice]:
    """Slices large enough for an interval."""
    return [part for part in slices if part.mask.sum() >= min_sessions]


def is_category(kind: Any) -> bool:
    """Whether a column of this arrow type can be sliced by value."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind) or types.is_boolean(kind)
    )


def _numpy(values: pa.ChunkedArray | pa.Array) -> Mask:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.asarray(array.to_numpy(zero_copy_only=False), np.bool_)
