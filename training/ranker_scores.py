"""Scores of a whole split: every session against every intent of the catalogue, as evaluation reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rgalign.data.dataset import Dataset
from rgalign.metrics.ranking import PADDING, SessionMetrics, session_metrics
from rgalign.models import Ranker
from rgalign.models.ranker import Scores
from rgalign.training.fused_scores import fused_scores
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import LoadedRanker
from rgalign.training.scores import SplitScores
from rgalign.training.sessions import Latents, Order, Sessions, Step, StreamedSessions

BATCH_SIZE = 1024


def score_split(
    loaded: LoadedRanker,
    dataset: Dataset,
    split: str,
    latents: LatentStore | None = None,
    batch_size: int = BATCH_SIZE,
    *,
    device: torch.device | str = "cpu",
) -> SplitScores:
    """Scores a split in its own order.

    Args:
        latents: the split's latent queries. None scores with ω = 1, as when the reasoner is late; a ranker without a
            query tower reads none.

    Raises:
        ProvenanceError: sessions of another schema or catalogue, or latent queries of another model or template.
    """
    loaded.require_dataset(dataset)
    lookup = None
    if latents is not None and loaded.latents is not None:
        loaded.require_latents(latents)
        lookup = Latents(latents, dataset, split)
    sessions = StreamedSessions(dataset, split, loaded.encoder, lookup)
    shape = len(sessions), len(loaded.catalog)
    total, user_part, query_part = (np.empty(shape, np.float32) for _ in range(3))
    clicked: list[Tensor] = []
    candidates: list[Tensor | None] = []
    ranker = loaded.ranker.to(device).eval()
    with torch.no_grad():
        intents = ranker.intents()
    for step in sessions.steps(Order(batch_size)):
        scores = fused_scores(ranker, step.sessions.to(device), intents)
        total[step.rows] = scores.total.cpu().numpy()
        user_part[step.rows] = scores.user_part.cpu().numpy()
        query_part[step.rows] = scores.query_part.cpu().numpy()
        clicked.append(step.sessions.clicked)
        candidates.append(step.sessions.candidates)
    return SplitScores(
        session_ids=tuple(session_ids(dataset, split)),
        total=total,
        user_part=user_part,
        query_part=query_part,
        clicked=_rows(clicked),
        candidates=_candidates(candidates, [len(rows) for rows in clicked], len(loaded.catalog)),
        provenance={
            "schema": loaded.schema.hash,
            "catalog": loaded.catalog.hash,
            "split": split,
            "dataset": dataset.fingerprint(split),
            "ranker": loaded.hash,
            "latents": "none" if lookup is None else lookup.store.hash,
        },
    )


@torch.no_grad()
def scored(
    ranker: Ranker, sessions: Sessions, order: Order, device: torch.device | str
) -> Iterator[tuple[Step, Scores]]:
    """Each batch with its scores, in float32; the intent tower runs once. Leaves the ranker in evaluation mode."""
    ranker.to(device).eval()
    intents = ranker.intents()
    for step in sessions.steps(order):
        yield step, ranker.score(step.sessions.to(device), intents)


def split_metrics(ranker: Ranker, sessions: Sessions, order: Order, device: torch.device | str) -> list[SessionMetrics]:
    """Metrics of every session against its clicks, batch by batch: memory for one batch of scores."""
    return [
        session_metrics(scores.total, _rows([step.sessions.clicked]), _numpy(step.sessions.candidates))
        for step, scores in scored(ranker, sessions, order, device)
    ]


def joined(parts: Sequence[SessionMetrics]) -> SessionMetrics:
    """The metrics of all parts' sessions."""
    return SessionMetrics(
        values={name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        impressions=np.concatenate([part.impressions for part in parts]),
        positives=np.concatenate([part.positives for part in parts]),
        first_rank=np.concatenate([part.first_rank for part in parts]),
    )


def session_ids(dataset: Dataset, split: str) -> list[str]:
    ids: list[str] = dataset.table(split, ["session_id"]).column("session_id").to_pylist()
    return ids


def _candidates(parts: Sequence[Tensor | None], sizes: Sequence[int], num_intents: int) -> NDArray[np.int32] | None:
    """[S, C], or None when every list is the whole catalogue."""
    if all(part is None for part in parts):
        return None
    whole = torch.arange(num_intents)
    return _rows([whole.expand(size, -1) if part is None else part for part, size in zip(parts, sizes, strict=True)])


def _rows(parts: Sequence[Tensor]) -> NDArray[np.int32]:
    """Padded catalogue rows [b, *] of several batches as one [S, widest]."""
    width = max(part.shape[1] for part in parts)
    filled = [functional.pad(part, (0, width - part.shape[1]), value=PADDING) for part in parts]
    return torch.cat(filled).to(torch.int32).numpy()


def _numpy(rows: Tensor | None) -> NDArray[np.int64] | None:
    return None if rows is None else rows.numpy()
