"""Ranking metrics against a plain definition, scikit-learn, ranx and hand-computed sessions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score, roc_auc_score

from rgalign.errors import DataError
from rgalign.metrics import ranking
from rgalign.metrics.ranking import session_metrics

KS = (1, 3, 5)


def padded(lists):
    rows = np.full((len(lists), max(map(len, lists))), -1)
    for session, values in enumerate(lists):
        rows[session, : len(values)] = values
    return rows


def defined(scores, relevant, candidates=None, ks=KS):
    """One session's metrics by sorting: the definition."""
    candidates = range(len(scores)) if candidates is None else sorted(set(candidates))
    order = sorted(candidates, key=lambda row: (-scores[row], row))
    rank = {row: place for place, row in enumerate(order, 1)}
    ranks = [rank.get(row, np.inf) for row in sorted(set(relevant))]
    metrics = {"mrr_first": 1 / min(ranks), "mrr_all": np.mean([1 / r for r in ranks])}
    for k in ks:
        ideal = sum(1 / np.log2(1 + place) for place in range(1, min(k, len(ranks)) + 1))
        metrics[f"recall@{k}"] = np.mean([r <= k for r in ranks])
        metrics[f"hit_rate@{k}"] = float(min(ranks) <= k)
        metrics[f"ndcg@{k}"] = sum(1 / np.log2(1 + r) for r in ranks if r <= k) / ideal
    pairs = [(scores[p], scores[n]) for p in relevant if p in rank for n in candidates if n not in relevant]
    metrics["auc"] = np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]) if pairs else np.nan
    return metrics


def assert_equals_definition(scores, relevant, candidates=None):
    rows = None if candidates is None else padded(candidates)
    found = session_metrics(scores, padded(relevant), rows, ks=KS)
    for session in range(len(scores)):
        expected = defined(scores[session], relevant[session], None if candidates is None else candidates[session])
        assert set(expected) == set(found.values)
        for name, value in expected.items():
            np.testing.assert_allclose(found.values[name][session], value, atol=1e-12, err_msg=f"{name} of {session}")


@pytest.mark.parametrize("levels", [3, 1000], ids=["many ties", "few ties"])
@pytest.mark.parametrize("listed", [False, True], ids=["catalogue", "candidates"])
@pytest.mark.parametrize("chunk", [1, 50, ranking.CHUNK], ids="chunk {}".format)
def test_equals_the_definition(levels, listed, chunk, monkeypatch):
    monkeypatch.setattr(ranking, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    scores = rng.integers(0, levels, (40, 17)).astype(np.float32) / levels
    relevant = [list(rng.choice(17, rng.integers(1, 6), replace=False)) for _ in scores]
    candidates = [list(rng.choice(17, rng.integers(1, 12))) for _ in scores] if listed else None
    assert_equals_definition(scores, relevant, candidates)


def test_ties_are_broken_by_row():
    found = session_metrics(np.zeros((1, 4)), np.array([[2]]))
    assert found.first_rank.tolist() == [3]
    assert found.values["mrr_first"].tolist() == [1 / 3]
    assert found.values["auc"].tolist() == [0.5]


def test_gauc_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (30, 11)).astype(np.float64)
    labels = rng.random((30, 11)) < 0.3
    labels[np.arange(30), rng.integers(0, 11, 30)] = True
    labels[:, 0] = False
    labels[0] = False  # no relevant intent
    labels[1] = True  # nothing else
    found = session_metrics(scores, padded([list(np.flatnonzero(row)) for row in labels]))
    expected = [roc_auc_score(y, s) if 0 < y.sum() < 11 else np.nan for y, s in zip(labels, scores, strict=True)]
    assert np.nanstd(expected) > 0.1
    np.testing.assert_allclose(found.values["auc"], expected, atol=1e-12)
    assert found.skipped("auc") == 2
    assert found.skipped("recall@3") == 1


def test_gauc_weights():
    # Session 0: 4 candidates, 1 relevant, auc 1; session 1: 2 candidates, 1 relevant, auc 0; session 2: 3, 2, auc 1/2.
    scores = np.array([[4.0, 3, 2, 1], [1, 2, 0, 0], [3, 2, 1, 0]])
    relevant = np.array([[0, -1], [0, -1], [0, 2]])
    candidates = np.array([[0, 1, 2, 3], [0, 1, -1, -1], [0, 1, 2, -1]])
    found = session_metrics(scores, relevant, candidates)
    assert found.values["auc"].tolist() == [1, 0, 0.5]
    assert found.mean("auc", "impressions") == pytest.approx((4 * 1 + 2 * 0 + 3 * 0.5) / 9)
    assert found.mean("auc", "positives") == pytest.approx((1 + 0 + 2 * 0.5) / 4)
    assert found.mean("auc", "uniform") == pytest.approx(0.5)


def test_graded_ndcg_equals_scikit_learn():
    scores, grades = golden()
    relevant = padded([list(np.flatnonzero(row)) for row in grades])
    of_relevant = np.where(relevant >= 0, np.take_along_axis(grades, np.maximum(relevant, 0), axis=1), 0).astype(float)
    found = session_metrics(scores, relevant, grades=of_relevant)
    assert (grades == 2).any()
    for k in KS:
        # scikit-learn's gains are linear, so it is given 2^y - 1.
        expected = [ndcg_score(2.0 ** y[None] - 1, s[None], k=k) for y, s in zip(grades, scores, strict=True)]
        np.testing.assert_allclose(found.values[f"ndcg@{k}"], expected, atol=1e-12)


