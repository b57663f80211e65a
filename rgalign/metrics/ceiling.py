"""How much of what can be known a ranker has found: metrics as a share of the simulator's ceiling.

The simulator writes each session's true probabilities: the 64 likeliest intents and the mass of all others. Ranking by
them is the best any ranker can expect to do; ranking at random is the least. With per-session metric m, its expectation
c under a random order, and the true ranking's metric t, on the same sessions,

    share of the ceiling        = sum m / sum t
    share of what is learnable  = sum (m - c) / sum (t - c)          (0: chance, 1: the ceiling)

With several relevant intents the probabilities are expected shares of relevance: ranking by them is the exact optimum
for Recall@K and MRR (all), nearly so for the others. The intents beyond the 64 share their mass evenly, so they tie and
the ceiling of auc is a little too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.metrics.ranking import KS, PADDING, Floats, Rows, SessionMetrics


def true_scores(
    true_rows: Rows, true_probabilities: NDArray[np.floating[Any]], rest_mass: Floats, num_intents: int
) -> NDArray[np.float32]:
    """[S, N] true probability of every intent.

    Args:
        true_rows: [S, L] catalogue rows of the likeliest intents, padded with -1.
        true_probabilities: [S, L] theirs.
        rest_mass: [S] probability of all other intents together.
    """
    known = true_rows != PADDING
    if true_rows.shape != true_probabilities.shape or (true_probabilities[known] < 0).any() or (rest_mass < 0).any():
        raise DataError(where="truth", required="a probability >= 0 for each intent", received="others")
    others = np.maximum(num_intents - known.sum(axis=1), 1)
    scores = np.repeat((rest_mass / others)[:, None].astype(np.float32), num_intents, axis=1)
    session, position = np.nonzero(known)
    scores[session, true_rows[session, position]] = true_probabilities[session, position]
    return scores


def chance(metrics: SessionMetrics, ks: Sequence[int] = KS) -> dict[str, Floats]:
    """Metric name -> [S] expectation under a random order of the session's candidates; NaN where undefined.

    Exact for binary relevance when every relevant intent is a candidate.
    """
    pairs = np.stack([metrics.impressions, metrics.positives], axis=1)
    distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
    table = [_expected(int(c), int(p), tuple(ks)) for c, p in distinct]
    names = list(metrics.values)
    columns = np.array([[row.get(name, np.nan) for name in names] for row in table]).reshape(len(table), len(names))
    expected = columns[inverse.reshape(-1)]
    return {
        name: np.where(np.isnan(metrics.values[name]), np.nan, expected[:, position])
        for position, name in enumerate(names)
    }


@lru_cache(maxsize=4096)
def _expected(candidates: int, positives: int, ks: tuple[int, ...]) -> dict[str, float]:
    """Expected metrics of a random order of C candidates, P of them relevant."""
    if positives == 0 or positives > candidates:
        return {}
    c, p = candidates, positives
    # P(the best of P has rank r) = C(c - r, p - 1) / C(c, p)
    first = sum(comb(c - r, p - 1) / comb(c, p) / r for r in range(1, c - p + 2))
    expected = {"auc": 0.5, "mrr_first": first, "mrr_all": sum(1 / r for r in range(1, c + 1)) / c}
    for k in ks:
        top = min(k, c)
        discounts = [1 / np.log2(1 + rank) for rank in range(1, top + 1)]
        expected[f"recall@{k}"] = top / c
        expected[f"hit_rate@{k}"] = 1 - comb(c - top, p) / comb(c, p)
        expected[f"ndcg@{k}"] = p / c * sum(discounts) / sum(discounts[: min(p, top)])
    return expected
