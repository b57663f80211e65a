"""Nearest-neighbour teacher: what users of the most similar earlier sessions came for.

    sim(a, b) = sum over values t of both of idf(t) w_a(t) w_b(t) / |w_b|       vote(i) = sum of sim over b with click i

A session is the set of its categorical values: features, user and region, and histories with weight 1 / (1 + place).
The idf is that of the sessions before the asking one, and only earlier sessions are compared (click_history.py). Time
is cut into steps of STEP sessions with one sparse product each, and an answer depends on nothing else that is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field

from rgalign.config import Config
from rgalign.data.dataset import Dataset
from rgalign.data.ragged import flat, lists, positions
from rgalign.schema import GroupFeature
from rgalign.topk import PADDING, topk
from rgalign.training.teachers.click_history import NONE, ClickHistory, Ints, log_identity
from rgalign.training.teachers.likeliest import ranked
from rgalign.training.teachers.phrasing import question
from rgalign.training.teachers.teacher import Answer, Context, Name

STEP = 512
POPULARITY = 1e-3  # of a vote, for the overall share of an intent: it orders what the neighbours leave equal

Floats = NDArray[np.float32]


class NeighbourConfig(Config):
    """Nearest neighbours.

    Args:
        rank: which intent is asked for: 1 the one with most votes, 2 the next. Several ranks are several candidates.
        neighbours: how many earlier sessions vote.
        max_history: only so many sessions before a step are compared, so that the time grows with the sessions and not
            with their square.
    """

    kind: Literal["neighbour"]
    name: Name = "neighbour"
    rank: int = Field(default=1, ge=1)
    neighbours: int = Field(default=30, ge=1)
    max_history: int = Field(default=20_000, ge=1)


class NeighbourTeacher:
    """Reads ``train`` of the dataset; asked about sessions of ``split``."""

    knows_titles = True

    def __init__(self, config: NeighbourConfig, dataset: Dataset, split: str) -> None:
        self.name = config.name
        self.config = config
        self.identity: Mapping[str, Any] = {
            "kind": "neighbour",
            "rank": config.rank,
            "neighbours": config.neighbours,
            "max_history": config.max_history,
            **log_identity(dataset, split),
        }
        self._dataset, self._split = dataset, split

    def reads(self, context: Context) -> str:
        return f"{self._split}/{context.session_id}"

    def generate(self, contexts: Iterable[Context]) -> Iterator[tuple[int, Answer]]:
        intents = self.predict(np.array([context.row for context in contexts], np.int64))
        for place, intent in enumerate(intents.tolist()):
            known = intent != NONE
            yield place, Answer(question(self._dataset.catalog, intent)) if known else Answer(failure="no history yet")

    def predict(self, rows: Ints) -> Ints:
        """[n] the intent of the configured rank for some rows of the split, NONE where too few were clicked."""
        history = ClickHistory.of(self._dataset, self._split)
        values = SessionValues.of(self._dataset, self._split)
        num_train = len(history.clicked.lengths)
        asked = rows if self._split == "train" else rows + num_train
        intents = np.full(len(rows), NONE, np.int64)
        steps = history.before[rows] // STEP
        for step in np.unique(steps):
            here = np.flatnonzero(steps == step)
            first = max(0, int(step) * STEP - self.config.max_history)
            last = min((int(step) + 1) * STEP, num_train)
            similar = values.similarity(asked[here], first, last, known=int(step) * STEP)
            later = np.arange(first, last)[None, :] >= history.before[rows[here]][:, None]
            similar[later] = -np.inf
            clicks = history.clicked.values[: history.starts[int(step) * STEP]]
            popularity = np.bincount(clicks, minlength=history.num_intents) / max(1, len(clicks))
            votes = _votes(similar, first, history, self.config.neighbours) + POPULARITY * popularity
            intents[here] = ranked(votes, self.config.rank)
        return intents


def _votes(similar: Floats, first: int, history: ClickHistory, neighbours: int) -> NDArray[np.float64]:
    """[b, N] summed similarity of the nearest sessions that clicked each intent; ``similar`` [b, h] starts at first."""
    nearest = topk(similar, neighbours)
    sessions = np.where(nearest.rows == PADDING, 0, nearest.rows) + first
    weights = np.where(np.isfinite(nearest.scores) & (nearest.rows != PADDING), nearest.scores, 0.0)
    votes = np.zeros((len(similar), history.num_intents))
    starts, lengths = history.starts, history.clicked.lengths
    for shift in range(int(lengths.max(initial=0))):  # a session with several clicks votes for each
        some = (lengths[sessions] > shift) & (weights > 0)
        row = np.nonzero(some)[0]
        np.add.at(votes, (row, history.clicked.values[starts[sessions[some]] + shift]), weights[some])
    return votes


@dataclass(frozen=True)
class SessionValues:
    """Sessions as sparse rows: of training, then of the asking split. Values are numbered over all columns.

    Args:
        starts: [S + 1] where each session's values begin.
        values, weights: [T].
    """

    starts: Ints
    values: Ints
    weights: Floats
    num_values: int

    @classmethod
    def of(cls, dataset: Dataset, split: str) -> SessionValues:
        columns = _value_columns(dataset)
        splits = ["train"] if split == "train" else ["train", split]
        names = list(columns)
        table = pa.concat_tables([dataset.table(name, names) for name in splits]).combine_chunks()
        rows, values, weights = [], [], []
        offset = 0
        for name, max_length in columns.items():
            column = table.column(name)
            if max_length is None:
                array = flat(column)
                row, place = np.arange(len(array)), np.zeros(len(array), np.int64)
            else:
                raw = lists(column, max_length)
                array, row, place = raw.values, raw.rows, positions(raw.lengths)
            encoded = array.cast(pa.string()).dictionary_encode()
            codes = np.asarray(encoded.indices.fill_null(NONE), np.int64)
            kept = codes != NONE
            rows.append(row[kept])
            values.append(codes[kept] + offset)
            weights.append(1 / (1 + place[kept]))
            offset += len(encoded.dictionary)
        row = np.concatenate(rows)
        order = np.argsort(row, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(table)))])
        return cls(starts, np.concatenate(values)[order], np.concatenate(weights)[order].astype(np.float32), offset)

    def similarity(self, asked: Ints, first: int, last: int, *, known: int) -> Floats:
        """[n, last - first] similarity of the asked sessions to the training sessions first..last.

        Args:
            known: the idf is of the sessions before this one.
        """
        earlier = self.values[: self.starts[known]]
        seen_in = np.bincount(earlier, minlength=self.num_values)
        idf = np.log((1 + known) / (1 + seen_in)) + 1
        asking = np.zeros((self.num_values, len(asked)), np.float32)
        for place, session in enumerate(asked):
            here = slice(self.starts[session], self.starts[session + 1])
            np.add.at(asking[:, place], self.values[here], self.weights[here] * idf[self.values[here]])
        span = slice(self.starts[first], self.starts[last])
        weights = self.weights[span]
        row = np.repeat(np.arange(last - first), np.diff(self.starts[first : last + 1]))
        norm = np.sqrt(np.bincount(row, weights=weights.astype(np.float64) ** 2, minlength=last - first))
        scaled = (weights / np.maximum(norm[row], 1e-9)).astype(np.float32)
        # A sparse product: the sum over each session's values of weight * row of the asking sessions.
        summed = torch.nn.functional.embedding_bag(
            torch.from_numpy(self.values[span]),
            torch.from_numpy(asking),
            torch.from_numpy(self.starts[first : last + 1] - self.starts[first]),
            mode="sum",
            per_sample_weights=torch.from_numpy(scaled),
            include_last_offset=True,
        )
        return np.ascontiguousarray(summed.numpy().T)


def _value_columns(dataset: Dataset) -> dict[str, int | None]:
    """Columns with categorical values -> how much of a list is read; None: a single value."""
    columns: dict[str, int | None] = {"user_id": None, "region": None}
    for feature in dataset.schema.features:
        if feature.kind == "categorical":
            columns[feature.name] = None
        elif feature.kind == "sequence":
            columns[feature.name] = feature.max_length
        elif isinstance(feature, GroupFeature):
            columns |= {member.name: feature.max_length for member in feature.members if member.kind == "categorical"}
    return columns