def golden():
    """20 sessions, 12 intents, no ties, grades 0 to 2."""
    rng = np.random.default_rng(7)
    scores = rng.permuted(np.tile(np.arange(12.0), (20, 1)), axis=1) / 10
    grades = rng.choice([0, 0, 0, 0, 0, 0, 1, 1, 2], (20, 12))
    grades[np.arange(20), rng.integers(0, 12, 20)] = 1
    return scores, grades


# Computed once with ranx 0.3.21 on golden(); importing it compiles for minutes, too long for a test.
RANX = {
    "recall@1": 0.10085497835497836,
    "recall@3": 0.2421861471861472,
    "recall@5": 0.42353896103896116,
    "hit_rate@1": 0.45,
    "hit_rate@3": 0.8,
    "hit_rate@5": 0.9,
    "ndcg@1": 0.3833333333333333,
    "ndcg@3": 0.3177326887611523,
    "ndcg@5": 0.3804670428398921,
    "mrr_first": 0.6188095238095237,
}


@pytest.mark.parametrize("name", RANX)
def test_equals_ranx(name):
    scores, grades = golden()
    relevant = padded([list(np.flatnonzero(row)) for row in grades])
    of_relevant = np.where(relevant >= 0, np.take_along_axis(grades, np.maximum(relevant, 0), axis=1), 0).astype(float)
    found = session_metrics(scores, relevant, grades=of_relevant)
    assert found.mean(name) == pytest.approx(RANX[name], abs=1e-12)


def test_both_mrrs_by_hand():
    # ranks 2 and 4 of five
    found = session_metrics(np.array([[5.0, 4, 3, 2, 1]]), np.array([[1, 3]]))
    assert found.values["mrr_first"].tolist() == [1 / 2]
    assert found.values["mrr_all"].tolist() == [(1 / 2 + 1 / 4) / 2]
    assert found.values["recall@3"].tolist() == [0.5]
    assert found.values["hit_rate@3"].tolist() == [1]


def test_a_relevant_intent_that_is_no_candidate_is_missed():
    found = session_metrics(np.array([[3.0, 2, 1]]), np.array([[0, 2]]), np.array([[1, 2, -1]]))
    assert found.values["recall@3"].tolist() == [0.5]
    assert found.values["mrr_all"].tolist() == [0.25]
    assert found.values["auc"].tolist() == [0]
    nothing = session_metrics(np.array([[3.0, 2, 1]]), np.array([[0]]), np.array([[1, 2]]))
    assert nothing.values["mrr_first"].tolist() == [0]
    assert nothing.first_rank.tolist() == [0]
    assert np.isnan(nothing.values["auc"]).all()


def test_repeated_rows_count_once():
    once = session_metrics(np.array([[3.0, 2, 1]]), np.array([[1]]), np.array([[1, 2, 0]]))
    twice = session_metrics(np.array([[3.0, 2, 1]]), np.array([[1, 1]]), np.array([[1, 2, 0, 2, 1]]))
    assert twice.impressions.tolist() == [3]
    assert {name: values.tolist() for name, values in once.values.items()} == {
        name: values.tolist() for name, values in twice.values.items()
    }


def test_no_sessions_and_no_relevant_intents():
    assert np.isnan(session_metrics(np.zeros((0, 3)), np.zeros((0, 1), int)).mean("recall@3"))
    empty = session_metrics(np.zeros((2, 3)), np.full((2, 1), -1))
    assert empty.skipped("ndcg@3") == 2


def test_tensors_and_half_precision_keep_their_ties():
    scores = torch.tensor([[1.0, 1.001, 0.5]], dtype=torch.bfloat16)  # equal in bfloat16
    found = session_metrics(scores, np.array([[1]]))
    assert found.first_rank.tolist() == [2]


def test_infinities_are_scores():
    found = session_metrics(np.array([[-np.inf, np.inf, 0.0]]), np.array([[0]]))
    assert found.first_rank.tolist() == [3]


@pytest.mark.parametrize(
    ("scores", "relevant", "candidates", "message"),
    [
        ([[1.0, np.nan]], [[0]], None, "required no NaN; received NaN in sessions 0 to 0"),
        ([[1.0, np.nan]], [[0]], [[0, 1]], "required no NaN"),
        ([[1.0, 0.0]], [[2]], None, "relevant: required catalogue rows below 2"),
        ([[1.0, 0.0]], [[0]], [[-2]], "candidates: required catalogue rows"),
        ([[1.0, 0.0]], [[0], [1]], None, r"relevant: required rows \[1, \*\]"),
        ([[1, 0]], [[0]], None, "required floats"),
    ],
)
def test_rejects(scores, relevant, candidates, message):
    with pytest.raises(DataError, match=message):
        session_metrics(np.array(scores), np.array(relevant), None if candidates is None else np.array(candidates))


def test_nan_of_an_intent_that_is_not_ranked_is_not_looked_at():
    assert session_metrics(np.array([[1.0, np.nan]]), np.array([[0]]), np.array([[0]])).first_rank.tolist() == [1]


def test_rejects_grades_and_cut_offs():
    with pytest.raises(DataError, match="positive grades"):
        session_metrics(np.ones((1, 2)), np.array([[0]]), grades=np.array([[0.0]]))
    with pytest.raises(DataError, match="cut-offs"):
        session_metrics(np.ones((1, 2)), np.array([[0]]), ks=(0,))
