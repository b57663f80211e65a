"""The same ranker on vectors of several reasoners: the same intents, the same metrics?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError
from rgalign.metrics.ranking import PADDING, SessionMetrics, session_metrics
from rgalign.metrics.significance import Resampling, cluster_codes, mean_intervals, paired_comparisons
from rgalign.topk import topk
from rgalign.training.fused_scores import fused_scores
from rgalign.training.parity.vectors import Ints, Prompts, Vectors
from rgalign.training.ranker_files import LoadedRanker
from rgalign.training.ranker_scores import joined
from rgalign.training.sessions import Order, open_sessions

BATCH_SIZE = 1024


@dataclass(frozen=True)
class Ranked:
    """Args:
    best: [S, k] catalogue rows, best first, of each session's candidates; -1 where there are fewer.
    metrics: of its clicks.
    """

    best: Ints
    metrics: SessionMetrics


@torch.no_grad()
def rank_with(
    loaded: LoadedRanker, dataset: Dataset, split: str, prompts: Prompts, vectors: Mapping[str, Vectors], k: int
) -> dict[str, Ranked]:
    """Ranks the prompts' sessions once a reasoner: name -> what it gives. Memory for one batch of scores.

    Args:
        vectors: name -> [n, D] of the distinct prompts.

    Raises:
        ProvenanceError: sessions of another schema or catalogue.
    """
    loaded.require_dataset(dataset)
    every = len(prompts.rows) == dataset.num_rows(split)
    subset = None if every else prompts.rows
    sessions = open_sessions(dataset, split, loaded.encoder, None, memory_rows=0, subset=subset)
    ranker = loaded.ranker.eval()
    intents = ranker.intents()
    best = {name: np.full((len(prompts.rows), k), PADDING, np.int64) for name in vectors}
    parts: dict[str, list[SessionMetrics]] = {name: [] for name in vectors}
    for step in sessions.steps(Order(BATCH_SIZE)):
        places = np.searchsorted(prompts.rows, step.rows)
        clicked = step.sessions.clicked.numpy()
        listed = step.sessions.candidates
        candidates = None if listed is None else np.ascontiguousarray(listed.numpy(), dtype=np.int64)
        for name, each in vectors.items():
            latent = torch.from_numpy(each[prompts.of_session[places]])
            scores = fused_scores(ranker, replace(step.sessions, latent=latent), intents).total.numpy()
            winners = topk(scores, k, candidates).rows
            best[name][places, : winners.shape[1]] = winners
            parts[name].append(session_metrics(scores, clicked, candidates, ks=(k,)))
    return {name: Ranked(best[name], joined(parts[name])) for name in vectors}


def overlap(found: Ints, exact: Ints) -> NDArray[np.float64]:
    """[S] share of each session's best intents [S, k] that are among the definition's best."""
    same = (found[:, :, None] == exact[:, None, :]) & (exact != PADDING)[:, None, :]
    shares: NDArray[np.float64] = same.any(axis=1).sum(axis=1) / np.maximum((exact != PADDING).sum(axis=1), 1)
    return shares


def users_of(dataset: Dataset, split: str, rows: Ints) -> Ints:
    names = dataset.table(split, ["user_id"]).column("user_id").take(rows).to_pylist()
    return cluster_codes(names)


def compared(found: Ranked, exact: Ranked, k: int, users: Ints, how: Resampling) -> dict[str, Any]:
    """Overlap, and of both metrics the mean and the paired difference from the definition's.

    Raises:
        DataError: no session with a click.
    """
    names = _metrics(k)
    values, baseline = (_columns(ranked, names) for ranked in (found, exact))
    weights = np.ones_like(values)
    if np.isnan(baseline).all():
        raise DataError(where="sessions", required="clicks to measure the ranking by", received="none")
    differences = paired_comparisons(values, baseline, weights, users, how)
    means = mean_intervals(values, weights, users, how)
    shares = overlap(found.best, exact.best)
    return {
        "overlap": float(shares.mean()),
        "same_list": float((found.best == exact.best).all(axis=1).mean()),
        "same_first": float((found.best[:, 0] == exact.best[:, 0]).mean()),
        "metrics": {
            name: {"mean": mean.estimate, "change": asdict(each.difference), "p_value": each.p_value}
            for name, mean, each in zip(names, means, differences, strict=True)
        },
    }


def reference_metrics(exact: Ranked, k: int, users: Ints, how: Resampling) -> dict[str, Any]:
    names = _metrics(k)
    values = _columns(exact, names)
    found = mean_intervals(values, np.ones_like(values), users, how)
    return {name: asdict(interval) for name, interval in zip(names, found, strict=True)}


def _metrics(k: int) -> tuple[str, ...]:
    return f"recall@{k}", f"ndcg@{k}"


def _columns(ranked: Ranked, names: tuple[str, ...]) -> NDArray[np.float64]:
    return np.stack([ranked.metrics.values[name] for name in names], axis=1)
