"""NDCG@K of scores with ties, as the mean over all orders of what is tied (McSherry and Najork 2008).

    E[DCG] = sum_r (2^y_r - 1) (D(min(a_r + t_r, K)) - D(min(a_r, K))) / t_r,     D(n) = sum_{p <= n} 1 / log2(1 + p)

a_r: candidates scored above relevant intent r, t_r: those scored like it, itself among them. Divided by the DCG of the
best order. Without ties it is the ``ndcg@K`` of :mod:`rgalign.metrics.ranking`; y is 1 for a click.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.metrics.ranking import PADDING

Floats = NDArray[np.float64]
Rows = NDArray[np.integer[Any]]


def expected_ndcg(scores: NDArray[np.floating[Any]], relevant: Rows, candidates: Rows | None, k: int) -> Floats:
    """[S] expected NDCG@k, NaN without a relevant intent.

    Args:
        scores: [S, N] of the catalogue's intents, finite.
        relevant: [S, P] distinct catalogue rows padded with -1. One that is no candidate is missed, but stays in the
            ideal order.
        candidates: [S, C] distinct catalogue rows padded with -1; None: the whole catalogue.
    """
    present = relevant != PADDING
    own = np.take_along_axis(scores, np.where(present, relevant, 0), axis=1)
    listed = present
    ranked = scores
    if candidates is not None:
        shown = candidates != PADDING
        ranked = np.where(shown, np.take_along_axis(scores, np.where(shown, candidates, 0), axis=1), np.nan)
        listed = present & (relevant[:, :, None] == candidates[:, None, :]).any(axis=2)
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(2.0 + np.arange(k)))])
    gained = np.zeros(len(scores))
    for column in range(relevant.shape[1]):  # one or two clicks a session
        above = (ranked > own[:, column, None]).sum(axis=1)
        tied = np.maximum((ranked == own[:, column, None]).sum(axis=1), 1)
        share = (discounts[np.minimum(above + tied, k)] - discounts[np.minimum(above, k)]) / tied
        gained += np.where(listed[:, column], share, 0.0)
    ideal = discounts[np.minimum(present.sum(axis=1), k)]
    ndcg: Floats = np.divide(gained, ideal, out=np.full(len(scores), np.nan), where=ideal > 0)
    return ndcg


def margin(scores: NDArray[np.floating[Any]], relevant: Rows, candidates: Rows | None) -> Floats:
    """[S] best relevant candidate's score minus the best irrelevant one's; NaN where there is none of either."""
    listed = np.ones(scores.shape, np.bool_)
    if candidates is not None:
        listed = _marked(candidates, scores.shape)
    positive = _marked(relevant, scores.shape)
    best = np.where(listed & positive, scores, -np.inf).max(axis=1)
    other = np.where(listed & ~positive, scores, -np.inf).max(axis=1)
    defined = np.isfinite(best) & np.isfinite(other)
    return np.where(defined, best, np.nan) - np.where(defined, other, np.nan)


def _marked(rows: Rows, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    marked = np.zeros((shape[0], shape[1] + 1), np.bool_)  # padding marks the column behind the last
    np.put_along_axis(marked, np.where(rows == PADDING, shape[1], rows), True, axis=1)
    return marked[:, :-1]
