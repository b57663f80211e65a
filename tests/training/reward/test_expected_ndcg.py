"""Expected NDCG against the mean over every order of the tied, and against the metric without ties."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest

from rgalign.metrics.ranking import session_metrics
from rgalign.training.reward.expected_ndcg import expected_ndcg, margin


def by_enumeration(scores: list[float], relevant: set[int], candidates: list[int], k: int) -> float:
    """Mean NDCG over all orders in which scores never rise."""
    values = []
    for order in permutations(candidates):
        if all(scores[left] >= scores[right] for left, right in pairwise(order)):
            values.append(sum(1 / np.log2(2 + place) for place, row in enumerate(order[:k]) if row in relevant))
    return float(np.mean(values)) / sum(1 / np.log2(2 + place) for place in range(min(k, len(relevant))))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_the_mean_over_all_orders_of_ties(k: int) -> None:
    rng = np.random.default_rng(k)
    for _ in range(12):
        scores = rng.integers(3, size=6).astype(np.float32)
        relevant = rng.choice(6, size=rng.integers(1, 4), replace=False)
        candidates = np.sort(rng.choice(6, size=5, replace=False))
        whole = by_enumeration(scores.tolist(), set(relevant.tolist()), list(range(6)), k)
        listed = by_enumeration(scores.tolist(), set(relevant.tolist()), candidates.tolist(), k)
        assert expected_ndcg(scores[None], relevant[None], None, k)[0] == pytest.approx(whole, abs=1e-12)
        assert expected_ndcg(scores[None], relevant[None], candidates[None], k)[0] == pytest.approx(listed, abs=1e-12)


@pytest.mark.parametrize("listed", [False, True])
def test_without_ties_it_is_the_metric(listed: bool) -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(200, 30))
    relevant = np.array([rng.permutation(np.append(rng.choice(30, 3, replace=False), [-1, -1])) for _ in range(200)])
    relevant[:, 0] = np.where(rng.random(200) < 0.5, -1, relevant[:, 0])
    candidates = np.array([np.append(rng.choice(30, 12, replace=False), -1) for _ in range(200)]) if listed else None
    expected = session_metrics(scores, relevant, candidates, ks=(5,)).values["ndcg@5"]
    assert 0.05 < np.nanmean(expected) < 0.9
    np.testing.assert_allclose(expected_ndcg(scores, relevant, candidates, 5), expected, atol=1e-12)


def test_all_tied_is_chance_and_no_click_is_undefined() -> None:
    scores = np.zeros((2, 4), np.float32)
    relevant = np.array([[2, -1], [-1, -1]])
    ndcg = expected_ndcg(scores, relevant, None, 1)
    assert ndcg[0] == 0.25
    assert np.isnan(ndcg[1])


def test_margin_by_hand() -> None:
    scores = np.array([[0.1, 0.9, 0.4, 0.3]] * 5)
    relevant = np.array([[1, -1], [2, 3], [0, -1], [-1, -1], [1, -1]])
    candidates = np.array([[0, 1, 2, 3], [0, 2, 3, -1], [1, 2, 3, -1], [0, 1, 2, 3], [1, -1, -1, -1]])
    expected = [0.5, 0.3, np.nan, np.nan, np.nan]  # best of two clicks; click not listed; no click; nothing else
    np.testing.assert_allclose(margin(scores, relevant, candidates), expected, atol=1e-12)
    np.testing.assert_allclose(margin(scores, relevant, None)[:2], [0.5, -0.5], atol=1e-12)
