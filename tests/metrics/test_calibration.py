"""Calibration on scores whose true probabilities are known."""

import numpy as np
import pytest
import torch

from rgalign.errors import DataError
from rgalign.metrics import calibration
from rgalign.metrics.calibration import MAX_SCALE, cross_entropy, fit_scale, reliability, top_intent
from rgalign.metrics.significance import Resampling

FEW = Resampling(resamples=500)
TRUE_SCALE = 9.0


def sampled(num_sessions=4000, seed=0):
    """Scores whose softmax at TRUE_SCALE is the very distribution that the clicks are drawn from."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (num_sessions, 8))
    weights = np.exp(TRUE_SCALE * scores)
    cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    clicked = (rng.random((num_sessions, 1)) > cumulative).sum(axis=1)
    return scores, np.minimum(clicked, 7)[:, None]


def test_true_probabilities_are_calibrated_and_others_are_not():
    scores, clicked = sampled()
    found = {}
    for scale in (TRUE_SCALE, 4 * TRUE_SCALE, TRUE_SCALE / 4):
        top = top_intent(scores, clicked, None, scale)
        found[scale] = reliability(top.probability, top.outcome, how=FEW)
    assert found[TRUE_SCALE].ece.estimate < 0.03
    assert found[TRUE_SCALE].ece.low <= found[TRUE_SCALE].ece.estimate
    inside = [b.outcome.low <= b.probability <= b.outcome.high for b in found[TRUE_SCALE].bins]
    assert np.mean(inside) >= 0.8
    assert found[4 * TRUE_SCALE].ece.low > 0.1  # too sure
    assert found[TRUE_SCALE / 4].ece.low > 0.1  # not sure enough


def test_bins_are_filled_evenly_and_ece_is_their_mean_gap():
    scores, clicked = sampled(1000)
    top = top_intent(scores, clicked, None, 5.0)
    found = reliability(top.probability, top.outcome, num_bins=5, how=FEW)
    assert [b.num_sessions for b in found.bins] == [200] * 5
    gaps = [b.num_sessions * abs(b.outcome.estimate - b.probability) for b in found.bins]
    assert found.ece.estimate == pytest.approx(sum(gaps) / 1000)
    assert sum(b.num_sessions * b.outcome.estimate for b in found.bins) == pytest.approx(top.outcome.sum())


def test_equal_probabilities_make_one_bin():
    found = reliability(np.full(60, 0.5), np.repeat([0.0, 1.0], 30), how=FEW)
    assert len(found.bins) == 1
    assert found.ece.estimate == 0
    assert found.ece.high > 0


def test_clusters_widen_the_interval():
    scores, clicked = sampled(200)
    top = top_intent(np.repeat(scores, 8, axis=0), np.repeat(clicked, 8, axis=0), None, 20.0)
    single = reliability(top.probability, top.outcome, how=FEW).ece
    clustered = reliability(top.probability, top.outcome, np.repeat(np.arange(200), 8), how=FEW).ece
    assert clustered.high - clustered.low > 2 * (single.high - single.low)


@pytest.mark.parametrize("chunk", [8 * 4 * 100, calibration.CHUNK])
def test_fit_finds_the_true_scale(chunk, monkeypatch):
    monkeypatch.setattr(calibration, "CHUNK", chunk)
    scores, clicked = sampled()
    scale = fit_scale(scores, clicked)
    assert scale == pytest.approx(TRUE_SCALE, rel=0.05)
    best = cross_entropy(scores, clicked, None, scale).mean()
    assert best < cross_entropy(scores, clicked, None, scale * 1.01).mean()
    assert best < cross_entropy(scores, clicked, None, scale * 0.99).mean()


def test_fit_of_a_perfect_and_of_a_wrong_ranker_ends_at_the_bounds():
    scores = np.tile([1.0, 0.0, -1.0], (5, 1))
    assert fit_scale(scores, np.zeros((5, 1), int)) == MAX_SCALE
    assert fit_scale(scores, np.full((5, 1), 2)) == 0


@pytest.mark.filterwarnings("error")
def test_fit_at_scale_zero_leaves_out_what_is_no_candidate():
    scores = np.array([[0.1, 0.9, 5.0], [0.2, 0.8, 5.0]], np.float32)
    relevant, candidates = np.array([[0], [0]]), np.array([[0, 1], [0, 1]])
    assert fit_scale(scores, relevant, candidates) == 0.0  # the ranker is wrong in every list
    np.testing.assert_allclose(cross_entropy(scores, relevant, candidates, 0.0), np.log(2))


def test_cross_entropy_equals_torch_with_several_relevant_intents_and_candidates():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((6, 5))
    relevant = np.array([[0, 1], [2, -1], [3, 4], [0, 4], [1, -1], [0, -1]])
    candidates = np.array([[0, 1, 2, -1]] * 2 + [[1, 3, 4, 0]] * 4)
    expected = []
    for row, wanted, ranked in zip(scores, relevant, candidates, strict=True):
        kept = sorted(set(ranked) - {-1})
        target = torch.tensor([1.0 if c in wanted else 0.0 for c in kept], dtype=torch.float64)
        log_p = torch.log_softmax(3.0 * torch.tensor(row[kept]), dim=0)
        expected.append(float(-(target / target.sum() * log_p).sum()))
    np.testing.assert_allclose(cross_entropy(scores, relevant, candidates, 3.0), expected, atol=1e-12)


def test_top_intent_follows_the_tie_rule_and_shares_the_outcome():
    top = top_intent(np.zeros((2, 4)), np.array([[0, 3], [3, -1]]), None, 1.0)
    assert top.probability.tolist() == [0.25, 0.25]
    assert top.outcome.tolist() == [0.5, 0]
    listed = top_intent(np.zeros((1, 4)), np.array([[2]]), np.array([[3, 2, -1]]), 1.0)
    assert (listed.probability.tolist(), listed.outcome.tolist()) == ([0.5], [1])


def test_sessions_without_a_relevant_candidate_are_left_out():
    top = top_intent(np.zeros((3, 3)), np.array([[-1], [0], [0]]), np.array([[0], [1], [0]]), 1.0)
    assert top.session.tolist() == [2]
    assert np.isnan(cross_entropy(np.zeros((1, 3)), np.array([[0]]), np.array([[1]]), 1.0)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rejects(bad):
    with pytest.raises(DataError, match="finite scores"):
        top_intent(np.array([[0.0, bad]]), np.array([[0]]), None, 1.0)
    with pytest.raises(DataError, match="a session with a relevant candidate"):
        top_intent(np.zeros((1, 2)), np.array([[-1]]), None, 1.0)
    with pytest.raises(DataError, match="numbers from 0 to 1"):
        reliability(np.array([0.5, 1.5]), np.array([0.0, 1.0]))
