"""Transition teacher: what users asked next after the intent they were last known to come for.

    p(i | s) = (c(s, i) + m p(i | r)) / (c(s) + m),   p(i | r) = (c(r, i) + m p(i)) / (c(r) + m)

s: the user's last known intent, r: the region, c: clicks among the training sessions strictly before this one, m: how
many clicks the coarser estimate is worth. No language model; the same answer whatever else is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from rgalign.config import Config
from rgalign.data.dataset import Dataset
from rgalign.training.teachers.click_history import NONE, ClickHistory, Ints, last_known_intent, log_identity
from rgalign.training.teachers.likeliest import ranked
from rgalign.training.teachers.phrasing import question
from rgalign.training.teachers.teacher import Answer, Context, Name


class TransitionConfig(Config):
    """The likeliest next intent.

    Args:
        rank: which intent is asked for: 1 the likeliest, 2 the next. Several ranks are several candidates.
        smoothing: m, in clicks.
    """

    kind: Literal["transition"]
    name: Name = "transition"
    rank: int = Field(default=1, ge=1)
    smoothing: float = Field(default=5.0, gt=0)


class TransitionTeacher:
    """Reads ``train`` of the dataset; asked about sessions of ``split``."""

    knows_titles = True

    def __init__(self, config: TransitionConfig, dataset: Dataset, split: str) -> None:
        self.name = config.name
        self.identity: Mapping[str, Any] = {
            "kind": "transition",
            "rank": config.rank,
            "smoothing": config.smoothing,
            **log_identity(dataset, split),
        }
        self._dataset, self._split, self._config = dataset, split, config

    def reads(self, context: Context) -> str:
        return f"{self._split}/{context.session_id}"

    def generate(self, contexts: Iterable[Context]) -> Iterator[tuple[int, Answer]]:
        intents = self.predict(np.array([context.row for context in contexts], np.int64))
        for place, intent in enumerate(intents.tolist()):
            known = intent != NONE
            yield place, Answer(question(self._dataset.catalog, intent)) if known else Answer(failure="no history yet")

    def predict(self, rows: Ints) -> Ints:
        """[n] the intent of the configured rank for some rows of the split, NONE before so many were clicked."""
        history = ClickHistory.of(self._dataset, self._split)
        state = last_known_intent(self._dataset, self._split, history)
        region = _regions(self._dataset, self._split)
        num_train = len(history.clicked.lengths)
        train_state = state if self._split == "train" else _train_states(self._dataset)
        counts = _Counts(history.num_intents, int(region.max(initial=-1)) + 1, self._config.smoothing)
        intents = np.full(len(rows), NONE, np.int64)
        seen = 0
        starts = history.starts
        for place in np.argsort(history.before[rows], kind="stable"):
            row = rows[place]
            upto = int(history.before[row])
            if upto > seen:
                clicks = slice(starts[seen], starts[upto])
                sessions = history.clicked.rows[clicks]
                counts.add(history.clicked.values[clicks], train_state[sessions], region[:num_train][sessions])
                seen = upto
            asked = row if self._split == "train" else num_train + row
            intents[place] = ranked(counts.shares(int(state[row]), int(region[asked]))[None], self._config.rank)[0]
        return intents


class _Counts:
    """Clicks so far by intent alone, by region and by state; the state NONE has the last row."""

    def __init__(self, num_intents: int, num_regions: int, smoothing: float) -> None:
        self.total = np.zeros(num_intents)
        self.region = np.zeros((num_regions, num_intents), np.float32)
        self.state = np.zeros((num_intents + 1, num_intents), np.float32)
        self.smoothing = smoothing

    def add(self, clicked: Ints, state: Ints, region: Ints) -> None:
        np.add.at(self.total, clicked, 1)
        np.add.at(self.region, (region, clicked), 1)
        np.add.at(self.state, (state, clicked), 1)

    def shares(self, state: int, region: int) -> NDArray[np.float64]:
        """[N] p(i | s); zeros before the first click."""
        clicks = self.total.sum()
        if not clicks:
            return self.total
        return self._smoothed(self.state[state], self._smoothed(self.region[region], self.total / clicks))

    def _smoothed(self, counts: NDArray[np.float32], coarser: NDArray[np.float64]) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = (counts + self.smoothing * coarser) / (counts.sum() + self.smoothing)
        return shares


def _train_states(dataset: Dataset) -> Ints:
    return last_known_intent(dataset, "train", ClickHistory.of(dataset, "train"))


def _regions(dataset: Dataset, split: str) -> Ints:
    """[S] region codes of the training sessions, then, for another split, of that split's."""
    splits = ["train"] if split == "train" else ["train", split]
    column = pa.concat_tables([dataset.table(name, ["region"]) for name in splits]).column("region")
    encoded = column.combine_chunks().dictionary_encode("encode")
    return np.asarray(encoded.indices, np.int64)
