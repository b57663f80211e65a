"""Example sessions of a report: what the reasoner is told, what happened, and what each ranker recommends and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.metrics.ranking import PADDING
from rgalign.schema import FeatureSchema
from rgalign.topk import topk
from rgalign.training.evaluation_split import EvaluationSplit
from rgalign.training.scores import RunScores, SplitScores

Rows = NDArray[np.integer[Any]]


def example_sessions(
    runs: Sequence[RunScores], split: EvaluationSplit, relevant: Rows, *, count: int, num_shown: int, seed: int
) -> list[dict[str, Any]]:
    """``count`` sessions with relevant intents drawn by ``seed``, not picked; each model's first run answers.

    Features marked as personal data are not shown.
    """
    labelled = np.flatnonzero((relevant != PADDING).any(axis=1))
    drawn = np.sort(np.random.default_rng(seed).choice(labelled, min(count, len(labelled)), replace=False))
    catalog = split.dataset.catalog
    first_runs: dict[str, RunScores] = {}
    for run in runs:
        first_runs.setdefault(run.model, run)
    examples = []
    for position, session in zip(drawn, split.sessions(drawn), strict=True):
        wanted = [int(row) for row in relevant[position] if row != PADDING]
        examples.append(
            {
                "session_id": session["session_id"],
                "slots": _slots(split.dataset.schema, session),
                "relevant": [{"id": catalog.ids[row], "title": catalog.titles[row]} for row in wanted],
                "models": {
                    model: {
                        "seed": run.seed,
                        "recommended": [
                            {**intent, "id": catalog.ids[row], "title": catalog.titles[row], "relevant": row in wanted}
                            for row, intent in _recommended(run.test, int(position), num_shown)
                        ],
                    }
                    for model, run in first_runs.items()
                },
            }
        )
    return examples


def _slots(schema: FeatureSchema, session: dict[str, Any]) -> list[dict[str, str]]:
    return [{"dimension": slot.dimension, "text": slot.text} for slot in schema.slots(session)]


def _recommended(scores: SplitScores, session: int, num_shown: int) -> list[tuple[int, dict[str, Any]]]:
    """Catalogue row of each winner, its score and the score's two parts."""
    total = np.ascontiguousarray(scores.total[session : session + 1], np.float32)
    candidates = None
    if scores.candidates is not None:
        candidates = np.ascontiguousarray(scores.candidates[session : session + 1], np.int64)
    winners = topk(total, num_shown, candidates)
    rows = [int(row) for row in winners.rows[0] if row != PADDING]
    parts = {"score": scores.total, "user_part": scores.user_part, "query_part": scores.query_part}
    return [
        (row, {name: None if part is None else float(part[session, row]) for name, part in parts.items()})
        for row in rows
    ]
