"""Chance and ceiling against simulation."""

import numpy as np
import pytest

from rgalign.errors import DataError
from rgalign.metrics.ceiling import chance, true_scores
from rgalign.metrics.ranking import session_metrics


@pytest.mark.parametrize(("num_candidates", "num_relevant"), [(9, 1), (9, 3), (4, 4), (2, 1)])
def test_chance_is_the_mean_over_random_orders(num_candidates, num_relevant):
    rng = np.random.default_rng(0)
    draws = 20_000
    scores = rng.random((draws, 12))
    relevant = np.tile(np.arange(num_relevant), (draws, 1))
    candidates = np.tile(np.arange(num_candidates), (draws, 1))
    metrics = session_metrics(scores, relevant, candidates)
    expected = chance(metrics)
    assert set(expected) == set(metrics.values)
    for name, values in metrics.values.items():
        if np.isnan(values).all():
            assert np.isnan(expected[name]).all()
            continue
        error = 4 * values.std() / np.sqrt(draws) + 1e-9
        assert values.mean() == pytest.approx(expected[name][0], abs=error), name


def test_chance_of_each_session_by_its_own_counts():
    metrics = session_metrics(
        np.zeros((3, 6)), np.array([[0, -1], [0, 1], [-1, -1]]), np.array([[0, 1, -1], [0, 1, 2], [0, 1, 2]])
    )
    assert chance(metrics)["recall@1"][:2].tolist() == [1 / 2, 1 / 3]
    assert np.isnan(chance(metrics)["recall@1"][2])


def test_true_scores_spread_the_rest_evenly():
    scores = true_scores(np.array([[2, 0], [1, -1]]), np.array([[0.6, 0.1], [0.7, 0.0]]), np.array([0.3, 0.3]), 4)
    np.testing.assert_allclose(scores, [[0.1, 0.15, 0.6, 0.15], [0.1, 0.7, 0.1, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


def test_true_probabilities_rank_better_than_anything_else():
    rng = np.random.default_rng(1)
    truth = rng.dirichlet(np.full(20, 0.2), 3000)
    relevant = np.array([rng.choice(20, p=p) for p in truth])[:, None]
    best = session_metrics(truth, relevant)
    noisy = session_metrics(truth + 0.5 * rng.random(truth.shape), relevant)
    for name in best.values:
        assert best.mean(name) > noisy.mean(name) > chance(best)[name].mean()


def test_rejects_negative_probabilities():
    with pytest.raises(DataError, match="probability >= 0"):
        true_scores(np.array([[0]]), np.array([[-0.1]]), np.array([1.1]), 2)
